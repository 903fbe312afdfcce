"""MoDeGPT: the dimension inside each pair of matrices is cut, so that the pair's outputs change least.

    up, gate – down   units J of largest ridge leverage; W_d ← W_d C[:, J] C[J, J]⁺       (Nyström)
    query – key       coordinates of largest √(E k_j² Σ_h E q_{h,j}²), in pairs with RoPE  (CR)
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

from eckart.compression._allocation import allocate
from eckart.compression._calibration import Observed
from eckart.compression._census import Outline, matrix_shape, set_weight, weight_matrix
from eckart.compression._layers import Spec
from eckart.compression._method import Change, Compressor, LayerRow, root_share
from eckart.compression._sliced_config import FAMILIES, LLAMA, Layout
from eckart.errors import InputError
from eckart.linalg.heads import coordinate_scores, value_output
from eckart.linalg.moments import Moments, output_energy
from eckart.linalg.nystroem import largest, nystroem_refit, refit_error, ridge_leverage


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
        self._layout = LLAMA

    def check(self, outline: Outline) -> None:
        config = getattr(outline.model, "config", None)
        kind = getattr(config, "model_type", type(outline.model).__name__)
        if kind not in FAMILIES:
            raise InputError(
                f"modegpt knows {', '.join(FAMILIES)}, not {kind}: it needs a decoder of blocks with one attention, "
                "rotated in halves or not at all, and one MLP; lord and whitened-svd take any linear layer"
            )
        for switch in ("add_cross_attention", "reorder_and_upcast_attn"):
            if getattr(config, switch, False):
                raise InputError(
                    f"modegpt does not slice the attention of {kind} with {switch}=True: lord takes its linear layers"
                )
        if not outline.chained:
            raise InputError(
                f"modegpt shares a loss among blocks, and {kind} has one: give a model of two or more"
            )
        self._layout = FAMILIES[kind]
        names = (*self._layout.projections, *self._layout.up, self._layout.down)
        missing = [f"{b}.{n}" for b in outline.blocks for n in names if f"{b}.{n}" not in outline.layers]
        if missing:
            raise InputError(
                f"modegpt changes whole blocks, but {missing[0]} is excluded or shared: leave exclude out"
            )

    def plan(self, outline: Outline, ratio: float | None, influence: Sequence[float]) -> None:
        assert ratio is not None
        if ratio > self.max_sparsity:
            raise InputError(f"ratio is {ratio}, above max_sparsity={self.max_sparsity}: lower it")
        lost = allocate(torch.tensor(influence, dtype=torch.float64), ratio, self.epsilon, self.max_sparsity)
        self._widths, layout = {}, self._layout
        for (name, block), share in zip(outline.blocks.items(), lost.tolist(), strict=True):
            attention: Any = block.get_submodule(layout.attention)
            d, m = attention.head_dim, matrix_shape(outline.layers[f"{name}.{layout.up[0]}"])[0]
            free = self.qk and getattr(attention, "q_norm", None) is None
            keep = 1 - share
            self._widths[name] = Widths(
                self._width(d, keep, 1 + layout.rotary) if free else d,
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
        module, layout, width = outline.blocks[block], self._layout, self._widths[block]
        inputs, hidden = (observed[name] for name in self.watched(block, outline))
        assert isinstance(inputs, Moments) and isinstance(hidden, Moments)
        source: Any = module.get_submodule(layout.attention)
        attention, dropped, lost = self.slice_attention(source, inputs, width.qk_dim, width.v_dim)
        changes = {f"{block}.{layout.attention}": Change(attention, attention.spec)}
        holder = module.get_submodule(layout.down.rpartition(".")[0])
        mlp, error = self.slice_mlp(holder, hidden, width.mlp_dim)
        new = {path: mlp[path.rpartition(".")[2]] for path in (*layout.up, layout.down)}
        for path, layer in new.items():
            spec: Spec = {"kind": "width", "inward": path == layout.down, "mlp_dim": width.mlp_dim}
            changes[f"{block}.{path}"] = Change(layer, spec)
        q, k, v, o = (getattr(attention, f"{name}_proj") for name in "qkvo")
        scores, values = (width.qk_dim, dropped), (width.v_dim, lost)
        cut = [([q], *scores), ([k], *scores), ([v], *values), ([o], *values)]
        if len(layout.inputs) == 1:
            cut = [([q, k, v], *scores), ([o], *values)]
        cut += [([layer], width.mlp_dim, error) for layer in new.values()]
        rows = []
        for path, (parts, rank, wrong) in zip((*layout.projections, *new), cut, strict=True):
            old = outline.layers[f"{block}.{path}"]
            before, after = (
                sum(p.numel() for part in some for p in part.parameters()) for some in ([old], parts)
            )
            rows.append(LayerRow(f"{block}.{path}", "sliced", *matrix_shape(old), rank, before, after, wrong))
        return changes, rows

    def watched(self, block: str, outline: Outline) -> dict[str, nn.Module]:
        layout = self._layout
        names = (f"{block}.{layout.attention}.{layout.inputs[-1]}", f"{block}.{layout.down}")
        return {name: outline.layers[name] for name in names}

    def rebuild(self, spec: Spec, dense: nn.Module) -> nn.Module:
        from eckart.compression._sliced import SlicedAttention, resized

        if spec["kind"] == "attention":
            return SlicedAttention(dense, self._layout, spec["qk_dim"], spec["v_dim"], spec["o_bias"])
        return resized(dense, spec["mlp_dim"], spec["inward"])  # type: ignore[no-any-return]

    def finish(self, model: nn.Module, specs: Mapping[str, Spec]) -> None:
        from eckart.compression._sliced import convert

        convert(
            model,
            [
                {
                    **{k: v for k, v in specs[f"{block}.{self._layout.attention}"].items() if k != "kind"},
                    "mlp_dim": specs[f"{block}.{self._layout.down}"]["mlp_dim"],
                }
                for block in self._widths
            ],
        )

    @torch.no_grad()
    def slice_mlp(self, mlp: Any, moments: Moments, width: int) -> tuple[dict[str, Any], float]:
        """The projections by name with ``width`` hidden units, and the relative error of the outputs.

        Args:
            mlp: has the projections into and out of the hidden units.
            moments: of what enters the one out of them.
            width: k.
        """
        from eckart.compression._sliced import resized

        last = self._layout.down.rpartition(".")[2]
        gram, down, bias = moments.second, weight_matrix(getattr(mlp, last)), getattr(mlp, last).bias
        kept = kept_units(gram, width, self.ridge * float(gram.diagonal().mean()))
        affine = self.refit == "affine" and bias is not None
        refitted = nystroem_refit(down, moments.covariance if affine else gram, kept)
        new = {}
        for path in (*self._layout.up, self._layout.down):
            name = path.rpartition(".")[2]
            old = getattr(mlp, name)
            new[name] = resized(old, width, name == last)
            set_weight(new[name], refitted if name == last else weight_matrix(old)[kept])
            if old.bias is not None:
                new[name].bias.copy_(old.bias if name == last else old.bias[kept])
        if affine:
            new[last].bias.add_(down.double() @ moments.mean - refitted @ moments.mean[kept])
        whole = refit_error(down, gram, kept, torch.zeros_like(refitted))
        whole = float(torch.sum((down.double() @ gram) * down.double())) or whole
        wrong = refit_error(down, moments.covariance if affine else gram, kept, refitted)
        return new, root_share(wrong, whole)

    @torch.no_grad()
    def slice_attention(
        self, source: Any, moments: Moments, qk_dim: int, v_dim: int
    ) -> tuple[Any, float, float]:
        """Attention with fewer coordinates, the share of score energy dropped, and the relative error of the products
        of values and outputs.

        Args:
            source: a transformers attention.
            moments: of its inputs.
            qk_dim: coordinates of queries and keys that stay.
            v_dim: coordinates of the values that stay.
        """
        from eckart.compression._sliced import SlicedAttention, projections

        query, key, v, o = projections(source, self._layout)
        bias = output_bias(source, self._layout)
        new = SlicedAttention(source, self._layout, qk_dim, v_dim, bias is not None)
        d, groups = source.head_dim, new.heads // new.kv_heads
        dropped = self._slice_scores(query, key, new, moments)
        if v_dim == d and not self.vo:
            new.v_proj.weight.copy_(v.weight)
            new.o_proj.weight.copy_(o.weight)
            lost = whole = torch.zeros(())
        else:
            value = v.weight.reshape(new.kv_heads, d, -1)
            out = o.weight.reshape(-1, new.kv_heads, groups, d)
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
        return new, dropped, root_share(lost, whole)

    def _slice_scores(self, query: Any, key: Any, new: Any, moments: Moments) -> float:
        """Copy the rows of queries and keys that stay; the share of energy dropped."""
        d, r = new.head_dim, new.qk_dim
        energies = (
            output_energy(moments, source.weight, source.bias).reshape(new.kv_heads, -1, d)
            for source in (query, key)
        )
        pairs = d // 2 if self._layout.rotary else 0
        kept, dropped, total = [], 0.0, 0.0
        for q, k in zip(*energies, strict=True):
            rotated, single = coordinate_scores(q, k[0], pairs, self.pair_score == "reimpl")
            scores = rotated if pairs else single
            places = largest(scores, r // 2 if pairs else r)
            kept.append(torch.cat([places, places + pairs]) if pairs else places)
            total += float(scores.sum())
            dropped += float(scores.sum() - scores[places].sum())
        index = torch.stack(kept)
        if r == d:
            index = torch.arange(d, device=index.device).expand(new.kv_heads, d)
        if pairs:
            new.rope_index.copy_(index)
        heads = index.repeat_interleave(new.heads // new.kv_heads, 0)
        for old, layer, coordinates in ((query, new.q_proj, heads), (key, new.k_proj, index)):
            starts = d * torch.arange(len(coordinates), device=coordinates.device)
            rows = (coordinates + starts.unsqueeze(1)).flatten()
            layer.weight.copy_(old.weight[rows])
            if old.bias is not None:
                layer.bias.copy_(old.bias[rows])
        return dropped / total if total else 0.0


def kept_units(gram: Float[Tensor, "m m"], width: int, ridge: float) -> Int[Tensor, " k"]:
    """The hidden units of largest ridge leverage, in rising order.

    Args:
        gram: C = E[z zᵀ].
        width: k.
        ridge: λ, in the units of C.
    """
    return largest(ridge_leverage(gram, ridge), width)


def output_bias(attention: Any, layout: Layout = LLAMA) -> Float[Tensor, " hidden"] | None:
    """The output projection's bias with that of the values folded in, b_o + Σ_h O_h b_v: exact, since the weights of
    attention sum to one (dropout on them, in training, breaks it). None where there is neither.
    """
    from eckart.compression._sliced import projections

    _, _, value, out = projections(attention, layout)
    if value.bias is None:
        return None if out.bias is None else out.bias.detach().double()
    d = attention.head_dim
    per_head = value.bias.detach().double().reshape(-1, d)
    groups = out.weight.shape[1] // (d * len(per_head))
    folded = out.weight.double() @ per_head.repeat_interleave(groups, 0).flatten()
    return folded if out.bias is None else folded + out.bias.detach().double()
