"""What measuring models leaves: the scores of their layers, and how these stand in files."""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from torch import Tensor

from eckart.escapes import cells
from eckart.files import atomic_write
from eckart.jobs.measure.likeness import Likeness
from eckart.jobs.measure.settings import ABOUT

TABLE, TEXTS, PICTURE, MODELS = "measure.csv", "texts.csv", "measure.svg", "models"
CKA, MAP = "cka.csv", "cka.svg"
OWNED = (TABLE, TEXTS, PICTURE, CKA, MAP, ABOUT, f"{MODELS}/{'[0-9a-f]' * 64}.safetensors")
"""Files of a measurement, those of the models by the SHA-256 of each."""


@dataclass(frozen=True)
class Score:
    """One metric of one layer over many texts.

    Attributes:
        layer: 0 for the embeddings, then the blocks.
        metric: its name.
        mean: over the texts that have a value.
        std: standard deviation between them; NaN for one text.
        ci: half the width of the 95% interval of the mean, 1.96 std / √n.
        n: texts with a value.
        skipped: texts without: fewer than two tokens, or a token that equals the mean of its text.
    """

    layer: int
    metric: str
    mean: float
    std: float
    ci: float
    n: int
    skipped: int


@dataclass(frozen=True)
class ModelScores:
    """The scores of one model.

    Attributes:
        model: its name.
        depth: number of its last layer, whose states are those after the final norm.
        width: of the last layer's states.
        texts: how many were read.
        tokens: mean number of tokens of a text that count.
        scores: of every layer and metric, in that order.
        values: of each text in the order read, its tokens and its metrics in the last layer; of `measure` only.
        vocabulary: SHA-256 of the tokenizer's; of `measure` only.
        states: mean state of each text in every layer, (texts, width); of `measure` with ``cka`` only.
    """

    model: str
    depth: int
    width: int
    texts: int
    tokens: float
    scores: list[Score]
    values: Mapping[str, Tensor] = field(default_factory=dict, repr=False)
    vocabulary: str = field(default="", repr=False)
    states: Sequence[Tensor] = field(default=(), repr=False)

    @property
    def layers(self) -> list[int]:
        """The layers that were measured."""
        return sorted({score.layer for score in self.scores})

    def at(self, layer: int | None = None) -> dict[str, Score]:
        """The scores of one layer by metric; of the last when None."""
        layer = self.depth if layer is None else layer
        return {score.metric: score for score in self.scores if score.layer == layer}

    def to_dict(self) -> dict[str, Any]:
        """Everything but the values and states of single texts, ready for JSON; None for what is not a number."""
        plain = asdict(replace(self, values={}, states=()))
        del plain["values"], plain["states"]
        plain["scores"] = [{name: _plain(x) for name, x in score.items()} for score in plain["scores"]]
        return plain

    @classmethod
    def from_dict(
        cls, plain: dict[str, Any], values: Mapping[str, Tensor], states: Sequence[Tensor] = ()
    ) -> ModelScores:
        """What `to_dict` was made from."""
        rows: list[dict[str, Any]] = [
            {name: math.nan if x is None else x for name, x in row.items()} for row in plain["scores"]
        ]
        return cls(**plain | {"scores": [Score(**row) for row in rows], "values": values, "states": states})


@dataclass(frozen=True)
class Measurement:
    """Scores of several models side by side.

    Attributes:
        data: name of the data set.
        models: in the order given.
        notes: what to know before comparing them.
        settings: what decides the numbers besides the models.
        likeness: CKA of the layers of each pair of models, where it was asked for.
    """

    data: str
    models: list[ModelScores]
    notes: list[str]
    settings: dict[str, Any]
    likeness: list[Likeness] = field(default_factory=list)

    def to_dict(self) -> dict[str, Any]:
        """What measure.json holds."""
        models = [scores.to_dict() for scores in self.models]
        plain = {"data": self.data, "models": models, "notes": self.notes, "settings": self.settings}
        return plain | (
            {"cka": [row for pair in self.likeness for row in pair.rows()]} if self.likeness else {}
        )

    def write(self, directory: Path) -> None:
        """Write measure.csv, texts.csv, measure.svg, measure.json and what there is of CKA, each whole."""
        from eckart.jobs.measure.picture import draw, draw_likeness

        with atomic_write(directory / TABLE) as path, path.open("w", newline="", encoding="utf-8") as file:
            table = csv.writer(file)
            table.writerow(("model", *Score.__dataclass_fields__, "tokens"))
            for scores in self.models:
                rows = ([_plain(x) for x in asdict(score).values()] for score in scores.scores)
                table.writerows(cells((scores.model, *row, scores.tokens)) for row in rows)
        with atomic_write(directory / TEXTS) as path, path.open("w", newline="", encoding="utf-8") as file:
            table = csv.writer(file)
            table.writerow(("model", "text", *self.models[0].values))
            for scores in self.models:
                columns = [column.tolist() for column in scores.values.values()]
                for text, row in enumerate(zip(*columns, strict=True)):
                    table.writerow(cells((scores.model, text, *map(_plain, row))))
        with atomic_write(directory / PICTURE) as path:
            path.write_text(draw(self.data, self._points()), encoding="utf-8")
        if self.likeness:
            with atomic_write(directory / CKA) as path, path.open("w", newline="", encoding="utf-8") as file:
                table = csv.writer(file)
                pairs = [row for pair in self.likeness for row in pair.rows()]
                table.writerows([list(pairs[0]), *(list(row.values()) for row in pairs)])
            with atomic_write(directory / MAP) as path:
                path.write_text(draw_likeness(self.data, self.likeness), encoding="utf-8")
        with atomic_write(directory / ABOUT) as path:
            path.write_text(json.dumps(self.to_dict(), indent=2, ensure_ascii=False) + "\n", encoding="utf-8")

    def _points(self) -> list[dict[str, Any]]:
        """What the picture shows: every score that there is, by model, metric and relative depth."""
        return [
            {
                "model": f"{scores.model}: width {scores.width}, {scores.tokens:.1f} tokens a text",
                "metric": score.metric,
                "depth": score.layer / max(scores.depth, 1),
                "mean": score.mean,
                "ci": _plain(score.ci),
            }
            for scores in self.models
            for score in scores.scores
            if score.n
        ]


def keep(path: Path, scores: ModelScores) -> None:
    """Write the scores of one model, with the values of its texts, to one file."""
    from safetensors.torch import save_file

    with atomic_write(path) as file:
        states = {f"states.{i}": state.contiguous() for i, state in enumerate(scores.states)}
        save_file(dict(scores.values) | states, file, metadata={"scores": json.dumps(scores.to_dict())})


def kept(path: Path) -> ModelScores | None:
    """Read what `keep` wrote; None where there is nothing of the kind, so that it is measured anew."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt") as file:
            plain = json.loads(file.metadata()["scores"])
            names = dict.fromkeys(["tokens", *(score["metric"] for score in plain["scores"])])
            states = sum(name.startswith("states.") for name in set(file.keys()))
            return ModelScores.from_dict(
                plain,
                {name: file.get_tensor(name) for name in names},
                [file.get_tensor(f"states.{i}") for i in range(states)],
            )
    except (OSError, SafetensorError, KeyError, TypeError, ValueError):
        return None


def _plain(number: Any) -> Any:
    return None if isinstance(number, float) and math.isnan(number) else number
