"""Several comparisons on one page: every method's rank over models and data sets, and how sure it is."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from eckart.errors import InputError
from eckart.extras import require
from eckart.files import atomic_write
from eckart.jobs.compare.advice import answer
from eckart.jobs.compare.examples import read_examples
from eckart.jobs.compare.judgement import Judgement, judge
from eckart.jobs.compare.leaderboard import metric_of
from eckart.jobs.compare.names import TRIVIAL
from eckart.jobs.compare.reading import read_results, read_study, read_terms
from eckart.jobs.compare.report import TEMPLATES

DRAWS = 4000


@dataclass(frozen=True)
class Comparison:
    """One comparison, read and judged."""

    name: str
    directory: Path
    judgement: Judgement


@dataclass(frozen=True)
class Rank:
    """A method's mean rank over the comparisons that it was tested in, with its 95% interval."""

    label: str
    comparisons: int
    rank: float
    low: float
    high: float


def read(directories: Sequence[str | os.PathLike[str]]) -> list[Comparison]:
    """The comparisons of these directories.

    Raises:
        InputError: fewer than two, one given twice, or one that is no comparison.
    """
    folders = [Path(directory) for directory in directories]
    if len({folder.resolve() for folder in folders}) < 2 or len(folders) != len(
        {f.resolve() for f in folders}
    ):
        raise InputError(
            f"{' '.join(map(str, folders))}: give two different directories of comparisons or more"
        )
    found = []
    for folder in folders:
        study = read_study(folder / "compare.json")
        task = study.get("task") or {}
        name = " on ".join(Path(str(task[key])).name for key in ("model", "data") if task.get(key))
        judged = judge(read_results(folder), read_examples(folder / "examples.parquet"), read_terms(study))
        found.append(Comparison(name or folder.name, folder, judged))
    return found


def standings(judgement: Judgement) -> tuple[dict[str, float], dict[str, float]]:
    """Of each method with a test score by how much it is behind the best, and the standard error of that."""
    behind, values, errors = judgement.against["best"], {}, {}
    for row in judgement.rows:
        if row.method == TRIVIAL or not math.isfinite(row.score) or judgement.best is None:
            continue
        difference = behind.get(row.Index)
        if row.Index != judgement.best and difference is None:
            continue
        values[row.label] = 0.0 if difference is None else difference.value
        errors[row.label] = 0.0 if difference is None else difference.standard_error
    return values, errors


def ranks(judgements: Sequence[Judgement], seed: int = 0) -> list[Rank]:
    """Mean ranks over comparisons, the best first; 1 is the best of a comparison.

    The interval joins two kinds of luck: which comparisons were made (they are drawn anew, with replacement), and in
    each of them examples and seeds (differences to the best are drawn anew from their normal distributions).

    Args:
        judgements: of the comparisons.
        seed: of the draws.
    """
    generator = np.random.default_rng(seed)
    found = [standings(judgement) for judgement in judgements]
    labels = list(dict.fromkeys(label for values, _ in found for label in values))
    observed = np.full((len(found), len(labels)), math.nan)
    drawn = np.full((DRAWS, len(found), len(labels)), math.nan)
    for place, (values, errors) in enumerate(found):
        columns = [labels.index(label) for label in values]
        means, spreads = np.array(list(values.values())), np.array(list(errors.values()))
        observed[place, columns] = _order(means)
        drawn[:, place, columns] = _order(means + spreads * generator.standard_normal((DRAWS, len(means))))
    chosen = generator.integers(0, len(found), (DRAWS, len(found)))
    again = np.take_along_axis(drawn, chosen[:, :, None], axis=1)
    counts = np.isfinite(again).sum(axis=1)
    sums = np.nansum(again, axis=1)
    rows = []
    for column, label in enumerate(labels):
        mine = sums[:, column][counts[:, column] > 0] / counts[:, column][counts[:, column] > 0]
        low, high = np.quantile(mine, (0.025, 0.975))
        here = observed[:, column]
        rows.append(
            Rank(label, int(np.isfinite(here).sum()), float(np.nanmean(here)), float(low), float(high))
        )
    return sorted(rows, key=lambda row: row.rank)


def _order(behind: np.ndarray) -> np.ndarray:
    """Ranks along the last axis from 1, equal ones sharing their mean."""
    ranked: np.ndarray = require("scipy.stats", extra="compare").rankdata(behind, axis=-1)
    return ranked


def scores(comparisons: Sequence[Comparison], labels: Sequence[str]) -> list[tuple[str, list[str]]]:
    """For each method its score in each comparison, in the order of the labels."""
    table = []
    for label in labels:
        cells = []
        for comparison in comparisons:
            board = comparison.judgement.board
            mine = board[(board["label"] == label) & np.isfinite(board["score"].astype(float))]
            cells.append(metric_of(board).show(mine["score"].iloc[0]) if len(mine) else "–")
        table.append((label, cells))
    return table


def build_joined(
    directories: Sequence[str | os.PathLike[str]], output: str | os.PathLike[str]
) -> Mapping[str, Any]:
    """Write one page over several comparisons.

    Args:
        directories: the ``--output`` directories of the comparisons.
        output: the HTML file to write.

    Returns:
        the ranks and the answer of each comparison, as plain values.

    Raises:
        InputError: as `read`.
    """
    jinja2 = require("jinja2", extra="compare")
    comparisons = read(directories)
    order = ranks([comparison.judgement for comparison in comparisons])
    answers = [(c.name, str(c.directory), answer(c.judgement)) for c in comparisons]
    loader = jinja2.FileSystemLoader(TEMPLATES)
    environment = jinja2.Environment(
        loader=loader, autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    page = environment.get_template("joined.html.j2").render(
        answers=answers,
        ranks=order,
        worst=max((rank.high for rank in order), default=1.0),
        scores=scores(comparisons, [rank.label for rank in order]),
        style=(TEMPLATES / "report.css").read_text(encoding="utf-8"),
    )
    with atomic_write(output) as temporary:
        temporary.write_text(page, encoding="utf-8")
    return {
        "ranks": [vars(rank) for rank in order],
        "comparisons": [{"name": name, "directory": where, "answer": told} for name, where, told in answers],
    }
