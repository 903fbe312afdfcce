"""The contract of an adapter: ΔW for one frozen weight, and the faster routes to the same numbers."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from types import MappingProxyType
from typing import Any, ClassVar, TypeVar

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from eckart.adapters._layers import LayerContext
from eckart.errors import InputError

M = TypeVar("M", bound=nn.Module)
_THIN = 16


class Adapter(nn.Module):
    """ΔW(θ) of one frozen weight ``(out, in)``. ``delta_weight`` is the definition, ``forward`` a faster route.

    Parameters are flat attributes (no nesting) and train; buffers are frozen. A buffer that is registered with
    ``persistent=True`` is saved: only what cannot be rebuilt from the seed or the base weight may be.
    Parameters and buffers are made in float32 (float64 where the weight is) and follow the base's dtype later.
    """

    recompute: bool = False  # rebuild ΔW in the backward pass instead of keeping it
    lr_scale: Mapping[str, float] = MappingProxyType({})  # factors on the learning rate, by parameter name

    def __init__(self, layer: LayerContext) -> None:
        super().__init__()
        self.layer = layer
        self.shared: dict[str, Any] = {}  # no ModuleDict: what other layers own is not registered here
        self.base_check: list[float] = []

    def share(self, name: str, make: Callable[[], M], *key: object) -> M:
        """A module that layers of this adapter have in common, also found as ``self.shared[name]``.

        The first layer that asks makes and owns it: there its parameters count, train and are saved, once, as the
        attribute ``name``.

        Args:
            name: of the attribute.
            make: makes the module.
            key: what tells one such module from another, where layers have several.
        """
        module, owner = self.layer.pool.module((name, *key), make)
        if owner:
            self.add_module(name, module)
        self.shared[name] = module
        return module

    def once(self, name: str) -> Any:
        """The output of a shared module, called without arguments once a forward pass of the model for all layers,
        such as one transform of a global vector; outside of a forward and its backward pass, called now."""
        return self.layer.pool.output(self.shared[name])

    @property
    def dtype(self) -> torch.dtype:
        """The dtype the adapter computes in: that of its first parameter, or of the first shared one."""
        return next((parameter.dtype for parameter in self._own_parameters()), torch.float32)

    @property
    def device(self) -> torch.device:
        """Where its first parameter lies."""
        return next((parameter.device for parameter in self._own_parameters()), torch.device("cpu"))

    def _own_parameters(self) -> Iterator[nn.Parameter]:
        yield from (parameter for parameter in self._parameters.values() if parameter is not None)
        for module in self.shared.values():
            yield from module.parameters()

    @property
    def idle(self) -> bool:
        """Whether ΔW is zero whatever the parameters are, so that the layer may leave it out."""
        return False

    def delta_weight(self) -> Float[Tensor, "out in"]:
        """The exact ΔW, differentiable in the parameters."""
        raise NotImplementedError

    def delta_bias(self) -> Float[Tensor, " out"] | None:
        """What is added to the layer's bias, differentiable in the parameters; None where the bias stays as it is."""
        return None

    def regularization(self) -> Float[Tensor, ""] | None:
        """The penalty of one layer that the method adds to the loss, before its factor; None where it has none."""
        return None

    def forward(self, x: Tensor) -> Tensor:
        """The branch ``x ΔWᵀ`` (or the layer's convolution or look-up with ΔW) for the layer's own input."""
        delta = self.delta_weight().reshape(self.layer.shape.weight)
        return self.layer.op.apply(x, delta.to(x.dtype) if x.is_floating_point() else delta)

    def add_to(self, y: Tensor, x: Tensor, scaling: float) -> Tensor:
        """``y + scaling · forward(x)``, fused where a method can."""
        if self.recompute and torch.is_grad_enabled():
            branch = checkpoint(self, x, use_reentrant=False, preserve_rng_state=False)
        else:
            branch = self(x)
        return torch.add(y, branch, alpha=scaling)

    def fold(self, weight: Float[Tensor, "out in"], scaling: float) -> Float[Tensor, "out in"]:
        """``weight + scaling · ΔW``, fused where a method can."""
        return torch.add(weight, self.delta_weight().to(weight.dtype), alpha=scaling)

    def folded(
        self,
        x: Float[Tensor, "tokens in"],
        weight: Float[Tensor, "out in"],
        bias: Float[Tensor, " out"] | None,
        scaling: float,
    ) -> Tensor | None:
        """``x (weight + scaling · ΔW)ᵀ + bias`` of a linear layer in the method's own way; None where it has none."""
        return None

    def multiply_adds(self, tokens: int) -> tuple[int, int]:
        """Multiply–adds of a training step (forward and backward) beyond the frozen layer's, for the routes
        (factored, folded). Without a factored route the folded one always wins."""
        return self.fold_cost(tokens) + 1, self.fold_cost(tokens)

    def fold_cost(self, tokens: int) -> int:
        """The folded route: the gradient of the dense weight, beside building it."""
        shape = self.layer.shape
        return tokens * shape.out_features * shape.in_features

    def randomize(self) -> None:
        """Move every parameter to a random point near its start (``init_weights=False``)."""
        with torch.no_grad():
            for parameter in self.parameters():
                parameter.add_(torch.randn_like(parameter), alpha=0.1)


class LowRankAdapter(Adapter):
    """ΔW = scale · B A with ``A (r, in)`` and ``B (out, r)``: a method only says what its factors are.

    Of the r directions only those count whose entry in ``active`` is true; None is all of them. So ranks grow and
    shrink without a parameter appearing or going, and optimisers, DDP and torch.compile never notice.

    A rule may also set ``gate``, one differentiable number by which ΔW is multiplied; it is not saved.
    """

    scale: float = 1.0
    active: Tensor | None
    gate: Float[Tensor, ""] | None = None
    own_directions: ClassVar[bool] = False  # each has numbers of its own, which start so that it adds nothing

    def __init__(self, layer: LayerContext) -> None:
        super().__init__(layer)
        self.register_buffer("active", None)
        self._active_rank: int | None = None

    def factors(self) -> tuple[Float[Tensor, "r in"], Float[Tensor, "out r"]]:
        """The factors (A, B), differentiable in the parameters."""
        raise NotImplementedError

    @property
    def factor_rank(self) -> int:
        """Rows of A."""
        raise NotImplementedError

    @property
    def active_rank(self) -> int:
        """How many directions count."""
        if self._active_rank is None:
            self._active_rank = self.factor_rank if self.active is None else int(self.active.sum())
        return self._active_rank

    def set_active(self, active: Bool[Tensor, " r"]) -> None:
        """Choose the directions that count.

        Raises:
            InputError: not one boolean for each direction.
        """
        if active.shape != (self.factor_rank,) or active.dtype != torch.bool:
            raise InputError(
                f"active of layer {self.layer.shape.name} is {active.dtype} of shape {tuple(active.shape)}: give "
                f"{self.factor_rank} booleans"
            )
        self._active_rank = int(active.sum())
        self.active = active.to(self.device, copy=True)

    @property
    def idle(self) -> bool:
        return self.active is not None and not self.active_rank

    def _active(self, h: Tensor, dim: int) -> Tensor:
        """``h`` times the gate, with the directions that do not count, along ``dim``, at zero."""
        if self.gate is not None:
            h = h * self.gate.to(h.dtype)
        if self.active is None:
            return h
        return h * self.active.to(h.dtype).view(-1, *(1 for _ in range(h.dim() - dim % h.dim() - 1)))

    def delta_weight(self) -> Float[Tensor, "out in"]:
        a, b = self.factors()
        return self.scale * (b @ self._active(a, 0))

    def forward(self, x: Tensor) -> Tensor:
        h, b_t = self.project(x)
        return self.expand(self._active(h, self.layer.op.channels) * self.scale, b_t)

    @property
    def is_plain(self) -> bool:
        """Whether the branch is the product of the input with the two factors, and nothing else."""
        return self._ends_plainly and type(self).project is LowRankAdapter.project

    @property
    def _ends_plainly(self) -> bool:
        """Whether the branch of a linear layer is the product of what `project` gives, and nothing else."""
        own = type(self).expand is LowRankAdapter.expand and type(self).forward is LowRankAdapter.forward
        return own and self.layer.op.kind == "linear"

    def add_to(self, y: Tensor, x: Tensor, scaling: float) -> Tensor:
        if not self._ends_plainly or y.dim() != 2:
            return super().add_to(y, x, scaling)
        h, b_t = self.project(x)
        if y.dtype != h.dtype:
            return torch.add(y, self.expand(self._active(h, -1), b_t), alpha=scaling * self.scale)
        return torch.addmm(y, self._active(h, -1), b_t.to(h.dtype), alpha=scaling * self.scale)

    def scaled_factors(
        self, scaling: float, dtype: torch.dtype
    ) -> tuple[Float[Tensor, "r in"], Float[Tensor, "out r"]]:
        """A and B with ``scaling · ΔW = B A``."""
        a, b = (factor.to(dtype) for factor in self.factors())
        return self._active(a, 0), (scaling * self.scale) * b

    def fold(self, weight: Float[Tensor, "out in"], scaling: float) -> Float[Tensor, "out in"]:
        a, b = (factor.to(weight.dtype) for factor in self.factors())
        a, alpha = self._active(a, 0), scaling * self.scale
        if self.layer.op.stored_transposed:
            # Keep the weight's memory layout, and so the bits of its products.
            return torch.addmm(weight.t(), a.t(), b.t(), alpha=alpha).t()
        return torch.addmm(weight, b, a, alpha=alpha)

    def project(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """The input through A, and Bᵀ ``(r, out)``: ``(x Aᵀ, Bᵀ)``."""
        a, b = self.factors()
        a = a.to(x.dtype) if x.is_floating_point() else a
        op, (_, *rest) = self.layer.op, self.layer.shape.weight
        if op.kind != "conv":
            return op.apply(x, a), in_rows(b.t())
        kernel = a.reshape(a.shape[0], *rest).repeat(op.groups, *(1 for _ in rest))
        return op.apply(x, kernel), b.t()

    def expand(self, h: Tensor, b_t: Float[Tensor, "r out"]) -> Tensor:
        """``h Bᵀ``; for a convolution a pointwise one."""
        if self.layer.op.kind != "conv":
            return h @ b_t.to(h.dtype)
        spatial = len(self.layer.shape.weight) - 2
        convolution = (nn.functional.conv1d, nn.functional.conv2d, nn.functional.conv3d)[spatial - 1]
        kernel = b_t.t().reshape(*b_t.shape[::-1], *(1 for _ in range(spatial))).to(h.dtype)
        return convolution(h, kernel, groups=self.layer.op.groups)

    def multiply_adds(self, tokens: int) -> tuple[int, int]:
        shape, r = self.layer.shape, self.active_rank
        through = 3 * tokens * r * (shape.in_features + shape.out_features)
        building = 3 * r * shape.in_features * shape.out_features
        return through, self.fold_cost(tokens) + building

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        stored = state_dict.get(f"{prefix}active")
        if stored is not None and self.active is None:
            self.set_active(torch.ones(self.factor_rank, dtype=torch.bool))
        super()._load_from_state_dict(state_dict, prefix, *args)
        self._active_rank = None


def in_rows(matrix: Float[Tensor, "r n"]) -> Float[Tensor, "r n"]:
    """A trained matrix, laid out row by row where these are few: the products for its gradient and its input's take a
    fraction of the time, a tenth at r = 3."""
    return matrix.contiguous() if len(matrix) < _THIN else matrix
