"""The census: what must be known of a layer before an adapter on it can be right, and of its model before a merge.

An adapter assumes that its layer is called, that it computes `LayerOp.apply` of one weight of its own, and that this
weight is a leaf. Where that does not hold, an adapter would never act, or a merge would change other outputs than those
the adapter changed: such a layer is refused when it is named, and left out of ``"all-linear"``.
"""

from __future__ import annotations

import inspect
import re
import warnings
from collections.abc import Collection, Iterator, Sequence
from functools import cache
from typing import TYPE_CHECKING, Any, cast

import torch
from peft.tuners.tuners_utils import BaseTunerLayer, check_target_module_exists
from peft.utils.constants import SEQ_CLS_HEAD_NAMES
from torch import Tensor, nn
from torch.nn.modules.linear import NonDynamicallyQuantizableLinear
from torch.nn.utils import parametrize
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from eckart.adapters._layers import LayerOp, describe_layer, is_quantised_linear
from eckart.adapters._matrices import EckartParameters
from eckart.errors import InputError

if TYPE_CHECKING:
    from eckart.adapters._config import AdapterConfig

PREFIX = "eckart_"
"""What the names of our modules begin with, for PEFT."""
ALL_LINEAR = "all-linear"
PLAIN_LAYERS = (nn.Linear, Conv1D, nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.Embedding)
"""Types whose forward is `LayerOp.apply` of their weight."""
_NO_VALUE = (
    r"(?!\s*\.\s*(?:dtype|device|shape|size|ndim|dim|numel|requires_grad|is_meta|data_ptr|element_size)\b)"
)
_OUTSIDE_FORWARD = {
    "__init__",
    "reset_parameters",
    "_reset_parameters",
    "_init_weights",
    "init_weights",
    "tie_weights",
    "fuse_projections",  # of diffusers, at a user's call
}


REASONS = {
    "read": "{parent} reads its weight without calling it, and there an adapter has no effect",
    "computed": "its weight is computed from other tensors (a parametrization, weight_norm, spectral_norm)",
    "rescaled": "it rescales its own weight (max_norm={max_norm})",
    "gradient": "{option}=True is about the gradient of its own weight, which an adapter's would not follow",
    "forward": "{kind} has a forward of its own, of which an adapter would be no part once it is merged",
    "uncalled": "its weight is shared and it is never called by {parent}: an adapter has no effect",
}
"""Why an adapter on a layer cannot be right."""


def fault(model: nn.Module, name: str, module: nn.Module) -> str:
    """Why an adapter on a layer cannot be right, in a few words; empty where it can.

    Args:
        model: the model that holds the layer.
        name: its dotted name there.
        module: the layer, before it is wrapped.
    """
    parent_name, _, child = name.rpartition(".")
    parent = model.get_submodule(parent_name)
    if isinstance(module, NonDynamicallyQuantizableLinear) or is_read(cast(Any, type(parent)), child):
        return REASONS["read"].format(parent=type(parent).__name__)
    leaf = not parametrize.is_parametrized(module) and isinstance(module._parameters.get("weight"), Tensor)
    if not leaf and hasattr(module, "weight") and not hasattr(module, "qweight"):
        return REASONS["computed"]
    if getattr(module, "max_norm", None) is not None:
        return REASONS["rescaled"].format(max_norm=module.max_norm)
    for option in ("scale_grad_by_freq", "sparse"):
        if getattr(module, option, False) is True:
            return REASONS["gradient"].format(option=option)
    if _is_tied(model, module) and not _is_called(cast(Any, type(parent)), child):
        return REASONS["uncalled"].format(parent=type(parent).__name__)
    return ""


def is_plain(module: nn.Module) -> bool:
    """Whether a layer computes `LayerOp.apply` of its weight and nothing else. Hooks are left aside, and so is how
    accelerate brings in weights that are offloaded."""
    plain = next((base for base in PLAIN_LAYERS if isinstance(module, base)), None)
    patched = "forward" in module.__dict__ and not hasattr(module, "_hf_hook")
    return plain is not None and type(module).forward is plain.forward and not patched


def sources(kind: type) -> Iterator[tuple[str, str]]:
    """The functions of a class that may run in a forward pass, and their code."""
    for base in kind.__mro__:
        general = base.__module__.startswith("transformers.") and not base.__module__.startswith(
            "transformers.models."
        )
        if base in (nn.Module, object) or general:
            continue
        for name, function in vars(base).items():
            if inspect.isfunction(function) and name not in _OUTSIDE_FORWARD:
                try:
                    yield name, inspect.getsource(function)
                except (OSError, TypeError):
                    continue


@cache
def is_read(kind: type, child: str, parameter: str = "weight", but: str = _NO_VALUE) -> bool:
    """Whether the code of a module reads a child's parameter, ``but`` for what is no value of it.
    `nn.TransformerEncoderLayer` does so on a fast path that it leaves when the child has a hook."""
    if issubclass(kind, nn.TransformerEncoderLayer) or not child.isidentifier():
        return False
    pattern = re.compile(rf"(?<!isinstance\()\bself\.{child}\.{parameter}\b{but}")
    return any(pattern.search(source) for _, source in sources(kind))


@cache
def _is_called(kind: type, child: str) -> bool:
    """Whether the code of a module calls a child by its name; containers and lists call theirs by number."""
    if not child.isidentifier():
        return True
    pattern = re.compile(rf"\bself\.{child}\(|\bself\.{child}\b(?!\s*[.=)])|getattr\(self")
    return any(
        pattern.search(source)
        for name, source in sources(kind)
        if not name.startswith(("get_", "set_", "_tie"))
    )


def _is_tied(model: nn.Module, module: nn.Module) -> bool:
    weight = getattr(module, "weight", None)
    holders = [m for m in model.modules() if getattr(m, "_parameters", {}).get("weight") is weight]
    return weight is not None and len(holders) > 1


def aliases(model: nn.Module, module: nn.Module) -> list[str]:
    """All names under which a module is reachable."""
    return [name for name, found in model.named_modules(remove_duplicate=False) if found is module]


def all_linear(model: nn.Module, config: AdapterConfig) -> set[str]:
    """The linear layers of a model but its output embedding or head, with those that cannot be adapted left out and
    named in a warning, as are stacks of matrices that ``target_parameters`` does not name.

    Args:
        model: the model, with or without adapters on it.
        config: its ``task_type`` is PEFT's: for sequence classification the head stays out.
    """
    inside: list[str] = []
    found: dict[str, nn.Module] = {}
    for name, module in model.named_modules():
        if any(name.startswith(prefix) for prefix in inside):
            continue
        base = module
        if isinstance(module, EckartParameters):
            inside.append(f"{name}.")
        if isinstance(module, BaseTunerLayer):
            inside.append(f"{name}.")
            base = module.get_base_layer()
        described = describe_layer(base, name) if name else None
        if described is not None and described[0].kind == "linear":
            found[name] = base
    for head in _outputs(model, config.task_type):
        found = {name: module for name, module in found.items() if module is not head}
    faults = {name: why for name, module in found.items() if (why := fault(model, name, module))}
    faults |= {
        name: REASONS["forward"].format(kind=type(module).__name__)
        for name, module in found.items()
        if name not in faults and not is_plain(module) and not is_quantised_linear(module)
    }
    stacks = {
        name.replace(".base_layer.", ".")
        for name, p in model.named_parameters()
        if p.dim() == 3 and ".experts." in f".{name}" and "eckart_adapters" not in name
    }
    named = tuple(f".{name}" for name in config.target_parameters or ())
    others = sorted(name for name in stacks if not f".{name}".endswith(named))
    told = [f"{name} ({why})" for name, why in faults.items()]
    told += [
        f"{name} (a stack of matrices in one parameter: name it in target_parameters)" for name in others
    ]
    if told:
        more = f" and {len(told) - 3} more" if len(told) > 3 else ""
        warnings.warn(f"all-linear leaves out {'; '.join(told[:3])}{more}", stacklevel=2)
    return found.keys() - faults.keys()


_PEFTS_HEADS = {"classifier", "score", "qa_outputs"}
"""What PEFT itself adds to ``modules_to_save`` for a task, whatever the model calls its head."""


def _outputs(model: nn.Module, task_type: Any) -> list[nn.Module]:
    if not isinstance(model, PreTrainedModel):
        return []
    embedding = model.get_output_embeddings()
    if embedding is None and task_type == "SEQ_CLS":
        embedding = next(
            (head for n in SEQ_CLS_HEAD_NAMES if (head := getattr(model, n, None)) is not None), None
        )
    if embedding is None:
        return []
    return [embedding.get_base_layer() if isinstance(embedding, BaseTunerLayer) else embedding]


def include_all_linear(model: nn.Module, config: AdapterConfig) -> Collection[str]:
    """Put the names of the layers in the place of "all-linear".

    Returns:
        those names, whose layers have no `fault`; none where others were given.
    """
    if not isinstance(config.target_modules, str) or config.target_modules.lower() != ALL_LINEAR:
        return ()
    config.target_modules = all_linear(model, config)
    return config.target_modules


def find_targets(
    model: nn.Module, config: AdapterConfig, state_dict: dict[str, Tensor] | None = None
) -> Iterator[tuple[str, nn.Module]]:
    """The layers that PEFT's matching rules give for this config, in model order.

    Raises:
        InputError: nothing matches; lists the names there are.
    """
    inside: list[str] = []
    found = False
    from_keys = state_dict and {
        key.rsplit(f".{PREFIX}", 1)[0].removeprefix("_orig_mod.") for key in state_dict
    }
    for key, module in model.named_modules():
        if not key or any(key.startswith(prefix) for prefix in inside):
            continue
        if isinstance(module, BaseTunerLayer | EckartParameters):
            inside.append(key + ".")
        matches = key in from_keys if from_keys else check_target_module_exists(config, key)
        if matches:
            found = True
            yield key, module
    if not found and (config.target_modules or not config.target_parameters):
        names = sorted(
            {
                key.rpartition(".")[2]
                for key, module in model.named_modules()
                if key and describe_layer(module, key)
            }
        )
        wanted = config.target_modules
        wanted = sorted(wanted) if isinstance(wanted, set) else wanted
        blocks = config.layers_to_transform
        within = "" if blocks is None else f" in the blocks of layers_to_transform, {blocks}"
        raise InputError(
            f"target_modules {wanted!r} match no layer of this model{within}; layers there are: "
            f"{', '.join(names) or 'none'}"
        )


def check_names(model: nn.Module, config: AdapterConfig, targets: Sequence[str]) -> None:
    """Refuse names of a config that fit nothing.

    Raises:
        InputError: a module to save that the model has not, or a block that no target lies in.
    """
    names = [name for name, _ in model.named_modules() if name]
    for wanted in set(config.modules_to_save or ()) - (_PEFTS_HEADS if config.task_type else set()):
        if not any(name == wanted or name.endswith(f".{wanted}") for name in names):
            heads = ", ".join(name for name, _ in model.named_children())
            raise InputError(f"modules_to_save names {wanted!r}, which this model has not; it has {heads}")
    blocks = config.layers_to_transform
    for index in [blocks] if isinstance(blocks, int) else blocks or ():
        if not any(re.search(rf"\.{index}\.", f".{name}.") for name in targets):
            raise InputError(f"layers_to_transform names block {index}, in which no layer is adapted")


def probe_input(op: LayerOp, weight: Tensor, shape: tuple[int, ...]) -> Tensor:
    """A small input for a layer, from a fixed seed.

    Args:
        op: the layer's operation.
        weight: its weight, for device and dtype.
        shape: canonical weight shape ``(out, in, *kernel)``.
    """
    generator = torch.Generator().manual_seed(0)
    if op.kind == "embedding":
        return torch.randint(0, shape[1], (1, 8), generator=generator).to(weight.device)
    size: tuple[int, ...] = (3, shape[1])
    if op.kind == "conv":
        dilation = op.arguments["dilation"]
        size = (2, shape[1] * op.groups, *(d * (k - 1) + 3 for k, d in zip(shape[2:], dilation, strict=True)))
    dtype = weight.dtype if weight.is_floating_point() else torch.float32
    return torch.randn(size, generator=generator).to(weight.device, dtype)
