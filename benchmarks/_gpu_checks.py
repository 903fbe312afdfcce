"""What `gpu.py` checks on a device against the host: parity cases, adapters, files, metrics, layers and optimisers."""

from __future__ import annotations

import copy
import importlib.util
import sys
import tempfile
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import torch
from peft import PeftModel
from torch import Tensor, nn

import eckart
from eckart import compression, layers, metrics, optim
from eckart.adapters import walk

TESTS = Path(__file__).parents[1] / "tests"
Rows = list[dict[str, Any]]
Check = tuple[str, Callable[[], Rows]]


def _load(name: str, path: Path) -> ModuleType:
    """A module of the tests, which are no package."""
    if name not in sys.modules:
        spec = importlib.util.spec_from_file_location(name, path)
        assert spec is not None and spec.loader is not None
        sys.modules[name] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(sys.modules[name])
    return sys.modules[name]


def error(found: Tensor, wanted: Tensor) -> float:
    """max |found − wanted| / max |wanted|."""
    found, wanted = (
        t.detach().cpu().to(torch.promote_types(t.dtype, torch.float32)) for t in (found, wanted)
    )
    size = wanted.abs().max().item() if wanted.numel() else 0.0
    worst = (found - wanted).abs().max().item() if wanted.numel() else 0.0
    return worst / size if size else worst


def parity(device: torch.device) -> Iterator[Check]:
    """The parity cases as they are (float64), and in float32: the largest error of their outputs. Replayers that make
    what they measure on the host, or in float64, end in an error that says so."""
    harness = _load("parity_cases", TESTS / "parity" / "conftest.py")

    def replay(case: Any, dtype: torch.dtype) -> Rows:
        replayer = harness.load_replayer(case.slug)
        case.__dict__["inputs"] = {
            name: value.to(device, dtype if value.is_floating_point() else None)
            for name, value in case.inputs.items()
        }
        outputs = replayer.replay(case)
        worst, of = 0.0, ""
        for name, found in outputs.items():
            if name in case.arrays and not harness._first(getattr(replayer, "NOT_COMPARED", {}), name):
                found = torch.as_tensor(np.asarray(found) if not isinstance(found, Tensor) else found)
                wanted = torch.from_numpy(case.arrays[name])
                if harness._first(getattr(replayer, "UP_TO_SIGN", {}), name):
                    found, wanted = found.abs(), wanted.abs()
                if (far := error(found, wanted)) > worst:
                    worst, of = far, name
        return [{"dtype": str(dtype).removeprefix("torch."), "relative error": worst, "of": of}]

    for case in harness.find_cases(TESTS / "parity" / "cases"):
        for dtype in (torch.float64, torch.float32):
            yield case.id, partial(replay, harness.Case(case.path), dtype)


def properties(device: torch.device, small: bool) -> Iterator[Check]:
    """Every adapter on a layer of each kind: the device's output, ΔW and gradients against the host's in the same
    dtype; the two routes against each other; a merge."""
    cases = _load("adapter_cases", TESTS / "adapters" / "adapter_cases.py")
    kinds = ("linear", "conv2d", "embedding") if small else tuple(cases.LAYERS)

    def compare(slug: str, dtype: torch.dtype) -> Rows:
        found = []
        for kind in kinds:
            row: dict[str, Any] = {"layer": kind, "dtype": str(dtype).removeprefix("torch.")}
            host = cases.adapted(slug, cases.host(kind, dtype), init_weights=False, route="factored")
            there, x = copy.deepcopy(host).to(device), cases.inputs(kind, dtype)
            y, wanted = there(x.to(device)), host(x)
            row["output"] = error(y, wanted)
            y.float().square().mean().backward()
            wanted.float().square().mean().backward()
            pairs = zip(there.parameters(), host.parameters(), strict=True)
            row["gradient"] = max(error(a.grad, b.grad) for a, b in pairs if b.grad is not None)
            [layer], [other] = cases.layers(there), cases.layers(host)
            row["delta"] = error(layer.get_delta_weight("default"), other.get_delta_weight("default"))
            layer.configs["default"].route = "folded"
            row["folded"] = error(there(x.to(device)), wanted)
            there.merge_adapter()
            row["merged"] = error(there(x.to(device)), wanted)
            found.append(row)
        return found

    for slug in cases.SLUGS:
        for dtype in (torch.float32, torch.bfloat16):
            yield f"{slug}, {str(dtype).removeprefix('torch.')}", partial(compare, slug, dtype)


def near_equal(width: int, dtype: torch.dtype) -> Tensor:
    """A square matrix some of whose singular values are equal, or nearly so."""
    generator = torch.Generator().manual_seed(5)
    u, v = (
        torch.linalg.qr(torch.randn(width, width, generator=generator, dtype=torch.float64))[0]
        for _ in range(2)
    )
    s = torch.linspace(2.0, 0.5, width, dtype=torch.float64)
    s[1], s[3], s[5] = s[0] * (1 - 1e-12), s[2] * (1 - 1e-7), s[4] * (1 - 1e-4)
    return ((u * s) @ v.mT).to(dtype)


def files(device: torch.device, small: bool) -> Iterator[Check]:
    """An adapter saved on the device and loaded on the host, and the other way: ΔW of the two."""
    width = 24 if small else 512

    def base(dtype: torch.dtype) -> nn.Module:
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(width, width), nn.Linear(width, 2 * width)).to(dtype)
        with torch.no_grad():
            model[0].weight.copy_(near_equal(width, dtype))
        return model

    def deltas(model: nn.Module) -> list[Tensor]:
        return [layer.get_delta_weight(key) for _, layer, key, _ in walk(model, None)]

    def carry(slug: str, dtype: torch.dtype, save_basis: bool) -> Rows:
        found = []
        for start, end in ((device, torch.device("cpu")), (torch.device("cpu"), device)):
            model = eckart.adapt(
                base(dtype).to(start),
                slug,
                target_modules=["0", "1"],
                init_weights=False,
                save_basis=save_basis,
            )
            with tempfile.TemporaryDirectory() as folder:
                model.save_pretrained(folder)
                loaded = PeftModel.from_pretrained(base(dtype).to(end), folder)
            worst = max(error(a, b) for a, b in zip(deltas(loaded), deltas(model), strict=True))
            way = f"{start.type} to {end.type}"
            found.append({"way": way, "dtype": str(dtype).removeprefix("torch."), "delta": worst})
        return found

    slugs = [method.slug for method in eckart.methods("adapters") if method.slug != "dept"]
    for slug in slugs:
        for dtype in (torch.float32, torch.bfloat16):
            for save_basis in (False, True):
                name = f"{slug}, {str(dtype).removeprefix('torch.')}" + (
                    ", basis saved" if save_basis else ""
                )
                yield name, partial(carry, slug, dtype, save_basis)


def numbers(device: torch.device, small: bool) -> Iterator[Check]:
    """Metrics, S4D, structured and compressed layers, and a step of each optimiser, against the host."""
    size = 32 if small else 512
    torch.manual_seed(0)
    states = torch.randn(2, 4 * size, size)

    def metric(name: str) -> Rows:
        found, wanted = (metrics.measure_states(s, metrics=[name])[name] for s in (states.to(device), states))
        return [{"relative error": error(found, wanted)}]

    for name in (*metrics.METRICS, *metrics.RAW_METRICS):
        yield f"metric {name}", partial(metric, name)

    def layer(make: Callable[[], nn.Module], shape: tuple[int, ...]) -> Rows:
        torch.manual_seed(0)
        host, x = make(), torch.randn(*shape)
        there = copy.deepcopy(host).to(device)
        y, wanted = there(x.to(device)), host(x)
        y.square().mean().backward()
        wanted.square().mean().backward()
        pairs = [p for p in zip(there.parameters(), host.parameters(), strict=True) if p[1].grad is not None]
        worst = max((error(a.grad, b.grad) for a, b in pairs), default=0.0)
        return [{"relative error": error(y, wanted), "gradient": worst}]

    linear = nn.Linear(size, size)
    for name, make in {
        "LowRankLinear": lambda: layers.LowRankLinear.from_linear(linear, 0, r=8),
        "SLTrainLinear": lambda: layers.SLTrainLinear.from_linear(linear, 0, r=8, sparsity=0.05),
        "LOSTLinear": lambda: layers.LOSTLinear.from_linear(linear, 0, r=8),
        "MaestroLinear": lambda: layers.MaestroLinear.from_linear(linear, 0),
        "FactorizedLinear": lambda: compression.FactorizedLinear(size, size, 8),
    }.items():
        yield f"layer {name}", partial(layer, make, (16, size))
    yield "layer S4D", partial(layer, lambda: layers.S4D(size, 16), (2, 4 * size, size))

    def recurrence() -> Rows:
        torch.manual_seed(0)
        model = layers.S4D(size, 16).eval()
        x = torch.randn(2, 12, size)
        with torch.no_grad():
            wanted = model(x)
            model, state, outputs = model.to(device), None, []
            _, state = model.forward_with_state(x[:, :4].to(device))
            for t in range(4, 12):
                y, state = model.step(x[:, t].to(device), state)
                outputs.append(y)
        return [{"relative error": error(torch.stack(outputs, 1), wanted[:, 4:])}]

    yield "S4D, recurrence against the convolution", recurrence
    for method in ("lord", "svd", "whitened-svd", "modegpt"):
        yield f"compression {method}", partial(_compressed, method, device, small)
    for name, make_optimizer in {
        "DCTAdamW": lambda p: optim.DCTAdamW(p, lr=0.01, rank=4),
        "Trion": lambda p: optim.Trion(p, lr=0.01, rank=4),
        "GaLore": lambda p: optim.GaLore(p, lr=0.01, rank=4),
        "Spectron": None,
    }.items():
        yield f"optimiser {name}", partial(_optimised, make_optimizer, device, size)


def _optimised(make: Callable[[Any], torch.optim.Optimizer] | None, device: torch.device, size: int) -> Rows:
    torch.manual_seed(0)
    plain = nn.Sequential(nn.Linear(size, 2 * size), nn.Linear(2 * size, size))
    host = plain if make else layers.LowRankLinear.from_linear(plain[0], 0, r=4)
    there, x = copy.deepcopy(host).to(device), torch.randn(16, size)
    start = [p.detach().clone() for p in host.parameters()]
    for model, rows in ((host, x), (there, x.to(device))):
        optimizer = make(model.parameters()) if make else optim.Spectron(model, lr=0.01)
        model(rows).square().mean().backward()
        optimizer.step()
    moved = [a.cpu() - s for a, s in zip(there.parameters(), start, strict=True)]
    wanted = [a - s for a, s in zip(host.parameters(), start, strict=True)]
    return [{"relative error": max(error(a, b) for a, b in zip(moved, wanted, strict=True))}]


def _compressed(method: str, device: torch.device, small: bool) -> Rows:
    import transformers

    width = 32 if small else 256
    ids = torch.randint(0, 64, (8, 32), generator=torch.Generator().manual_seed(1))
    outputs = []
    for place in (torch.device("cpu"), device):  # compressing writes to the configuration
        config = transformers.LlamaConfig(
            hidden_size=width,
            intermediate_size=2 * width,
            num_hidden_layers=2,
            num_attention_heads=4,
            vocab_size=64,
        )
        torch.manual_seed(0)
        model = transformers.LlamaForCausalLM(config).eval().to(place)
        given = {} if method == "svd" else {"calibration": [{"input_ids": ids.to(place)}]}
        eckart.compress(model, method, ratio=0.3, **given)
        with torch.no_grad():
            outputs.append(model(ids.to(place)).logits)
    return [{"relative error": error(outputs[1], outputs[0])}]
