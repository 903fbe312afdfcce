"""Inspecting models: numbers against direct computation, every source, every refusal, files whole or absent."""

from __future__ import annotations

import csv
import json
import math
from pathlib import Path
from xml.etree import ElementTree

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny_models import gpt2_config, save_bert
from torch import nn
from transformers import BertModel, GPT2Model

from eckart.errors import InputError
from eckart.jobs.inspect.inspection import inspect_model
from eckart.linalg import spectrum


@pytest.fixture(scope="module")
def bert(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_bert(tmp_path_factory.mktemp("bert"))


def test_every_weight_of_a_directory_is_measured(bert: Path) -> None:
    seen: list[tuple[int, int]] = []
    inspection = inspect_model(bert, on_layer=lambda done, total: seen.append((done, total)))
    names = [layer.name for layer in inspection.layers]
    tensors = load_file(bert / "model.safetensors")
    assert set(names) == {name for name, tensor in tensors.items() if tensor.dim() == 2}
    assert seen == [(i + 1, len(names)) for i in range(len(names))]
    kinds = {layer.name: layer.kind for layer in inspection.layers}
    assert kinds["embeddings.word_embeddings.weight"] == "embedding"
    assert kinds["encoder.layer.0.attention.self.query.weight"] == "linear"
    for layer in inspection.layers:
        weight = tensors[layer.name].double()
        s = torch.linalg.svdvals(weight)
        assert layer.shape == tuple(weight.shape)
        assert layer.stable_rank == pytest.approx((s.square().sum() / s[0] ** 2).item(), rel=1e-5)
        energy = s.square().cumsum(0) / s.square().sum()
        for share in (0.9, 0.99):
            assert layer.ranks[share] == int((energy < share).sum()) + 1
        out, columns = weight.shape
        assert layer.nearly_low_rank == (layer.ranks[0.9] * (out + columns) <= out * columns / 2)


def test_memory_model_equals_its_files(bert: Path) -> None:
    from_files = inspect_model(bert, energy=0.95).to_dict()["layers"]
    in_memory = inspect_model(BertModel.from_pretrained(bert), energy=0.95).to_dict()["layers"]
    assert from_files == in_memory
    assert "rank_95" in from_files[0]


def test_shards_are_followed_and_a_lost_one_is_named(bert: Path, tmp_path: Path) -> None:
    BertModel.from_pretrained(bert).save_pretrained(tmp_path, max_shard_size="6KB")
    shards = sorted(tmp_path.glob("model-*.safetensors"))
    assert len(shards) > 1
    assert inspect_model(tmp_path).to_dict()["layers"] == inspect_model(bert).to_dict()["layers"]
    shards[1].unlink()
    with pytest.raises(InputError, match=f"lacks {shards[1].name}"):
        inspect_model(tmp_path)


def test_layers_come_in_numerical_order(tmp_path: Path) -> None:
    weights = {f"layer.{i}.weight": torch.randn(4, 4) for i in (10, 2, 1)}
    save_file(weights, tmp_path / "model.safetensors")
    assert [layer.name for layer in inspect_model(tmp_path).layers] == [
        "layer.1.weight",
        "layer.2.weight",
        "layer.10.weight",
    ]


def test_a_low_rank_weight_is_found_and_a_random_one_is_not(tmp_path: Path) -> None:
    generator = torch.Generator().manual_seed(0)
    low = torch.randn(60, 3, generator=generator) @ torch.randn(3, 40, generator=generator)
    save_file({"low": low, "random": torch.randn(60, 40, generator=generator)}, tmp_path / "m.safetensors")
    layers = {layer.name: layer for layer in inspect_model(tmp_path / "m.safetensors").layers}
    assert layers["low"].nearly_low_rank
    assert layers["low"].ranks[0.99] <= 3
    assert not layers["random"].nearly_low_rank


def test_convolutions_conv1d_stacks_and_half_precision(tmp_path: Path) -> None:
    convolution = nn.Sequential(nn.Conv2d(3, 8, 3), nn.Embedding(11, 4))
    first, second = inspect_model(convolution).layers
    assert (first.kind, first.shape) == ("conv", (8, 27))
    assert (second.kind, second.shape) == ("embedding", (11, 4))

    gpt = GPT2Model(gpt2_config(n_embd=8))
    shapes = {layer.name: layer.shape for layer in inspect_model(gpt).layers}
    assert shapes["h.0.attn.c_attn.weight"] == (8, 24)

    experts = torch.randn(2, 12, 6).bfloat16()
    save_file({"experts.down_proj": experts, "conv.weight": torch.randn(4, 3, 5)}, tmp_path / "m.safetensors")
    layers = {layer.name: layer for layer in inspect_model(tmp_path).layers}
    assert layers["conv.weight"].shape == (4, 15)
    assert layers["conv.weight"].kind == "conv"
    expected = spectrum.stable_rank(torch.linalg.svdvals(experts[1].float())).item()
    assert layers["experts.down_proj[1]"].stable_rank == pytest.approx(expected)


def test_integer_weights_are_listed_not_read(tmp_path: Path) -> None:
    packed = torch.randint(0, 9, (8, 8), dtype=torch.int8)
    save_file({"q.weight": packed, "k.weight": torch.randn(8, 8)}, tmp_path / "m.safetensors")
    inspection = inspect_model(tmp_path)
    assert [layer.name for layer in inspection.layers] == ["k.weight"]
    assert inspection.skipped == ["q.weight"]


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_broken_weight_is_named(tmp_path: Path, value: float) -> None:
    weight = torch.randn(4, 4)
    weight[1, 2] = value
    save_file({"fine.weight": torch.randn(4, 4), "broken.weight": weight}, tmp_path / "m.safetensors")
    with pytest.raises(InputError, match=r"broken\.weight holds 1 NaN or Inf"):
        inspect_model(tmp_path)


def test_sources_that_cannot_be_inspected(bert: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no such directory"):
        inspect_model(tmp_path / "nowhere")
    with pytest.raises(InputError, match="no safetensors file"):
        inspect_model(tmp_path)
    whole = (bert / "model.safetensors").read_bytes()
    (tmp_path / "model.safetensors").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(InputError, match=r"model\.safetensors is no readable safetensors file"):
        inspect_model(tmp_path)
    save_file({"norm.weight": torch.ones(4)}, tmp_path / "model.safetensors")
    with pytest.raises(InputError, match="no floating-point weight"):
        inspect_model(tmp_path)
    with pytest.raises(InputError, match="energy is 90"):
        inspect_model(bert, energy=90)


def test_saved_files_say_the_same(bert: Path, tmp_path: Path) -> None:
    inspection = inspect_model(bert)
    folder = inspection.save(tmp_path / "out")
    written = json.loads((folder / "inspect.json").read_text())
    assert written == json.loads(json.dumps(inspection.to_dict()))
    with (folder / "spectra.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["name"] for row in rows] == [layer.name for layer in inspection.layers]
    assert float(rows[0]["stable_rank"]) == written["layers"][0]["stable_rank"]
    s = load_file(folder / "singular_values.safetensors")
    assert all(torch.equal(s[layer.name], layer.singular_values) for layer in inspection.layers)

    picture = ElementTree.parse(folder / "spectra.svg").getroot()
    tag = "{http://www.w3.org/2000/svg}"
    texts = [element.text for element in picture.iter(f"{tag}text")]
    assert all(layer.name in texts for layer in inspection.layers)
    lines = [group for group in picture.iter(f"{tag}g") if "mark-line" in group.get("class", "")]
    assert sum(len(group) for group in lines) == len(inspection.layers)

    before = sorted(path.name for path in folder.iterdir())
    with pytest.raises(InputError, match="not empty"):
        inspection.save(folder)
    assert sorted(path.name for path in folder.iterdir()) == before
    inspection.save(folder, overwrite=True)
