"""What a checkpoint may hold: its adapter's tensors, those of modules trained in full, and nothing of the base."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file, save_file
from tiny_models import bert_config
from torch import Tensor, nn
from transformers import BertForSequenceClassification, LlamaConfig, LlamaForCausalLM, ViTConfig, ViTModel

import eckart
from eckart.errors import InputError

WEIGHTS, PIECE = "adapter_model.safetensors", "adapter_model-00001-of-00002.safetensors"


def bert() -> BertForSequenceClassification:
    torch.manual_seed(0)
    return BertForSequenceClassification(bert_config(num_labels=3)).eval()


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    model = eckart.adapt(bert(), "bone", r=2, target_modules=["query"], modules_to_save=["classifier"])
    model.save_pretrained(tmp_path / "adapter")
    return tmp_path / "adapter"


def refuse(path: Path, message: str, model: nn.Module | None = None) -> None:
    model = bert() if model is None else model
    before = {key: value.clone() for key, value in model.state_dict().items()}
    with pytest.raises(InputError, match=message):
        PeftModel.from_pretrained(model, path)
    after = model.state_dict()
    assert before.keys() == after.keys() and all(torch.equal(before[key], after[key]) for key in before)


LAYER = "base_model.model.bert.encoder.layer.0.attention.self.query"
Edit = Callable[[dict[str, Tensor]], None]
EDITS: dict[str, tuple[Edit, str]] = {
    "base weight": (
        lambda state: state.update({f"{LAYER}.base_layer.weight": torch.ones(16, 16)}),
        r"query\.base_layer\.weight belongs to no adapter",
    ),
    "a layer's bias": (
        lambda state: state.update({f"{LAYER}.bias": torch.ones(16)}),
        "belongs to no adapter and no module to save",
    ),
    "another layer": (
        lambda state: state.update(
            {LAYER.replace("query", "key") + ".eckart_adapters.bone": torch.ones(2, 16)}
        ),
        "fits no adapted layer",
    ),
    "a name without a model": (lambda state: state.update({"x": torch.ones(1)}), "x belongs to no adapter"),
    "embedding with other rows": (
        lambda state: state.update(
            {"base_model.model.bert.embeddings.word_embeddings.weight": torch.ones(40, 16)}
        ),
        "changes the base model from row 0 on",
    ),
    "head of another size": (
        lambda state: state.update({"base_model.model.classifier.weight": torch.ones(4, 16)}),
        r"classifier\.weight has shape \(4, 16\)",
    ),
    "no head": (lambda state: [state.pop(k) for k in list(state) if "classifier" in k] and None, "lacks"),
}


@pytest.mark.parametrize("edit", EDITS)
def test_only_own_tensors(edit: str, saved: Path) -> None:
    state = load_file(saved / WEIGHTS)
    EDITS[edit][0](state)
    save_file(state, saved / WEIGHTS)
    refuse(saved, EDITS[edit][1])


@pytest.mark.parametrize(
    "dtype", [torch.int32, torch.int64, torch.bool, torch.float8_e4m3fn, torch.complex64]
)
@pytest.mark.parametrize("part", ["eckart_adapters", "classifier.weight"])
def test_only_floating_numbers(dtype: torch.dtype, part: str, saved: Path) -> None:
    state = load_file(saved / WEIGHTS)
    key = next(key for key in state if part in key)
    save_file(state | {key: state[key].to(dtype)}, saved / WEIGHTS)
    refuse(saved, "is of torch")


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_precisions_load(dtype: torch.dtype, saved: Path) -> None:
    save_file({key: value.to(dtype) for key, value in load_file(saved / WEIGHTS).items()}, saved / WEIGHTS)
    assert isinstance(PeftModel.from_pretrained(bert(), saved), PeftModel)


def test_a_header_that_says_i32(saved: Path) -> None:
    content = (saved / WEIGHTS).read_bytes()
    (saved / WEIGHTS).write_bytes(content.replace(b'"F32"', b'"I32"', 1))
    refuse(saved, "is of torch.int32|holds NaN")


@pytest.mark.parametrize("name", ["adapter_model.bin", f"{WEIGHTS}.index.json", PIECE])
def test_one_file_of_weights(name: str, saved: Path) -> None:
    shutil.copy(saved / WEIGHTS, saved / name)
    refuse(saved, "of which one would be read")


def test_weights_in_pieces(saved: Path) -> None:
    (saved / WEIGHTS).rename(saved / PIECE)
    refuse(saved, f"has no {WEIGHTS}")


def test_pefts_other_file_is_checked_alike(saved: Path) -> None:
    state = load_file(saved / WEIGHTS)
    (saved / WEIGHTS).unlink()
    torch.save(state, saved / "adapter_model.bin")
    assert isinstance(PeftModel.from_pretrained(bert(), saved), PeftModel)
    torch.save(state | {f"{LAYER}.base_layer.weight": torch.ones(16, 16)}, saved / "adapter_model.bin")
    refuse(saved, "belongs to no adapter")
    torch.save({"model": nn.Linear(2, 2)}, saved / "adapter_model.bin")
    refuse(saved, "damaged or holds more than tensors")


def llama() -> LlamaForCausalLM:
    torch.manual_seed(0)
    shape = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 24}
    return LlamaForCausalLM(LlamaConfig(vocab_size=40, **shape)).eval()


TOKENS = torch.arange(9)[None]


def shaken(model: nn.Module) -> nn.Module:
    generator = torch.Generator().manual_seed(0)
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data.add_(torch.randn(parameter.shape, generator=generator), alpha=0.3)
    return model.eval()


def test_embeddings_that_peft_saves_load_again(tmp_path: Path) -> None:
    model = shaken(eckart.adapt(llama(), "bone", r=2, target_modules=["embed_tokens", "q_proj"]))
    model.save_pretrained(tmp_path)
    key = "base_model.model.model.embed_tokens.base_layer.weight"
    state = load_file(tmp_path / WEIGHTS)
    assert key in state
    again = PeftModel.from_pretrained(llama(), tmp_path)
    torch.testing.assert_close(again(TOKENS).logits, model(TOKENS).logits)
    save_file(state | {key: state[key] + 1}, tmp_path / WEIGHTS)
    refuse(tmp_path, "changes the base model from row 0 on", llama())


def test_a_vocabulary_that_grew_loads_again(tmp_path: Path) -> None:
    llama().save_pretrained(tmp_path / "base")
    base = LlamaForCausalLM.from_pretrained(tmp_path / "base")
    base.resize_token_embeddings(43)
    model = shaken(eckart.adapt(base, "bone", r=2, target_modules=["q_proj"]))
    model.save_pretrained(tmp_path / "adapter")
    assert "base_model.model.lm_head.weight" in load_file(tmp_path / "adapter" / WEIGHTS)
    other = LlamaForCausalLM.from_pretrained(tmp_path / "base")
    other.resize_token_embeddings(43)
    again = PeftModel.from_pretrained(other, tmp_path / "adapter").eval()
    torch.testing.assert_close(again(TOKENS).logits, model(TOKENS).logits)


@pytest.mark.parametrize(
    "train", [{"modules_to_save": ["embed_tokens"]}, {"trainable_token_indices": [3, 41]}]
)
def test_a_vocabulary_that_grew_and_trains(tmp_path: Path, train: dict[str, Any]) -> None:
    """PEFT saves such an embedding under the names of all that is around it, each of which is held to the model."""
    llama().save_pretrained(tmp_path / "base")

    def grown() -> LlamaForCausalLM:
        model = LlamaForCausalLM.from_pretrained(tmp_path / "base")
        model.resize_token_embeddings(43)
        return model

    model = shaken(eckart.adapt(grown(), "bone", r=2, target_modules=["q_proj"], **train))
    folder = tmp_path / "adapter"
    model.save_pretrained(folder)
    again = PeftModel.from_pretrained(grown(), folder).eval()
    torch.testing.assert_close(again(TOKENS).logits, model(TOKENS).logits)
    state = load_file(folder / WEIGHTS)
    inner = next(
        k for k in state if "embed_tokens.original_module" in k or "embed_tokens.token_adapter.base" in k
    )
    save_file(state | {inner: state[inner] + 1}, folder / WEIGHTS)
    refuse(folder, "changes the base model from row 0 on", grown())
    twin = next((key for key in state if ".modules_to_save." in key), None)
    if twin is not None:
        save_file(state | {twin: state[twin] + 1}, folder / WEIGHTS)
        refuse(folder, "belongs to no adapter and no module to save", grown())


def test_tokens_that_train(tmp_path: Path) -> None:
    model = shaken(
        eckart.adapt(llama(), "bone", r=2, target_modules=["q_proj"], trainable_token_indices=[3, 5])
    )
    outputs = model(TOKENS).logits
    assert (outputs - llama()(TOKENS).logits)[0, 3].abs().max() > 0.01
    model.save_pretrained(tmp_path)
    torch.testing.assert_close(PeftModel.from_pretrained(llama(), tmp_path).eval()(TOKENS).logits, outputs)
    torch.testing.assert_close(model.merge_and_unload()(TOKENS).logits, outputs)


class Old(nn.Module):
    """A model before its block was renamed."""

    def __init__(self, name: str = "block") -> None:
        super().__init__()
        torch.manual_seed(0)
        self.add_module(name, nn.ModuleDict({"up": nn.Linear(8, 12), "down": nn.Linear(12, 8)}))
        self.name = name

    def forward(self, x: Tensor) -> Tensor:
        block = self.get_submodule(self.name)
        return block["down"](block["up"](x).relu())


class Renamed(Old):
    """The same since."""

    _checkpoint_conversion_mapping = {r"^block\.": "language.layers."}  # noqa: RUF012 - transformers' form

    def __init__(self) -> None:
        nn.Module.__init__(self)
        torch.manual_seed(0)
        self.language = nn.ModuleDict(
            {"layers": nn.ModuleDict({"up": nn.Linear(8, 12), "down": nn.Linear(12, 8)})}
        )
        self.name = "language.layers"


@pytest.mark.parametrize("options", [{"r": 2}, {"r": 2, "rank_pattern": {"block.up": 4}}])
def test_modules_that_were_renamed_since(options: dict[str, object], tmp_path: Path) -> None:
    model = eckart.adapt(
        Old(), "lora", target_modules=["block.up", "block.down"], init_weights=False, **options
    )
    x = torch.randn(3, 8)
    model.save_pretrained(tmp_path)
    torch.testing.assert_close(PeftModel.from_pretrained(Renamed(), tmp_path)(x), model(x))


def test_renamings_that_transformers_knows(tmp_path: Path) -> None:
    def vit() -> ViTModel:
        torch.manual_seed(0)
        shape = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 24}
        return ViTModel(ViTConfig(image_size=8, patch_size=4, **shape)).eval()

    model = eckart.adapt(vit(), "bone", r=2, target_modules=["layers.0.attention.q_proj"], init_weights=False)
    model.save_pretrained(tmp_path)
    old, new = "encoder.layer.0.attention.attention.query", "layers.0.attention.q_proj"
    state = {key.replace(new, old): value for key, value in load_file(tmp_path / WEIGHTS).items()}
    assert all(old in key for key in state)
    save_file(state, tmp_path / WEIGHTS)
    config = json.loads((tmp_path / "adapter_config.json").read_text())
    config |= {"target_modules": [old], "base_check": {old: next(iter(config["base_check"].values()))}}
    (tmp_path / "adapter_config.json").write_text(json.dumps(config))
    pixels = torch.randn(1, 3, 8, 8)
    again = PeftModel.from_pretrained(vit(), tmp_path).eval()
    torch.testing.assert_close(again(pixels).last_hidden_state, model.eval()(pixels).last_hidden_state)
