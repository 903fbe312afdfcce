"""The layer that stands in a model for each frozen one: its routes, and what a merge is held to."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from eckart.adapters._adapted import AdaptedWeight
from eckart.adapters._base import LowRankAdapter
from eckart.adapters._census import is_plain, probe_input
from eckart.adapters._layers import FrozenWeight, LayerOp, LayerShape
from eckart.adapters._seams import add_through_seam, hooked, perturbed, through_seam
from eckart.errors import InputError

BASE = "__base__"
"""In a mixed batch the name of a row that takes no adapter."""
_WIDE = (torch.float32, torch.float64)


class EckartLayer(AdaptedWeight):
    """A frozen layer and its adapters: y = base(x) + Σ x ΔWᵀ, by the cheaper of two routes to the same numbers."""

    def __init__(self, base_layer: nn.Module, shape: LayerShape, op: LayerOp, frozen: FrozenWeight) -> None:
        super().__init__(base_layer, shape, op, frozen)
        self.cast_input_dtype_enabled = True  # turned off by peft.helpers.disable_input_dtype_casting
        self._foldable = is_plain(base_layer) and frozen.backend is None and op.padding_idx is None

    def __getattr__(self, name: str) -> Any:
        """What the frozen layer has and this one has not, such as the stride of a convolution."""
        try:
            return super().__getattr__(name)
        except AttributeError:
            if name.startswith("_") or "base_layer" not in self._modules:
                raise
            return getattr(self._modules["base_layer"], name)

    def forward(
        self, x: Tensor, *args: Any, adapter_names: Sequence[str] | None = None, **kwargs: Any
    ) -> Tensor:
        if self._disable_adapters and self.merged_adapters:
            self.unmerge()
        if adapter_names is not None and not self._disable_adapters:
            return self._mixed(x, adapter_names, *args, **kwargs)
        if not (names := self.acting()):
            return cast(Tensor, self.base_layer(x, *args, **kwargs))
        if not args and not kwargs and not self.merged_adapters and self._is_plain():
            if self.op.kind == "linear" and x.dim() > 2:  # one flat product instead of several reshaped ones
                return self.forward(x.flatten(0, -2)).view(*x.shape[:-1], self.shape.out_features)
            if self._folds(x, names):
                return self._folded(x, names)
            dense = [c for c in map(self._companion, names) if c and not isinstance(c, LowRankAdapter)]
            if dense:
                return self._add_branches(perturbed(self, x, dense), x, names, perturbed=True)
        result: Tensor = self.base_layer(x, *args, **kwargs)
        return self._add_branches(result, x, names)

    def _add_branches(
        self, result: Tensor, x: Tensor, names: Sequence[str], perturbed: bool = False
    ) -> Tensor:
        """The base layer's result and the branches of some adapters, in the result's dtype; ``perturbed`` where dense
        companions are in the result already."""
        dtype = result.dtype
        if self.frozen.backend is not None:
            result = self.frozen.backend.maybe_clone_base_result(result)
        scale = self._get_embed_scale() if self.op.kind == "embedding" else None  # type: ignore[no-untyped-call]
        for name in names:
            result = self._add_branch(result, x, name, scale, perturbed)
        return result.to(dtype)

    def _mixed(self, x: Tensor, names: Sequence[str], *args: Any, **kwargs: Any) -> Tensor:
        """A batch each of whose rows has an adapter of its own, or none."""
        if self.merged_adapters:
            raise InputError(
                f"adapter_names is given while {self.merged_adapters[0]!r} is merged: unmerge it first"
            )
        result: Tensor = self.base_layer(x, *args, **kwargs)
        pieces = result.clone()
        for name in {name for name in names if name in self.eckart_adapters}:
            rows = torch.tensor([row for row, own in enumerate(names) if own == name], device=x.device)
            pieces[rows] = self._add_branches(result[rows], x[rows], [name])
        return pieces

    def _is_plain(self) -> bool:
        """Whether the base layer is nothing but its weight, its bias and its operation."""
        return self._foldable and not hooked(self.base_layer) and "forward" not in self.base_layer.__dict__

    def _folds(self, x: Tensor, names: list[str]) -> bool:
        """Whether one product with W₀ + ΔW is asked for or, when the route is free, cheaper without losing digits."""
        asked = False
        for name in names:
            config = self.configs[name]
            if config.route == "factored" or (config.dropout and self.training):
                return False
            if hooked(self.adapter(name)):
                return False
            asked = asked or config.route == "folded"
        weight = self.frozen.stored
        if asked or weight.dtype not in _WIDE or torch.is_autocast_enabled(weight.device.type):
            return asked
        tokens = x.numel() if self.op.kind == "embedding" else x.numel() // x.shape[self.op.channels]
        costs = [self.adapter(name).multiply_adds(tokens) for name in names]
        return sum(factored - folded for factored, folded in costs) > 0

    def _folded(self, x: Tensor, names: list[str]) -> Tensor:
        if len(names) == 1 and (y := self._by_method(x, names[0])) is not None:
            return y

        def product(x: Tensor) -> Tensor:
            weight, bias = self.changed(names)
            return self.op.apply(x, weight.reshape(self.shape.weight), bias)

        if torch.is_grad_enabled() and any(self.adapter(name).recompute for name in names):
            return cast(Tensor, checkpoint(product, x, use_reentrant=False, preserve_rng_state=False))
        return product(x)

    def _by_method(self, x: Tensor, name: str) -> Tensor | None:
        """One product with W₀ + ΔW in the way that the method alone knows; None where it knows none."""
        weight = self.frozen.stored
        plain = self.op.kind == "linear" and x.dim() == 2 and x.dtype == weight.dtype and x.dtype in _WIDE
        if not plain or weight.requires_grad or torch.is_autocast_enabled(weight.device.type):
            return None
        if name in self.seams or self._companion(name) is not None:
            return None
        bias = getattr(self.base_layer, "bias", None)
        return self.adapter(name).folded(x, self.op.to_matrix(weight), bias, self.scaling[name])

    def _add_branch(
        self, result: Tensor, x: Tensor, name: str, embed_scale: Tensor | None, perturbed: bool
    ) -> Tensor:
        """The result and one adapter's branch, by the factored route."""
        adapter, scaling, seam = self.adapter(name), self.scaling[name], self.seams.get(name)
        branch = x
        if x.is_floating_point():
            p = self.configs[name].dropout
            branch = nn.functional.dropout(x, p) if p and self.training else x
            branch = self._cast_input_dtype(branch, adapter.dtype)
        added = None
        if embed_scale is None and self.op.padding_idx is None and not hooked(adapter):
            if seam is None:
                added = adapter.add_to(result, branch, scaling)
            else:
                added = add_through_seam(seam, adapter, result, branch, scaling)
        if added is not None:
            result = added
        else:
            y = adapter(branch) if seam is None else through_seam(seam, adapter, branch)
            y = y if self.op.padding_idx is None else y * (x != self.op.padding_idx).unsqueeze(-1)
            result = torch.add(
                result, y if embed_scale is None else embed_scale.to(y.dtype) * y, alpha=scaling
            )
        if (companion := self._companion(name)) is not None:
            whole = self._cast_input_dtype(x, adapter.dtype) if x.is_floating_point() else x
            if isinstance(companion, LowRankAdapter):
                result = companion.add_to(result, whole, 1.0)
            elif not perturbed:
                delta = companion.delta_weight().reshape(self.shape.weight).to(branch.dtype)
                result = result + self.op.apply(whole, delta)
        if (bias := adapter.delta_bias()) is not None:
            over = [1] * (len(self.shape.weight) - 2) if self.op.kind == "conv" else []
            result = result + scaling * bias.to(result.dtype).view(-1, *over)
        return result

    @torch.no_grad()
    def _merge(self, name: str, safe_merge: bool) -> None:
        merged = self._merged(name, safe_merge)
        base: Any = self.get_base_layer()
        before, bias_before, expected = base.weight, getattr(base, "bias", None), self._expected(name)
        try:
            if self.frozen.backend is None:
                # A parameter of its own, so that a layer that shared the old one keeps it.
                base.weight = nn.Parameter(merged, requires_grad=before.requires_grad)
            else:
                self.set_base_weight(merged)
            if (change := self.adapter(name).delta_bias()) is not None:
                self._add_to_bias(self.scaling[name] * change)
            if expected is not None:
                self._compare(name, *expected)
        except Exception:
            base.weight = before
            if getattr(base, "bias", None) is not bias_before:
                base.bias = bias_before
            raise
        if self.frozen.original is None:
            self.frozen.original, self.frozen.original_bias = before, bias_before
        self.frozen.module = cast(Any, self.get_base_layer())
        self.merged_adapters.append(name)

    def _expected(self, name: str) -> tuple[Tensor, Tensor, Tensor] | None:
        """A small input, the layer's output for it and with an adapter that is not merged yet; None where the weight is
        not at hand or is rounded again by the merge."""
        weight = self.get_base_layer().weight
        if self.frozen.backend is not None or hasattr(weight, "full_tensor") or weight.is_meta:
            return None
        x, training = probe_input(self.op, weight, self.shape.weight), self.training
        self.training = False
        try:
            plain = self.base_layer(x)
            return x, plain, self._add_branches(plain, x, [name])
        finally:
            self.training = training

    def _compare(self, name: str, x: Tensor, plain: Tensor, expected: Tensor) -> None:
        """Refuse a merge after which the layer gives something else, beyond the rounding of the merged weight.

        Raises:
            InputError: it does.
        """
        found = self.base_layer(x).double()
        difference = (found - expected.double()).abs().max()
        branch = (expected.double() - plain.double()).abs().max()
        epsilon = torch.finfo(expected.dtype).eps
        rounding = max(epsilon, 1e-6) * 16 * (found.abs().max() + branch)
        if difference > rounding and difference > 0.02 * branch:
            raise InputError(
                f"layer {self.shape.name} gives other outputs once {name!r} is merged (off by {difference:.2g} where "
                f"the adapter changes {branch:.2g}): something else acts on its weight or its output; leave it unmerged"
            )

    def _add_to_bias(self, change: Float[Tensor, " out"]) -> None:
        base: Any = self.get_base_layer()
        bias = change.to(base.weight.dtype) if base.bias is None else base.bias + change.to(base.bias.dtype)
        base.bias = nn.Parameter(bias.detach(), requires_grad=False)
