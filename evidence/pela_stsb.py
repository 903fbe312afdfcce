"""PELA's training on plain sentences brings a sentence encoder of half the layers' size near to the whole one.

Half of the parameters of the linear layers of MiniLM-L6 is removed by truncated SVD, by LoRD, and by PELA, whose
intermediate training sees sentences of STS-B without their scores and has the dense encoder as teacher; with and
without the loss on the weights' drift. What counts is the rank correlation of the cosine of two sentences' embeddings
with people's scores. The learning rate is tuned on pairs held out of the training pairs, with seed 0, no neighbour on
the grid better; further seeds, which see other sentences, are scored on the validation pairs of GLUE.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from statistics import mean
from typing import Any

import numpy as np
import pandas as pd
import torch
from scipy.stats import spearmanr
from torch import Tensor
from transformers import AutoModel, AutoTokenizer

from benchmarks._paired import told
from eckart.compression import compress, report
from eckart.tasks.pretrained import find_model
from evidence._grids import least
from evidence._record import Rows

RATIO, STEPS, BATCH, CALIBRATION, HELD_OUT = 0.5, 24, 16, 512, 500
MIDDLE, FACTOR = 3e-4, 10**0.5
SEEDS = range(1, 4)
DRAWS = 1000
"""Of the bootstrap."""
DENSE, CUT, LORD, PELA, FREE = (
    "dense encoder",
    "truncated SVD",
    "LoRD",
    "PELA",
    "PELA without the drift's loss",
)
TRAINED: dict[str, dict[str, Any]] = {PELA: {}, FREE: {"gamma": 0.0}}
Values = np.ndarray


class Study:
    """The encoders, each made and scored.

    Args:
        directory: of STS-B.
    """

    def __init__(self, directory: Path) -> None:
        tables = {part: pd.read_parquet(directory / f"{part}.parquet") for part in ("train", "validation")}
        order = np.random.default_rng(0).permutation(len(tables["train"]))
        held, rest = (tables["train"].iloc[some] for some in (order[:HELD_OUT], order[HELD_OUT:]))
        self.parts = {"validation": held, "test": tables["validation"]}
        self.sentences = [*rest["sentence1"], *rest["sentence2"]]
        self.place = str(find_model(None).directory)
        self.tokenizer = AutoTokenizer.from_pretrained(self.place)
        self.sizes: dict[str, float] = {}

    def batches(self, count: int, size: int, seed: int) -> list[dict[str, Tensor]]:
        """Sentences drawn with this seed, as the encoder takes them."""
        picks = np.random.default_rng(seed).permutation(len(self.sentences))[: count * size]
        return [self.encoded([self.sentences[i] for i in part]) for part in picks.reshape(count, size)]

    def encoded(self, texts: list[str]) -> dict[str, Tensor]:
        found = self.tokenizer(texts, padding=True, truncation=True, max_length=64, return_tensors="pt")
        return dict(found)

    def made(self, arm: str, seed: int, lr: float | None) -> Any:
        """An arm's encoder."""
        torch.manual_seed(seed)
        model = AutoModel.from_pretrained(self.place, dtype=torch.float32).eval()
        sizes = {"ratio": RATIO, "multiple_of": 1}
        if arm == CUT:
            compress(model, "svd", **sizes)
        elif arm == LORD:
            compress(model, "lord", calibration=self.batches(CALIBRATION // BATCH, BATCH, seed), **sizes)
        elif arm != DENSE:
            seen = self.batches(STEPS, BATCH, seed)
            compress(model, "pela", calibration=seen, steps=STEPS, lr=lr, **TRAINED[arm], **sizes)
        found = report(model)
        self.sizes[arm] = 0.0 if found is None else found.removed
        return model

    @torch.no_grad()
    def cosines(self, model: Any, part: str) -> Values:
        """Of the two sentences of each pair, embedded as the mean over their tokens."""
        table = self.parts[part]
        sides = []
        for column in ("sentence1", "sentence2"):
            texts = list(table[column])
            order = sorted(range(len(texts)), key=lambda i: len(texts[i]))
            vectors = torch.zeros(len(texts), model.config.hidden_size)
            for start in range(0, len(texts), 50):
                places = order[start : start + 50]
                batch = self.encoded([texts[i] for i in places])
                mask = batch["attention_mask"].unsqueeze(-1).float()
                vectors[places] = (model(**batch)[0] * mask).sum(1) / mask.sum(1)
            sides.append(vectors)
        return torch.nn.functional.cosine_similarity(*sides).double().numpy()

    def correlation(self, values: Values, part: str, picks: Any = slice(None)) -> float:
        return float(spearmanr(values[picks], self.parts[part]["label"].to_numpy()[picks])[0])

    def tuned(self, arm: str, rows: Rows) -> float:
        """The learning rate that no neighbour beats on the pairs held out."""

        def loss(i: int) -> float:
            lr = MIDDLE * FACTOR**i
            found = self.correlation(self.cosines(self.made(arm, 0, lr), "validation"), "validation")
            rows.append({"part": "tuning", "arm": arm, "lr": lr, "correlation": found})
            print(rows[-1], flush=True)
            return -found

        return MIDDLE * FACTOR ** least(loss)

    def run(self) -> Rows:
        """The tuning, a row for each run, and one for each arm with its differences."""
        rows: Rows = []
        rates = {arm: self.tuned(arm, rows) for arm in TRAINED}
        found: dict[str, list[Values]] = {}
        for arm in (DENSE, CUT, LORD, *TRAINED):
            found[arm] = []
            for seed in SEEDS if arm in TRAINED else SEEDS[:1]:
                found[arm].append(self.cosines(self.made(arm, seed, rates.get(arm)), "test"))
                value = self.correlation(found[arm][-1], "test")
                rows.append({"part": "run", "arm": arm, "seed": seed, "correlation": value})
                print(rows[-1], flush=True)
        return [*rows, *self.compared(found, rates)]

    def compared(self, found: dict[str, list[Values]], rates: dict[str, float]) -> Rows:
        """Each arm's mean, and its differences to the dense encoder and to PELA, by a bootstrap of pairs and seeds."""
        generator, count = np.random.default_rng(0), len(self.parts["test"])
        draws: list[dict[str, float]] = []
        for _ in range(DRAWS):
            pairs = generator.integers(count, size=count)
            seeds = generator.integers(len(SEEDS), size=len(SEEDS))
            draws.append(self.means(found, pairs, seeds))
        whole, rows = self.means(found, slice(None), np.arange(len(SEEDS))), []
        for arm in found:
            row = {"part": "arm", "arm": arm, "removed": self.sizes[arm], "lr": rates.get(arm)}
            row |= {"correlation": whole[arm]}
            for name, other in (("dense", DENSE), ("pela", PELA)):
                gaps = [draw[arm] - draw[other] for draw in draws]
                ends = (whole[arm] - whole[other], *map(float, np.quantile(gaps, (0.025, 0.975))))
                row |= told(f"to_{name}", None if arm == other else ends)
            rows.append(row)
        return rows

    def means(self, found: dict[str, list[Values]], pairs: Any, seeds: Values) -> dict[str, float]:
        """Each arm's mean correlation over some pairs and seeds; an arm without seeds has one encoder."""
        known: dict[tuple[str, int], float] = {}

        def one(arm: str, k: int) -> float:
            if (arm, k) not in known:
                known[arm, k] = self.correlation(found[arm][k], "test", pairs)
            return known[arm, k]

        return {arm: mean(one(arm, int(k) % len(runs)) for k in seeds) for arm, runs in found.items()}


def arguments(parser: argparse.ArgumentParser) -> None:
    """STS-B."""
    parser.add_argument(
        "--data", type=Path, required=True, help="directory with train.parquet and validation.parquet"
    )


def run(options: argparse.Namespace) -> Rows:
    """All arms and seeds."""
    torch.set_num_threads(1)
    return Study(options.data).run()
