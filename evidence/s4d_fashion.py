"""Images read pixel by pixel: S4D on sequential Fashion-MNIST (784 steps), its initialisations, GRU and attention.

    python -m evidence s4d-fashion --data DIR                                   # the recipe: at least 84 %
    python -m evidence s4d-fashion --data DIR --init legs,lin,inv,real,rand --seeds 3 --images 10000 --epochs 3
    python -m evidence s4d-fashion --data DIR --model s4d,gru,attention --images 10000 --epochs 3

DIR holds the four idx files (train-images-idx3-ubyte.gz, …). All models share one frame: a linear encoder, residual
blocks with the norm first, a norm, the mean over the steps, a linear classifier; only the blocks differ. A finished
run is kept at once; one that is there already is not run again (--again does).
"""

from __future__ import annotations

import argparse
import itertools
import json
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from benchmarks._harness import table
from eckart.cli.console import progress
from eckart.data.read import read_data
from eckart.data.splits import Split, limit
from eckart.layers import S4DConfig, S4DForSequenceClassification, param_groups
from evidence._record import Rows, keep, kept

SLUG = "s4d-fashion"
LENGTH, CLASSES, CHECKED = 784, 10, 1000  # CHECKED: validation images at the end of an epoch, for the curve
OPTIONS = ("d_state", "init", "discretization", "real_random", "bidirectional")
Images = tuple[Tensor, Tensor]


class Recurrent(nn.Module):
    """A GRU in the place of an S4D block."""

    def __init__(self, width: int, dropout: float) -> None:
        super().__init__()
        self.norm, self.dropout = nn.LayerNorm(width), nn.Dropout(dropout)
        self.mixer = nn.GRU(width, width, batch_first=True)

    def forward(self, x: Tensor, *_: Any, **__: Any) -> Tensor:
        return x + self.dropout(self.mixer(self.norm(x))[0])


class Attention(nn.TransformerEncoderLayer):
    """Attention in the place of an S4D block; the first one adds a trained vector for each position."""

    def __init__(self, width: int, dropout: float, first: bool) -> None:
        super().__init__(width, 4, 2 * width, dropout, "gelu", batch_first=True, norm_first=True)
        self.positions = nn.Parameter(0.02 * torch.randn(LENGTH, width)) if first else None

    def forward(self, x: Tensor, *_: Any, **__: Any) -> Tensor:  # type: ignore[override]
        return super().forward(x if self.positions is None else x + self.positions)


def make_model(run: dict[str, Any]) -> nn.Module:
    torch.manual_seed(run["seed"])
    model = S4DForSequenceClassification(
        S4DConfig(
            hidden_size=run["width"],
            num_hidden_layers=run["layers"],
            num_labels=CLASSES,
            max_position=LENGTH,
            dropout=run["dropout"],
            **{key: run[key] for key in OPTIONS if key in run},
        )
    )
    if run["model"] != "s4d":
        blocks = [
            Recurrent(run["width"], run["dropout"])
            if run["model"] == "gru"
            else Attention(run["width"], run["dropout"], first=place == 0)
            for place in range(run["layers"])
        ]
        model.s4d.layers = nn.ModuleList(blocks)
    return model


def tensors(split: Split, mean: float, std: float, device: str) -> Images:
    pixels = torch.from_numpy(np.stack(split.inputs).reshape(len(split), -1)).float() / 255
    return ((pixels - mean) / std).to(device), torch.tensor(split.labels, device=device)


def load(path: Path, images: int, device: str) -> dict[str, Images]:
    """Training images (the first ``images`` of a stratified draw), some for the curve, and the whole test split."""
    splits = limit(read_data(path, labelled=True).splits, {"train": images, "validation": CHECKED}, 0, [])
    known = np.stack(splits["train"].inputs).astype(np.float32) / 255
    return {
        part: tensors(split, float(known.mean()), float(known.std()), device)
        for part, split in splits.items()
    }


@torch.no_grad()
def accuracy(model: nn.Module, images: Images, batch: int) -> float:
    model.eval()
    pairs = zip(images[0].split(batch), images[1].split(batch), strict=True)
    return sum(int((model(input_values=x).logits.argmax(-1) == y).sum()) for x, y in pairs) / len(images[1])


@torch.no_grad()
def streamed_accuracy(model: nn.Module, images: Images, batch: int) -> float:
    """The same as a recurrence: one pixel after another, and the running mean of the hidden states."""
    model.eval()
    right = 0
    for x, y in zip(images[0].split(batch), images[1].split(batch), strict=True):
        states, total = model.s4d.initial_state(len(x)), 0.0
        for pixel in x.unbind(1):
            hidden, states = model.s4d.step(pixel, states)
            total = total + hidden
        right += int((model.classifier(total / x.shape[1]).argmax(-1) == y).sum())
    return right / len(images[1])


def train(run: dict[str, Any], data: dict[str, Images]) -> dict[str, Any]:
    """One run: AdamW in the layer's groups, one cycle of the learning rate; its row of the results."""
    pixels, labels = data["train"]
    model = make_model(run).to(pixels.device)
    batches = -(-len(labels) // run["batch"])
    steps = batches * run["epochs"]
    optimizer = torch.optim.AdamW(param_groups(model, run["lr"], run["weight_decay"], run["ssm_lr"]))
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, [group["lr"] for group in optimizer.param_groups], total_steps=steps, pct_start=0.2
    )
    generator = torch.Generator().manual_seed(run["seed"])
    curve, started, checking = [], time.perf_counter(), 0.0
    with progress(describe(run)) as move:
        for epoch in range(run["epochs"]):
            model.train()
            losses = []
            for chosen in torch.randperm(len(labels), generator=generator).split(run["batch"]):
                loss = model(input_values=pixels[chosen], labels=labels[chosen]).loss
                optimizer.zero_grad()
                loss.backward()
                nn.utils.clip_grad_norm_(model.parameters(), 1.0)
                optimizer.step()
                schedule.step()
                losses.append(loss.detach())
                move(epoch * batches + len(losses), steps)
            before = time.perf_counter()
            curve.append(
                {
                    "epoch": epoch + 1,
                    "loss": float(torch.stack(losses).mean()),
                    "validation": accuracy(model, data["validation"], run["batch"]),
                }
            )
            print(
                f"  epoch {epoch + 1}: loss {curve[-1]['loss']:.3f}, validation {curve[-1]['validation']:.3f}, "
                f"{time.perf_counter() - started:.0f} s",
                flush=True,
            )
            checking += time.perf_counter() - before
    trained = time.perf_counter() - started - checking
    test = accuracy(model, data["test"], run["batch"])
    row = {
        **run,
        "threads": torch.get_num_threads(),
        "parameters": sum(p.numel() for p in model.parameters()),
        "test": test,
        "train_seconds": trained,
        "seconds": time.perf_counter() - started,
        "curve": curve,
    }
    if run.get("recurrent"):
        row["test_recurrent"] = streamed_accuracy(model, data["test"], 500)
    return row


def describe(run: dict[str, Any]) -> str:
    return (
        " ".join(str(run[key]) for key in ("model", "init", "discretization") if key in run)
        + f", seed {run['seed']}"
    )


def runs(options: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """One dictionary of settings per run; what a baseline has no use for is left out of its own."""
    shared = (
        "width",
        "layers",
        "dropout",
        "batch",
        "lr",
        "weight_decay",
        "ssm_lr",
        "images",
        "epochs",
        "device",
    )
    made: dict[str, dict[str, Any]] = {}
    for seed, model, init, discretization in itertools.product(
        range(options.seeds), options.model, options.init, options.discretization
    ):
        run = {"model": model}
        if model == "s4d":
            run |= {"init": init, "discretization": discretization}
            run |= {
                key: getattr(options, key) for key in ("d_state", "real_random", "bidirectional", "recurrent")
            }
        run |= {key: getattr(options, key) for key in shared}
        run["seed"] = seed
        made.setdefault(json.dumps(run), run)
    yield from made.values()


def words(text: str) -> list[str]:
    return [word.strip() for word in text.split(",")]


def among(*known: str) -> Callable[[str], list[str]]:
    """The type of an option: words of these, with commas."""

    def parse(text: str) -> list[str]:
        if unknown := [word for word in words(text) if word not in known]:
            raise argparse.ArgumentTypeError(f"{', '.join(unknown)}: choose from {', '.join(known)}")
        return words(text)

    return parse


def arguments(parser: argparse.ArgumentParser) -> None:
    """The data, the models and how they are trained."""
    parser.add_argument("--data", type=Path, required=True, help="directory of the idx files")
    parser.add_argument(
        "--model", type=among("s4d", "gru", "attention"), default="s4d", help="s4d, gru, attention"
    )
    parser.add_argument("--init", type=words, default="legs", help="legs, lin, inv, real, rand, …")
    parser.add_argument("--discretization", type=words, default="zoh", help="zoh, bilinear")
    parser.add_argument("--real-random", action="store_true", help="S4D starts from random decays too")
    parser.add_argument("--bidirectional", action="store_true")
    parser.add_argument("--recurrent", action="store_true", help="test S4D also step by step")
    parser.add_argument("--width", type=int, default=64)
    parser.add_argument("--layers", type=int, default=2)
    parser.add_argument("--d-state", type=int, default=32)
    parser.add_argument("--dropout", type=float, default=0.0)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--lr", type=float, default=0.01)
    parser.add_argument(
        "--ssm-lr", type=float, default=1e-3, help="of A, B and the step sizes; 0 freezes them"
    )
    parser.add_argument("--weight-decay", type=float, default=0.01)
    parser.add_argument("--images", type=int, default=54_000, help="training images, at most all 54,000")
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--seeds", type=int, default=1, help="runs of each kind, with the seeds 0, 1, …")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--again", action="store_true", help="run also what is in the results already")


def run(options: argparse.Namespace) -> Rows:
    """Train what is asked for and not there yet; all rows."""
    if options.recurrent and options.bidirectional:
        raise SystemExit("--recurrent: a bidirectional model has no recurrence")
    rows = kept(SLUG)
    data = load(options.data, options.images, options.device)
    shown = []
    for run in runs(options):
        done = next((row for row in rows if run.items() <= row.items()), None)
        if done is None or options.again:
            print(describe(run), flush=True)
            rows = [row for row in rows if row is not done]
            done = train(run, data)
            rows.append(done)
            keep(SLUG, rows)
        names = ("model", "init", "discretization", "seed", "parameters")
        names += ("test", "test_recurrent", "train_seconds", "seconds")
        shown.append({name: done.get(name, "") for name in names})
    table(shown)
    return rows
