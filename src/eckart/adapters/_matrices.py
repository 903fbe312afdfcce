"""Parameters that a module multiplies by without a layer around them, such as all experts of a mixture in one stack:

    experts.gate_up_proj (experts, out, in)   ──>  W₀[e] + ΔW[e] for every e   ──>  the module's own forward

Each matrix has an adapter of its own. The module is called as it is, with the changed stack for its parameter.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from typing import Any, cast

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.func import functional_call
from torch.utils.checkpoint import checkpoint

from eckart.adapters._adapted import AdaptedWeight
from eckart.adapters._base import LowRankAdapter
from eckart.adapters._layers import FrozenWeight, LayerOp, LayerShape
from eckart.errors import InputError


class StackedWeight:
    """One matrix of a parameter, in the parameter's own layout; in the place of a layer that would hold it.

    Args:
        module: what has the parameter.
        parameter: its name there.
        index: which matrix of a stack; None where the parameter is one matrix.
    """

    def __init__(self, module: nn.Module, parameter: str, index: int | None) -> None:
        self.module, self.parameter, self.index = module, parameter, index

    @property
    def weight(self) -> Tensor:
        """The matrix, a view of the parameter."""
        whole = cast(Tensor, getattr(self.module, self.parameter))
        return whole if self.index is None else whole[self.index]


class EckartMatrix(AdaptedWeight):
    """One matrix of a parameter and its adapters. It is never called: the module that reads the parameter is."""

    def __init__(self, shape: LayerShape, op: LayerOp, frozen: FrozenWeight) -> None:
        super().__init__(cast(nn.Module, frozen.module), shape, op, frozen)

    def factors(self, names: Sequence[str]) -> tuple[Float[Tensor, "r in"], Float[Tensor, "out r"]] | None:
        """A and B with Σ ΔW = B A over some adapters, in the dtype of the weight; None where one is no such product or
        something stands beside it."""
        pairs, dtype = [], self.frozen.stored.dtype
        for name in names:
            adapter, kind = self.adapter(name), type(self.adapter(name))
            plain = isinstance(adapter, LowRankAdapter) and kind.delta_weight is LowRankAdapter.delta_weight
            if not plain or name in self.seams or self._companion(name) is not None:
                return None
            pairs.append(cast(LowRankAdapter, adapter).scaled_factors(self.scaling[name], dtype))
        if len(pairs) < 2:
            return pairs[0] if pairs else None
        return torch.cat([a for a, _ in pairs]), torch.cat([b for _, b in pairs], 1)

    @torch.no_grad()
    def _merge(self, name: str, safe_merge: bool) -> None:
        merged, weight = self._merged(name, safe_merge), self.frozen.stored
        if self.frozen.original is None:
            self.frozen.original = weight.clone()
        weight.copy_(merged)
        self.merged_adapters.append(name)

    @torch.no_grad()
    def _put_back(self, weight: Tensor) -> None:
        self.frozen.stored.copy_(weight)

    def supports_lora_conversion(self, adapter_name: str = "default") -> bool:
        """PEFT's conversion is of layers."""
        return False


class EckartParameters(nn.Module):
    """A module and the adapted ones of its parameters, each as the matrices it holds."""

    def __init__(self, base_layer: nn.Module) -> None:
        super().__init__()
        self.base_layer = base_layer
        self.adapted: list[str] = []

    def matrices(self, parameter: str) -> Sequence[EckartMatrix]:
        """The matrices of an adapted parameter, in its order."""
        found = self._modules[parameter]
        return [found] if isinstance(found, EckartMatrix) else list(cast(Any, found))

    def add(self, parameter: str, matrices: Sequence[EckartMatrix]) -> None:
        """Make the matrices of a parameter known."""
        alone = matrices[0].shape.stack == matrices[0].shape.name
        self.adapted.append(parameter)
        self.add_module(parameter, matrices[0] if alone else nn.ModuleList(matrices))

    def unload_and_optionally_merge_module(
        self, merge: bool, safe_merge: bool, adapter_names: list[str] | None
    ) -> nn.Module:
        """The module, with the adapters in its parameters where they are to be merged; PEFT calls it."""
        for name in self.adapted if merge else ():
            for matrix in self.matrices(name):
                matrix.merge(safe_merge, adapter_names)
        return self.base_layer

    def __getattr__(self, name: str) -> Any:
        """What the module has and this one has not, such as the number of its experts."""
        try:
            return super().__getattr__(name)
        except AttributeError:
            if name.startswith("_") or "base_layer" not in self._modules or name in self.adapted:
                raise
            return getattr(self._modules["base_layer"], name)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """The module's own forward, with W₀ + ΔW for every matrix that an adapter acts on."""
        matrices = [matrix for name in self.adapted for matrix in self.matrices(name)]
        for matrix in matrices:
            if matrix.disable_adapters and matrix.merged:
                matrix.unmerge()
        acting = {name: [m.acting() for m in self.matrices(name)] for name in self.adapted}
        acting = {name: own for name, own in acting.items() if any(own)}
        if not acting:
            return self.base_layer(*args, **kwargs)

        def run(*args: Any, **kwargs: Any) -> Any:
            with ExitStack() as stack:
                for kind in {m.frozen.stored.device.type for m in matrices}:
                    stack.enter_context(torch.autocast(kind, enabled=False))
                changed = {name: self._changed(name, own) for name, own in acting.items()}
            return functional_call(self.base_layer, changed, args, kwargs)

        recompute = any(m.adapter(n).recompute for m in matrices for n in m.acting())
        if recompute and torch.is_grad_enabled():
            return checkpoint(run, *args, use_reentrant=False, **kwargs)
        return run(*args, **kwargs)

    def _changed(self, parameter: str, acting: Sequence[Sequence[str]]) -> Tensor:
        """The parameter with what the adapters add to it: in one product where all add one of the same rank."""
        matrices = self.matrices(parameter)
        whole = cast(Tensor, getattr(self.base_layer, parameter))
        pairs = [matrix.factors(own) for matrix, own in zip(matrices, acting, strict=True)]
        known = [pair for pair in pairs if pair is not None]
        if whole.dim() == 3 and len(known) == len(pairs) and len({len(a) for a, _ in known}) == 1:
            a, b = torch.stack([a for a, _ in known]), torch.stack([b for _, b in known])
            left, right = (a.mT, b.mT) if matrices[0].op.stored_transposed else (b, a)
            return torch.baddbmm(whole, left, right)
        changed = [
            matrix.op.to_stored(matrix.changed(own)[0], matrix.frozen.stored.shape)
            for matrix, own in zip(matrices, acting, strict=True)
        ]
        return torch.stack(changed) if whole.dim() == 3 else changed[0]


def refuse_mixed(model: nn.Module) -> None:
    """Refuse a batch of several adapters on a model whose parameters are adapted.

    Raises:
        InputError: a parameter is.
    """
    for module in model.modules():
        if isinstance(module, EckartParameters):
            first = module.matrices(module.adapted[0])[0].shape.stack
            raise InputError(
                f"adapter_names is given, but {first} is adapted as a parameter, of which a batch has one for all its "
                "rows: give each adapter a batch of its own"
            )
