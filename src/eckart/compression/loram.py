"""LoRAM: train a LoRA on a pruned model, use it with the large one.

    W₀ ──prune──> W₀ᴾ ──align──> W₀ᴾᴬ ──LoRA──> (Aᴾ, Bᴾ) ──recover──> (Aᴿ, Bᴿ),      W₀ + s Bᴿ Aᴿ

    gate, up, k, v, q   rows of B are put back       down, o   columns of A are put back       zeros between them

so that prune(W₀ + s Bᴿ Aᴿ) = prune(W₀) + s Bᴾ Aᴾ. Whole neurons and whole heads go; the hidden size stays.

Source: Zhang et al., ICLR 2025, arXiv:2502.13533.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

import torch
from torch import Tensor, nn

from eckart.compression._census import find_blocks
from eckart.compression._criteria import CRITERIA, Criterion
from eckart.errors import InputError
from eckart.layers._replacing import install
from eckart.linalg.pruned import kept_indices, least, put, query_rows, smallest_entries, take

if TYPE_CHECKING:
    from peft import PeftModel

Model = TypeVar("Model", bound=nn.Module)
PROJECTIONS = {
    "mlp.gate_proj": ("mlp", 0),
    "mlp.up_proj": ("mlp", 0),
    "mlp.down_proj": ("mlp", 1),
    "self_attn.q_proj": ("q", 0),
    "self_attn.k_proj": ("kv", 0),
    "self_attn.v_proj": ("kv", 0),
    "self_attn.o_proj": ("q", 1),
}
"""Layer of a block → which of the index lists applies to it, and to rows (0) or columns (1) of its weight."""
SEMI = 8
"""Entries of a run in the semi-structured form, of which half go: 4:8."""


class Indices(NamedTuple):
    """What of a block is pruned: neurons of the MLP, and rows of keys and values (whole heads)."""

    mlp: Tensor
    kv: Tensor


@dataclass(frozen=True)
class Pruning:
    """Which rows and columns of a model are gone, or which entries are zero: what recovery needs.

    Attributes:
        blocks: name of a block → its indices; blocks that are not named are whole.
        neurons, kv_rows, head_dim, groups: of the large model: neurons of an MLP, rows of keys, d, and query heads to
            each head of keys and values.
        masks: layer → entries that are kept, where nothing but entries is pruned.
    """

    blocks: Mapping[str, Indices] = field(default_factory=dict)
    neurons: int = 0
    kv_rows: int = 0
    head_dim: int = 1
    groups: int = 1
    masks: Mapping[str, Tensor] = field(default_factory=dict)

    def side(self, layer: str) -> tuple[Tensor, int, int] | None:
        """What is left of a layer: indices, how many there were, rows (0) or columns (1); None where all is.

        Raises:
            InputError: an index out of range or twice, rows that are no whole heads, a layer left empty.
        """
        for ending, (which, dim) in PROJECTIONS.items():
            block = layer.removesuffix(f".{ending}")
            if block != layer and block in self.blocks:
                indices = self.blocks[block]
                if which == "mlp":
                    return kept_indices(indices.mlp, self.neurons, f"mlp of {block}"), self.neurons, dim
                pruned, size = indices.kv, self.kv_rows
                if which == "q":
                    pruned, size = query_rows(pruned, self.head_dim, self.groups), size * self.groups
                return kept_indices(pruned, size, f"kv of {block}"), size, dim
        return None


def choose(
    model: nn.Module,
    ratio: float,
    criterion: Criterion = "magnitude",
    *,
    layers: tuple[int, int] | None = None,
    batches: Iterable[Mapping[str, Tensor]] | None = None,
    seed: int = 0,
) -> Pruning:
    """Decide what to prune; nothing is changed.

    Args:
        model: a decoder whose blocks have ``self_attn.{q,k,v,o}_proj`` and ``mlp.{gate,up,down}_proj``: Llama, Mistral,
            Qwen, Gemma.
        ratio: share of the neurons and of the groups of heads that go, ⌊ratio · n⌋ of each block.
        criterion: "magnitude" Σ of the norms of what belongs together, "random", "taylor" Σ|w ∂L/∂w| over batches; or
            single entries: "unstructured" the least of each row, "semi" 4 of 8, which no ratio but 0.5 fits.
        layers: first block and the one after the last; None spares as many as the paper, 4 of 80 at the start and 2 at
            the end.
        batches: of inputs with ``labels``, for "taylor".
        seed: for "random".

    Raises:
        InputError: a ratio outside [0, 1), another architecture, batches missing.
    """
    if criterion not in CRITERIA:
        raise InputError(f"criterion={criterion!r}: choose one of {', '.join(CRITERIA)}")
    if not 0 <= ratio < 1:
        raise InputError(
            f"ratio={ratio}: give the share to prune, from 0 to below 1, so that no layer is empty"
        )
    if criterion == "semi" and ratio != 0.5:
        raise InputError(f"ratio={ratio} with criterion='semi': 4 of 8 entries go, give 0.5")
    blocks = _blocks(model, layers)
    if criterion in ("unstructured", "semi"):
        run = SEMI if criterion == "semi" else None
        chosen = {
            f"{name}.{ending}": block.get_submodule(ending).weight
            for name, block in blocks.items()
            for ending in PROJECTIONS
        }
        return Pruning(masks={name: smallest_entries(w, ratio, run) for name, w in chosen.items()})
    if criterion == "taylor":
        if batches is None:
            raise InputError("criterion='taylor' needs batches: give a few, with labels")
        importance = _taylor(model, blocks, batches)
    else:
        importance = {}
    attention: Any = next(iter(blocks.values())).self_attn
    k_proj: Any = attention.k_proj
    sizes = {"kv_rows": k_proj.out_features, "head_dim": int(attention.head_dim)}
    generator = torch.Generator().manual_seed(seed)
    found = {}
    for name, block in blocks.items():
        neurons, groups = _scores(block, importance.get(name), sizes["head_dim"])
        if criterion == "random":
            neurons, groups = (torch.rand(len(s), generator=generator) for s in (neurons, groups))
        heads = least(groups, ratio)
        kv = (heads[:, None] * sizes["head_dim"] + torch.arange(sizes["head_dim"])).flatten()
        found[name] = Indices(least(neurons, ratio), kv)
    q_proj: Any = attention.q_proj
    mlp: Any = next(iter(blocks.values())).mlp
    return Pruning(
        found, mlp.gate_proj.out_features, **sizes, groups=q_proj.out_features // k_proj.out_features
    )


def _blocks(model: nn.Module, layers: tuple[int, int] | None) -> dict[str, Any]:
    """The blocks that may be pruned, by name."""
    blocks = find_blocks(model)
    for name, block in blocks.items():
        inside = dict(block.named_modules())
        for ending in PROJECTIONS:
            if type(inside.get(ending)) is not nn.Linear:
                raise InputError(
                    f"{name} has no plain linear layer {ending}: LoRAM prunes blocks like Llama's"
                )
    if not blocks:
        raise InputError(
            f"{type(model).__name__} has no chain of blocks like Llama's: LoRAM prunes those only"
        )
    count = len(blocks)
    if layers is None:
        first, end = math.ceil(count * 4 / 80), count - math.ceil(count * 2 / 80)
        first, end = (first, end) if first < end else (0, count)
    else:
        first, end = layers
    if not 0 <= first < end <= count:
        raise InputError(f"layers={layers}: give first and end of a part of 0 to {count}")
    return dict(list(blocks.items())[first:end])


def _scores(block: Any, importance: Mapping[str, Tensor] | None, head_dim: int) -> tuple[Tensor, Tensor]:
    """Of each neuron and of each group of heads: norms, or sums of given importances, of all that goes with it."""

    def of(ending: str, runs: int) -> Tensor:
        dim = PROJECTIONS[ending][1]
        weight: Tensor = block.get_submodule(ending).weight
        values = weight.detach().float().square() if importance is None else importance[ending]
        sums: Tensor = values.sum(1 - dim).view(runs, -1).sum(1)
        return sums.sqrt() if importance is None else sums

    neurons, groups = block.mlp.gate_proj.out_features, block.self_attn.k_proj.out_features // head_dim
    parts = {"mlp": neurons, "self_attn": groups}
    totals = {
        part: sum(of(ending, runs) for ending in PROJECTIONS if ending.startswith(part))
        for part, runs in parts.items()
    }
    found = (torch.as_tensor(totals[part]).cpu() for part in parts)
    return tuple(found)  # type: ignore[return-value]


def _taylor(
    model: nn.Module, blocks: Mapping[str, Any], batches: Iterable[Mapping[str, Tensor]]
) -> dict[str, dict[str, Tensor]]:
    """Σ over batches of |w ∂L/∂w|; gradients and what trains are as before."""
    layers = {(name, e): block.get_submodule(e) for name, block in blocks.items() for e in PROJECTIONS}
    weights = {key: layer.weight for key, layer in layers.items()}
    found = {key: torch.zeros_like(w, dtype=torch.float32) for key, w in weights.items()}
    trains = [w.requires_grad for w in weights.values()]
    seen = False
    try:
        for weight in weights.values():
            weight.requires_grad_(True)
        for batch in batches:
            seen = True
            gradients = torch.autograd.grad(model(**batch).loss, list(weights.values()))
            for (key, weight), gradient in zip(weights.items(), gradients, strict=True):
                found[key] += (weight.detach() * gradient).abs()
    finally:
        for weight, was in zip(weights.values(), trains, strict=True):
            weight.requires_grad_(was)
    if not seen:
        raise InputError("batches is empty: criterion='taylor' needs a few, with labels")
    return {name: {e: found[name, e] for e in PROJECTIONS} for name in blocks}


def prune_model(model: Model, pruning: Pruning) -> Model:
    """Take rows and columns out of a model in place, or set entries to zero; biases go with their rows.

    Args:
        model: the large one.
        pruning: from `choose`, or indices of another tool.

    Raises:
        InputError: indices that the model has not, or that leave a layer empty; nothing was changed.
    """
    sides = {
        name: (layer, pruning.side(name))
        for name, layer in model.named_modules()
        if isinstance(layer, nn.Linear)
    }
    for name, (layer, side) in sides.items():
        if side is not None and layer.weight.shape[side[2]] != side[1]:
            raise InputError(
                f"{name} has shape {tuple(layer.weight.shape)}, its pruning is of {side[1]}: another model"
            )
    if unknown := [
        n for n in (*pruning.masks, *(f"{b}.mlp.up_proj" for b in pruning.blocks)) if n not in sides
    ]:
        raise InputError(f"the model has no layer {unknown[0]}, which the pruning names")
    with torch.no_grad():
        for name, (layer, side) in sides.items():
            if name in pruning.masks:
                layer.weight.mul_(pruning.masks[name].to(layer.weight.device))
            if side is not None and len(side[0]) < side[1]:
                install(model, name, _sliced(layer, side[0], side[2]))
    return model


def _sliced(layer: nn.Linear, kept: Tensor, dim: int) -> nn.Linear:
    rows, columns = (len(kept) if dim == i else size for i, size in enumerate(layer.weight.shape))
    options: dict[str, Any] = {"device": layer.weight.device, "dtype": layer.weight.dtype}
    new = nn.Linear(columns, rows, bias=layer.bias is not None, **options)
    if layer.weight.device.type != "meta":
        new.weight.copy_(take(layer.weight, kept, dim))
        if layer.bias is not None:
            new.bias.copy_(take(layer.bias, kept, 0) if dim == 0 else layer.bias)
    new.weight.requires_grad_(layer.weight.requires_grad)
    return new.train(layer.training)


def recover(state: Mapping[str, Tensor], pruning: Pruning) -> dict[str, Tensor]:
    """The adapter of the large model: the factors of the small one's with zeros where it was pruned.

    Args:
        state: tensors of a LoRA checkpoint, PEFT's or ours, by name: ``….q_proj.….lora_A….``.
        pruning: of the small model.

    Raises:
        InputError: a tensor of a pruned layer that is no factor of a LoRA (DoRA's magnitudes, VeRA's vectors), or of
            another shape. Layers that are not pruned pass as they are.
    """
    return {key: _changed(key, value, pruning, back=True) for key, value in state.items()}


def recover_into(whole: PeftModel, trained: PeftModel, pruning: Pruning) -> PeftModel:
    """Give the whole model the adapter, and what else was trained beside it, of the small one.

    Args:
        whole: the large model with an adapter of the same config; changed in place.
        trained: the small model with its adapter.
        pruning: of the small model.

    Raises:
        InputError: as `recover`.
    """
    from peft import get_peft_model_state_dict, set_peft_model_state_dict

    state = recover(get_peft_model_state_dict(trained, save_embedding_layers=False), pruning)
    device = next(whole.parameters()).device
    set_peft_model_state_dict(whole, {name: value.to(device) for name, value in state.items()})
    return whole


def restrict(state: Mapping[str, Tensor], pruning: Pruning) -> dict[str, Tensor]:
    """What of a large model's adapter acts in the small one: `recover` backwards.

    Raises:
        InputError: as `recover`.
    """
    return {key: _changed(key, value, pruning, back=False) for key, value in state.items()}


def _changed(key: str, value: Tensor, pruning: Pruning, *, back: bool) -> Tensor:
    match = re.fullmatch(rf"(.*?((?:{'|'.join(map(re.escape, PROJECTIONS))})))\.(.+)", key)
    if match is None or match[3].endswith("active"):  # which directions count, whatever their length is
        return value
    layer = match[1]
    block = next(
        (b for b in pruning.blocks if re.search(rf"(?:^|\.){re.escape(b)}\.{re.escape(match[2])}$", layer)),
        "",
    )
    side = pruning.side(f"{block}.{match[2]}") if block else None
    if side is None:
        return value
    kept, size, dim = side
    factor = next((f for f in ("lora_A", "lora_B") if f in match[3].split(".")), None)
    if factor is None:
        raise InputError(f"{key} is no factor of a LoRA: zeros are its recovery for lora_A and lora_B only")
    if (factor == "lora_B") != (dim == 0):
        return value
    try:
        return put(value, kept, size, dim) if back else take(value, kept, dim)
    except InputError as error:
        raise InputError(f"{key}: {error}") from None
