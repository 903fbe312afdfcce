"""Any adapter as a plain PEFT LoRA checkpoint."""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, cast

import torch
from peft import LoraConfig, PeftModel
from peft.tuners.tuners_utils import check_target_module_exists
from peft.utils.other import AuxiliaryTrainingWrapper
from safetensors.torch import save_file
from torch import Tensor
from transformers.pytorch_utils import Conv1D

from eckart.adapters._adapted import AdaptedWeight
from eckart.adapters._checkpoint import MODEL_PREFIX, WEIGHTS_NAME
from eckart.adapters._config import AdapterConfig
from eckart.adapters._matrices import EckartMatrix
from eckart.adapters._method import MethodConfig
from eckart.adapters._peft_layer import EckartLayer
from eckart.adapters._pefts_parameters import Pair, stacked_lora
from eckart.adapters._servers import Server, check_in_peft, check_server, pad_rank, served_rank
from eckart.adapters._walk import walk
from eckart.errors import InputError
from eckart.files import atomic_directory, check_output, locked
from eckart.linalg.spectrum import svd_within

EXACT = 1e-6
"""Relative Frobenius error up to which an export counts as exact (for 16-bit adapters: their rounding)."""


@dataclass(frozen=True)
class LayerExport:
    """One layer of an export: its numerical rank, the rank written and ‖ΔW − B A‖_F / ‖ΔW‖_F of what was written."""

    name: str
    kind: str
    rank: int
    r: int
    error: float


@dataclass(frozen=True)
class ExportReport:
    """What `export_lora` wrote. ``exact`` says whether every layer's error is within rounding."""

    path: str
    method: str
    r: int
    exact: bool
    error: float
    layers: list[LayerExport]

    def to_dict(self) -> dict[str, Any]:
        """Ready for JSON."""
        return asdict(self)


def export_lora(
    model: PeftModel,
    path: str | Path,
    r: int | None = None,
    *,
    server: Server | None = None,
    adapter_name: str = "default",
    overwrite: bool = False,
    on_layer: Callable[[int, int], None] | None = None,
) -> ExportReport:
    """Write an adapter as a PEFT LoRA checkpoint, ΔW ≈ B A by truncated SVD, which PEFT loads without this library.

    Linear and Conv1D layers become ``lora_A (r, in)``, ``lora_B (out, r)``; convolutions ``(r, in, *kernel)`` and
    ``(out, r/groups, 1, …)``; embeddings ``lora_embedding_A (r, num)``, ``lora_embedding_B (dim, r)``. The scaling
    is in the factors: ``lora_alpha`` equals ``r``. Modules trained in full are copied. A parameter of many matrices
    becomes one LoRA of ``target_parameters``, at the highest rank that one of them needs.

    Args:
        model: the model with the adapter; unchanged.
        path: the directory to write.
        r: the rank of every layer. None takes for each layer the smallest that is exact (to `EXACT`), written as
            ``rank_pattern`` where layers differ.
        server: the program that is to serve it. All layers get one rank that it takes, filled up with zeros.
        adapter_name: which adapter.
        overwrite: replace what is at ``path``.
        on_layer: called after every layer with how many are done and how many there are.

    Raises:
        InputError: no such adapter, one that is not of this library, a rank below 1, above what any layer can have or
            not divisible by the groups of a convolution, NaN or Inf in an adapter, a directory that is not empty, a
            layer on which PEFT computes something else, or what the server does not take.
    """
    if r is not None and r < 1:
        raise InputError(f"r is {r}: give a rank of at least 1")
    check_output(path, overwrite=overwrite, name="path")
    layers = _adapted_layers(model, adapter_name)
    highest = max(layer.shape.max_rank * layer.op.groups for layer in layers.values())
    if r is not None and r > highest:
        raise InputError(f"r is {r}, above {highest}, the highest rank an adapted layer can have: lower r")
    state, reports, ranks = _saved_modules(model, adapter_name), [], {}
    if server is not None:
        check_server(server, layers, list(state))
    stacks: dict[str, list[tuple[EckartMatrix, Pair]]] = {}
    for done, (name, layer) in enumerate(layers.items(), start=1):
        a, b, report = _factorise(name, layer, adapter_name, r)
        if isinstance(layer, EckartMatrix):
            stacks.setdefault(layer.shape.stack, []).append((layer, (a.reshape(-1, a.shape[-1]), b)))
        else:
            state.update(_in_peft(name, cast(EckartLayer, layer), a, b))
            ranks[name] = report.r
        reports.append(report)
        if on_layer is not None:
            on_layer(done, len(layers))
    for stack, own in stacks.items():
        matrices, pairs = zip(*own, strict=True)
        factors, ranks[stack] = stacked_lora(model.get_base_model(), matrices, pairs, stacks)
        state.update(factors)
        names = {matrix.shape.name for matrix in matrices}
        reports = [replace(each, r=ranks[stack]) if each.name in names else each for each in reports]
    if server is not None:
        most = served_rank(server, max(ranks.values()))
        state = {key: pad_rank(key, factor, most) for key, factor in state.items()}
        ranks = dict.fromkeys(ranks, most)
        reports = [replace(report, r=most) for report in reports]
    config = _lora_config(model, adapter_name, ranks, stacks)
    with locked(path, "path"), atomic_directory(path, overwrite=overwrite, name="path") as folder:
        _write(model, config, state, folder)
    return ExportReport(
        path=str(path),
        method=cast(AdapterConfig, model.peft_config[adapter_name]).slug,
        r=config.r,
        exact=all(report.r >= report.rank for report in reports),
        error=max(report.error for report in reports),
        layers=reports,
    )


def _adapted_layers(model: PeftModel, adapter_name: str) -> dict[str, AdaptedWeight]:
    if not isinstance(model, PeftModel) or adapter_name not in model.peft_config:
        there = (
            ", ".join(model.peft_config) if isinstance(model, PeftModel) else "none, it is not a PeftModel"
        )
        raise InputError(f"adapter {adapter_name!r} is not in this model; adapters there are: {there}")
    if not isinstance(model.peft_config[adapter_name], MethodConfig):
        kind = model.peft_config[adapter_name].peft_type
        raise InputError(
            f"adapter {adapter_name!r} is PEFT's own {kind}: load it with eckart.adapters.from_peft first"
        )
    layers = {}
    for name, layer, _, adapter in walk(model, adapter_name):
        if adapter.delta_bias() is not None:
            raise InputError(
                f"the adapter of layer {name} also changes its bias, which a LoRA cannot: merge it instead"
            )
        layers[name] = layer
    return layers


@torch.no_grad()
def _factorise(
    name: str, layer: AdaptedWeight, adapter_name: str, r: int | None
) -> tuple[Tensor, Tensor, LayerExport]:
    """A (groups, r, groups, in) and B (out, r) of one ΔW, and what is to be told of them."""
    delta = layer.get_delta_weight(adapter_name)
    if not torch.isfinite(delta).all():
        raise InputError(f"the adapter of layer {name} holds NaN or Inf: it cannot be exported")
    groups, out = layer.op.groups, layer.shape.weight[0]
    if r is not None and r % groups:
        raise InputError(
            f"r is {r}, not divisible by the {groups} groups of layer {name}: PEFT's LoRA needs that"
        )
    matrix = layer.op.to_matrix(delta)
    tolerance = max(EXACT, torch.finfo(delta.dtype).eps) if delta.dtype.itemsize < 4 else EXACT
    blocks = [svd_within(block, tolerance) for block in matrix.chunk(groups)]
    rank = max(svd.S.numel() for svd in blocks)
    width = max(rank, 1) if r is None else r // groups
    lora_a = matrix.new_zeros(groups, width, groups, matrix.shape[1])
    lora_b = matrix.new_zeros(groups, out // groups, width)
    for index, (u, s, vh) in enumerate(blocks):
        kept = min(width, s.numel())
        lora_a[index, :kept, index] = (s[:kept].sqrt().unsqueeze(1) * vh[:kept]).to(matrix.dtype)
        lora_b[index, :, :kept] = (u[:, :kept] * s[:kept].sqrt()).to(matrix.dtype)
    written = torch.cat([lora_b[i].double() @ lora_a[i, :, i].double() for i in range(groups)])
    norm = torch.linalg.matrix_norm(matrix.double())
    error = (torch.linalg.matrix_norm(matrix.double() - written) / norm).item() if norm else 0.0
    report = LayerExport(name, layer.op.kind, groups * rank, groups * width, error)
    return lora_a, lora_b.reshape(out, width), report


def _in_peft(name: str, layer: EckartLayer, a: Tensor, b: Tensor) -> dict[str, Tensor]:
    """Two factors as PEFT has them, after PEFT was asked what it makes of them."""
    groups, width = layer.op.groups, b.shape[1]
    parts = b.double().chunk(groups)
    written = torch.cat([part @ a[i, :, i].double() for i, part in enumerate(parts)])
    factors = _in_pefts_shapes(name, layer, a, b)
    check_in_peft(name, layer, factors, written, groups * width)
    return factors


def _in_pefts_shapes(name: str, layer: EckartLayer, a: Tensor, b: Tensor) -> dict[str, Tensor]:
    """Two factors under the names and in the shapes that PEFT's LoRA has for the kind of layer."""
    groups, (_, inner, *kernel) = layer.op.groups, layer.shape.weight
    if layer.op.kind == "conv":
        a = a.reshape(-1, groups * inner, *kernel)
        b = b.reshape(*b.shape, *(1 for _ in kernel))
    else:
        a = a.reshape(b.shape[1], -1)
    infix, suffix = ("lora_embedding", "") if layer.op.kind == "embedding" else ("lora", ".weight")
    return {
        f"{MODEL_PREFIX}{name}.{infix}_{letter}{suffix}": factor.detach().contiguous().cpu()
        for letter, factor in (("A", a), ("B", b))
    }


def save_adapter(model: PeftModel, folder: Path) -> bool:
    """Write an adapter as PEFT's own LoRA where it is one exactly, so that it loads without eckart, else as it is.

    Returns:
        whether it was written as PEFT's own LoRA.
    """
    if save_as_lora(model, folder):
        return True
    model.save_pretrained(str(folder), save_embedding_layers=False)
    return False


@torch.no_grad()
def save_as_lora(model: PeftModel, folder: Path, adapter_name: str = "default") -> bool:
    """Write an adapter whose layers are each exactly one LoRA of PEFT's, factor by factor, as PEFT's own checkpoint.

    Args:
        model: the model with the adapter; unchanged.
        folder: the directory to write into.
        adapter_name: which adapter.

    Returns:
        False, with nothing written, where it is none: another method, directions that are switched off, a convolution
        in groups, or a layer on which PEFT computes something else.
    """
    config = cast(Any, model.peft_config[adapter_name])
    if getattr(config, "slug", None) != "lora":
        return False
    layers: list[tuple[str, Any, Any]] = [(n, layer, a) for n, layer, _, a in walk(model, adapter_name)]
    if any(layer.op.groups > 1 or adapter.active is not None for _, layer, adapter in layers):
        return False
    state, ranks = _saved_modules(model, adapter_name), {}
    stacks: dict[str, list[tuple[EckartMatrix, Pair]]] = {}
    try:
        for name, layer, adapter in layers:
            a, b = adapter.factors()
            if isinstance(layer, EckartMatrix):
                stacks.setdefault(layer.shape.stack, []).append((layer, (a, b)))
                continue
            scaled = _in_pefts_shapes(name, layer, a, adapter.scale * b)
            check_in_peft(name, layer, scaled, adapter.delta_weight(), len(a))
            state |= _in_pefts_shapes(name, layer, a, b)
            ranks[name] = len(a)
        for stack, own in stacks.items():
            matrices, pairs = zip(*own, strict=True)
            factors, ranks[stack] = stacked_lora(model.get_base_model(), matrices, pairs, stacks)
            state |= factors
            if len({len(a) for a, _ in pairs}) > 1:  # and so more than one α/r
                return False
        pefts = _lora_config(model, adapter_name, ranks, stacks)
    except InputError:
        return False
    pefts.lora_alpha, pefts.alpha_pattern = config.lora_alpha, {}
    pefts.use_rslora, pefts.lora_dropout = config.use_rslora, config.dropout
    _write(model, pefts, state, folder)
    return True


def _write(model: PeftModel, config: LoraConfig, state: dict[str, Tensor], folder: Path) -> None:
    save_file(state, folder / WEIGHTS_NAME, metadata={"format": "pt"})
    base = type(model.get_base_model())
    mapping = {"base_model_class": base.__name__, "parent_library": base.__module__}
    config.save_pretrained(str(folder), auto_mapping_dict=None if config.task_type else mapping)


def _saved_modules(model: PeftModel, adapter_name: str) -> dict[str, Tensor]:
    """The tensors of modules trained in full, such as a classification head, under their checkpoint names."""
    return {
        f"{name}.{key}": value.detach().contiguous().cpu()
        for name, module in model.named_modules()
        if isinstance(module, AuxiliaryTrainingWrapper)
        for key, value in cast(Any, module).adapter_state_dict(adapter_name, module.state_dict()).items()
    }


def _lora_config(
    model: PeftModel, adapter_name: str, ranks: dict[str, int], stacks: Collection[str]
) -> LoraConfig:
    """PEFT's config for layers and parameters of these ranks."""
    ours = cast(AdapterConfig, model.peft_config[adapter_name])
    most = max(ranks.values())
    # PEFT takes the first pattern that fits the end of a layer's name: longer names go first.
    pattern = {name: ranks[name] for name in sorted(ranks, key=len, reverse=True) if ranks[name] != most}
    adapted = _adapted_layers(model, adapter_name).items()
    layers = {name: m.get_base_layer() for name, m in adapted if isinstance(m, EckartLayer)}
    config = LoraConfig(
        r=most,
        lora_alpha=most,
        rank_pattern=pattern,
        alpha_pattern=dict(pattern),
        target_modules=sorted(ranks.keys() - set(stacks)),
        target_parameters=sorted(stacks) or None,
        modules_to_save=ours.modules_to_save,
        fan_in_fan_out=bool(layers) and all(isinstance(layer, Conv1D) for layer in layers.values()),
        task_type=ours.task_type,
        base_model_name_or_path=ours.base_model_name_or_path,
        revision=ours.revision,
        inference_mode=True,
    )
    if stacks and config.fan_in_fan_out:
        raise InputError("PEFT has no LoRA for Conv1D layers and parameters at once: merge instead")
    inner = [name for name, _ in model.get_base_model().named_modules() if ".base_layer" not in name]
    strangers = [name for name in inner if name not in ranks and check_target_module_exists(config, name)]
    config.exclude_modules = sorted(strangers) or None
    return config
