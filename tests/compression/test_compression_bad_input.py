"""What cannot be right is refused in one line, early, and the model is as it was."""

import copy
import json
import math

import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file
from small_models import VOCABULARY, Classifier, batches, make
from torchao.quantization import Int8WeightOnlyConfig, quantize_
from transformers import (
    AutoModelForCausalLM,
    AutoModelForImageClassification,
    T5Config,
    T5ForConditionalGeneration,
)

import eckart
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
    "unknown option": ("llama", "svd", {"ratio": 0.2, "radius": 3}, "svd has no option 'radius': known are"),
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
    "exclude nothing": (
        "llama",
        "svd",
        {"ratio": 0.2, "exclude": "q_prj"},
        "exclude 'q_prj' matches no module",
    ),
    "exclude no words": ("llama", "svd", {"ratio": 0.2, "exclude": [3]}, r"exclude is \[3\]: give regular"),
    "a ratio in words": ("llama", "svd", {"ratio": "0.2"}, "ratio is '0.2'"),
    "ranks of no layer": ("llama", "svd", {"ranks": {"nope": 4}}, "ranks names 'nope'"),
    "ranks without names": ("llama", "svd", {"ranks": [4]}, r"ranks is \[4\]: give a mapping"),
    "a rank that is none": (
        "llama",
        "svd",
        {"ranks": {"q_proj": math.nan}},
        "ranks of 'q_proj': rank is nan",
    ),
    "a table that is not there": (
        "llama",
        "afm",
        {"ratio": 0.3, "embedding_rank": 4, "calibration": DATA},
        "has no embedding among",
    ),
    "one batch": ("llama", "lord", {"ratio": 0.2, "calibration": DATA[0]}, "calibration is a dict"),
    "texts": (
        "llama",
        "lord",
        {"ratio": 0.2, "calibration": ["some text"]},
        r"batch 0 \(str\) holds no tensor",
    ),
    "inputs of another model": (
        "llama",
        "lord",
        {"ratio": 0.2, "calibration": batches("vit")},
        "batch 0 does not run through LlamaForCausalLM",
    ),
    "training without data": ("llama", "pela", {"ratio": 0.3, "steps": 2}, "steps is 2: pela trains on"),
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


def test_a_layer_of_a_later_block_that_never_runs():
    model = make("llama")
    model.model.layers[1].spare = torch.nn.Linear(32, 32)
    before = [type(m) for m in model.modules()]
    with pytest.raises(InputError, match=r"layer model\.layers\.1\.spare was not called"):
        compress(model, "lord", ratio=0.3, calibration=DATA)
    assert [type(m) for m in model.modules()] == before


def compiled(model):
    return torch.compile(model)


def with_adapter(model):
    return get_peft_model(model, LoraConfig(r=2, target_modules=["q_proj"]))


def in_int8(model):
    quantize_(model, Int8WeightOnlyConfig())
    return model


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (compiled, "wrapped in OptimizedModule: compress model._orig_mod"),
        (torch.nn.DataParallel, "wrapped in DataParallel: compress model.module"),
        (with_adapter, "q_proj has an adapter: merge it first"),
        (in_int8, "is a Int8Tensor: load"),
        (lambda model: model.to("meta"), "is on meta: load"),
        (lambda model: model.to(torch.float8_e4m3fn), "is of torch.float8_e4m3fn: load"),
        (
            lambda model: eckart.convert(model, "sltrain", r=4, sparsity=0.05),
            "has structured layers: make it dense",
        ),
    ],
    ids=["compiled", "wrapped", "adapter", "int8", "meta", "float8", "structured"],
)
def test_models_that_are_not_dense(change, message):
    model = change(make("llama"))
    with pytest.raises(InputError, match=message):
        compress(model, "lord", ratio=0.3, calibration=DATA)


@pytest.mark.parametrize("options", [{"alpha": 0.0}, {"alpha": 1.0}])
def test_training_that_is_lost_is_no_bad_input(options):
    with pytest.raises(FloatingPointError, match="lower lr"):
        compress(make("llama"), "pela", ratio=0.3, steps=3, lr=1e10, calibration=DATA, **options)


def test_what_holds_no_layer_is_refused():
    for model, message in (
        ("gpt2", "model is a str: give the module itself"),
        (torch.nn.Linear(40, 40), "Linear has no layer to compress: needed is a Linear, Embedding in it"),
        (
            torch.nn.Sequential(torch.nn.Embedding(90, 16, max_norm=1.0)),
            "Sequential has no layer to compress",
        ),
    ):
        with pytest.raises(InputError, match=message):
            compress(model, "afm", ratio=0.3, calibration=[torch.tensor([[1, 2, 3]])])


def test_training_without_blocks_to_distil():
    model = T5ForConditionalGeneration(
        T5Config(vocab_size=VOCABULARY, d_model=32, d_kv=8, d_ff=48, num_layers=2)
    )
    before = [type(m) for m in model.modules()]
    with pytest.raises(
        InputError, match=r"alpha is 1\.0: T5ForConditionalGeneration has no one list of blocks"
    ):
        compress(model, "pela", ratio=0.3, steps=1, calibration=DATA)
    assert [type(m) for m in model.modules()] == before


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


SPECS_THAT_ARE_WRONG = {
    "rank": (lambda spec: {**spec, "rank": spec["rank"] + 1}, "A.weight has shape .* its config.json says"),
    "no rank": (lambda spec: {k: v for k, v in spec.items() if k != "rank"}, "missing .* restore the config"),
    "a rank below 0": (lambda spec: {**spec, "rank": -1}, "is damaged .* restore the config"),
    "a word": (lambda spec: {**spec, "radius": 3}, "'radius'.* restore the config"),
}


@pytest.mark.parametrize("kind", ["llama", "vit"])
@pytest.mark.parametrize("damage", [*SPECS_THAT_ARE_WRONG, "missing", "cut short"])
def test_a_checkpoint_whose_ranks_do_not_match_its_tensors(tmp_path, damage, kind):
    compression.save(compress(make(kind), "svd", ratio=0.3), tmp_path / "small")
    path = tmp_path / "small" / "model.safetensors"
    if damage in SPECS_THAT_ARE_WRONG:
        change, message = SPECS_THAT_ARE_WRONG[damage]
        path = tmp_path / "small" / "config.json"
        config = json.loads(path.read_text())
        modules = config["quantization_config"]["modules"]
        name = next(iter(modules))
        modules[name] = change(modules[name])
        path.write_text(json.dumps(config))
    elif damage == "cut short":
        path.write_bytes(path.read_bytes()[:-200])
        message = "is damaged or cut short"
    else:
        state = load_file(path)
        del state[next(key for key in state if key.endswith(".B.weight"))]
        save_file(state, path, metadata={"format": "pt"})
        message = r"layers\.0\..*\.B\.weight is missing"
    auto = AutoModelForImageClassification if kind == "vit" else AutoModelForCausalLM
    with pytest.raises(InputError, match=message):
        auto.from_pretrained(tmp_path / "small")


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
    specs["modules"]["first"]["rank"] -= 1
    (tmp_path / "small" / "compression.json").write_text(json.dumps(specs))
    path = tmp_path / "small" / "model.safetensors"
    state = load_file(path)
    state["first.A.weight"][0, 0] = math.nan
    save_file(state, path)
    with pytest.raises(InputError, match=r"first\.A\.weight in model\.safetensors holds NaN"):
        compression.load(fresh, tmp_path / "small")
    path.write_bytes(path.read_bytes()[:-8])
    with pytest.raises(InputError, match="damaged, truncated or corrupt"):
        compression.load(fresh, tmp_path / "small")
    assert type(fresh.first) is torch.nn.Linear
