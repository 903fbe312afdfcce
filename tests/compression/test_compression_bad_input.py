"""What cannot be right is refused in one line, early, and the model is as it was."""

import copy
import json
import math

import pytest
import torch
from safetensors.torch import load_file, save_file
from small_models import VOCABULARY, Classifier, batches, make
from transformers import AutoModelForCausalLM

import eckart.compression as compression
from eckart.compression import compress
from eckart.errors import InputError

DATA = batches()


def nan_pixels():
    found = batches("vit")
    found[1]["pixel_values"][0, 0, 0, 0] = math.nan
    return found


def foreign_tokens():
    found = batches()
    found[2]["input_ids"][0, 0] = VOCABULARY
    return found


CASES = {
    "ratio 0": ("llama", "lord", {"ratio": 0, "calibration": DATA}, "ratio is 0"),
    "ratio 1": ("llama", "svd", {"ratio": 1.0}, "ratio is 1.0"),
    "ratio below": ("llama", "svd", {"ratio": -0.1}, "ratio is -0.1"),
    "ratio nan": ("llama", "svd", {"ratio": math.nan}, "ratio is nan"),
    "ratio that no rank meets": ("llama", "svd", {"ratio": 0.999}, "no rank meets it"),
    "no ratio": ("llama", "svd", {}, "ratio is not given"),
    "ratio and rank": ("llama", "svd", {"ratio": 0.2, "rank": 3}, "both given"),
    "ratio and budget": ("llama", "svd", {"ratio": 0.2, "budget": "80%"}, "both given"),
    "rank that saves nothing": ("llama", "svd", {"rank": 32}, "no rank meets it"),
    "rank 0": ("llama", "svd", {"rank": 0}, "rank is 0"),
    "budget no words": ("llama", "svd", {"budget": "small"}, "is not understood"),
    "budget above": ("llama", "svd", {"budget": "120%"}, "give one between"),
    "budget below": ("llama", "svd", {"budget": "1%"}, "give one between"),
    "unknown method": ("llama", "svdd", {"ratio": 0.2}, "known are afm, lord"),
    "unknown option": ("llama", "svd", {"ratio": 0.2, "radius": 3}, "unexpected keyword argument 'radius'"),
    "no calibration": ("llama", "lord", {"ratio": 0.2}, "lord needs calibration"),
    "no batches": ("llama", "lord", {"ratio": 0.2, "calibration": []}, "no batches"),
    "another vocabulary": (
        "llama",
        "lord",
        {"ratio": 0.2, "calibration": foreign_tokens()},
        f"the model has {VOCABULARY}",
    ),
    "nan in the data": ("vit", "lord", {"ratio": 0.2, "calibration": nan_pixels()}, "batch 1 holds NaN"),
    "energy": ("llama", "lord", {"energy": 1.0, "calibration": DATA}, "energy is 1.0"),
    "energy and ratio": ("llama", "lord", {"energy": 0.9, "ratio": 0.2, "calibration": DATA}, "both given"),
    "threshold": ("llama", "welore", {"threshold": 0.0}, "threshold is 0.0"),
    "welore's rank": ("llama", "welore", {"rank": 3}, "finds the ranks itself"),
    "welore out of reach": ("llama", "welore", {"ratio": 0.99}, "even t = 1 reaches"),
    "everything excluded": ("llama", "svd", {"ratio": 0.2, "exclude": [".*"]}, "has no layer to compress"),
    "exclude": ("llama", "svd", {"ratio": 0.2, "exclude": ["q_proj", "("]}, r"exclude '\(' is no regular"),
    "trp without convolutions": ("llama", "trp", {"ratio": 0.2}, "has no layer to compress"),
}


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.replace(" ", "-"))
def test_refused_in_one_line_and_untouched(case):
    kind, method, arguments, message = CASES[case]
    model = make(kind)
    before, names = copy.deepcopy(model.state_dict()), [type(m) for m in model.modules()]
    with pytest.raises(InputError, match=message) as caught:
        compress(model, method, **arguments)
    assert "\n" not in str(caught.value)
    assert [type(m) for m in model.modules()] == names
    assert all(torch.equal(a, b) for a, b in zip(before.values(), model.state_dict().values(), strict=True))
    assert not any("forward" in vars(m) for m in model.modules())
    assert not any(m._forward_pre_hooks for m in model.modules())


def test_nan_in_a_weight():
    model = make("llama")
    model.model.layers[1].mlp.up_proj.weight.data[3, 4] = math.inf
    with pytest.raises(InputError, match=r"model\.layers\.1\.mlp\.up_proj holds NaN or Inf"):
        compress(model, "svd", ratio=0.3)


def test_nan_that_arises_on_the_way():
    model = make("llama")
    model.model.norm.weight.data.fill_(1.0)
    model.model.layers[0].input_layernorm.weight.data[:] = 1e38
    with pytest.raises(InputError, match="NaN or Inf"):
        compress(model, "lord", ratio=0.3, calibration=DATA)
    assert all(type(m).__name__ != "FactorizedLinear" for m in model.modules())


@pytest.mark.parametrize("method", ["lord", "modegpt"])
def test_compressed_already(method):
    model = compress(make("llama"), method, ratio=0.3, calibration=DATA)
    with pytest.raises(InputError, match="compressed already"):
        compress(model, "svd", ratio=0.3)
    compress(compression.merge(model), "svd", ratio=0.3)


def test_a_layer_that_never_runs():
    model = Classifier()
    model.spare = torch.nn.Linear(12, 20, dtype=torch.float64)
    with pytest.raises(InputError, match="layer spare was not called"):
        compress(model, "lord", ratio=0.3, calibration=[torch.randn(30, 12, dtype=torch.float64)])


def test_hidden_states_that_change_between_blocks():
    model = torch.nn.Module()
    model.layers = torch.nn.ModuleList([torch.nn.Sequential(torch.nn.Linear(12, 12)) for _ in range(2)])
    model.forward = lambda x: model.layers[1](model.layers[0](x) * 2)
    with pytest.raises(InputError, match="between its blocks"):
        compress(model, "lord", ratio=0.3, calibration=[torch.randn(30, 12)])


def test_a_directory_that_is_not_empty(tmp_path):
    model = compress(make("llama"), "svd", ratio=0.3)
    (tmp_path / "mine").write_text("keep")
    with pytest.raises(InputError, match="is not empty"):
        compression.save(model, tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["mine"]


def test_a_save_that_fails_leaves_nothing(tmp_path, monkeypatch):
    model = compress(make("llama"), "svd", ratio=0.3)

    def full(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("eckart.compression._saving.write_report", full)
    with pytest.raises(OSError, match="No space left"):
        compression.save(model, tmp_path / "small")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("damage", ["rank", "missing"])
def test_a_checkpoint_whose_ranks_do_not_match_its_tensors(tmp_path, damage):
    compression.save(compress(make("llama"), "lord", ratio=0.3, calibration=DATA), tmp_path / "small")
    if damage == "rank":
        path = tmp_path / "small" / "config.json"
        config = json.loads(path.read_text())
        config["quantization_config"]["modules"]["model.layers.0.mlp.up_proj"]["rank"] += 1
        path.write_text(json.dumps(config))
        message = "model.layers.0.mlp.up_proj.A.weight has shape .* its config.json says"
    else:
        path = tmp_path / "small" / "model.safetensors"
        state = load_file(path)
        del state["model.layers.0.mlp.up_proj.B.weight"]
        save_file(state, path, metadata={"format": "pt"})
        message = "model.layers.0.mlp.up_proj.B.weight is missing"
    with pytest.raises(InputError, match=message):
        AutoModelForCausalLM.from_pretrained(tmp_path / "small")


def test_plain_modules_say_what_does_not_fit(tmp_path):
    model = compress(Classifier(), "svd", ratio=0.4)
    compression.save(model, tmp_path / "small")
    with pytest.raises(InputError, match="which Linear has not"):
        compression.load(torch.nn.Linear(3, 3), tmp_path / "small")
    specs = json.loads((tmp_path / "small" / "compression.json").read_text())
    specs["modules"]["first"]["rank"] += 1
    (tmp_path / "small" / "compression.json").write_text(json.dumps(specs))
    fresh = Classifier()
    with pytest.raises(InputError, match=r"first\.A\.weight has shape"):
        compression.load(fresh, tmp_path / "small")
    assert type(fresh.first) is torch.nn.Linear
    with pytest.raises(InputError, match="no compressed model that can be read"):
        compression.load(fresh, tmp_path)
