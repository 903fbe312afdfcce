"""What the benchmarks share: models, arms, interleaved timing, and results with the machine they came from."""

from __future__ import annotations

import json
import os
import platform
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import peft
import torch
import transformers
from torch import Tensor, nn

import eckart
from eckart.files import atomic_write

RESULTS = Path(__file__).parent / "results"


class Stack(nn.Module):
    """Square linear layers with a ReLU between them: the d=1024 model."""

    def __init__(self, d: int, depth: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(d, d) for _ in range(depth))

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = torch.relu(layer(x))
        return x


class MiniLM(nn.Module):
    """The encoder of MiniLM-L6 (6 layers, width 384) on given embeddings; the shapes matter here, not the values."""

    def __init__(self) -> None:
        super().__init__()
        config = transformers.BertConfig(
            hidden_size=384,
            num_hidden_layers=6,
            num_attention_heads=12,
            intermediate_size=1536,
            vocab_size=64,
            hidden_dropout_prob=0.0,
            attention_probs_dropout_prob=0.0,
        )
        self.bert = transformers.BertModel(config, add_pooling_layer=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.bert(inputs_embeds=x).last_hidden_state


MODELS: dict[str, tuple[Callable[[], nn.Module], list[str], int]] = {
    "minilm": (MiniLM, ["query", "key", "value"], 384),
    "d1024": (lambda: Stack(1024, 4), r"layers\.\d+", 1024),
}


def make_arm(
    model_name: str, wrap: Callable[[nn.Module, Any], nn.Module] | None, targets: str | None = None
) -> nn.Module:
    """The frozen model with one arm's adapters on it, and a trained scale at the end that every arm has.

    Args:
        model_name: of `MODELS`.
        wrap: puts the arm on the model.
        targets: the layers, as a pattern; the model's own when None.
    """
    torch.manual_seed(0)
    make, own, width = MODELS[model_name]
    model = make().requires_grad_(False)
    if wrap is not None:
        model = wrap(model, targets or own)
    return nn.ModuleDict({"body": model, "head": nn.Linear(width, 2)}).train()


def make_step(arm: nn.Module, model_name: str, tokens: int) -> Callable[[], None]:
    """Forward, backward through every layer, AdamW step. The input asks for its gradient, as the output of a trained
    layer below would, so that the frozen model's backward pass is complete too."""
    width = MODELS[model_name][2]
    length = min(128, tokens)
    x = torch.randn(tokens // length, length, width, requires_grad=True)
    optimizer = torch.optim.AdamW([p for p in arm.parameters() if p.requires_grad], lr=1e-3)

    def step() -> None:
        optimizer.zero_grad()
        x.grad = None
        arm["head"](arm["body"](x)).square().mean().backward()
        optimizer.step()

    return step


def interleave(
    steps: dict[str, Callable[[], None]],
    seconds: float,
    warm_up: int = 2,
    clock: Callable[[], float] = time.perf_counter,
) -> dict[str, float]:
    """Median seconds of each step, the arms taking turns until the time is spent (at least 5 rounds).

    Args:
        steps: by arm.
        seconds: of wall time.
        warm_up: rounds that do not count.
        clock: `time.thread_time` counts what this thread computed, however busy the machine is; for one thread.
    """
    samples: dict[str, list[float]] = {name: [] for name in steps}
    for step in steps.values():
        for _ in range(warm_up):
            step()
    started, rounds = time.perf_counter(), 0
    while rounds < 5 or time.perf_counter() - started < seconds:
        for name, step in steps.items():
            before = clock()
            step()
            samples[name].append(clock() - before)
        rounds += 1
    return {name: statistics.median(values) for name, values in samples.items()}


def held_mib(kind: str) -> float:
    """What this process holds (VmRSS), or the most since the mark was last set (VmHWM)."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith(kind)).split()[1]) / 1024


def machine() -> dict[str, Any]:
    """Where the numbers come from."""
    cpu = next(
        (
            line.partition(":")[2].strip()
            for line in Path("/proc/cpuinfo").read_text().splitlines()
            if line.startswith("model name")
        ),
        platform.processor(),
    )
    card = torch.cuda.get_device_properties(0) if torch.cuda.is_available() else None
    gpu = (
        {"gpu": card.name, "gpu GiB": round(card.total_memory / 2**30, 1), "cuda": torch.version.cuda}
        if card
        else {}
    )
    return {
        **gpu,
        "cpu": cpu,
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "peft": peft.__version__,
        "transformers": transformers.__version__,
        "eckart": eckart.__version__,
    }


def save(name: str, rows: list[dict[str, Any]], folder: Path = RESULTS) -> None:
    """Write the rows beside the machine they were measured on."""
    path = folder / f"{name}.json"
    with atomic_write(path) as temporary:
        temporary.write_text(
            json.dumps({"machine": machine(), "rows": rows}, indent=1, ensure_ascii=False) + "\n"
        )
    print(f"\nwritten to {path}", flush=True)


def table(rows: list[dict[str, Any]]) -> None:
    """Print rows of equal keys."""
    from rich.console import Console
    from rich.table import Table

    view = Table(*rows[0])
    for row in rows:
        view.add_row(*(f"{value:.4g}" if isinstance(value, float) else str(value) for value in row.values()))
    Console(width=140).print(view)
