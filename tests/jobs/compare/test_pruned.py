"""LoRAM in a comparison: trained on the pruned base, tuned and scored on the whole one, at the budget of the others."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from peft import PeftModel, get_peft_model_state_dict
from tiny_models import save_gpt2, save_tokenizer
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

from eckart.adapters import walk
from eckart.cli.checks import check_methods
from eckart.errors import InputError
from eckart.jobs.compare.comparison import compare
from eckart.jobs.compare.contenders import contenders
from eckart.jobs.compare.names import method_names
from eckart.jobs.compare.pruned import Pruned
from eckart.tasks.scoring import evaluate
from eckart.tasks.task import Task, load_task


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Llama of three blocks, of which the middle one is pruned, and a story."""
    place = tmp_path_factory.mktemp("pruned")
    torch.manual_seed(0)
    torch.set_num_threads(1)
    config = LlamaConfig(
        vocab_size=64,
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=64,
    )
    LlamaForCausalLM(config).save_pretrained(place / "model")
    save_tokenizer(place / "model", pad="[EOS]")
    (place / "data.txt").write_text("\n".join(["the film was very good and a long book"] * 200))
    return place


def loaded(place: Path) -> Task:
    return load_task(str(place / "model"), str(place / "data.txt"), max_length=16)


def test_it_has_the_ranks_of_lora_and_trains_where_the_base_is_smaller(place: Path) -> None:
    task = loaded(place)
    found = {c.name: c for c in contenders(task, "loram:0.5", "10%", None, 3, None)}
    pruned, plain = found["loram:0.5"], found["lora"]
    assert (
        isinstance(pruned, Pruned) and pruned.config == plain.config and pruned.label == "LoRAM, 50% pruned"
    )
    assert pruned.learning_rates == plain.learning_rates and pruned.at_budget
    small = pruned.prepare(task.fresh_model(0), task, 3)
    shapes = {layer: adapter.layer.shape.weight for layer, _, _, adapter in walk(small)}
    assert shapes["model.layers.1.mlp.up_proj"] == (12, 16) and shapes["model.layers.0.mlp.up_proj"] == (
        24,
        16,
    )
    assert pruned.ranks(small) == plain.ranks(plain.prepare(task.fresh_model(0), task, 3))


def test_what_is_scored_is_the_whole_model_with_zeros_where_it_was_pruned(place: Path) -> None:
    task = loaded(place)
    pruned = contenders(task, "loram:0.5", "10%", None, 3, None)[-1]
    small = pruned.prepare(task.fresh_model(0), task, 3)
    for *_, adapter in walk(small):
        torch.nn.init.ones_(adapter.lora_B)
    whole = pruned.finish(small, task, 3)
    for layer, _, _, adapter in walk(whole):
        rows = adapter.lora_B.any(1)
        gone = layer in ("model.layers.1.mlp.up_proj", "model.layers.1.mlp.gate_proj")
        assert adapter.lora_B.shape[0] == adapter.layer.shape.out_features
        assert int(rows.sum()) == (12 if gone else rows.numel()) or ".1.self_attn" in layer
    numbers = sum(v.numel() for v in get_peft_model_state_dict(whole).values())
    assert pruned.costs(whole, task, 0.0) == {"saved_bytes": 4 * numbers}
    trained = sum(p.numel() for p in small.parameters() if p.requires_grad)
    assert trained < numbers <= 0.1 * sum(p.numel() for p in task.fresh_model(0).parameters())


def test_rates_are_chosen_by_the_whole_model_and_the_adapter_is_of_it(place: Path, tmp_path: Path) -> None:
    results = compare(
        str(place / "model"),
        str(place / "data.txt"),
        methods="loram:0.5+increlora",
        budget="10%",
        steps=14,
        seeds=1,
        batch_size=2,
        max_length=16,
        learning_rates=[3e-2],
        output=tmp_path / "out",
        progress=False,
    )
    name = "loram:0.5+increlora"
    rows = results[results["method"] == name].set_index("stage")
    final = rows.loc["final"]
    plain = results[(results["stage"] == "final") & (results["method"] == "lora")].iloc[0]
    assert final["status"] == "complete", final["error"]
    assert final["saved_bytes"] == plain["saved_bytes"]
    assert final["trainable_parameters"] < plain["trainable_parameters"]
    assert final["peak_memory_mb"] < plain["peak_memory_mb"]
    task = loaded(place)
    model = AutoModelForCausalLM.from_pretrained(place / "model")
    model = PeftModel.from_pretrained(model, tmp_path / "out" / "adapters" / name).eval()
    assert evaluate(model, task, task.test, 8).score == pytest.approx(final["score"], abs=1e-5)


def test_tuning_scores_the_finished_model(place: Path) -> None:
    from eckart.jobs.compare.plan import TUNE
    from eckart.jobs.compare.runs import Runner
    from eckart.jobs.compare.study import Run

    task = loaded(place)
    pruned = contenders(task, "loram:0.5", "10%", None, 3, None)[-1]
    numbers = {"stage": TUNE, "method": pruned.name, "lr": 1e-2, "head_lr": 1e-2, "seed": 0, "steps": 2}
    found = Runner(task, 4, "10%").do(Run("tune", numbers), pruned)
    assert found.row["status"] == "complete", found.row["error"]
    assert found.model is not None
    after = evaluate(found.model, task, task.validation, 8)
    assert found.row["validation_loss"] == pytest.approx(after.loss, rel=1e-5)
    full = sum(p.numel() for n, p in found.model.named_parameters() if ".lora_" not in n)
    assert full == sum(p.numel() for p in task.fresh_model(0).parameters())


@pytest.mark.parametrize(
    ("word", "words"),
    [
        ("loram", "loram: give the share of the base that is pruned while the LoRA trains"),
        ("loram:half", "loram:half: give the share"),
        ("loram:0", "above 0 and below 1"),
        ("loram:1", "above 0 and below 1"),
        ("loram:nan", "above 0 and below 1"),
        ("maestro", "maestro cannot take part: .*eckart compare compression --methods maestro"),
        ("maestro+allora", "maestro cannot take part"),
    ],
)
def test_names_that_cannot_take_part_say_what_would(word: str, words: str) -> None:
    for read in (method_names, check_methods):
        with pytest.raises(InputError, match=words):
            read(word)


def test_models_that_cannot_be_pruned_so_are_refused(place: Path, tmp_path: Path) -> None:
    task = loaded(place)
    with pytest.raises(
        InputError, match=r"loram:0.9 cannot take part: layer .* has room for rank \d+ when pruned"
    ):
        contenders(task, "loram:0.9", "60%", None, 3, None)
    with pytest.raises(
        InputError, match=r"loram:0.5\+sara-selection cannot be combined: sara-selection does not suit it"
    ):
        contenders(task, "loram:0.5+sara-selection", "10%", None, 3, None)
    save_gpt2(tmp_path / "model")
    other = load_task(str(tmp_path / "model"), str(place / "data.txt"), max_length=16)
    with pytest.raises(InputError, match=r"loram:0.5 cannot take part: "):
        contenders(other, "loram:0.5", "10%", None, 3, None)
