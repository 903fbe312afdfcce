"""MoDeGPT: the dimension inside each pair of matrices is cut, so that the pair's outputs change least.

    up, gate – down   units J of largest ridge leverage; W_d ← W_d C[:, J] C[J, J]⁺       (Nyström)
    query – key       rotation pairs of largest √(E|k_j|² Σ_h E|q_{h,j}|²)                 (CR)
    value – output    the best rank-r product under the inputs, V shared in its group      (SVD)

    layer l loses φ_l = L φ softmax(−s/ε)_l of its dimensions, s_l = 1 − E cos(x_in, x_out) of the block

Source: Lin et al., ICLR 2025, arXiv:2408.09632. Groups of query heads and rotation pairs are ours.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from eckart.compression._calibration import Observed
from eckart.compression._census import Outline, matrix_shape
from eckart.compression._layers import Spec
from eckart.compression._method import Change, Compressor, LayerRow
from eckart.errors import InputError
from eckart.linalg.heads import coordinate_scores, value_output
from eckart.linalg.moments import Moments, output_energy
from eckart.linalg.nystroem import largest, nystroem_refit, refit_error, ridge_leverage

PROJECTIONS = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj")
MLP = ("mlp.gate_proj", "mlp.up_proj", "mlp.down_proj")


class Widths(NamedTuple):
    """What is left of one layer."""

    qk_dim: int
    v_dim: int
    mlp_dim: int


@dataclass
class MoDeGPT(Compressor):
    """MoDeGPT: smaller dense matrices, no factors; heads and MLPs lose dimensions.

    Args:
        epsilon: how unevenly layers lose: large is uniform, small spares the influential ones.
        max_sparsity: the most that a layer may lose, in (0, 1].
        mlp, qk, vo: which of the three pairs are cut.
        refit: "affine" also keeps the mean of the MLP's outputs by a bias of the down projection, where it has one.
        vo_mode: "joint" the best product for all query heads of a group; "value_only" the best values.
        pair_score: "energy" as above, or "reimpl", √(E q_j² E k_j² + E q_j′² E k_j′²), as a re-implementation has
            it.
        ridge: λ of the leverage scores, in units of the mean of diag(C).
        multiple_of: round widths to the nearest multiple of this; those of queries and keys stay even.

    Raises:
        InputError: an option outside its range.
    """

    epsilon: float = 0.1
    max_sparsity: float = 0.8
    mlp: bool = True
    qk: bool = True
    vo: bool = True
    refit: Literal["linear", "affine"] = "linear"
    vo_mode: Literal["joint", "value_only"] = "joint"
    pair_score: Literal["energy", "reimpl"] = "energy"
    ridge: float = 1e-4
    multiple_of: int = 1

    slug: ClassVar[str] = "modegpt"
    influenced: ClassVar[bool] = True

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.epsilon > 0 or not self.ridge > 0:
            raise InputError(f"epsilon is {self.epsilon}, ridge {self.ridge}: give numbers above 0")
        if not 0 < self.max_sparsity <= 1:
            raise InputError(f"max_sparsity is {self.max_sparsity}: give a share in (0, 1]")
        if self.multiple_of < 1:
            raise InputError(f"multiple_of is {self.multiple_of}: give at least 1")
        for name, known in (
            ("refit", ("linear", "affine")),
            ("vo_mode", ("joint", "value_only")),
            ("pair_score", ("energy", "reimpl")),
        ):
            if getattr(self, name) not in known:
                raise InputError(f"{name} is {getattr(self, name)!r}: give one of {', '.join(known)}")
        if not (self.mlp or self.qk or self.vo):
            raise InputError("mlp, qk and vo are all False: leave one on")
        self._widths: dict[str, Widths] = {}

    def check(self, outline: Outline) -> None:
        from eckart.compression._sliced_config import FAMILIES

        kind = getattr(getattr(outline.model, "config", None), "model_type", type(outline.model).__name__)
        if kind not in FAMILIES:
            raise InputError(
                f"modegpt knows {', '.join(FAMILIES)}, not {kind}: it needs separate q, k, v, o projections with "
                "rotary embeddings in halves and a gated MLP; lord and whitened-svd take any linear layer"
            )
        missing = [
            f"{b}.{n}"
            for b in outline.blocks
            for n in (*PROJECTIONS, *MLP)
            if f"{b}.{n}" not in outline.layers
        ]
        if missing:
            raise InputError(
                f"modegpt changes whole blocks, but {missing[0]} is excluded or shared: leave exclude out"
            )

    def plan(self, outline: Outline, ratio: float | None, influence: Sequence[float]) -> None:
        if ratio is None:
            raise InputError(
                "ratio is not given: say how much of the dimensions to remove, such as ratio=0.2"
            )
        if ratio > self.max_sparsity:
            raise InputError(f"ratio is {ratio}, above max_sparsity={self.max_sparsity}: lower it")
        lost = allocate(torch.tensor(influence, dtype=torch.float64), ratio, self.epsilon, self.max_sparsity)
        self._widths = {}
        for (name, block), share in zip(outline.blocks.items(), lost.tolist(), strict=True):
            attention: Any = block.self_attn
            d, m = attention.head_dim, matrix_shape(outline.layers[f"{name}.{MLP[0]}"])[0]
            free = self.qk and getattr(attention, "q_norm", None) is None
            keep = 1 - share
            self._widths[name] = Widths(
                self._width(d, keep, 2) if free else d,
                self._width(d, keep, 2) if self.vo else d,
                self._width(m, keep, 1) if self.mlp else m,
            )

    def _width(self, size: int, keep: float, even: int) -> int:
        step = max(self.multiple_of, even)
        step += step % even
        share = size * keep + 1e-6
        width = round(share / step) * step if self.multiple_of > 1 else int(share / even) * even
        return min(max(width, even), size)

    def compress(
        self, block: str, outline: Outline, observed: Mapping[str, Observed]
    ) -> tuple[dict[str, Change], list[LayerRow]]:
        module: Any = outline.blocks[block]
        inputs, hidden = observed[f"{block}.{PROJECTIONS[2]}"], observed[f"{block}.{MLP[2]}"]
        assert isinstance(inputs, Moments) and isinstance(hidden, Moments)
        width = self._widths[block]
        attention, dropped, lost = self.slice_attention(module.self_attn, inputs, width.qk_dim, width.v_dim)
        changes = {f"{block}.self_attn": Change(attention, attention.spec)}
        mlp, error = self.slice_mlp(module.mlp, hidden, width.mlp_dim)
        for name, layer in mlp.items():
            spec: Spec = {"kind": "width", "name": name, "mlp_dim": width.mlp_dim}
            changes[f"{block}.mlp.{name}"] = Change(layer, spec)
        errors = (dropped, dropped, lost, lost, error, error, error)
        sizes = (width.qk_dim, width.qk_dim, width.v_dim, width.v_dim, *(width.mlp_dim,) * 3)
        rows = []
        for name, rank, wrong in zip((*PROJECTIONS, *MLP), sizes, errors, strict=True):
            full = f"{block}.{name}"
            old = outline.layers[full]
            new = mlp[name[4:]] if name in MLP else getattr(attention, name[10:])
            before, after = (sum(p.numel() for p in layer.parameters()) for layer in (old, new))
            rows.append(LayerRow(full, "sliced", *matrix_shape(old), rank, before, after, wrong))
        return changes, rows

    def watched(self, block: str, outline: Outline) -> dict[str, nn.Module]:
        names = (f"{block}.{PROJECTIONS[2]}", f"{block}.{MLP[2]}")
        return {name: outline.layers[name] for name in names}

    def rebuild(self, spec: Spec, dense: nn.Module) -> nn.Module:
        from eckart.compression._sliced import SlicedAttention, resized

        if spec["kind"] == "attention":
            return SlicedAttention(dense, spec["qk_dim"], spec["v_dim"], spec["o_bias"])
        assert isinstance(dense, nn.Linear)
        return resized(dense, spec["name"], spec["mlp_dim"])

    def finish(self, model: nn.Module, specs: Mapping[str, Spec]) -> None:
        from eckart.compression._sliced import convert

        convert(
            model,
            [
                {
                    **{k: v for k, v in specs[f"{block}.self_attn"].items() if k != "kind"},
                    "mlp_dim": specs[f"{block}.mlp.down_proj"]["mlp_dim"],
                }
                for block in self._widths
            ],
        )

    @torch.no_grad()
    def slice_mlp(self, mlp: Any, moments: Moments, width: int) -> tuple[dict[str, nn.Linear], float]:
        """The three projections with ``width`` hidden units, and the relative error of the outputs.

        Args:
            mlp: has gate_proj, up_proj and down_proj.
            moments: of what enters down_proj.
            width: k.
        """
        from eckart.compression._sliced import resized

        gram, down = moments.second, mlp.down_proj.weight.detach()
        kept = kept_units(gram, width, self.ridge * float(gram.diagonal().mean()))
        affine = self.refit == "affine" and mlp.down_proj.bias is not None
        refitted = nystroem_refit(down, moments.covariance if affine else gram, kept)
        new = {}
        for name in ("gate_proj", "up_proj", "down_proj"):
            old = getattr(mlp, name)
            new[name] = resized(old, name, width)
            new[name].weight.copy_(refitted if name == "down_proj" else old.weight[kept])
            if old.bias is not None:
                new[name].bias.copy_(old.bias if name == "down_proj" else old.bias[kept])
        if affine:
            new["down_proj"].bias.add_(down.double() @ moments.mean - refitted @ moments.mean[kept])
        whole = refit_error(down, gram, kept, torch.zeros_like(refitted))
        whole = float(torch.sum((down.double() @ gram) * down.double())) or whole
        wrong = refit_error(down, moments.covariance if affine else gram, kept, refitted)
        return new, max(wrong / whole, 0.0) ** 0.5

    @torch.no_grad()
    def slice_attention(
        self, source: Any, moments: Moments, qk_dim: int, v_dim: int
    ) -> tuple[Any, float, float]:
        """Attention with fewer coordinates, the share of score energy dropped, and the relative error of the products
        of values and outputs.

        Args:
            source: a transformers attention with q, k, v, o projections.
            moments: of its inputs.
            qk_dim: coordinates of queries and keys that stay.
            v_dim: coordinates of the values that stay.
        """
        from eckart.compression._sliced import SlicedAttention

        bias = output_bias(source)
        new = SlicedAttention(source, qk_dim, v_dim, bias is not None)
        d, groups = source.head_dim, new.heads // new.kv_heads
        dropped, index = self._slice_scores(source, new, moments)
        new.rope_index.copy_(index)
        if v_dim == d and not self.vo:
            new.v_proj.weight.copy_(source.v_proj.weight)
            new.o_proj.weight.copy_(source.o_proj.weight)
            lost = whole = torch.zeros(())
        else:
            value = source.v_proj.weight.reshape(new.kv_heads, d, -1)
            out = source.o_proj.weight.reshape(-1, new.kv_heads, groups, d)
            lost, whole = torch.zeros((), dtype=torch.float64), torch.zeros((), dtype=torch.float64)
            values, outputs = [], []
            for g in range(new.kv_heads):
                heads = out[:, g].transpose(0, 1)
                pair = value_output(value[g], heads, moments.second, v_dim, self.vo_mode == "joint")
                values.append(pair.value)
                outputs.append(pair.outputs)
                lost += pair.singular_values[v_dim:].square().sum().cpu()
                whole += pair.singular_values.square().sum().cpu()
            new.v_proj.weight.copy_(torch.cat(values))
            new.o_proj.weight.copy_(torch.cat([o for group in outputs for o in group], dim=1))
        if bias is not None:
            new.o_proj.bias.copy_(bias)
        return new, dropped, float((lost / whole).sqrt()) if float(whole) > 0 else 0.0

    def _slice_scores(self, source: Any, new: Any, moments: Moments) -> tuple[float, Int[Tensor, "kv r"]]:
        """Copy the rows of queries and keys that stay; the share of energy dropped, and which coordinates they are."""
        d, r = source.head_dim, new.qk_dim
        query, key = (
            output_energy(moments, layer.weight, layer.bias).reshape(new.kv_heads, -1, d)
            for layer in (source.q_proj, source.k_proj)
        )
        kept, dropped, total = [], 0.0, 0.0
        for q, k in zip(query, key, strict=True):
            scores, _ = coordinate_scores(q, k[0], d // 2, self.pair_score == "reimpl")
            pairs = largest(scores, r // 2)
            kept.append(torch.cat([pairs, pairs + d // 2]))
            total += float(scores.sum())
            dropped += float(scores.sum() - scores[pairs].sum())
        index = torch.stack(kept)
        if r == d:
            index = torch.arange(d, device=index.device).expand(new.kv_heads, d)
        heads = index.repeat_interleave(new.heads // new.kv_heads, 0)
        for name, places in (("q_proj", heads), ("k_proj", index)):
            rows = (places + d * torch.arange(len(places), device=places.device).unsqueeze(1)).flatten()
            old, layer = getattr(source, name), getattr(new, name)
            layer.weight.copy_(old.weight[rows])
            if old.bias is not None:
                layer.bias.copy_(old.bias[rows])
        return dropped / total if total else 0.0, index


def kept_units(gram: Float[Tensor, "m m"], width: int, ridge: float) -> Int[Tensor, " k"]:
    """The hidden units of largest ridge leverage, in rising order.

    Args:
        gram: C = E[z zᵀ].
        width: k.
        ridge: λ, in the units of C.
    """
    return largest(ridge_leverage(gram, ridge), width)


def output_bias(attention: Any) -> Float[Tensor, " hidden"] | None:
    """The output projection's bias with that of the values folded in, b_o + Σ_h O_h b_v: exact, since the weights of
    attention sum to one (dropout on them, in training, breaks it). None where there is neither.
    """
    bias: Tensor | None = attention.o_proj.bias
    if attention.v_proj.bias is None:
        return None if bias is None else bias.detach().double()
    d = attention.head_dim
    per_head = attention.v_proj.bias.detach().double().reshape(-1, d)
    groups = attention.o_proj.in_features // (d * len(per_head))
    folded: Tensor = (
        attention.o_proj.weight.detach().double() @ per_head.repeat_interleave(groups, 0).flatten()
    )
    return folded if bias is None else folded + bias.detach().double()


def raw_allocation(
    influence: Float[Tensor, " layers"], average: float, epsilon: float
) -> Float[Tensor, " layers"]:
    """φ_l = L φ softmax(−s/ε)_l, before any cap."""
    return len(influence) * average * torch.softmax(-influence / epsilon, 0)


def allocate(
    influence: Float[Tensor, " layers"], average: float, epsilon: float, cap: float
) -> Float[Tensor, " layers"]:
    """Share of its dimensions that each layer loses; what is above the cap goes to the others in proportion.

    Args:
        influence: s of each layer.
        average: φ, the mean of the shares, at most ``cap``.
        epsilon: ε.
        cap: the most that a layer loses.
    """
    weights = torch.softmax(-influence / epsilon, 0)
    shares = raw_allocation(influence, average, epsilon)
    capped = torch.zeros_like(shares, dtype=torch.bool)
    for _ in range(len(shares)):
        over = (shares > cap) & ~capped
        if not bool(over.any()):
            break
        capped |= over
        excess = len(shares) * average - cap * int(capped.sum())
        free = torch.where(capped, 0.0, weights)
        shares = torch.where(capped, cap, excess * free / free.sum().clamp_min(torch.finfo(free.dtype).tiny))
    return shares
