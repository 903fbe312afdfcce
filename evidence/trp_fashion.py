"""TRP's networks are factorised with nearly no loss up to a point; one trained plainly loses more and stays ahead.

A network of four convolutions learns Fashion-MNIST plainly, with trained rank pruning, and with the nuclear norm's
sub-gradient as well. Then each is factorised by channels to the same shares of multiply–adds, its batch norms see some
training images again, and it is scored: nothing is fine-tuned. The learning rate of each arm, then the energy that is
kept, then the weight of the nuclear norm are tuned with seed 0 by the loss of the factorised network on validation
images, no neighbour on the grid better; further seeds are scored on test images.
"""

from __future__ import annotations

import argparse
import copy
import math
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from benchmarks._paired import told
from eckart.compression import TrainedRankPruning, compress
from eckart.jobs.compare.paired import Scores
from evidence._grids import least
from evidence._record import Rows
from evidence.s4d_fashion import CLASSES, Images, load

IMAGES, SCORED, SEEN = 5000, 3000, 1000
"""Training images, test images, and images that batch norms see again."""
BATCH, PASSES, PERIOD = 64, 4, 20
WIDTHS, STRIDES = (1, 16, 32, 32, 64), (2, 1, 2, 1)
RATIOS, TUNED_AT = (0.5, 0.65, 0.8), 0.65
SEEDS = range(1, 6)
PLAIN, PRUNED, NUCLEAR = "plain", "TRP without the nuclear norm", "TRP"
Options = dict[str, float]
STARTS: Options = {"lr": 0.1, "lost": 0.1, "nuclear": 0.03}
FACTORS: Options = {"lr": 10**0.5, "lost": 2.0, "nuclear": 10**0.5}


def network() -> nn.Sequential:
    """Convolutions 3×3 with batch norms, the mean over the image, a linear classifier."""
    layers: list[nn.Module] = []
    for (before, after), stride in zip(pairwise(WIDTHS), STRIDES, strict=True):
        convolution = nn.Conv2d(before, after, 3, stride, 1, bias=False)
        layers += [convolution, nn.BatchNorm2d(after), nn.ReLU()]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(WIDTHS[-1], CLASSES))


def trained(images: Images, options: Options, seed: int) -> nn.Sequential:
    """SGD along a cosine; ``lost`` is the share of energy that a projection may lose, ``nuclear`` the norm's weight."""
    torch.manual_seed(seed)
    model = network().train()
    optimizer = torch.optim.SGD(model.parameters(), options["lr"], 0.9, weight_decay=5e-4, nesterov=True)
    steps = PASSES * math.ceil(len(images[1]) / BATCH)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    rule = None
    if "lost" in options:
        rule = TrainedRankPruning(
            model, optimizer, "NC", 1 - options["lost"], PERIOD, options.get("nuclear", 0.0)
        )
    generator = torch.Generator().manual_seed(seed)
    for _ in range(PASSES):
        for places in torch.randperm(len(images[1]), generator=generator).split(BATCH):
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(images[0][places]), images[1][places]).backward()
            optimizer.step()
            schedule.step()
    if rule is not None:
        rule.project()
        rule.detach()
    return model


@torch.no_grad()
def factorised(model: nn.Sequential, ratio: float, images: Images) -> nn.Module:
    """The network with this share of its multiply–adds gone, its batch norms renewed; 0 leaves it whole."""
    small = copy.deepcopy(model)
    if ratio:
        compress(small, "trp", ratio=ratio, scheme="NC")
    for module in small.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.reset_running_stats()
            module.momentum = None  # the mean over all that follows
    small.train()
    for part in images[0][:SEEN].split(250):
        small(part)
    return small.eval()


@torch.no_grad()
def answers(model: nn.Module, images: Images) -> Tensor:
    return torch.cat([model(part) for part in images[0].split(500)])


class Study:
    """All arms.

    Args:
        parts: images by split.
    """

    def __init__(self, parts: dict[str, Images]) -> None:
        self.parts = parts
        self.tried: dict[tuple[tuple[str, float], ...], float] = {}

    def loss(self, options: Options) -> float:
        """Of the factorised network, on validation images."""
        key = tuple(sorted(options.items()))
        if key not in self.tried:
            small = factorised(trained(self.parts["train"], options, 0), TUNED_AT, self.parts["train"])
            found = self.parts["validation"]
            loss = float(nn.functional.cross_entropy(answers(small, found), found[1]))
            self.tried[key] = loss if math.isfinite(loss) else math.inf
            print(options, f"{self.tried[key]:.4f}", flush=True)
        return self.tried[key]

    def tuned(self, options: Options, name: str) -> Options:
        """The options with the value of one of them that no neighbour beats."""

        def loss(i: int) -> float:
            value = STARTS[name] * FACTORS[name] ** i
            return self.loss({**options, name: value}) if name != "lost" or value < 1 else math.inf

        return {**options, name: STARTS[name] * FACTORS[name] ** least(loss)}

    def chosen(self) -> dict[str, Options]:
        """The options of each arm."""
        plain = self.tuned({}, "lr")
        pruned = self.tuned(self.tuned({"lost": STARTS["lost"]}, "lr"), "lost")
        return {PLAIN: plain, PRUNED: pruned, NUCLEAR: self.tuned(pruned, "nuclear")}

    def run(self) -> Rows:
        """One row for each arm, seed and ratio, and one for each arm and ratio with its difference to the plain one."""
        chosen, rows = self.chosen(), []
        ratios = (0.0, *RATIOS)
        right: dict[tuple[str, int, float], np.ndarray] = {}
        for arm, options in chosen.items():
            for seed in SEEDS:
                model = trained(self.parts["train"], options, seed)
                for ratio in ratios:
                    small = factorised(model, ratio, self.parts["train"])
                    found = answers(small, self.parts["test"]).argmax(1) == self.parts["test"][1]
                    right[arm, seed, ratio] = found.numpy().astype(float)
                    row = {"part": "run", "arm": arm, "seed": seed, "ratio": ratio}
                    rows.append(row | {"accuracy": float(found.float().mean())})
                print(rows[-len(ratios) :], flush=True)
        differences = [self.against(right, chosen, arm, ratio) for ratio in ratios for arm in chosen]
        tuning = [{"part": "tuning", **dict(key), "loss": loss} for key, loss in self.tried.items()]
        return [*rows, *tuning, *differences]

    def against(
        self,
        right: dict[tuple[str, int, float], np.ndarray],
        chosen: dict[str, Options],
        arm: str,
        ratio: float,
    ) -> dict[str, Any]:
        """An arm's accuracy and its difference to the plain arm, paired by image and seed."""
        arms = list(chosen)
        examples = {
            (i, k): right[name, seed, ratio] for i, name in enumerate(arms) for k, seed in enumerate(SEEDS)
        }
        means = np.array([[examples[i, k].mean() for k in range(len(SEEDS))] for i in range(len(arms))])
        row: dict[str, Any] = {"part": "arm", "arm": arm, "ratio": ratio, **chosen[arm]}
        row |= {"accuracy": float(means[arms.index(arm)].mean())}
        if arm == PLAIN:
            return row | told("to_plain", None)
        gap = Scores(means, examples, np.zeros(len(arms))).difference(arms.index(arm), 0)
        assert gap is not None
        return row | told("to_plain", (gap.value, gap.low, gap.high))


def arguments(parser: argparse.ArgumentParser) -> None:
    """Fashion-MNIST."""
    parser.add_argument("--data", type=Path, required=True, help="directory of the four idx files")


def run(options: argparse.Namespace) -> Rows:
    """All arms and seeds."""
    from benchmarks._harness import table

    torch.set_num_threads(1)
    found = load(options.data, IMAGES, "cpu")
    parts = {part: (pixels.reshape(-1, 1, 28, 28), labels) for part, (pixels, labels) in found.items()}
    parts["test"] = (parts["test"][0][:SCORED], parts["test"][1][:SCORED])
    rows = Study(parts).run()
    table([{k: r[k] for k in ("arm", "ratio", "accuracy", "to_plain")} for r in rows if r["part"] == "arm"])
    return rows
