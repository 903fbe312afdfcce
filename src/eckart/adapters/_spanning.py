"""W₀ + ΔW through the factors of W₀ itself: what the methods on a full decomposition of the frozen weight share."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor, nn

from eckart.adapters._base import LowRankAdapter
from eckart.adapters._layers import LayerContext

TOLERANCE = 64
"""Up to so many units of rounding, of its norm, the product of the factors may differ from W₀."""


class SpanningAdapter(LowRankAdapter):
    """ΔW = B (C(θ) − diag(c)) A beside W₀ = B diag(c) A: where the factors hold all of W₀, a layer's input goes through
    A, C and B in the place of W₀, and neither the frozen product nor a branch is formed."""

    def __init__(self, layer: LayerContext) -> None:
        super().__init__(layer)
        self._compared: tuple[list[tuple[Tensor, int]], bool] = [], False

    def decomposition(self) -> tuple[Float[Tensor, "k in"], Float[Tensor, " k"], Float[Tensor, "out k"]]:
        """The frozen (A, c, B)."""
        raise NotImplementedError

    def core(self, h: Float[Tensor, "tokens k"], scaling: float) -> Float[Tensor, "tokens k"]:
        """``h (diag(c) + scaling · (C − diag(c)))ᵀ``."""
        raise NotImplementedError

    def core_cost(self, tokens: int) -> int:
        """Multiply–adds of a training step in `core`."""
        return 0

    def spans(self) -> bool:
        """Whether the model trains and B diag(c) A is the frozen weight up to rounding, compared once for each weight
        and its factors. In evaluation ΔW = 0 leaves the very bits of the frozen layer's output."""
        if not self.training:
            return False
        frozen, (a, c, b) = self.layer.base_weight, self.decomposition()
        if len(c) < self.layer.shape.max_rank or frozen.backend is not None or torch.compiler.is_compiling():
            return False
        weight = frozen.stored
        there = (weight.dtype, weight.device) == (a.dtype, a.device) and not weight.is_inference()
        if not there or a.is_meta or weight.requires_grad:
            return False
        now, (seen, same) = [(t, t._version) for t in (weight, a, c, b)], self._compared
        if len(seen) != len(now) or any(
            s[0] is not n[0] or s[1] != n[1] for s, n in zip(seen, now, strict=True)
        ):
            with torch.no_grad():
                matrix = self.layer.op.to_matrix(weight)
                bound = TOLERANCE * torch.finfo(a.dtype).eps * torch.linalg.matrix_norm(matrix)
                same = bool(torch.linalg.matrix_norm(torch.addmm(matrix, b * c, a, beta=-1)) <= bound)
            self._compared = now, same
        return same

    def folded(
        self,
        x: Float[Tensor, "tokens in"],
        weight: Float[Tensor, "out in"],
        bias: Float[Tensor, " out"] | None,
        scaling: float,
    ) -> Tensor | None:
        if not self.spans():
            return None
        if self.multiply_adds(len(x))[1] < self.span_cost(len(x)):
            return nn.functional.linear(x, self.fold(weight, scaling), bias)
        a, _, b = self.decomposition()
        h = self.core(x @ a.t(), scaling)
        return h @ b.t() if bias is None else torch.addmm(bias, h, b.t())

    def multiply_adds(self, tokens: int) -> tuple[int, int]:
        through, folded = super().multiply_adds(tokens)
        return through, self.with_span(tokens, folded)

    def with_span(self, tokens: int, folded: int) -> int:
        """What the folded route costs, where the factors may stand for the frozen weight."""
        if self.layer.op.kind != "linear" or not self.spans():
            return folded
        return min(folded, self.span_cost(tokens))

    def span_cost(self, tokens: int) -> int:
        """Multiply–adds of a training step through the factors beyond the frozen layer's."""
        shape = self.layer.shape
        products = 2 * tokens * shape.max_rank * (shape.in_features + shape.out_features)
        frozen = 2 * tokens * shape.out_features * shape.in_features
        return products + self.core_cost(tokens) - frozen
