"""ΔW = B diag(d) A with frozen factors: what SVFit and LoLDU share."""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor

from eckart.adapters._spanning import SpanningAdapter


class DiagonalAdapter(SpanningAdapter):
    """ΔW = B diag(d(θ)) A with ``A (r, in)`` and ``B (out, r)`` frozen: the input goes through A, is scaled by d and
    goes through B, so that only ``x Aᵀ`` is kept for the backward pass and no gradient of a factor is formed."""

    own_directions = True

    def basis(self) -> tuple[Float[Tensor, "r in"], Float[Tensor, "out r"]]:
        """The frozen factors (A, B)."""
        raise NotImplementedError

    def diagonal(self) -> Float[Tensor, " r"]:
        """d(θ), zero at the start."""
        raise NotImplementedError

    def core(self, h: Float[Tensor, "tokens k"], scaling: float) -> Float[Tensor, "tokens k"]:
        _, c, _ = self.decomposition()
        return h * (c + (scaling * self.scale) * self._active(self.diagonal(), 0))

    def factors(self) -> tuple[Float[Tensor, "r in"], Float[Tensor, "out r"]]:
        (a, b), d = self.basis(), self.diagonal()
        return d.unsqueeze(1) * a, b.to(d.dtype)

    def project(self, x: Tensor) -> tuple[Tensor, Tensor]:
        if self.layer.op.kind == "conv":
            return super().project(x)
        a, b = self.basis()
        h = self.layer.op.apply(x, a.to(x.dtype) if x.is_floating_point() else a)
        return h * self.diagonal().to(h.dtype), b.t()

    def multiply_adds(self, tokens: int) -> tuple[int, int]:
        shape, r = self.layer.shape, self.factor_rank
        through = 2 * tokens * r * (shape.in_features + shape.out_features)
        building = 2 * r * shape.in_features * shape.out_features
        return through, self.with_span(tokens, self.fold_cost(tokens) + building)

    @property
    def factor_rank(self) -> int:
        return self.basis()[0].shape[0]
