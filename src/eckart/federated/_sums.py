"""What a server keeps of the updates of one layer: sums only, so that updates can be folded in as they arrive."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from eckart.errors import InputError
from eckart.federated._products import DTYPE, ProductSum


class LayerSum:
    """Weighted sums over clients of one layer, Σ n_k A_k, Σ n_k B_k and Σ n_k s_k B_k A_k.

    Factors of lower rank are padded with zeros in the first two; the third is exact whatever the ranks and scalings.
    Memory does not depend on the number of clients (see `ProductSum`).

    Args:
        stack: keep every client's factors in the third sum, as FLoRA needs; memory then grows with the clients.
    """

    def __init__(self, stack: bool = False) -> None:
        self.stack = stack
        self.clients, self.weight = 0, 0.0
        self.ranks: set[int] = set()
        self.scalings: set[float] = set()
        self._a: Tensor | None = None
        self._b: Tensor | None = None
        self._first_a: Tensor | None = None
        self._products: ProductSum | None = None
        self.frozen_a = True

    def add(
        self, a: Float[Tensor, "r in"], b: Float[Tensor, "out r"], weight: float, scaling: float = 1.0
    ) -> None:
        """Fold one client's factors in.

        Args:
            a: lora_A (r, in).
            b: lora_B (out, r).
            weight: n_k, at least 0; a client of weight 0 is ignored.
            scaling: s_k = α_k/r_k, what its model multiplies B A by.

        Raises:
            InputError: shapes that do not fit each other or the clients before, a rank of 0, NaN or infinity, a
                weight below 0. The sums are as they were.
        """
        self._check(a, b, weight, scaling)
        if weight == 0:
            return
        a, b = a.to(DTYPE), b.to(DTYPE)
        if self._a is None or self._b is None or self._products is None or self._first_a is None:
            self._a, self._b, self._first_a = torch.zeros_like(a), torch.zeros_like(b), a.clone()
            self._products = ProductSum(b.shape[0], a.shape[1], self.stack)
        if (more := a.shape[0] - self._a.shape[0]) > 0:
            self._a = torch.cat([self._a, self._a.new_zeros(more, self._a.shape[1])])
            self._b = torch.cat([self._b, self._b.new_zeros(self._b.shape[0], more)], 1)
        r = a.shape[0]
        self._a[:r].add_(a, alpha=weight)
        self._b[:, :r].add_(b, alpha=weight)
        self._products.add(b, a, weight * scaling)
        self.frozen_a = self.frozen_a and torch.equal(a, self._first_a)
        self.ranks.add(r)
        self.scalings.add(scaling)
        self.clients += 1
        self.weight += weight

    def _check(self, a: Tensor, b: Tensor, weight: float, scaling: float) -> None:
        if a.ndim != 2 or b.ndim != 2 or a.shape[0] != b.shape[1] or a.shape[0] == 0:
            raise InputError(
                f"factors have shapes A {tuple(a.shape)} and B {tuple(b.shape)}: give (r, in) and (out, r), r ≥ 1"
            )
        if self._a is not None and self._b is not None:
            expected = (self._b.shape[0], self._a.shape[1])
            if (b.shape[0], a.shape[1]) != expected:
                raise InputError(
                    f"factors are of a layer {(b.shape[0], a.shape[1])}, those before of {expected}: keep layers apart"
                )
        if not (math.isfinite(weight) and weight >= 0):
            raise InputError(f"weight is {weight}: give a number of examples, 0 or more")
        if not (math.isfinite(scaling) and scaling > 0):
            raise InputError(f"scaling is {scaling}: give a positive number, lora_alpha/r")
        if not (torch.isfinite(a).all() and torch.isfinite(b).all()):
            raise InputError("factors hold NaN or infinity: leave this client out")

    def _all(self) -> tuple[Tensor, Tensor, ProductSum]:
        if self._a is None or self._b is None or self._products is None:
            raise InputError("no client with a weight above 0: there is nothing to aggregate")
        return self._a, self._b, self._products

    def mean_a(self) -> Float[Tensor, "r in"]:
        """Ā = Σ p_k A_k, p_k = n_k/Σn, padded to the highest rank."""
        return self._all()[0] / self.weight

    def mean_b(self) -> Float[Tensor, "out r"]:
        """B̄ = Σ p_k B_k, padded to the highest rank."""
        return self._all()[1] / self.weight

    def update(self) -> ProductSum:
        """ΔW = Σ p_k s_k B_k A_k, what an exact aggregation gives."""
        return self._all()[2].scaled(1 / self.weight)

    def one_scaling(self, strategy: str, one_rank: bool = True) -> float:
        """The scaling that all clients share.

        Raises:
            InputError: the clients' scalings differ, or their ranks where they may not.
        """
        if one_rank and len(self.ranks) > 1:
            raise InputError(
                f"ranks are {sorted(self.ranks)}: {strategy} needs equal ranks, use flexlora, hetlora or flora-stacking"
            )
        if len(self.scalings) > 1:
            raise InputError(
                f"scalings are {sorted(self.scalings)}: {strategy} averages factors, so give every client the same "
                "lora_alpha/r"
            )
        return next(iter(self.scalings))


@dataclass(frozen=True)
class Aggregate:
    """What a strategy makes of one layer's updates.

    The server's model changes by scaling · B A + residual, relative to the base weight that clients trained on.

    Attributes:
        a, b: factors that the next round starts from, (r, in) and (out, r); None where clients start afresh.
        scaling: what their product is multiplied by.
        residual: what is added to the base weight everywhere; None where it stays.
    """

    a: Float[Tensor, "r in"] | None
    b: Float[Tensor, "out r"] | None
    scaling: float
    residual: ProductSum | None = None

    def update(self, out: int, inner: int) -> ProductSum:
        """scaling · B A + residual (out, in)."""
        total = ProductSum(out, inner)
        if self.residual is not None:
            total.merge(self.residual)
        if self.a is not None and self.b is not None:
            total.add(self.b, self.a, self.scaling)
        return total

    def factors_for(
        self, fresh: Float[Tensor, "r in"], out: int, scaling: float
    ) -> tuple[Float[Tensor, "r in"], Float[Tensor, "out r"]]:
        """The factors that a client starts its round from.

        Its first min(r, server's rank) rows are the server's, times √(server's scaling / client's) each; the rest is
        fresh in A and zero in B, so that they do nothing yet and can learn.

        Args:
            fresh: the random A of a client that starts afresh; its rows say the client's rank.
            out: rows of the layer's weight.
            scaling: the client's own α/r.
        """
        a, b = fresh.to(DTYPE).clone(), fresh.new_zeros(out, fresh.shape[0], dtype=DTYPE)
        if self.a is not None and self.b is not None:
            r, ratio = min(len(a), len(self.a)), math.sqrt(self.scaling / scaling)
            a[:r], b[:, :r] = ratio * self.a[:r], ratio * self.b[:, :r]
        return a, b
