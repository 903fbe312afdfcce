"""Checkpoints in and out: PEFT's own into ours, and any adapter as a plain PEFT LoRA."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig as PeftLoraConfig
from peft import MissConfig as PeftMissConfig
from peft import PeftConfig, PeftModel, get_peft_model, set_peft_model_state_dict
from peft import RandLoraConfig as PeftRandLoraConfig
from peft.tuners.tuners_utils import check_target_module_exists
from peft.utils.other import AuxiliaryTrainingWrapper, get_pattern_key
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from eckart.adapters._base import AdapterConfig
from eckart.adapters._budget import target_shapes
from eckart.adapters._checkpoint import WEIGHTS_NAME, read_shapes
from eckart.adapters._peft import EckartLayer
from eckart.adapters._registry import get_config
from eckart.adapters.merge import read_adapter_config
from eckart.adapters.randlora import RandomBases
from eckart.errors import InputError
from eckart.files import atomic_directory, check_output
from eckart.linalg.spectrum import svd_within

PREFIX = "base_model.model."
EXACT = 1e-6
"""Relative Frobenius error up to which an export counts as exact (for 16-bit adapters: their rounding)."""


def from_peft(
    model: nn.Module, path: str | Path, adapter_name: str = "default", *, is_trainable: bool = False
) -> PeftModel:
    """Load a checkpoint that PEFT's own LoRA, RandLoRA or MiSS (also old Bone) wrote, as an adapter of this library.

    The outputs are those of PEFT. Ranks and scalings that differ between the layers of a LoRA are padded and folded
    into its factors. RandLoRA's bases are drawn again from its key, and stored only where that gives others.

    Args:
        model: the base model, or a `PeftModel` to which the adapter is added.
        path: directory or hub name of the checkpoint.
        adapter_name: its name in the model.
        is_trainable: leave the adapter trainable, to train it further.

    Raises:
        InputError: no such checkpoint, one of another type, one that uses what has no counterpart here (named), or
            one that does not fit the model, which is left as it was.
    """
    directory, saved = read_adapter_config(path)
    if saved["peft_type"] not in _READERS:
        raise InputError(
            f"adapter {path} is of type {saved['peft_type']}: from_peft reads {', '.join(_READERS)}; load it with PEFT"
        )
    read_shapes(directory)
    base = model.get_base_model() if isinstance(model, PeftModel) else model
    config, state = _READERS[saved["peft_type"]](saved, load_file(directory / WEIGHTS_NAME), base)
    _check_modules(path, state, base)
    config.inference_mode = not is_trainable
    config.checkpoint_shapes = {key: tuple(value.shape) for key, value in state.items()}
    if isinstance(model, PeftModel):
        model.add_adapter(adapter_name, config)
    else:
        model = get_peft_model(model, config, adapter_name)
    set_peft_model_state_dict(model, state, adapter_name)
    return model.train(is_trainable)


State = dict[str, Tensor]
_KEPT = (
    "target_modules",
    "exclude_modules",
    "modules_to_save",
    "layers_to_transform",
    "layers_pattern",
    "task_type",
    "base_model_name_or_path",
    "revision",
)
_WITHOUT_EFFECT = {"peft_type", "peft_version", "auto_mapping", "inference_mode", "fan_in_fan_out"}


def _options(saved: dict[str, Any], peft_config: type[PeftConfig], read: Iterable[str]) -> dict[str, Any]:
    """The fields that all methods share.

    Raises:
        InputError: a field that is neither shared, read by the caller nor at PEFT's default.
    """
    defaults = {
        field.name: field.default_factory() if callable(field.default_factory) else field.default
        for field in fields(peft_config)
    }
    done = {*_KEPT, *_WITHOUT_EFFECT, *read}
    foreign = {
        key: value
        for key, value in saved.items()
        if key not in done and value not in (None, False, "none", {}, []) and value != defaults.get(key)
    }
    if foreign:
        told = ", ".join(f"{key}={value!r}" for key, value in sorted(foreign.items()))
        raise InputError(
            f"a {saved['peft_type']} checkpoint with {told} has no counterpart here: load it with PEFT"
        )
    return {key: saved[key] for key in _KEPT if saved.get(key) is not None}


def _ours(layer: str, name: str) -> str:
    return f"{layer}.eckart_adapters.{name}"


_UNCHANGED_BASE = (True, False, "gaussian", "orthogonal", "eva")
"""Ways in which PEFT starts a LoRA without changing the base weight; the others need the weight they left behind."""


def _read_lora(saved: dict[str, Any], tensors: State, base: nn.Module) -> tuple[AdapterConfig, State]:
    read = ["r", "lora_alpha", "lora_dropout", "use_rslora", "rank_pattern", "alpha_pattern"]
    if saved.get("init_lora_weights", True) in _UNCHANGED_BASE:
        read.append("init_lora_weights")
    options = _options(saved, PeftLoraConfig, read)
    alpha, alphas = saved["lora_alpha"], saved.get("alpha_pattern") or {}
    factors: dict[str, State] = {}
    state: State = {}
    for key, value in tensors.items():
        match = re.fullmatch(r"(.*)\.lora_(?:embedding_)?([AB])(?:\.weight)?", key)
        if match is None:
            state[key] = value
        else:
            factors.setdefault(match[1], {})[match[2]] = value.flatten(1)
    r = max((pair["A"].shape[0] for pair in factors.values() if "A" in pair), default=saved["r"])
    config = get_config("lora")(
        r=r,
        lora_alpha=alpha,
        use_rslora=bool(saved.get("use_rslora")),
        dropout=saved.get("lora_dropout") or 0.0,
        **options,
    )
    power = 0.5 if config.use_rslora else 1.0
    for layer, pair in factors.items():
        for letter, value in pair.items():
            rank = value.shape[0 if letter == "A" else 1]
            if letter == "B":
                own = alphas.get(get_pattern_key(alphas.keys(), layer.removeprefix(PREFIX)), alpha)
                factor = (own / rank**power) / (alpha / r**power)
                value = value if factor == 1 else value * factor
            padding = (0, 0, 0, r - rank) if letter == "A" else (0, r - rank)
            state[_ours(layer, f"lora_{letter}")] = nn.functional.pad(value, padding)
    return config, state


def _read_randlora(saved: dict[str, Any], tensors: State, base: nn.Module) -> tuple[AdapterConfig, State]:
    read = ("r", "randlora_alpha", "randlora_dropout", "projection_prng_key", "save_projection")
    options = _options(saved, PeftRandLoraConfig, (*read, "sparse", "very_sparse", "init_weights"))
    config = get_config("randlora")(
        r=saved["r"],
        randlora_alpha=saved["randlora_alpha"],
        basis="very-sparse" if saved.get("very_sparse") else "sparse" if saved.get("sparse") else "uniform",
        seed=saved["projection_prng_key"],
        dropout=saved.get("randlora_dropout") or 0.0,
        **options,
    )
    state = {}
    bases: State = {}
    for key, value in tensors.items():
        layer, _, name = key.rpartition(".")
        if name in ("randlora_A", "randlora_B"):
            bases[name] = value
        else:
            state[_ours(layer, name) if name.startswith("randlora_") else key] = value
    shapes = target_shapes(base, config)
    drawn = RandomBases(config, *config.basis_shape(shapes), torch.float32)
    names = ("randlora_A", "randlora_B")
    kept = {name: bases.get(name, getattr(drawn, name)).float() for name in names}
    config.save_basis = any(not torch.equal(kept[name], getattr(drawn, name)) for name in names)
    ends = [part for basis in kept.values() for part in (basis.flatten()[:2], basis.flatten()[-2:])]
    shared = {"basis_check": torch.cat(ends), **(kept if config.save_basis else {})}
    state.update(
        {_ours(f"{PREFIX}{shapes[0].name}", f"bases.{name}"): value for name, value in shared.items()}
    )
    return config, state


def _read_miss(saved: dict[str, Any], tensors: State, base: nn.Module) -> tuple[AdapterConfig, State]:
    old = "bone" if saved["peft_type"] == "BONE" else "miss"
    options = _options(saved, PeftMissConfig, ("r", f"{old}_dropout", "mini_r", "init_weights"))
    start = saved.get("init_weights", True)
    config = get_config("bone")(
        r=saved["r"],
        variant=start if isinstance(start, str) else "miss",
        dropout=saved.get(f"{old}_dropout") or 0.0,
        **({"mini_r": saved["mini_r"]} if start == "mini" else {}),
        **options,
    )
    state = {}
    for key, value in tensors.items():
        layer, _, name = key.rpartition(".")
        state[_ours(layer, "miss_block") if name == f"{old}_block" else key] = value
    return config, state


_READERS = {"LORA": _read_lora, "RANDLORA": _read_randlora, "MISS": _read_miss, "BONE": _read_miss}


def _check_modules(path: str | Path, state: State, base: nn.Module) -> None:
    """Refuse trained modules that the model has not, or with other shapes, and drop base weights it has already.

    PEFT adds the weight of an adapted embedding to its checkpoints; only an unchanged one can be left out here.
    """
    there = {
        re.sub(r"\.(base_layer|original_module)\.", ".", key): value
        for key, value in base.state_dict().items()
        if ".eckart_adapters." not in key and ".modules_to_save." not in key
    }
    for key in [key for key in state if ".eckart_adapters." not in key]:
        name = key.removeprefix(PREFIX).replace(".base_layer.", ".")
        found, shape = there.get(name), tuple(state[key].shape)
        if found is None or tuple(found.shape) != shape:
            told = "no such module" if found is None else f"shape {tuple(found.shape)} there"
            raise InputError(f"adapter {path} holds {name} of shape {shape}, but the model has {told}")
        if ".base_layer." in key:
            if not torch.equal(found.cpu().to(state[key].dtype), state[key]):
                raise InputError(f"adapter {path} changes the base weight {name}: load it with PEFT")
            del state[key]


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
    adapter_name: str = "default",
    overwrite: bool = False,
    on_layer: Callable[[int, int], None] | None = None,
) -> ExportReport:
    """Write an adapter as a PEFT LoRA checkpoint, ΔW ≈ B A by truncated SVD, which PEFT loads without this library.

    Linear and Conv1D layers become ``lora_A (r, in)``, ``lora_B (out, r)``; convolutions ``(r, in, *kernel)`` and
    ``(out, r/groups, 1, …)``; embeddings ``lora_embedding_A (r, num)``, ``lora_embedding_B (dim, r)``. The scaling
    is in the factors: ``lora_alpha`` equals ``r``. Modules trained in full are copied.

    Args:
        model: the model with the adapter; unchanged.
        path: the directory to write.
        r: the rank of every layer. None takes for each layer the smallest that is exact (to `EXACT`), written as
            ``rank_pattern`` where layers differ.
        adapter_name: which adapter.
        overwrite: replace what is at ``path``.
        on_layer: called after every layer with how many are done and how many there are.

    Raises:
        InputError: no such adapter, one that is not of this library, a rank below 1, above what any layer can have or
            not divisible by the groups of a convolution, NaN or Inf in an adapter, or a directory that is not empty.
    """
    if r is not None and r < 1:
        raise InputError(f"r is {r}: give a rank of at least 1")
    check_output(path, overwrite=overwrite, name="path")
    layers = _adapted_layers(model, adapter_name)
    highest = max(layer.shape.max_rank * layer.op.groups for layer in layers.values())
    if r is not None and r > highest:
        raise InputError(f"r is {r}, above {highest}, the highest rank an adapted layer can have: lower r")
    state, reports, ranks = _saved_modules(model, adapter_name), [], {}
    for done, (name, layer) in enumerate(layers.items(), start=1):
        factors, report = _factorise(name, layer, adapter_name, r)
        state.update(factors)
        reports.append(report)
        ranks[name] = report.r
        if on_layer is not None:
            on_layer(done, len(layers))
    config = _lora_config(model, adapter_name, ranks)
    with atomic_directory(path, overwrite=overwrite) as folder:
        save_file(state, folder / WEIGHTS_NAME, metadata={"format": "pt"})
        base = type(model.get_base_model())
        mapping = {"base_model_class": base.__name__, "parent_library": base.__module__}
        config.save_pretrained(str(folder), auto_mapping_dict=None if config.task_type else mapping)
    return ExportReport(
        path=str(path),
        method=model.peft_config[adapter_name].slug,
        r=config.r,
        exact=all(report.r >= report.rank for report in reports),
        error=max(report.error for report in reports),
        layers=reports,
    )


def _adapted_layers(model: PeftModel, adapter_name: str) -> dict[str, EckartLayer]:
    if not isinstance(model, PeftModel) or adapter_name not in model.peft_config:
        there = (
            ", ".join(model.peft_config) if isinstance(model, PeftModel) else "none, it is not a PeftModel"
        )
        raise InputError(f"adapter {adapter_name!r} is not in this model; adapters there are: {there}")
    layers = {
        name.removeprefix(PREFIX): module
        for name, module in model.named_modules()
        if isinstance(module, EckartLayer) and adapter_name in module.eckart_adapters
    }
    if not layers:
        kind = model.peft_config[adapter_name].peft_type
        raise InputError(
            f"adapter {adapter_name!r} is PEFT's own {kind}: load it with eckart.adapters.from_peft first"
        )
    return layers


@torch.no_grad()
def _factorise(
    name: str, layer: EckartLayer, adapter_name: str, r: int | None
) -> tuple[dict[str, Tensor], LayerExport]:
    delta = layer.get_delta_weight(adapter_name)
    if not torch.isfinite(delta).all():
        raise InputError(f"the adapter of layer {name} holds NaN or Inf: it cannot be exported")
    groups, (out, inner, *kernel) = layer.op.groups, layer.shape.weight
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
    lora_b = lora_b.reshape(out, width)
    if layer.op.kind == "conv":
        lora_a = lora_a.reshape(groups * width, groups * inner, *kernel)
        lora_b = lora_b.reshape(out, width, *(1 for _ in kernel))
    else:
        lora_a = lora_a.reshape(width, -1)
    infix, suffix = ("lora_embedding", "") if layer.op.kind == "embedding" else ("lora", ".weight")
    factors = {
        f"{PREFIX}{name}.{infix}_{letter}{suffix}": factor.contiguous().cpu()
        for letter, factor in (("A", lora_a), ("B", lora_b))
    }
    return factors, LayerExport(name, layer.op.kind, groups * rank, groups * width, error)


def _saved_modules(model: PeftModel, adapter_name: str) -> dict[str, Tensor]:
    """The tensors of modules trained in full, such as a classification head, under their checkpoint names."""
    return {
        f"{name}.{key}": value.detach().contiguous().cpu()
        for name, module in model.named_modules()
        if isinstance(module, AuxiliaryTrainingWrapper)
        for key, value in module.adapter_state_dict(adapter_name, module.state_dict()).items()
    }


def _lora_config(model: PeftModel, adapter_name: str, ranks: dict[str, int]) -> PeftLoraConfig:
    ours = model.peft_config[adapter_name]
    most = max(ranks.values())
    # PEFT takes the first pattern that fits the end of a layer's name: longer names go first.
    pattern = {name: ranks[name] for name in sorted(ranks, key=len, reverse=True) if ranks[name] != most}
    layers = {name: module.get_base_layer() for name, module in _adapted_layers(model, adapter_name).items()}
    config = PeftLoraConfig(
        r=most,
        lora_alpha=most,
        rank_pattern=pattern,
        alpha_pattern=dict(pattern),
        target_modules=sorted(ranks),
        modules_to_save=ours.modules_to_save,
        fan_in_fan_out=all(isinstance(layer, Conv1D) for layer in layers.values()),
        task_type=ours.task_type,
        base_model_name_or_path=ours.base_model_name_or_path,
        revision=ours.revision,
        inference_mode=True,
    )
    inner = [name for name, _ in model.get_base_model().named_modules() if ".base_layer" not in name]
    strangers = [name for name in inner if name not in ranks and check_target_module_exists(config, name)]
    config.exclude_modules = sorted(strangers) or None
    return config
