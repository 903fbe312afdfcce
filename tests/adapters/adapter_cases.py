"""What the adapter tests share: the methods, a table of layers, and a small model around each."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from peft import PeftModel, get_peft_model
from peft import mapping as peft_tables
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from eckart.adapters import ADAPTERS, AdapterConfig, EckartLayer, get_config
from eckart.adapters._registry import _ALIASES

SLUGS = sorted(ADAPTERS)


def forget(slug: str) -> None:
    """Take a method that a test registered out of every table."""
    config = ADAPTERS.pop(slug)
    for alias in config.aliases:
        del _ALIASES[alias]
    for table in ("CONFIG", "TUNER", "MIXED_MODEL", "PREFIX"):
        del getattr(peft_tables, f"PEFT_TYPE_TO_{table}_MAPPING")[config.peft_kind]


@dataclass(frozen=True)
class LayerCase:
    """A layer to adapt and an input for it."""

    make: Callable[[], nn.Module]
    shape: tuple[int, ...]
    tokens: int | None = None  # number of embeddings, when the input is token ids


LAYERS = {
    "linear": LayerCase(lambda: nn.Linear(12, 8), (3, 5, 12)),
    "linear-tall": LayerCase(lambda: nn.Linear(6, 18, bias=False), (7, 6)),
    "transformers-conv1d": LayerCase(lambda: Conv1D(8, 12), (3, 5, 12)),
    "conv1d": LayerCase(lambda: nn.Conv1d(4, 6, 3, stride=2, padding=1), (2, 4, 9)),
    "conv2d": LayerCase(lambda: nn.Conv2d(4, 6, (3, 2), padding="same", dilation=2), (2, 4, 5, 6)),
    "conv2d-groups": LayerCase(lambda: nn.Conv2d(8, 6, 3, padding=1, groups=2), (2, 8, 4, 4)),
    "conv2d-circular": LayerCase(
        lambda: nn.Conv2d(4, 6, 3, padding=1, padding_mode="circular"), (2, 4, 5, 5)
    ),
    "conv3d": LayerCase(lambda: nn.Conv3d(2, 6, 2, padding=1, padding_mode="reflect"), (2, 2, 3, 3, 3)),
    "embedding": LayerCase(lambda: nn.Embedding(20, 8), (3, 5), tokens=20),
    "embedding-padding": LayerCase(lambda: nn.Embedding(20, 8, padding_idx=1), (3, 5), tokens=20),
}

every_method = pytest.mark.parametrize("slug", SLUGS)
every_ranked_method = pytest.mark.parametrize("slug", [s for s in SLUGS if hasattr(ADAPTERS[s], "r")])
every_layer = pytest.mark.parametrize(("slug", "kind"), [(slug, kind) for slug in SLUGS for kind in LAYERS])


class Host(nn.Module):
    """A model of one layer, named `layer`."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x)


class MLP(nn.Module):
    """Two linear layers, `up (out 24, in 12)` and `down (out 6, in 24)`, and a `head` adapters leave alone."""

    def __init__(self) -> None:
        super().__init__()
        self.up, self.down, self.head = nn.Linear(12, 24), nn.Linear(24, 6), nn.Linear(6, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.tanh(self.down(torch.tanh(self.up(x)))))


def seeded(make: Callable[[], nn.Module], dtype: torch.dtype = torch.float32, seed: int = 0) -> nn.Module:
    """A base model whose weights depend only on the seed."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return make().to(dtype).eval()


def host(kind: str, dtype: torch.dtype = torch.float32, seed: int = 0) -> nn.Module:
    """The base model of one kind of layer."""
    return seeded(lambda: Host(LAYERS[kind].make()), dtype, seed)


def inputs(kind: str, dtype: torch.dtype = torch.float32, seed: int = 1) -> Tensor:
    """An input for `host(kind)`."""
    case, generator = LAYERS[kind], torch.Generator().manual_seed(seed)
    if case.tokens:
        return torch.randint(0, case.tokens, case.shape, generator=generator)
    return torch.randn(case.shape, generator=generator).to(dtype)


def rows(n: int = 7, width: int = 12, dtype: torch.dtype = torch.float32, seed: int = 1) -> Tensor:
    """An input for `MLP`."""
    return torch.randn(n, width, generator=torch.Generator().manual_seed(seed)).to(dtype)


def config(slug: str, **options: Any) -> AdapterConfig:
    """The method's defaults, on the layers named `layer`, `up` and `down`."""
    return get_config(slug)(**{"target_modules": ["layer", "up", "down"], **options})


def adapted(slug: str, base: nn.Module, adapter_name: str = "default", **options: Any) -> PeftModel:
    """The base with the method's adapters on it; `init_weights=False` always draws the same numbers."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return get_peft_model(base, config(slug, **options), adapter_name=adapter_name).eval()


def add(slug: str, model: PeftModel, adapter_name: str = "other", **options: Any) -> None:
    """A second adapter beside those of `adapted`, with other numbers where `init_weights` is False."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        model.add_adapter(adapter_name, config(slug, **options))


def layers(model: nn.Module) -> list[EckartLayer]:
    """The adapted layers, in model order."""
    return [module for module in model.modules() if isinstance(module, EckartLayer)]


def parameters(model: nn.Module, adapter_name: str = "default") -> dict[str, nn.Parameter]:
    """The adapter's parameters by name."""
    return {name: p for name, p in model.named_parameters() if f"eckart_adapters.{adapter_name}." in name}


def gradients(model: nn.Module) -> dict[str, Tensor]:
    """The gradients there are, by name."""
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def train(model: nn.Module, x: Tensor, steps: int = 2, lr: float = 0.05) -> None:
    """A few steps of plain gradient descent on the mean square of the output."""
    optimiser = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=lr)
    for _ in range(steps):
        optimiser.zero_grad()
        model(x).float().square().mean().backward()
        optimiser.step()


Snapshot = tuple[list[tuple[str, type]], dict[str, Tensor], list[bool]]


def snapshot(model: nn.Module) -> Snapshot:
    """Everything a refusal must leave as it was: the module tree, the weights and what trains."""
    tree = [(name, type(module)) for name, module in model.named_modules()]
    return tree, copy.deepcopy(model.state_dict()), [p.requires_grad for p in model.parameters()]


def assert_untouched(model: nn.Module, before: Snapshot) -> None:
    """The model is what `snapshot` saw, to the bit."""
    tree, state, trainable = snapshot(model)
    assert tree == before[0]
    assert trainable == before[2]
    assert state.keys() == before[1].keys()
    for name, value in state.items():
        torch.testing.assert_close(value, before[1][name], rtol=0, atol=0, equal_nan=True)
