"""Merging checkpoints: the merged model gives the adapter's outputs, and what cannot be loaded says why."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file, save_file
from tiny_models import save_bert, save_gpt2
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer

import eckart
from eckart.adapters._merging import load_adapted, merge_checkpoint
from eckart.errors import InputError


def write_classifier(base: Path, folder: Path, **options: object) -> Tensor:
    """An adapter with a trained head of three classes on the BERT; returns its logits."""
    model = AutoModelForSequenceClassification.from_pretrained(base, num_labels=3)
    torch.manual_seed(1)
    adapted = eckart.adapt(
        model,
        "lora",
        target_modules=["query", "dense"],
        modules_to_save=["classifier"],
        init_weights=False,
        **options,
    )
    torch.nn.init.normal_(adapted.base_model.model.classifier.modules_to_save["default"].weight)
    adapted.save_pretrained(folder)
    return logits(adapted.eval(), base)


@torch.no_grad()
def logits(model: torch.nn.Module, base: Path) -> Tensor:
    inputs = AutoTokenizer.from_pretrained(base)(
        ["the film was good", "a very long book"], return_tensors="pt"
    )
    return model.eval()(**inputs).logits


def close(one: Tensor, other: Tensor) -> None:
    torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)


@pytest.fixture
def bert(tmp_path: Path) -> Path:
    return save_bert(tmp_path / "bert")


def test_merged_model_is_the_adapted_one_in_an_ordinary_directory(bert: Path, tmp_path: Path) -> None:
    expected = write_classifier(bert, tmp_path / "adapter")
    report = merge_checkpoint(bert, tmp_path / "adapter", tmp_path / "merged")
    # query, the output of attention, up and down in each of two layers, and the pooler
    assert (report.layers, report.dtype) == (9, "float32")
    merged = AutoModelForSequenceClassification.from_pretrained(tmp_path / "merged")
    close(logits(merged, tmp_path / "merged"), expected)
    assert not [name for name, _ in merged.named_modules() if "eckart" in name]
    weight = "bert.encoder.layer.1.attention.self.query.weight"
    base = load_file(bert / "model.safetensors")[weight.removeprefix("bert.")]
    delta = load_adapted(bert, tmp_path / "adapter").get_submodule(
        "base_model.model." + weight[: -len(".weight")]
    )
    exact = base + delta.get_delta_weight("default").detach()
    torch.testing.assert_close(
        load_file(tmp_path / "merged/model.safetensors")[weight], exact, rtol=0, atol=0
    )


def test_base_model_is_the_one_the_adapter_names(bert: Path, tmp_path: Path) -> None:
    expected = write_classifier(bert, tmp_path / "adapter")
    close(logits(load_adapted(None, tmp_path / "adapter"), bert), expected)
    path = tmp_path / "adapter/adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"base_model_name_or_path": None}))
    with pytest.raises(InputError, match="does not name its base model"):
        load_adapted(None, tmp_path / "adapter")


def test_labels_come_from_the_configuration_beside_the_adapter(bert: Path, tmp_path: Path) -> None:
    expected = write_classifier(bert, tmp_path / "adapter")
    model = AutoModelForSequenceClassification.from_pretrained(bert, id2label={0: "x", 1: "y", 2: "z"})
    model.config.save_pretrained(tmp_path / "adapter")
    merge_checkpoint(bert, tmp_path / "adapter", tmp_path / "merged")
    merged = AutoModelForSequenceClassification.from_pretrained(tmp_path / "merged")
    assert merged.config.id2label == {0: "x", 1: "y", 2: "z"}
    close(logits(merged, bert), expected)


def test_pefts_own_adapters_merge_too(bert: Path, tmp_path: Path) -> None:
    model = AutoModelForSequenceClassification.from_pretrained(bert, num_labels=3)
    config = peft.LoraConfig(task_type="SEQ_CLS", target_modules=["query"], init_lora_weights=False)
    adapted = peft.get_peft_model(model, config)
    adapted.save_pretrained(tmp_path / "adapter")
    merge_checkpoint(bert, tmp_path / "adapter", tmp_path / "merged")
    merged = AutoModelForSequenceClassification.from_pretrained(tmp_path / "merged")
    close(logits(merged, bert), logits(adapted, bert))


@pytest.mark.parametrize("target", ["wte", "lm_head"])
@pytest.mark.filterwarnings("ignore")
def test_tied_embeddings_of_which_one_was_adapted(tmp_path: Path, target: str) -> None:
    base = save_gpt2(tmp_path / "gpt2", pad="[EOS]")
    torch.manual_seed(1)
    model = eckart.adapt(
        AutoModelForCausalLM.from_pretrained(base),
        "lora",
        target_modules=[target, "c_attn"],
        init_weights=False,
    )
    model.save_pretrained(tmp_path / "adapter", save_embedding_layers=False)
    tokens = torch.arange(8)[None]
    expected = model.eval()(tokens).logits
    merge_checkpoint(base, tmp_path / "adapter", tmp_path / "merged")
    merged = AutoModelForCausalLM.from_pretrained(tmp_path / "merged").eval()
    close(merged(tokens).logits, expected)
    assert not merged.config.tie_word_embeddings


def test_tied_embeddings_stay_tied_when_neither_was_adapted(tmp_path: Path) -> None:
    base = save_gpt2(tmp_path / "gpt2", pad="[EOS]")
    model = eckart.adapt(AutoModelForCausalLM.from_pretrained(base), "bone", target_modules=["c_attn"])
    model.save_pretrained(tmp_path / "adapter")
    merge_checkpoint(base, tmp_path / "adapter", tmp_path / "merged")
    merged = AutoModelForCausalLM.from_pretrained(tmp_path / "merged")
    assert merged.lm_head.weight is merged.transformer.wte.weight


GROWN = {
    "not trained": {"target_modules": ["c_attn"]},
    "saved": {"target_modules": ["c_attn"], "modules_to_save": ["wte"]},
    "both saved": {"target_modules": ["c_attn"], "modules_to_save": ["wte", "lm_head"]},
    "adapted": {"target_modules": ["c_attn", "wte"]},
    "single rows": {"target_modules": ["c_attn"], "trainable_token_indices": [3, 41]},
}


@pytest.mark.parametrize("config", [None, "beside"])
@pytest.mark.parametrize("options", GROWN.values(), ids=GROWN)
@pytest.mark.filterwarnings("ignore")
def test_a_vocabulary_that_grew(tmp_path: Path, options: dict[str, Any], config: str | None) -> None:
    base = save_gpt2(tmp_path / "gpt2", pad="[EOS]")
    torch.manual_seed(1)
    model = AutoModelForCausalLM.from_pretrained(base)
    model.resize_token_embeddings(43, mean_resizing=False)
    adapted = eckart.adapt(model, "bone", r=2, init_weights=False, **options).eval()
    with torch.no_grad():
        for name, parameter in adapted.named_parameters():
            if "modules_to_save" in name or "trainable_tokens" in name:
                parameter.add_(torch.randn(parameter.shape))
    folder = tmp_path / "adapter"
    adapted.save_pretrained(folder)
    tokenizer = AutoTokenizer.from_pretrained(base)
    tokenizer.add_tokens(["<call>", "<answer>"])
    tokenizer.save_pretrained(folder)
    if config:
        adapted.config.save_pretrained(folder)
    tokens = torch.tensor([[1, 42, 3, 41, 40, 39]])
    expected = adapted(tokens).logits
    assert expected.shape[-1] == 43
    merge_checkpoint(base, folder, tmp_path / "merged")
    merged = AutoModelForCausalLM.from_pretrained(tmp_path / "merged").eval()
    close(merged(tokens).logits, expected)
    assert len(AutoTokenizer.from_pretrained(tmp_path / "merged")) == len(tokenizer)


@pytest.mark.filterwarnings("ignore")
def test_a_vocabulary_of_another_base_is_refused(tmp_path: Path) -> None:
    base, other = (save_gpt2(tmp_path / name, pad="[EOS]") for name in ("base", "other"))
    model = AutoModelForCausalLM.from_pretrained(base)
    model.resize_token_embeddings(43)
    eckart.adapt(model, "bone", r=2, target_modules=["c_attn"]).save_pretrained(tmp_path / "adapter")
    changed = AutoModelForCausalLM.from_pretrained(other)
    with torch.no_grad():
        changed.get_input_embeddings().weight[7] += 1
    changed.save_pretrained(other)
    with pytest.raises(InputError, match="weight changes the base model from row 7 on"):
        merge_checkpoint(other, tmp_path / "adapter", tmp_path / "merged")
    assert not (tmp_path / "merged").exists()


def test_half_precision_base_stays_half_precision(bert: Path, tmp_path: Path) -> None:
    AutoModelForSequenceClassification.from_pretrained(
        bert, dtype=torch.bfloat16, num_labels=3
    ).save_pretrained(tmp_path / "half")
    write_classifier(bert, tmp_path / "adapter")
    report = merge_checkpoint(tmp_path / "half", tmp_path / "adapter", tmp_path / "merged")
    assert report.dtype == "bfloat16"
    kinds = {value.dtype for value in load_file(tmp_path / "merged/model.safetensors").values()}
    assert kinds == {torch.bfloat16}


def test_what_cannot_be_loaded(bert: Path, tmp_path: Path) -> None:
    adapter = tmp_path / "adapter"
    write_classifier(bert, adapter)
    with pytest.raises(InputError, match=r"base model .*nowhere cannot be loaded"):
        load_adapted(tmp_path / "nowhere", adapter)
    with pytest.raises(InputError, match="nowhere: no such directory"):
        load_adapted(bert, tmp_path / "nowhere")
    with pytest.raises(InputError, match=r"has no adapter_config\.json"):
        load_adapted(bert, bert)
    with pytest.raises(InputError, match=r"gpt2 lacks bert\."):
        load_adapted(save_gpt2(tmp_path / "gpt2", pad="[EOS]"), adapter)

    weights, config = adapter / "adapter_model.safetensors", adapter / "adapter_config.json"
    whole, said = load_file(weights), config.read_text()
    key = next(key for key in whole if key.endswith("lora_A"))
    save_file(whole | {key: whole[key][:, 1:].contiguous()}, weights)
    with pytest.raises(InputError, match="has shape"):
        load_adapted(bert, adapter)
    weights.write_bytes(weights.read_bytes()[:300])
    with pytest.raises(InputError, match="damaged"):
        load_adapted(bert, adapter)
    weights.unlink()
    with pytest.raises(InputError, match=r"has no adapter_model\.safetensors"):
        load_adapted(bert, adapter)
    save_file(whole, weights)
    config.write_text(
        json.dumps(json.loads(said) | {"auto_mapping": {"parent_library": "os", "base_model_class": "x"}})
    )
    with pytest.raises(InputError, match="does not say which transformers class"):
        load_adapted(bert, adapter)
    config.write_text("[]")
    with pytest.raises(InputError, match="names no peft_type"):
        load_adapted(bert, adapter)
    config.write_text(said)
    save_file(whole | {key: torch.full_like(whole[key], torch.inf)}, weights)
    with pytest.raises(InputError, match="NaN or Inf"):
        merge_checkpoint(bert, adapter, tmp_path / "merged")
    assert not (tmp_path / "merged").exists()
    (tmp_path / "merged").mkdir()
    (tmp_path / "merged/mine.txt").write_text("mine")
    with pytest.raises(InputError, match="not empty"):
        merge_checkpoint(bert, adapter, tmp_path / "merged")
    save_file(whole, weights)
    assert isinstance(load_adapted(bert, adapter), PeftModel)
