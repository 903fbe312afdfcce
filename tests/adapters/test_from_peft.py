"""Checkpoints in and out: PEFT's own give PEFT's outputs here, and every adapter goes out as a plain PEFT LoRA."""

from __future__ import annotations

import copy
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import peft
import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

import eckart
from eckart.adapters import ADAPTERS, export_lora, from_peft
from eckart.errors import InputError
from eckart.linalg.spectrum import truncation_error

TOKENS = torch.randint(0, 30, (2, 7), generator=torch.Generator().manual_seed(0))


class Net(nn.Module):
    """One layer of every kind, in a chain; two linear layers share the end of their names."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(30, 8)
        self.up = nn.Linear(8, 12)
        self.gpt = Conv1D(16, 12)
        self.block = nn.ModuleDict({"up": nn.Linear(16, 16)})
        self.square = nn.Linear(16, 16, bias=False)
        self.conv1 = nn.Conv1d(16, 6, 3, padding=1)
        self.conv2 = nn.Conv2d(1, 4, (3, 2), stride=2)
        self.grouped = nn.Conv2d(4, 8, 2, groups=2)
        self.conv3 = nn.Conv3d(1, 4, (2, 1, 2))
        self.head = nn.Linear(2, 3)

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.square(self.block["up"](torch.tanh(self.gpt(self.up(self.embed(tokens))))))
        x = self.conv1(x.transpose(1, 2))
        x = self.grouped(self.conv2(x[:, None]))
        return self.head(self.conv3(x[:, None]).mean(-1).flatten(1)[:, -2:])


@pytest.fixture
def net() -> Net:
    torch.manual_seed(0)
    return Net()


def shake(model: nn.Module, scale: float = 0.1) -> None:
    """Move every trained number, so that the adapter is no longer its start."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn(parameter.shape, generator=generator), alpha=scale)


def close(a: Tensor, b: Tensor, rtol: float = 1e-5) -> None:
    torch.testing.assert_close(a, b, rtol=rtol, atol=rtol * float(b.detach().abs().max()))


LINEAR = ["block.up", "gpt", "square"]
PEFT_CONFIGS: dict[str, Callable[[], peft.PeftConfig]] = {
    "lora": lambda: peft.LoraConfig(
        r=3, lora_alpha=7, target_modules=["up", "gpt"], modules_to_save=["head"]
    ),
    "lora on every layer kind": lambda: peft.LoraConfig(
        r=2, target_modules=["embed", "up", "gpt", "conv1", "conv2", "conv3"], lora_dropout=0.1
    ),
    "rslora": lambda: peft.LoraConfig(r=4, use_rslora=True, target_modules=LINEAR),
    "lora with patterns": lambda: peft.LoraConfig(
        r=2, target_modules=LINEAR, rank_pattern={"square": 5}, alpha_pattern={"gpt": 3}
    ),
    "lora by a regular expression": lambda: peft.LoraConfig(
        r=2, target_modules=r".*\.up", init_lora_weights="gaussian"
    ),
    "randlora": lambda: peft.RandLoraConfig(r=4, target_modules=[*LINEAR, "up"], randlora_alpha=3),
    "randlora from its key": lambda: peft.RandLoraConfig(
        r=5, target_modules=LINEAR, save_projection=False, projection_prng_key=3
    ),
    "randlora sparse": lambda: peft.RandLoraConfig(r=8, target_modules=LINEAR, sparse=True),
    "randlora very sparse": lambda: peft.RandLoraConfig(r=8, target_modules=LINEAR, very_sparse=True),
    "miss": lambda: peft.MissConfig(r=4, target_modules=["block.up", "square"], miss_dropout=0.1),
    "miss, ragged": lambda: peft.MissConfig(r=5, target_modules=["up", "square"]),
    "bat": lambda: peft.MissConfig(r=4, target_modules=["up", "square"], init_weights="bat"),
    "mini": lambda: peft.MissConfig(r=4, target_modules=["square"], init_weights="mini", mini_r=2),
}


@pytest.fixture(params=PEFT_CONFIGS)
def checkpoint(request: pytest.FixtureRequest, net: Net, tmp_path: Path) -> tuple[Path, PeftModel]:
    return write_peft(net, PEFT_CONFIGS[request.param](), tmp_path / "peft")


def write_peft(net: Net, config: peft.PeftConfig, path: Path) -> tuple[Path, PeftModel]:
    model = peft.get_peft_model(copy.deepcopy(net), config)
    shake(model)
    model.save_pretrained(path)
    return path, model.eval()


@pytest.mark.filterwarnings("ignore")
def test_outputs_are_those_of_peft_and_survive_our_own_saving(
    net: Net, checkpoint: tuple[Path, PeftModel], tmp_path: Path
) -> None:
    path, theirs = checkpoint
    expected, base = theirs(TOKENS), net(TOKENS)
    assert (expected - base).abs().max() > 1e-3 * base.abs().max()
    ours = from_peft(copy.deepcopy(net), path)
    assert type(ours.peft_config["default"]) in ADAPTERS.values()
    assert not ours.training
    assert not any(parameter.requires_grad for parameter in ours.parameters())
    close(ours(TOKENS), expected)
    ours.save_pretrained(tmp_path / "ours")
    close(PeftModel.from_pretrained(copy.deepcopy(net), tmp_path / "ours")(TOKENS), expected)
    with ours.disable_adapter():
        if ours.peft_config["default"].modules_to_save is None:
            torch.testing.assert_close(ours(TOKENS), base, rtol=0, atol=0)


def test_old_bone_checkpoint(net: Net, tmp_path: Path) -> None:
    path, theirs = write_peft(net, peft.MissConfig(r=4, target_modules=["square"]), tmp_path / "bone")
    config = json.loads((path / "adapter_config.json").read_text())
    config = {key.replace("miss_", "bone_"): value for key, value in config.items() if key != "mini_r"}
    (path / "adapter_config.json").write_text(json.dumps(config | {"peft_type": "BONE"}))
    weights = load_file(path / "adapter_model.safetensors")
    save_file(
        {key.replace(".miss_", ".bone_"): value for key, value in weights.items()},
        path / "adapter_model.safetensors",
    )
    close(from_peft(copy.deepcopy(net), path)(TOKENS), theirs(TOKENS))


@pytest.mark.filterwarnings("ignore")
def test_randlora_bases_are_kept_only_where_the_key_gives_others(net: Net, tmp_path: Path) -> None:
    path, theirs = write_peft(net, peft.RandLoraConfig(r=4, target_modules=LINEAR), tmp_path / "peft")
    ours = from_peft(copy.deepcopy(net), path)
    ours.save_pretrained(tmp_path / "ours")
    assert not [key for key in load_file(tmp_path / "ours/adapter_model.safetensors") if "randlora_B" in key]

    weights = load_file(path / "adapter_model.safetensors")
    for key in weights:
        if key.endswith("randlora_B"):
            weights[key] = weights[key].roll(1, 0)
    save_file(weights, path / "adapter_model.safetensors")
    expected = PeftModel.from_pretrained(copy.deepcopy(net), path)(TOKENS)
    assert (expected - theirs(TOKENS)).abs().max() > 1e-3
    other = from_peft(copy.deepcopy(net), path)
    close(other(TOKENS), expected)
    other.save_pretrained(tmp_path / "other")
    close(PeftModel.from_pretrained(copy.deepcopy(net), tmp_path / "other")(TOKENS), expected)


def test_a_loaded_checkpoint_trains_on(net: Net, tmp_path: Path) -> None:
    path, theirs = write_peft(net, PEFT_CONFIGS["lora"](), tmp_path / "peft")
    ours = from_peft(copy.deepcopy(net), path, is_trainable=True)
    assert ours.training
    trained = {name for name, parameter in ours.named_parameters() if parameter.requires_grad}
    assert all("lora_" in name or "modules_to_save" in name for name in trained)
    for model in (ours, theirs.train()):
        model.zero_grad()
        model(TOKENS).square().sum().backward()
    own, peers = (dict(model.base_model.model.gpt.named_parameters()) for model in (ours, theirs))
    for name in ("lora_A", "lora_B"):
        close(own[f"eckart_adapters.default.{name}"].grad, peers[f"{name}.default.weight"].grad, rtol=1e-4)


def test_second_adapter_of_a_model(net: Net, tmp_path: Path) -> None:
    path, theirs = write_peft(net, PEFT_CONFIGS["lora"](), tmp_path / "peft")
    model = eckart.adapt(copy.deepcopy(net), "lora", target_modules=["up"], r=2, modules_to_save=["head"])
    model = from_peft(model, path, "second")
    model.set_adapter("second")
    close(model(TOKENS), theirs(TOKENS))


@pytest.mark.parametrize(
    ("config", "named"),
    [
        (lambda: peft.LoraConfig(r=2, target_modules=LINEAR, use_dora=True), "use_dora=True"),
        (lambda: peft.LoraConfig(r=2, target_modules=LINEAR, bias="lora_only"), "bias='lora_only'"),
        (
            lambda: peft.LoraConfig(r=2, target_modules=["square"], init_lora_weights="pissa"),
            "init_lora_weights='pissa'",
        ),
        (
            lambda: peft.LoraConfig(r=2, target_modules=["square"], lora_bias=True, bias="none"),
            "lora_bias=True",
        ),
        (lambda: peft.VeraConfig(r=2, target_modules=["square"]), "of type VERA"),
    ],
)
@pytest.mark.filterwarnings("ignore")
def test_what_has_no_counterpart_is_named(
    net: Net, tmp_path: Path, config: Callable[[], peft.PeftConfig], named: str
) -> None:
    path, _ = write_peft(net, config(), tmp_path / "peft")
    with pytest.raises(InputError, match=named):
        from_peft(net, path)


def test_refused_checkpoints_leave_the_model_as_it_was(net: Net, tmp_path: Path) -> None:
    path, _ = write_peft(net, PEFT_CONFIGS["lora"](), tmp_path / "peft")
    weights = path / "adapter_model.safetensors"
    whole, config = weights.read_bytes(), path / "adapter_config.json"
    before = {name: value.clone() for name, value in net.state_dict().items()}
    kinds = [type(module) for module in net.modules()]

    def refused(match: str) -> None:
        with pytest.raises(InputError, match=match):
            from_peft(net, path)
        assert [type(module) for module in net.modules()] == kinds
        assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())

    weights.write_bytes(whole[: len(whole) // 2])
    refused("damaged")
    weights.write_bytes(whole)
    tensors = load_file(weights)
    key = "base_model.model.gpt.lora_A.weight"
    save_file(tensors | {key: tensors[key][:, :-1].contiguous()}, weights)
    refused("shape")
    save_file({name: value for name, value in tensors.items() if name != key}, weights)
    refused("lacks")
    save_file(tensors | {"base_model.model.head.weight": torch.zeros(4, 2)}, weights)
    refused(r"head\.weight")
    save_file(tensors | {"base_model.model.tail.weight": torch.zeros(4, 2)}, weights)
    refused("no such module")
    weights.write_bytes(whole)
    config.write_text("{")
    refused("damaged")
    config.unlink()
    refused("has no adapter_config.json")
    with pytest.raises(InputError, match="no such directory"):
        from_peft(net, tmp_path / "nowhere")


def adapted(net: Net, slug: str = "lora", targets: list[str] | None = None, **options: object) -> PeftModel:
    model = eckart.adapt(net, slug, target_modules=targets or LINEAR, init_weights=False, **options)
    return model.eval()


@pytest.mark.parametrize("slug", ADAPTERS)
@pytest.mark.filterwarnings("ignore")
def test_every_method_becomes_a_plain_lora(net: Net, tmp_path: Path, slug: str) -> None:
    base = copy.deepcopy(net)
    model = adapted(net, slug)
    expected = model(TOKENS)
    report = export_lora(model, tmp_path / "lora")
    assert report.exact
    assert report.method == slug
    assert [layer.name for layer in report.layers] == ["gpt", "block.up", "square"]
    assert all(layer.error < 1e-6 for layer in report.layers)
    assert json.loads((tmp_path / "lora/adapter_config.json").read_text())["peft_type"] == "LORA"
    loaded = PeftModel.from_pretrained(copy.deepcopy(base), tmp_path / "lora").eval()
    close(loaded(TOKENS), expected)
    close(loaded.merge_and_unload()(TOKENS), expected)

    truncated = export_lora(model, tmp_path / "small", r=2)
    for layer in truncated.layers:
        delta = model.base_model.model.get_submodule(layer.name).get_delta_weight("default")
        best = truncation_error(torch.linalg.svdvals(delta.double()))[2].item()
        assert layer.r == 2
        assert layer.error == pytest.approx(best, rel=1e-3, abs=1e-6)
    assert truncated.exact == all(layer.rank <= 2 for layer in truncated.layers)


@pytest.mark.parametrize("r", [None, 16])
@pytest.mark.filterwarnings("ignore")
def test_every_layer_kind_in_pefts_own_layout(net: Net, tmp_path: Path, r: int | None) -> None:
    base = copy.deepcopy(net)
    targets = ["embed", "up", "gpt", "conv1", "conv2", "conv3", "grouped"]
    model = adapted(net, targets=targets, exclude_modules=["block.up"], r=3, modules_to_save=["head"])
    shake(model, 0.05)
    report = export_lora(model, tmp_path / "lora", r)
    assert {layer.name: layer.rank for layer in report.layers} == {
        **dict.fromkeys(targets, 3),
        "grouped": 6,
    }
    shapes = {
        key: tuple(value.shape)
        for key, value in load_file(tmp_path / "lora/adapter_model.safetensors").items()
    }
    rank = r or 3
    assert shapes["base_model.model.embed.lora_embedding_A"] == (rank, 30)
    assert shapes["base_model.model.embed.lora_embedding_B"] == (8, rank)
    assert shapes["base_model.model.conv2.lora_A.weight"] == (rank, 1, 3, 2)
    assert shapes["base_model.model.conv2.lora_B.weight"] == (4, rank, 1, 1)
    assert shapes["base_model.model.gpt.lora_A.weight"] == (rank, 12)
    loaded = PeftModel.from_pretrained(base, tmp_path / "lora").eval()
    close(loaded(TOKENS), model(TOKENS))
    assert loaded.peft_config["default"].exclude_modules == {"block.up"}
    written = json.loads((tmp_path / "lora/adapter_config.json").read_text())
    assert written["rank_pattern"] == ({} if r else dict.fromkeys(targets[:-1], 3))
    assert written["r"] == written["lora_alpha"] == (r or 6)


def test_export_is_loaded_where_eckart_is_not(net: Net, tmp_path: Path) -> None:
    model = adapted(net, "bone", ["square"], r=4)
    export_lora(model, tmp_path / "lora")
    code = """
import sys, torch
from torch import nn
from peft import PeftModel
class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.square = nn.Linear(16, 16, bias=False)
    def forward(self, x):
        return self.square(x)
model = PeftModel.from_pretrained(Net(), sys.argv[1])
assert "eckart" not in sys.modules
print(type(model.base_model.model.square).__module__)
print(model.base_model.model.square.get_delta_weight("default").norm().item())
"""
    done = subprocess.run([sys.executable, "-c", code, tmp_path / "lora"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    module, norm = done.stdout.split()
    assert module == "peft.tuners.lora.layer"
    delta = model.base_model.model.square.get_delta_weight("default")
    assert float(norm) == pytest.approx(delta.norm().item(), rel=1e-5)


def test_an_adapter_at_its_start_is_written_as_zero(net: Net, tmp_path: Path) -> None:
    base = copy.deepcopy(net)
    report = export_lora(eckart.adapt(net, "lora", target_modules=LINEAR, r=4), tmp_path / "lora")
    assert [(layer.rank, layer.r, layer.error) for layer in report.layers] == [(0, 1, 0.0)] * 3
    loaded = PeftModel.from_pretrained(copy.deepcopy(base), tmp_path / "lora")
    torch.testing.assert_close(loaded(TOKENS), base(TOKENS), rtol=0, atol=0)


def test_sixteen_bits_count_as_exact_up_to_their_rounding(net: Net, tmp_path: Path) -> None:
    model = eckart.adapt(net.bfloat16(), "lora", target_modules=LINEAR, r=4, init_weights=False).bfloat16()
    report = export_lora(model, tmp_path / "lora")
    assert report.exact
    assert 4 <= report.r <= 6
    assert report.error < 2e-2


def test_exported_ranks_that_differ_come_back(net: Net, tmp_path: Path) -> None:
    base = copy.deepcopy(net)
    model = adapted(net, "bone", ["up", "square"], exclude_modules=["block.up"], r=8)
    with torch.no_grad():
        model.base_model.model.square.eckart_adapters["default"].miss_block[3:] = 0
    report = export_lora(model, tmp_path / "lora")
    assert {layer.name: layer.r for layer in report.layers} == {"up": 8, "square": 3}
    close(from_peft(copy.deepcopy(base), tmp_path / "lora")(TOKENS), model(TOKENS))


def test_exports_that_are_refused(net: Net, tmp_path: Path) -> None:
    plain = peft.get_peft_model(copy.deepcopy(net), peft.LoraConfig(target_modules=LINEAR))
    with pytest.raises(InputError, match="from_peft first"):
        export_lora(plain, tmp_path / "x")
    with pytest.raises(InputError, match="not a PeftModel"):
        export_lora(net, tmp_path / "x")  # type: ignore[arg-type]
    model = adapted(copy.deepcopy(net), targets=["grouped"], r=2)
    with pytest.raises(InputError, match="2 groups of layer grouped"):
        export_lora(model, tmp_path / "x", r=3)
    model = adapted(net, r=4)
    with pytest.raises(InputError, match="adapters there are: default"):
        export_lora(model, tmp_path / "x", adapter_name="other")
    for r in (0, -3, 1000):
        with pytest.raises(InputError, match=f"r is {r}"):
            export_lora(model, tmp_path / "x", r=r)
    with torch.no_grad():
        model.base_model.model.gpt.eckart_adapters["default"].lora_B[0, 0] = torch.nan
    with pytest.raises(InputError, match="adapter of layer gpt holds NaN"):
        export_lora(model, tmp_path / "x")
    assert not (tmp_path / "x").exists()
    (tmp_path / "full").mkdir()
    (tmp_path / "full/mine.txt").write_text("mine")
    with pytest.raises(InputError, match="not empty"):
        export_lora(model, tmp_path / "full")
    assert (tmp_path / "full/mine.txt").read_text() == "mine"


CONVOLUTIONS = {
    "circular": nn.Conv2d(2, 3, 3, padding=1, padding_mode="circular"),
    "reflect": nn.Conv1d(2, 3, 3, padding=1, padding_mode="reflect"),
    "dilation": nn.Conv2d(2, 3, 3, padding=2, dilation=2),
    "dilation without padding": nn.Conv1d(2, 3, 3, dilation=3),
}


@pytest.mark.parametrize("kind", CONVOLUTIONS)
def test_what_pefts_lora_computes_otherwise_is_not_exported(kind: str, tmp_path: Path) -> None:
    """PEFT's convolution A takes neither the padding mode nor the dilation of the layer."""
    layer = copy.deepcopy(CONVOLUTIONS[kind])
    model = eckart.adapt(nn.Sequential(layer), "lora", r=2, target_modules=["0"], init_weights=False)
    with pytest.raises(InputError, match=r"layer 0 \("):
        export_lora(model, tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("server", "r", "written"), [("vllm", 3, 8), ("vllm", 1, 1), ("vllm", 9, 16), ("sglang", 3, 3)]
)
def test_a_rank_that_the_server_takes(server: str, r: int, written: int, net: Net, tmp_path: Path) -> None:
    options = {"rank_pattern": {"embed": 1}, "target_modules": ["embed", "up", "gpt"], "init_weights": False}
    model = eckart.adapt(net, "lora", r=r, lora_alpha=5, **options).eval()
    report = export_lora(model, tmp_path / "out", server=server)
    assert report.exact and {layer.r for layer in report.layers} == {written}
    config = json.loads((tmp_path / "out/adapter_config.json").read_text())
    assert config["r"] == config["lora_alpha"] == written
    assert not config["rank_pattern"] and not config["alpha_pattern"] and not config["use_rslora"]
    torch.manual_seed(0)
    close(PeftModel.from_pretrained(Net(), tmp_path / "out").eval()(TOKENS), model(TOKENS))


def test_what_servers_do_not_take(net: Net, tmp_path: Path) -> None:
    head = eckart.adapt(copy.deepcopy(net), "lora", r=2, target_modules=["up"], modules_to_save=["head"])
    with pytest.raises(InputError, match=r"vllm does not load modules trained in full.*eckart merge"):
        export_lora(head, tmp_path / "out", server="vllm")
    conv = eckart.adapt(copy.deepcopy(net), "lora", r=2, target_modules=["conv1"])
    with pytest.raises(InputError, match=r"llama\.cpp takes no LoRA on a convolution"):
        export_lora(conv, tmp_path / "out", server="llama.cpp")
    with pytest.raises(InputError, match="server is 'tgi'"):
        export_lora(conv, tmp_path / "out", server="tgi")
    wide = eckart.adapt(
        nn.Sequential(nn.Linear(600, 600)), "lora", r=513, target_modules=["0"], init_weights=False
    )
    with pytest.raises(InputError, match="no more than 512: give r=512"):
        export_lora(wide, tmp_path / "out", server="vllm")
