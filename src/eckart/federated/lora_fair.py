"""LoRA-FAIR: average the factors, then add to B̄ the correction that brings the product nearest to the mean product.

    B̄' = B̄ + ΔB,   ΔB = argmin ‖ΔW/s − (B̄ + ΔB) Ā‖² + λ‖ΔB‖² = (ΔW Āᵀ/s − B̄ Ā Āᵀ)(Ā Āᵀ + λ I)⁻¹        "ridge"
                    ΔB = argmin 1 − cos((B̄ + ΔB) Ā, ΔW) + λ‖ΔB‖², by gradient descent                      "sgd"

    ΔW = Σ p_k s_k B_k A_k (out, in), never formed while its stacked factors are smaller     Ā (r, in)     B̄ (out, r)

Source: Bian, Wang, Zhang & Xu, ICCV 2025, arXiv:2411.14961. The closed form is ours.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, NamedTuple, get_args

import torch
from jaxtyping import Float
from torch import Tensor

from eckart.errors import InputError
from eckart.federated._products import DTYPE, ProductSum
from eckart.federated._registry import FederatedStrategy, register_strategy
from eckart.federated._sums import Aggregate, LayerSum

Solver = Literal["ridge", "sgd"]
Discrepancy = Literal["matrix", "columns"]
Start = Literal["zero", "xavier"]


class Slope(NamedTuple):
    """A loss and its gradient in ΔB."""

    loss: float
    gradient: Float[Tensor, "out r"]


def ridge(
    update: ProductSum, mean_a: Float[Tensor, "r in"], mean_b: Float[Tensor, "out r"], lam: float
) -> Float[Tensor, "out r"]:
    """ΔB = (ΔW Āᵀ − B̄ Ā Āᵀ)(Ā Āᵀ + λ tr(Ā Āᵀ)/r · I)⁻¹; at λ = 0 the least-squares solution of least norm.

    Args:
        update: ΔW/s.
        mean_a: Ā.
        mean_b: B̄.
        lam: λ, relative to the mean eigenvalue of Ā Āᵀ, so that it does not depend on the size of A.
    """
    gram = mean_a @ mean_a.mT
    miss = update.times(mean_a.mT) - mean_b @ gram
    values, vectors = torch.linalg.eigh(gram)
    values = values.clamp_min(0)
    inverse = torch.where(
        values > len(values) * torch.finfo(DTYPE).eps * values.max(),
        1 / (values + lam * values.mean()),
        0.0,
    )
    correction: Tensor = (miss @ vectors * inverse) @ vectors.mT
    return correction


class Discrepancies:
    """1 − cos of the corrected product and ΔW, and its gradient, from products with the factors alone.

    Args:
        update: ΔW/s.
        mean_a: Ā.
        mean_b: B̄.
        discrepancy: the cosine of the whole matrices, or the mean of those of their columns (zero columns left out).
        lam: λ of λ‖ΔB‖².
    """

    def __init__(
        self,
        update: ProductSum,
        mean_a: Float[Tensor, "r in"],
        mean_b: Float[Tensor, "out r"],
        discrepancy: Discrepancy,
        lam: float,
    ) -> None:
        self.update, self.a, self.b, self.kind, self.lam = update, mean_a, mean_b, discrepancy, lam
        self.gram, self.target = mean_a @ mean_a.mT, update.times(mean_a.mT)
        self.norms = update.column_norms()
        self.norm = float(self.norms.norm())

    def defined(self) -> bool:
        """Whether there is a cosine to speak of: neither ΔW nor B̄ Ā is zero."""
        return self.norm > 0 and bool((self.b @ self.gram).any())

    def __call__(self, delta_b: Float[Tensor, "out r"]) -> Slope:
        """The loss and its gradient at ΔB."""
        b = self.b + delta_b
        cosine, slope = self._matrix(b) if self.kind == "matrix" else self._columns(b)
        return Slope(1 - cosine + self.lam * float(delta_b.square().sum()), 2 * self.lam * delta_b - slope)

    def _matrix(self, b: Float[Tensor, "out r"]) -> tuple[float, Float[Tensor, "out r"]]:
        length = math.sqrt(max(float((b.mT @ b * self.gram).sum()), 0.0))
        if length == 0:
            return 0.0, torch.zeros_like(b)
        cosine = float((b * self.target).sum()) / (length * self.norm)
        return cosine, self.target / (length * self.norm) - cosine / length**2 * (b @ self.gram)

    def _columns(self, b: Float[Tensor, "out r"]) -> tuple[float, Float[Tensor, "out r"]]:
        lengths = ((b.mT @ b) @ self.a * self.a).sum(0).clamp_min(0).sqrt()
        inner = (self.update.transposed_times(b).mT * self.a).sum(0)
        live = (lengths > 0) & (self.norms > 0)
        size = torch.where(live, lengths * self.norms, 1.0)
        cosines = torch.where(live, inner / size, 0.0)
        count = max(int(live.sum()), 1)
        toward = self.update.times((self.a * (live / size)).mT)
        shrink = torch.where(live, cosines / torch.where(live, lengths, 1.0).square(), 0.0)
        return float(cosines.sum()) / count, (toward - b @ (self.a * shrink @ self.a.mT)) / count


def descend(
    discrepancies: Discrepancies, start: Float[Tensor, "out r"], lr: float, steps: int
) -> Float[Tensor, "out r"]:
    """ΔB after plain gradient descent, ΔB ← ΔB − lr ∂(1 − cos + λ‖ΔB‖²).

    Args:
        discrepancies: the loss.
        start: ΔB to start from.
        lr: step size.
        steps: how many.

    Raises:
        InputError: the descent left the finite numbers.
    """
    delta_b = start.to(DTYPE).clone()
    for _ in range(steps):
        delta_b -= lr * discrepancies(delta_b).gradient
    if not torch.isfinite(delta_b).all():
        raise InputError(f"lr is {lr}: the descent of LoRA-FAIR diverged, lower it or use solver='ridge'")
    return delta_b


def xavier(out: int, r: int, seed: int) -> Float[Tensor, "out r"]:
    """Uniform noise on ±√(6/(out + r)), the start of the official lineage."""
    generator = torch.Generator().manual_seed(seed)
    noise = torch.rand(out, r, generator=generator, dtype=DTYPE)
    return (2 * noise - 1) * math.sqrt(6 / (out + r))


@register_strategy(
    "lora-fair",
    title="LoRA-FAIR",
    paper="Bian et al., 2025",
    arxiv="2411.14961",
    trains="A and B",
    saves="one LoRA",
)
@dataclass(frozen=True)
class LoRAFAIR(FederatedStrategy):
    """Average the factors and correct B̄ towards the mean product: FedIT's bytes, a part of its bias removed.

    Args:
        solver: "ridge", closed and deterministic; or "sgd", the paper's descent on 1 − cos.
        lam: λ; for "ridge" relative to the mean eigenvalue of Ā Āᵀ.
        discrepancy: of "sgd": the cosine of the whole matrix, or the mean over its columns.
        start: of "sgd": zero, or the noise of the official lineage.
        lr: of "sgd": step size.
        steps: of "sgd": how many.
        seed: of the noise.

    Raises:
        InputError: an unknown choice, or a number out of range.
    """

    solver: Solver = "ridge"
    lam: float = 0.01
    discrepancy: Discrepancy = "matrix"
    start: Start = "zero"
    lr: float = 0.01
    steps: int = 1000
    seed: int = 0

    def __post_init__(self) -> None:
        for name, choices in (("solver", Solver), ("discrepancy", Discrepancy), ("start", Start)):
            if getattr(self, name) not in get_args(choices):
                raise InputError(
                    f"{name} is {getattr(self, name)!r}: choose {' or '.join(get_args(choices))}"
                )
        if not 0 <= self.lam < math.inf:
            raise InputError(f"lam is {self.lam}: give 0 or more")
        if not 0 < self.lr < math.inf:
            raise InputError(f"lr is {self.lr}: give a positive number")
        if self.steps < 1:
            raise InputError(f"steps is {self.steps}: give at least 1")
        moved = [
            name
            for name in ("discrepancy", "start", "lr", "steps")
            if getattr(self, name) != getattr(type(self), name)
        ]
        if self.solver == "ridge" and moved:
            raise InputError(f"{moved[0]} is {getattr(self, moved[0])}: it belongs to solver='sgd'")

    def finish(self, sums: LayerSum) -> Aggregate:
        """(Ā, B̄ + ΔB)."""
        a, b, scaling = sums.mean_a(), sums.mean_b(), sums.one_scaling(self.slug)
        update = sums.update().scaled(1 / scaling)
        if self.solver == "ridge":
            return Aggregate(a, b + ridge(update, a, b, self.lam), scaling)
        discrepancies = Discrepancies(update, a, b, self.discrepancy, self.lam)
        if not discrepancies.defined():
            return Aggregate(a, b, scaling)
        start = torch.zeros_like(b) if self.start == "zero" else xavier(b.shape[0], b.shape[1], self.seed)
        return Aggregate(a, b + descend(discrepancies, start, self.lr, self.steps), scaling)
