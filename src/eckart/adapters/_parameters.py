"""The census of parameters: those that `target_parameters` names, and why an adapter on one could not be right.

A module that multiplies by a parameter without a layer around it says only in its code on which side the inputs are:

    F.linear(x, self.w[e])                           w (experts, out, in)
    x @ self.w[e],  torch.bmm(x, self.w)             w (experts, in, out)
"""

from __future__ import annotations

import ast
import textwrap
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cache
from types import SimpleNamespace
from typing import Any, cast

from peft.tuners.tuners_utils import BaseTunerLayer, check_target_module_exists
from torch import Tensor, nn

from eckart.adapters._census import is_read, sources
from eckart.adapters._config import AdapterConfig
from eckart.adapters._layers import FrozenWeight, LayerOp, LayerShape, describe_layer
from eckart.adapters._matrices import EckartParameters, StackedWeight
from eckart.arguments import hint
from eckart.errors import InputError

_NO_VALUE = {"shape", "dtype", "device", "ndim", "is_meta", "requires_grad"}
_SAME_MATRIX = {"to", "type", "type_as", "float", "half", "bfloat16", "contiguous", "unsqueeze"}
_TURNED = {"t", "transpose", "swapaxes"}
_PRODUCTS = {"matmul", "bmm", "mm"}


@dataclass(frozen=True)
class Target:
    """A parameter to adapt: the name of its module in the model, what stands there, and its own name."""

    path: str
    host: nn.Module
    parameter: str

    @property
    def module(self) -> nn.Module:
        """The module without adapters."""
        return self.host.base_layer if isinstance(self.host, EckartParameters) else self.host

    @property
    def name(self) -> str:
        """The parameter's name in the model."""
        return f"{self.path}.{self.parameter}".lstrip(".")

    @property
    def value(self) -> Tensor:
        """The parameter."""
        return cast(Tensor, self.module._parameters[self.parameter])


def all_parameters(model: nn.Module) -> Iterator[Target]:
    """The parameters of a model that are matrices, or stacks of them, and not the weight of a layer, which is named in
    ``target_modules``; those of adapters are left out."""
    inside: list[str] = []
    for path, host in model.named_modules():
        if any(path.startswith(prefix) for prefix in inside):
            continue
        if isinstance(host, BaseTunerLayer | EckartParameters):
            inside.append(f"{path}.")
        module = host.base_layer if isinstance(host, EckartParameters) else host
        if isinstance(module, BaseTunerLayer) or describe_layer(module, path) is not None:
            continue
        for name, parameter in module._parameters.items():
            if parameter is not None and parameter.dim() in (2, 3):
                yield Target(path, host, name)


def find_parameters(model: nn.Module, config: AdapterConfig) -> list[Target]:
    """The parameters that ``target_parameters`` names, in model order, by PEFT's rules for names of layers.

    Raises:
        InputError: a name that fits none; tells the nearest.
    """
    if not config.target_parameters:
        return []
    there = list(all_parameters(model))
    found: dict[str, Target] = {}
    for wanted in config.target_parameters:
        rules = SimpleNamespace(**{**vars(config), "target_modules": {wanted}})
        fitting = [target for target in there if check_target_module_exists(rules, target.name)]
        if not fitting:
            raise InputError(f"target_parameters names {wanted!r}, which {_why_none(wanted, model, there)}")
        found |= {target.name: target for target in fitting}
    return [target for target in there if target.name in found]


def _why_none(wanted: str, model: nn.Module, there: Sequence[Target]) -> str:
    if any(f".{target.name}".endswith(f".{wanted}") for target in there):
        return "is left out by exclude_modules, modules_to_save or layers_to_transform"
    for name, parameter in model.named_parameters():
        name = name.replace(".base_layer.", ".")
        if f".{name}".endswith(f".{wanted}"):
            layer = name.rpartition(".")[0]
            if parameter.dim() in (2, 3, 4, 5) and name.endswith(".weight"):
                return f"is the weight of the layer {layer}: name that in target_modules"
            return f"is no matrix and no stack of them, but of shape {tuple(parameter.shape)}: leave it out"
    parts = wanted.count(".") + 1
    names = sorted({".".join(target.name.split(".")[-parts:]) for target in there})
    told = "this model has no matrices outside its layers: name layers in target_modules"
    return f"fits no parameter of this model: {hint(wanted, names, cutoff=0.4) if names else told}"


def describe_parameter(
    model: nn.Module, target: Target, layers: Sequence[str]
) -> list[tuple[LayerShape, LayerOp, FrozenWeight]]:
    """Shape, operation and frozen weight of each matrix of a parameter.

    Args:
        model: the model.
        target: the parameter.
        layers: the layers that are adapted as well.

    Raises:
        InputError: an adapter on it could not be right.
    """
    host = target.host
    if isinstance(host, EckartParameters) and target.parameter in host.adapted:
        return [(replace(m.shape, frozen=m.frozen), m.op, m.frozen) for m in host.matrices(target.parameter)]
    transposed = stored_transposed(cast(Any, type(target.module)), target.parameter)
    if why := _fault(model, target, layers, transposed):
        raise InputError(f"parameter {target.name} cannot be adapted: {why}")
    op, described = LayerOp("linear", stored_transposed=cast(bool, transposed)), []
    stack, size = target.value.dim() == 3, target.value.shape[-2:]
    for index in range(len(target.value)) if stack else (None,):
        frozen = FrozenWeight(cast(Any, StackedWeight(target.module, target.parameter, index)), op, None)
        name = target.name if index is None else f"{target.name}.{index}"
        weight = tuple(reversed(size)) if transposed else tuple(size)
        described.append((LayerShape(name, "linear", weight, frozen, target.name), op, frozen))
    return described


def _fault(model: nn.Module, target: Target, layers: Sequence[str], transposed: bool | None) -> str:
    kind, (parent, _, child) = type(target.module).__name__, target.path.rpartition(".")
    if not target.path:
        return "it lies on the model itself, in whose place nothing can stand; wrap the model in a module"
    if type(target.value) is not nn.Parameter:
        return f"it is a {type(target.value).__name__} (quantised?); load the model without quantisation"
    holders = [
        f"{path}.{name}".lstrip(".").replace(".base_layer.", ".")
        for path, module in model.named_modules()
        for name, value in module._parameters.items()
        if value is target.value and (module is not target.module or name != target.parameter)
    ]
    if holders:
        return f"it is also {holders[0]}, which would not follow; give each a parameter of its own"
    if is_read(cast(Any, type(model.get_submodule(parent))), child, target.parameter):
        return f"{type(model.get_submodule(parent)).__name__} reads it without calling {child}; leave it out"
    within = [name for name in layers if name.startswith(f"{target.path}.")]
    if within:
        return f"layer {within[0]} inside the same module is adapted too; adapt one of them"
    if transposed is None:
        return f"the code of {kind} does not tell which of its sides the inputs are on; leave it out"
    return ""


@cache
def stored_transposed(kind: type, parameter: str) -> bool | None:
    """Whether the code of a module multiplies its inputs by a parameter (…, in, out), as in ``x @ w``; False for
    (…, out, in), as in ``F.linear(x, w)``; None where it does anything else with it, or both."""
    found: set[bool] = set()
    for _, source in sources(kind):
        tree = ast.parse(textwrap.dedent(source))
        names = {id(node) for node in ast.walk(tree) if _is_self(node, parameter)}
        for node in ast.walk(tree):
            for operand, transposed in _operands(node):
                turned, held = _core(operand)
                if id(held) in names:
                    names.discard(id(held))
                    if transposed is not None:
                        found.add(transposed != turned)
        if names:
            return None
    return found.pop() if len(found) == 1 else None


def _operands(node: ast.AST) -> Iterator[tuple[ast.AST, bool | None]]:
    """The operands of a product that may be the weight, and how it would lie there; None for what does not read its
    values."""
    if isinstance(node, ast.Attribute) and node.attr in _NO_VALUE:
        yield node.value, None
    elif isinstance(node, ast.Compare) and all(isinstance(op, ast.Is | ast.IsNot) for op in node.ops):
        yield node.left, None
    elif isinstance(node, ast.BinOp) and isinstance(node.op, ast.MatMult):
        yield from ((node.left, False), (node.right, True))
    elif isinstance(node, ast.Call):
        own = isinstance(node.func, ast.Attribute)
        name = cast(Any, node.func).attr if own else getattr(node.func, "id", "")
        if name == "linear" and len(node.args) > 1:
            yield node.args[1], False
        elif name in _PRODUCTS and len(node.args) > 1:
            yield from ((node.args[0], False), (node.args[1], True))
        elif name in _PRODUCTS and len(node.args) == 1 and own:
            yield from ((cast(Any, node.func).value, False), (node.args[0], True))


def _core(node: ast.AST) -> tuple[bool, ast.AST]:
    """What is left of an expression without what keeps the matrices as they are, and whether they are turned."""
    turned = False
    while True:
        if isinstance(node, ast.Subscript):
            node = node.value
        elif isinstance(node, ast.Attribute) and node.attr in ("T", "mT"):
            node, turned = node.value, not turned
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
            if _turns(node):
                turned = not turned
            elif node.func.attr not in _SAME_MATRIX:
                return turned, node
            node = node.func.value
        else:
            return turned, node


def _turns(call: ast.Call) -> bool:
    """Whether a call transposes the two last dimensions."""
    dims = {ast.unparse(argument) for argument in call.args}
    return cast(Any, call.func).attr in _TURNED and dims in (set(), {"1", "2"}, {"-1", "-2"})


def _is_self(node: ast.AST, parameter: str) -> bool:
    held = isinstance(node, ast.Attribute) and node.attr == parameter
    return held and isinstance(node.value, ast.Name) and node.value.id == "self"  # type: ignore[attr-defined]
