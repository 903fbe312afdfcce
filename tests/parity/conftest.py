"""`pytest tests/parity [--cases DIR] [--report]`: replay numbers that the methods' own published code produced.

A case is ``DIR/<slug>/<case>.npz`` with ``<case>.json`` beside it. Its replayer is ``replay/<slug with - as _>.py``:

    INPUTS        regular expressions that match, whole, the names of the arrays it takes
    NOT_COMPARED  expression -> why this array is neither an input nor compared (optional)
    UP_TO_SIGN    expression -> axis whose slices are compared up to their sign (optional)
    TOLERANCE     expression -> the entry of the case's json that stands in for ``rtol`` (optional)
    replay(case)  -> outputs by name, made through the public API from ``case.inputs`` and ``case.hyper``

Every array that is no input is an expected output and is compared at the tolerance of the case.
"""

from __future__ import annotations

import importlib.util
import json
import re
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from peft import PeftModel, get_peft_model, set_peft_model_state_dict
from torch import Tensor, nn

HERE = Path(__file__).parent


def _first(patterns: Any, name: str) -> str | None:
    """The first of these regular expressions that matches all of a name."""
    return next((pattern for pattern in patterns if re.fullmatch(pattern, name)), None)


def load_replayer(slug: str) -> ModuleType | None:
    """The replayer of a method, or None where there is none."""
    path = HERE / "replay" / f"{slug.replace('-', '_')}.py"
    if not path.is_file():
        return None
    spec = importlib.util.spec_from_file_location(f"parity_replay_{path.stem}", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@dataclass(frozen=True)
class Case:
    """One pair of files, and what a replayer needs to build an adapted model from it."""

    path: Path

    @property
    def slug(self) -> str:
        return self.path.parent.name

    @property
    def id(self) -> str:
        return f"{self.slug}/{self.path.stem}"

    @cached_property
    def description(self) -> dict[str, Any]:
        return json.loads(self.path.with_suffix(".json").read_text())

    @property
    def hyper(self) -> dict[str, Any]:
        """The hyper-parameters of the case."""
        return self.description["hyperparameters"]

    @cached_property
    def arrays(self) -> dict[str, np.ndarray]:
        with np.load(self.path) as file:
            return {name: file[name] for name in file.files}

    @cached_property
    def inputs(self) -> dict[str, Tensor]:
        """The arrays that the replayer declared as inputs; it sees no others."""
        replayer = load_replayer(self.slug)
        assert replayer is not None
        return {n: torch.from_numpy(a) for n, a in self.arrays.items() if _first(replayer.INPUTS, n)}

    @staticmethod
    def linear(weight: Tensor, bias: Tensor | None = None) -> nn.Linear:
        """A linear layer that holds these values."""
        layer = nn.Linear(weight.shape[1], weight.shape[0], bias=bias is not None, dtype=weight.dtype)
        return Case._fill(layer, weight, bias)

    @staticmethod
    def conv(weight: Tensor, bias: Tensor | None = None, **options: Any) -> nn.Module:
        """A convolution that holds these values; its dimension and kernel follow from the weight."""
        kind = (nn.Conv1d, nn.Conv2d, nn.Conv3d)[weight.dim() - 3]
        channels = weight.shape[1] * options.get("groups", 1)
        options |= {"kernel_size": tuple(weight.shape[2:]), "bias": bias is not None, "dtype": weight.dtype}
        return Case._fill(kind(channels, weight.shape[0], **options), weight, bias)

    @staticmethod
    def _fill(layer: Any, weight: Tensor, bias: Tensor | None) -> Any:
        layer.to(weight.device)
        with torch.no_grad():
            layer.weight.copy_(weight)
            if bias is not None:
                layer.bias.copy_(bias)
        return layer

    @staticmethod
    def adapt(model: nn.Module, config: Any, state: dict[str, dict[str, Tensor]]) -> PeftModel:
        """The adapted model, its state loaded as from a checkpoint.

        Args:
            model: holds the layers by name (an `nn.ModuleDict` will do).
            config: an adapter config with its ``target_modules``.
            state: layer name -> the adapter's parameters and saved buffers by name.
        """
        adapted = get_peft_model(model, config)
        prefix = "base_model.model."
        flat = {
            f"{prefix}{layer}.eckart_adapters.{name}": value.clone()
            for layer, tensors in state.items()
            for name, value in tensors.items()
        }
        known = adapted.state_dict()
        for key, value in flat.items():
            full = key.replace(".eckart_adapters.", ".eckart_adapters.default.")
            assert full in known, f"the adapter has no {key}"
            assert known[full].shape == value.shape, f"{key} is {known[full].shape}, the case {value.shape}"
        set_peft_model_state_dict(adapted, flat)
        return adapted

    @staticmethod
    def layer(model: PeftModel, name: str) -> Any:
        """The adapted layer of this name."""
        return model.base_model.model.get_submodule(name)

    @staticmethod
    def adapter(model: PeftModel, name: str) -> Any:
        """The adapter of the layer of this name."""
        return Case.layer(model, name).eckart_adapters["default"]

    def check(self) -> None:
        """Replay, and compare every array that is not an input.

        Raises:
            AssertionError: no replayer; an expected array was not returned; numbers that differ.
        """
        replayer = load_replayer(self.slug)
        assert replayer is not None, (
            f"{self.id}: no replayer tests/parity/replay/{self.slug.replace('-', '_')}.py"
        )
        left_out = getattr(replayer, "NOT_COMPARED", {})
        expected = [n for n in self.arrays if not _first(replayer.INPUTS, n) and not _first(left_out, n)]
        assert expected, f"{self.id}: nothing to compare"
        outputs = replayer.replay(self)
        problems = [f"{name}: not returned" for name in expected if name not in outputs]
        for name in expected:
            if name in outputs:
                axis = _first(getattr(replayer, "UP_TO_SIGN", {}), name)
                other = _first(getattr(replayer, "TOLERANCE", {}), name)
                problem = self._difference(
                    name,
                    outputs[name],
                    None if axis is None else replayer.UP_TO_SIGN[axis],
                    "rtol" if other is None else replayer.TOLERANCE[other],
                )
                problems += [problem] if problem else []
        assert not problems, f"{self.id}:\n  " + "\n  ".join(problems)

    def _difference(self, name: str, actual: Any, sign_axis: int | None, tolerance: str) -> str | None:
        want = self.arrays[name]
        got = actual.detach().cpu().numpy() if isinstance(actual, Tensor) else np.asarray(actual)
        if got.shape != want.shape:
            return f"{name}: shape {got.shape}, expected {want.shape}"
        if sign_axis is not None:
            others = tuple(axis for axis in range(want.ndim) if axis != sign_axis % want.ndim)
            got = got * np.where((got * want).sum(axis=others, keepdims=True) < 0, -1, 1)
        rtol, atol = self.description[tolerance], self.description["atol"]
        wrong = ~np.isclose(got, want, rtol=rtol, atol=atol, equal_nan=True)
        if not wrong.any():
            return None
        worst = np.max(np.abs(np.asarray(got, dtype=np.float64) - want))
        return (
            f"{name}: {wrong.sum()} of {wrong.size} differ, worst by {worst:.3e} (rtol {rtol}, atol {atol})"
        )


def find_cases(directory: Path) -> list[Case]:
    """Every case under a directory, in order."""
    return [Case(path) for path in sorted(directory.glob("*/*.npz"))]


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("parity")
    group.addoption(
        "--cases", type=Path, default=HERE / "cases", help="directory of <slug>/<case>.npz and .json"
    )
    group.addoption("--report", action="store_true", help="print which arrays are not compared, and why")


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "case" in metafunc.fixturenames:
        directory = metafunc.config.getoption("--cases", default=HERE / "cases")
        cases = find_cases(directory)
        if not cases:
            raise pytest.UsageError(f"--cases {directory}: no <slug>/<case>.npz there")
        metafunc.parametrize("case", cases, ids=lambda case: case.id)


def pytest_terminal_summary(terminalreporter: Any, config: pytest.Config) -> None:
    if not config.getoption("--report", default=False):
        return
    terminalreporter.section("arrays not compared")
    for slug in sorted({case.slug for case in find_cases(config.getoption("--cases"))}):
        for name, reason in getattr(load_replayer(slug), "NOT_COMPARED", {}).items():
            terminalreporter.write_line(f"{slug:14} {name:32} {reason}")


@pytest.fixture
def make_case() -> type[Case]:
    """Makes a case of a path, for the tests of this harness."""
    return Case
