"""LoRAM: what goes, the small model, recovery of its adapter for the large one, files, bad input."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model, get_peft_model_state_dict, set_peft_model_state_dict
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaForCausalLM, Qwen2Config, Qwen2ForCausalLM

from eckart.compression import loram
from eckart.compression._loram_files import load_pruned, load_pruning, save_pruned, save_pruning
from eckart.errors import InputError
from eckart.linalg.pruned import kept_indices, least, put, query_rows, smallest_entries, take

IDS = torch.arange(24).view(2, 12)


def llama(heads: int = 6, kv: int = 3, blocks: int = 3, tied: bool = False) -> LlamaForCausalLM:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=32,
        hidden_size=24,
        intermediate_size=40,
        num_hidden_layers=blocks,
        num_attention_heads=heads,
        num_key_value_heads=kv,
        head_dim=4,
        tie_word_embeddings=tied,
        pad_token_id=0,
    )
    return LlamaForCausalLM(config).eval()


def adapted(model: Any, seed: int = 1) -> PeftModel:
    """A LoRA whose factors are both random."""
    names = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj", "lm_head"]
    peft = get_peft_model(model, LoraConfig(r=4, lora_alpha=8, target_modules=names))
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, p in peft.named_parameters():
            if "lora_" in name:
                p.copy_(0.1 * torch.randn(p.shape, generator=generator))
    return peft.eval()


def small_and_pruning(model: Any, ratio: float = 0.5, **options: Any) -> tuple[Any, loram.Pruning]:
    pruning = loram.choose(model, ratio, **{"layers": (0, 3), **options})
    return loram.prune_model(copy.deepcopy(model), pruning), pruning


def logits(model: Any) -> Tensor:
    with torch.no_grad():
        return model(IDS).logits


def recovered(small: PeftModel, large: Any, pruning: loram.Pruning) -> PeftModel:
    state = loram.recover(get_peft_model_state_dict(small), pruning)
    peft = get_peft_model(copy.deepcopy(large), copy.deepcopy(small.peft_config["default"]))
    set_peft_model_state_dict(peft, state)
    return peft.eval()


@pytest.mark.parametrize(("heads", "kv"), [(6, 3), (8, 4), (4, 4)])
def test_query_rows_follow_the_heads_of_keys(heads: int, kv: int) -> None:
    groups, d = heads // kv, 5
    gone = [1, kv - 1]
    rows = torch.cat([torch.arange(g * d, g * d + d) for g in gone])
    wanted = [row for row in range(heads * d) if row // (d * groups) in gone]
    assert query_rows(rows.flip(0), d, groups).tolist() == wanted
    for bad in (rows[1:], rows + 1, torch.tensor([0, 1, 2, 3, 3])):
        with pytest.raises(InputError, match="no whole heads of 5: prune by head"):
            query_rows(bad, d, groups)


def test_indices() -> None:
    assert kept_indices(torch.tensor([3, 0]), 5).tolist() == [1, 2, 4]
    assert kept_indices(torch.tensor([0, 2]), 3).tolist() == [1]  # one left is still a list
    a = torch.arange(15.0).view(3, 5)
    kept = torch.tensor([0, 2, 3])
    back = put(take(a, kept, 1), kept, 5, 1)
    assert torch.equal(back[:, kept], a[:, kept]) and not back[:, [1, 4]].any()
    assert least(torch.tensor([3.0, 1, 2, 1, 9]), 0.5).tolist() == [1, 3]
    assert least(torch.tensor([3.0, 1, 2, 1]), 0.74).tolist() == [1, 3]
    for bad, message in (
        ([3], "holds 3, which is"),
        ([-1], "holds -1, which is"),
        ([1, 1], "an index twice"),
        ([0, 1, 2], "be empty"),
    ):
        with pytest.raises(InputError, match=message):
            kept_indices(torch.tensor(bad), 3)
    with pytest.raises(InputError, match="does not fit 3 of 5"):
        put(a[:, :2], kept, 5, 1)


def test_magnitude_takes_the_least_of_what_belongs_together() -> None:
    model = llama()
    with torch.no_grad():
        for ending in ("mlp.gate_proj", "mlp.up_proj"):
            model.model.layers[1].get_submodule(ending).weight[[3, 17]] = 0
        model.model.layers[1].mlp.down_proj.weight[:, [3, 17]] = 0
        attention = model.model.layers[1].self_attn
        attention.k_proj.weight[4:8] *= 1e-3
        attention.v_proj.weight[4:8] *= 1e-3
        attention.q_proj.weight[8:16] *= 1e-3
        attention.o_proj.weight[:, 8:16] *= 1e-3
    found = loram.choose(model, 0.4, layers=(0, 3))
    indices = found.blocks["model.layers.1"]
    assert {3, 17} < set(indices.mlp.tolist()) and len(indices.mlp) == 16
    assert indices.kv.tolist() == [4, 5, 6, 7]  # ⌊0.4 · 3⌋ groups of 4 rows
    block = model.model.layers[0]
    norms = sum(
        block.mlp.get_submodule(n).weight.norm(dim=d)
        for n, d in (("gate_proj", 1), ("up_proj", 1), ("down_proj", 0))
    )
    assert found.blocks["model.layers.0"].mlp.tolist() == norms.argsort()[:16].sort().values.tolist()
    assert (found.neurons, found.kv_rows, found.head_dim, found.groups) == (40, 12, 4, 2)


def test_taylor_and_random() -> None:
    model = llama()
    model.requires_grad_(False)
    batches = [{"input_ids": IDS, "labels": IDS}, {"input_ids": IDS.flip(1), "labels": IDS.flip(1)}]
    found = loram.choose(model, 0.5, "taylor", layers=(1, 2), batches=batches)
    assert not any(p.requires_grad for p in model.parameters()) and list(found.blocks) == ["model.layers.1"]
    mlp = model.model.layers[1].mlp.requires_grad_(True)
    total = torch.zeros(40)
    for batch in batches:
        model(**batch).loss.backward()
        for n, d in (("gate_proj", 1), ("up_proj", 1), ("down_proj", 0)):
            weight = mlp.get_submodule(n).weight
            total += (weight * weight.grad).abs().sum(d).detach()
            weight.grad = None
    assert found.blocks["model.layers.1"].mlp.tolist() == total.argsort()[:20].sort().values.tolist()
    drawn = [loram.choose(model, 0.5, "random", seed=s).blocks for s in (0, 0, 1)]
    one, same, other = (next(iter(blocks.values())).mlp.tolist() for blocks in drawn)
    assert one == same != other and one == sorted(set(one))


def test_the_first_and_last_blocks_are_spared() -> None:
    assert list(loram.choose(llama(blocks=6), 0.5).blocks) == [f"model.layers.{i}" for i in range(1, 5)]
    assert list(loram.choose(llama(blocks=2), 0.5).blocks) == ["model.layers.0", "model.layers.1"]


@pytest.mark.parametrize(("heads", "kv"), [(6, 3), (8, 4), (6, 6)])
def test_the_small_model_runs_and_generates_with_its_cache(heads: int, kv: int) -> None:
    model = llama(heads, kv)
    small = small_and_pruning(model, layers=(1, 3))[0]
    kept = kv - kv // 2
    attention = small.model.layers[1].self_attn
    assert (
        attention.k_proj.out_features == 4 * kept and attention.q_proj.out_features == 4 * kept * heads // kv
    )
    assert small.model.layers[0].self_attn.k_proj.out_features == 4 * kv
    assert small.model.layers[1].mlp.up_proj.out_features == 20
    whole = small.generate(IDS[:, :6], max_new_tokens=5, do_sample=False, use_cache=True)
    plain = small.generate(IDS[:, :6], max_new_tokens=5, do_sample=False, use_cache=False)
    assert torch.equal(whole, plain)


def test_pruning_commutes_with_the_update_and_norms_stay() -> None:
    model = llama()
    small, pruning = small_and_pruning(model)
    trained = adapted(small)
    large = recovered(trained, model, pruning)
    a = loram.prune_model(large.merge_and_unload(), pruning)
    b = copy.deepcopy(trained).merge_and_unload()
    for (name, one), other in zip(a.named_parameters(), b.parameters(), strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-6, msg=name)
    state = get_peft_model_state_dict(trained)
    back = loram.recover(state, pruning)
    assert back.keys() == state.keys()
    for key in state:
        if "lora_A" not in key:
            continue
        other = key.replace("lora_A", "lora_B")
        layer = key.removeprefix("base_model.model.").partition(".lora_A")[0]
        before, after = state[other] @ state[key], back[other] @ back[key]
        torch.testing.assert_close(before.norm(), after.norm())
        if (side := pruning.side(layer)) is None:
            assert torch.equal(before, after)
            continue
        kept, size, dim = side
        assert after.shape[dim] == size
        rest = [i for i in range(size) if i not in kept.tolist()]
        assert rest and not after.index_select(dim, torch.tensor(rest)).any()
        torch.testing.assert_close(after.index_select(dim, kept), before)
    assert all(torch.equal(v, state[k]) for k, v in loram.restrict(back, pruning).items())


def test_peft_loads_what_was_recovered_and_an_untrained_one_changes_nothing(tmp_path: Path) -> None:
    model = llama()
    small, pruning = small_and_pruning(model)
    large = recovered(adapted(small), model, pruning)
    large.save_pretrained(tmp_path)
    loaded = PeftModel.from_pretrained(llama(), tmp_path).eval()
    merged = copy.deepcopy(large).merge_and_unload()
    torch.testing.assert_close(logits(loaded), logits(merged), rtol=0, atol=1e-5)
    assert not torch.allclose(logits(loaded), logits(model), atol=1e-3)
    with pytest.raises((RuntimeError, InputError, ValueError), match="size mismatch"):
        PeftModel.from_pretrained(small_and_pruning(llama())[0], tmp_path)
    names = ["q_proj", "down_proj"]
    untrained = get_peft_model(small_and_pruning(model)[0], LoraConfig(r=2, target_modules=names))
    assert torch.equal(logits(recovered(untrained, model, pruning)), logits(model))


def test_nothing_pruned_is_lora_itself() -> None:
    model = llama()
    small, pruning = small_and_pruning(model, 0.0)
    assert torch.equal(logits(small), logits(model))
    state = get_peft_model_state_dict(adapted(small))
    assert all(torch.equal(v, state[k]) for k, v in loram.recover(state, pruning).items())


def test_biases_go_with_their_rows_and_names_of_our_own_adapters_are_read() -> None:
    torch.manual_seed(0)
    config = Qwen2Config(
        vocab_size=32,
        hidden_size=24,
        intermediate_size=40,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
    )
    model = Qwen2ForCausalLM(config).eval()
    with torch.no_grad():
        model.model.layers[0].self_attn.q_proj.bias.copy_(torch.arange(24.0))
    pruning = loram.choose(model, 0.5)
    small = loram.prune_model(copy.deepcopy(model), pruning)
    kept = pruning.side("model.layers.0.self_attn.q_proj")[0]
    assert small.model.layers[0].self_attn.q_proj.bias.tolist() == kept.tolist()
    assert bool(logits(small).isfinite().all())
    key = "base_model.model.model.layers.0.self_attn.q_proj.eckart_adapters.lora_B"
    assert loram.recover({key: torch.ones(12, 2)}, pruning)[key].shape == (24, 2)
    other = "base_model.model.model.layers.10.self_attn.q_proj.lora_B.weight"
    assert loram.recover({other: torch.ones(12, 2)}, pruning)[other].shape == (12, 2)


@pytest.mark.parametrize(("criterion", "ratio"), [("unstructured", 0.3), ("semi", 0.5)])
def test_single_entries_become_zero_and_shapes_stay(criterion: Any, ratio: float) -> None:
    model = llama()
    small, pruning = small_and_pruning(model, ratio, criterion=criterion, layers=(1, 2))
    weight, before = small.model.layers[1].mlp.down_proj.weight, model.model.layers[1].mlp.down_proj.weight
    runs = weight.unflatten(1, (-1, 8 if criterion == "semi" else 40))
    assert set((runs == 0).sum(-1).flatten().tolist()) == {4 if criterion == "semi" else 12}
    assert torch.equal(weight[weight != 0], before[weight != 0])
    least_kept = torch.where(runs == 0, torch.inf, runs.abs()).amin(-1)
    gone = torch.where(runs == 0, before.unflatten(1, runs.shape[1:]).abs(), -1.0).amax(-1)
    assert bool((gone <= least_kept).all())
    assert torch.equal(small.model.layers[0].mlp.down_proj.weight, model.model.layers[0].mlp.down_proj.weight)
    state = get_peft_model_state_dict(adapted(small))
    assert all(torch.equal(v, state[k]) for k, v in loram.recover(state, pruning).items())
    assert smallest_entries(torch.tensor([[1.0, -1, 1, 2]]), 0.5).tolist() == [[False, False, True, True]]


@pytest.mark.parametrize("tied", [True, False])
def test_files(tied: bool, tmp_path: Path) -> None:
    small, pruning = small_and_pruning(llama(tied=tied))
    save_pruned(small, pruning, tmp_path / "small")
    loaded, again = load_pruned(tmp_path / "small")
    assert torch.equal(logits(loaded), logits(small)) and not loaded.training
    assert (loaded.lm_head.weight is loaded.model.embed_tokens.weight) == tied
    assert {n: [t.tolist() for t in i] for n, i in again.blocks.items()} == {
        n: [t.tolist() for t in i] for n, i in pruning.blocks.items()
    }
    assert (again.neurons, again.kv_rows, again.head_dim, again.groups) == (40, 12, 4, 2)
    with pytest.raises(InputError, match="small"):
        save_pruned(small, pruning, tmp_path / "small")
    masks = loram.choose(llama(), 0.5, "semi")
    save_pruning(masks, tmp_path / "masks.safetensors")
    for name, mask in load_pruning(tmp_path / "masks.safetensors").masks.items():
        assert torch.equal(mask, masks.masks[name])
    other = loram.choose(llama(), 0.2, layers=(0, 3))
    save_pruning(other, tmp_path / "small" / "pruning.safetensors")
    with pytest.raises(InputError, match="size mismatch"):
        load_pruned(tmp_path / "small")
    (tmp_path / "small" / "pruning.safetensors").write_bytes(b"x")
    with pytest.raises(InputError, match="cannot be read"):
        load_pruned(tmp_path / "small")


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (
            {"ratio": 1.0},
            r"ratio=1\.0: give the share to prune, from 0 to below 1, so that no layer is empty",
        ),
        ({"ratio": -0.1}, r"ratio=-0\.1: give the share"),
        ({"ratio": float("nan")}, "ratio=nan: give the share"),
        ({"ratio": 0.4, "criterion": "semi"}, r"ratio=0\.4 with criterion='semi'"),
        ({"ratio": 0.4, "criterion": "wanda"}, "criterion='wanda': choose one of magnitude"),
        ({"ratio": 0.4, "criterion": "taylor"}, "criterion='taylor' needs batches"),
        ({"ratio": 0.4, "criterion": "taylor", "batches": []}, "batches is empty"),
        ({"ratio": 0.4, "layers": (2, 2)}, r"layers=\(2, 2\): give first and end"),
        ({"ratio": 0.4, "layers": (0, 4)}, r"layers=\(0, 4\)"),
    ],
)
def test_bad_choices_are_refused(given: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        loram.choose(llama(), **given)


def test_bad_indices_and_tensors_are_refused_and_nothing_changes() -> None:
    model = llama()
    before = logits(model)
    with pytest.raises(InputError, match="Linear has no chain of blocks"):
        loram.choose(nn.Linear(3, 3), 0.5)
    every, none = torch.arange(40), torch.arange(0)
    for blocks, message in (
        (
            {"model.layers.1": loram.Indices(every, none)},
            "mlp of model.layers.1 names all 40: a layer would be empty",
        ),
        (
            {"model.layers.1": loram.Indices(none, torch.arange(12))},
            "kv of model.layers.1 names all 12|names all 24",
        ),
        ({"model.layers.1": loram.Indices(none, torch.arange(3))}, "no whole heads"),
        ({"model.layers.9": loram.Indices(none, none)}, "the model has no layer model.layers.9"),
    ):
        with pytest.raises(InputError, match=message):
            loram.prune_model(model, loram.Pruning(blocks, 40, 12, 4, 2))
    with pytest.raises(InputError, match="its pruning is of 41: another model"):
        loram.prune_model(model, loram.Pruning({"model.layers.1": loram.Indices(none, none)}, 41, 12, 4, 2))
    assert torch.equal(logits(model), before)
    pruning = loram.choose(model, 0.5, layers=(0, 3))
    layer = "base_model.model.model.layers.1.self_attn.q_proj"
    with pytest.raises(InputError, match="is no factor of a LoRA: zeros are its recovery"):
        loram.recover({f"{layer}.lora_magnitude_vector": torch.ones(16)}, pruning)
    with pytest.raises(InputError, match=r"q_proj\.lora_B\.weight: a factor of shape \(24, 2\) does not fit"):
        loram.recover({f"{layer}.lora_B.weight": torch.ones(24, 2)}, pruning)
