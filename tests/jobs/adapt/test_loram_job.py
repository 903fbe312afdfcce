"""A LoRA trained on a pruned base and written for the whole one: what comes out, resuming, bad input."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file
from tiny_models import save_bert, save_reviews, save_tokenizer
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM, Trainer

from eckart.compression._loram_files import load_pruning
from eckart.errors import InputError
from eckart.jobs.adapt.finetuning import finetune
from eckart.jobs.adapt.loram_options import LoRAM, pruning
from eckart.tasks.scoring import evaluate
from eckart.tasks.task import load_task

SETTINGS: dict[str, Any] = {
    "steps": 6,
    "batch_size": 4,
    "save_every": 2,
    "validate_every": 3,
    "max_length": 16,
    "lr": 0.02,
    "options": {"r": 2},
}


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str]:
    """A Llama of three blocks with grouped queries and tied embeddings, and a story."""
    place = tmp_path_factory.mktemp("loram")
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=64,
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=2,
        tie_word_embeddings=True,
        max_position_embeddings=64,
    )
    LlamaForCausalLM(config).save_pretrained(place / "llama")
    save_tokenizer(place / "llama", pad="[EOS]")
    (place / "story.txt").write_text("\n".join(["the film was very good and a long book"] * 200))
    return str(place / "llama"), str(place / "story.txt")


@pytest.mark.parametrize(
    "options",
    [{}, {"criterion": "taylor", "align": 3, "align_lr": 0.01}, {"int8": True}, {"criterion": "semi"}],
)
def test_the_adapter_is_of_the_whole_model(
    options: dict[str, Any], files: tuple[str, str], tmp_path: Path
) -> None:
    out = tmp_path / "out"
    metrics = finetune(*files, "lora", output=out, loram=LoRAM(0.5, **options), **SETTINGS)
    told = metrics["loram"]
    whole = AutoModelForCausalLM.from_pretrained(files[0])
    assert told["large_parameters"] == whole.num_parameters()
    gone = 3 * 16 * 12 + 2 * 16 * 4 + 2 * 16 * 8  # neurons of three matrices, rows of k and v, of q and o
    pruned = 0 if options.get("criterion") == "semi" else gone
    assert told["small_parameters"] == whole.num_parameters() - pruned  # blocks 0 and 2 of 3 are spared
    model = PeftModel.from_pretrained(whole, out).eval()
    task = load_task(*files, max_length=16)
    found = evaluate(model, task, task.test, 8)
    assert found.score == pytest.approx(metrics["test"]["score"], abs=1e-5)
    with model.disable_adapter():
        bare = evaluate(model, task, task.test, 8)
    assert bare.score == pytest.approx(told["test_without_adapter"]["score"], abs=1e-5)
    assert metrics["test"]["score"] < bare.score - 0.05
    weights = load_file(out / "adapter_model.safetensors")
    kept = load_pruning(out / "pruning.safetensors")
    factor = next(v for k, v in weights.items() if "layers.1.mlp.gate_proj" in k and "lora_B" in k)
    assert factor.shape == (24, 2)
    if kept.blocks:
        assert (
            factor.any(1).nonzero().flatten().tolist()
            == kept.side("model.layers.1.mlp.gate_proj")[0].tolist()
        )
    assert not (out / "aligned.safetensors").exists() and not (out / "checkpoints").exists()


def test_a_ratio_of_nothing_is_lora_itself(files: tuple[str, str], tmp_path: Path) -> None:
    plain = finetune(*files, "lora", output=tmp_path / "a", **SETTINGS)
    zero = finetune(*files, "lora", output=tmp_path / "b", loram=LoRAM(0.0), **SETTINGS)
    assert plain["losses"] == zero["losses"] and plain["test"] == zero["test"]
    a, b = (load_file(tmp_path / n / "adapter_model.safetensors") for n in "ab")
    assert all(torch.equal(a[name], b[name]) for name in a)


def test_a_killed_run_ends_with_the_same_numbers(
    files: tuple[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shared = {**SETTINGS, "loram": LoRAM(0.5, align=2, align_lr=0.01)}
    whole = finetune(*files, "lora", output=tmp_path / "whole", **shared)

    def stop(done: int, total: int) -> None:
        if done == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        finetune(*files, "lora", output=tmp_path / "run", on_step=stop, **shared)
    assert (tmp_path / "run" / "aligned.safetensors").is_file()
    trained = []
    train = Trainer.train
    monkeypatch.setattr(Trainer, "train", lambda self, **given: trained.append(1) or train(self, **given))
    resumed = finetune(*files, "lora", output=tmp_path / "run", resume=True, **shared)
    assert len(trained) == 1 and resumed["resumed_at_step"] == 2  # not aligned again
    assert resumed["test"] == whole["test"] and resumed["losses"][-2:] == whole["losses"][-2:]
    with pytest.raises(InputError, match="another run: loram is"):
        finetune(*files, "lora", output=tmp_path / "run", resume=True, **{**shared, "loram": LoRAM(0.4)})


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ((1.0, "magnitude", 0, False, "lora"), r"--loram 1\.0: give the share to prune, from 0 to below 1"),
        ((-0.5, "magnitude", 0, False, "lora"), r"--loram -0\.5"),
        ((0.5, "wanda", 0, False, "lora"), "--loram-criterion wanda: choose one of magnitude"),
        ((0.5, "magnitude", -1, False, "lora"), "loram_align is -1: give at least 0"),
        ((0.5, "magnitude", 0, False, "svfit"), "--loram with --method svfit: zeros recover the two factors"),
        ((None, "random", 0, False, "lora"), "--loram-criterion without --loram"),
        ((None, "magnitude", 3, False, "lora"), "--loram-align without --loram"),
        ((None, "magnitude", 0, True, "lora"), "--loram-int8 without --loram"),
    ],
)
def test_bad_words_are_refused(given: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        pruning(*given)


def test_good_words() -> None:
    assert pruning(None, "magnitude", 0, False, "svfit") is None
    assert pruning(0.5, "random", 2, False, "rslora") == LoRAM(0.5, "random", 2)


def test_a_model_that_is_no_decoder_like_llama_is_refused(tmp_path: Path) -> None:
    model, data = str(save_bert(tmp_path / "bert")), str(save_reviews(tmp_path / "reviews.csv"))
    shared = {**SETTINGS, "output": tmp_path / "out"}
    with pytest.raises(InputError, match=r"has no plain linear layer mlp\.gate_proj"):
        finetune(model, data, "lora", loram=LoRAM(0.5), **shared)
    with pytest.raises(InputError, match="--loram-align 2: alignment is for language models"):
        finetune(model, data, "lora", loram=LoRAM(0.5, align=2), **shared)
    assert not (tmp_path / "out").exists()


def test_experts_are_not_pruned(tmp_path: Path) -> None:
    experts = {"r": 2, "target_parameters": ["experts.down_proj"]}
    with pytest.raises(InputError, match="--loram prunes layers alone: leave target_parameters out"):
        finetune("m", "d", "lora", output=tmp_path / "out", options=experts, loram=LoRAM(0.3))
    assert not (tmp_path / "out").exists()
