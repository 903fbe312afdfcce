import copy
import csv
import pickle

import pytest
import torch
from small_models import Classifier, Clicks, Convolutions, batches, click_rows, logits, make
from transformers import AutoModelForCausalLM, AutoModelForMaskedLM, Trainer, TrainingArguments

import eckart
import eckart.compression as compression
from eckart.adapters._loading import load_adapted
from eckart.compression import compress
from eckart.compression._census import census
from eckart.compression._kinds import KINDS, build_layer
from eckart.compression._saving import check_mergeable
from eckart.errors import InputError
from eckart.tasks.heads import load_base
from eckart.tasks.pretrained import Checkpoint


def test_card_and_table(tmp_path):
    model = compress(make("llama"), "lord", ratio=0.3, calibration=batches())
    compression.save(model, tmp_path / "small")
    report = compression.report(model)
    with (tmp_path / "small" / "layers.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["layer"] for row in rows] == [row.layer for row in report.rows] and len(rows) == 14
    assert all(0 < float(row["error"]) < 1 for row in rows)
    card = (tmp_path / "small" / "README.md").read_text()
    assert "compressed by lord" in card and "240 tokens" in card and "14 of 14" in card
    assert sorted(path.name for path in (tmp_path / "small").iterdir()) == [
        "README.md",
        "config.json",
        "generation_config.json",
        "layers.csv",
        "model.safetensors",
    ]


@pytest.mark.parametrize("kind", ["llama", "gpt2", "opt", "bert"])
def test_merged_is_the_stock_class_with_the_same_outputs(kind, tmp_path):
    data = batches(kind)
    model = compress(make(kind), "lord", ratio=0.3, calibration=data)
    small, names = logits(model, data[0]), {type(m).__name__ for m in make(kind).modules()}
    compression.merge(model)
    torch.testing.assert_close(logits(model, data[0]), small, rtol=1e-4, atol=1e-4)
    assert {type(m).__name__ for m in model.modules()} == names
    model.save_pretrained(tmp_path)
    auto = AutoModelForMaskedLM if kind == "bert" else AutoModelForCausalLM
    loaded, info = auto.from_pretrained(tmp_path, output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"]
    assert torch.equal(logits(loaded, data[0]), logits(model, data[0]))


def test_a_bias_that_the_stock_class_cannot_hold():
    data = batches()
    model = compress(make("mistral"), "lord", ratio=0.3, calibration=data)
    with pytest.raises(InputError, match="center=False"):
        compression.merge(model)
    small = logits(model, data[0])
    assert small.isfinite().all()
    for method in (compression.LoRD(), compression.AFM()):
        with pytest.raises(InputError, match="q_proj has a bias that MistralForCausalLM cannot hold"):
            check_mergeable(method, census(make("mistral"), (torch.nn.Linear,)))
    for method, kind in ((compression.LoRD(center=False), "mistral"), (compression.LoRD(), "llama")):
        check_mergeable(method, census(make(kind), (torch.nn.Linear,)))
    model = compress(make("mistral"), "lord", ratio=0.3, calibration=data, center=False)
    small = logits(model, data[0])
    torch.testing.assert_close(logits(compression.merge(model), data[0]), small, rtol=1e-4, atol=1e-4)
    with pytest.raises(InputError, match="nothing to merge"):
        compression.merge(model)


@pytest.mark.parametrize(
    ("module", "method", "options", "x"),
    [
        (Classifier, "lord", {"ratio": 0.4}, torch.randn(40, 12, dtype=torch.float64)),
        (Convolutions, "trp", {"ratio": 0.4, "scheme": "VH"}, torch.randn(2, 3, 9, 9)),
        (Convolutions, "trp", {"ratio": 0.4, "scheme": "ND"}, torch.randn(2, 3, 9, 9)),
        (Clicks, "afm", {"ratio": 0.5, "act": "relu"}, click_rows()),
    ],
)
def test_plain_modules_round_trip(module, method, options, x, tmp_path):
    model = compress(module().eval(), method, calibration=[x], **options)
    compression.save(model, tmp_path / "small")
    loaded = compression.load(module(), tmp_path / "small")
    assert torch.equal(loaded.eval()(x), model(x))


@pytest.mark.parametrize("method", ["lora", "svfit", "bone"])
@pytest.mark.parametrize("kind", ["lord", "modegpt"])
def test_a_compressed_model_is_a_base_for_adapters(kind, method, tmp_path):
    from peft import PeftModel

    data = batches()
    small = compress(make("llama"), kind, ratio=0.3, calibration=data)
    small.save_pretrained(tmp_path / "base")
    before = logits(small, data[0])
    adapted = eckart.adapt(small, method, r=2, target_modules="all-linear")
    optimizer = torch.optim.SGD([p for p in adapted.parameters() if p.requires_grad], 0.1)
    adapted(**data[0], labels=data[0]["input_ids"]).loss.backward()
    optimizer.step()
    after = logits(adapted.eval(), data[0])
    assert not torch.allclose(after, before)
    adapted.save_pretrained(tmp_path / "adapter")
    base = AutoModelForCausalLM.from_pretrained(tmp_path / "base")
    loaded = PeftModel.from_pretrained(base, tmp_path / "adapter").eval()
    torch.testing.assert_close(logits(loaded, data[0]), after)
    merged = loaded.merge_and_unload()
    torch.testing.assert_close(logits(merged, data[0]), after, rtol=1e-4, atol=1e-4)


def test_the_trainer_trains_the_factors(tmp_path):
    data = batches()
    model = compress(make("llama"), "lord", ratio=0.3, calibration=data)
    model.save_pretrained(tmp_path / "small")
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "small")
    before = copy.deepcopy(model.state_dict())
    rows = [{"input_ids": ids, "labels": ids} for ids in data[0]["input_ids"]]
    arguments = TrainingArguments(
        str(tmp_path / "run"), max_steps=1, report_to=[], disable_tqdm=True, save_strategy="no"
    )
    Trainer(model, arguments, train_dataset=rows).train()
    moved = [name for name, value in model.state_dict().items() if not torch.equal(value, before[name])]
    assert "model.layers.0.mlp.up_proj.A.weight" in moved and "model.layers.0.mlp.up_proj.B.bias" in moved


def test_int8_on_top():
    pytest.importorskip("torchao")
    from torchao.quantization import Int8WeightOnlyConfig, quantize_

    data = batches()
    for method in ("lord", "modegpt"):
        model = compress(make("llama"), method, ratio=0.3, calibration=data)
        before = logits(model, data[0])
        quantize_(model, Int8WeightOnlyConfig())
        after = logits(model, data[0])
        assert not torch.equal(after, before)
        assert float((after - before).norm() / before.norm()) < 0.1


@pytest.mark.parametrize("kind", ["llama", "opt"])
def test_a_sliced_model_is_a_base_for_the_commands(kind, tmp_path):
    data = batches()
    compression.save(compress(make(kind), "modegpt", ratio=0.3, calibration=data), tmp_path / "small")
    base = load_base(Checkpoint(tmp_path / "small", "small"), "causal-lm", None).model
    adapted = eckart.adapt(base, "lora", r=2)
    for name, parameter in adapted.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter)
    adapted.peft_config["default"].base_model_name_or_path = str(tmp_path / "small")
    adapted.save_pretrained(tmp_path / "adapter")
    again = load_adapted(None, tmp_path / "adapter")
    assert torch.equal(logits(again.eval(), data[0]), logits(adapted.eval(), data[0]))


def test_a_sliced_model_is_pickled():
    model = compress(make("llama"), "modegpt", ratio=0.3, calibration=batches())
    again = pickle.loads(pickle.dumps(model))
    assert torch.equal(logits(again, batches()[0]), logits(model, batches()[0]))


def test_specs_build_the_same_layers():
    for kind in KINDS.values():
        assert kind.kind in KINDS
    model = compress(Convolutions(), "trp", ratio=0.3)
    again = build_layer(model.strided.spec)
    assert {n: p.shape for n, p in again.named_parameters()} == {
        n: p.shape for n, p in model.strided.named_parameters()
    }
    with pytest.raises(InputError, match="'pyramid' is not known"):
        build_layer({"kind": "pyramid"})


def test_dequantize_is_the_dense_model():
    data = batches()
    model = compress(make("llama"), "lord", ratio=0.3, calibration=data, center=False)
    small = logits(model, data[0])
    model.dequantize()
    assert type(model.model.layers[0].mlp.up_proj) is torch.nn.Linear
    torch.testing.assert_close(logits(model, data[0]), small, rtol=1e-4, atol=1e-4)
