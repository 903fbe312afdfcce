"""The report page: one HTML file that shows a comparison, works offline and is a pure function of the study's files."""

from __future__ import annotations

import base64
import hashlib
import json
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from eckart.extras import require
from eckart.files import atomic_write
from eckart.jobs.compare import series, tables
from eckart.jobs.compare.advice import sentences
from eckart.jobs.compare.examples import read_examples
from eckart.jobs.compare.judgement import COSTS, Judgement, judge, reference
from eckart.jobs.compare.leaderboard import Quantity, forgetting_shown, metric_of, quantities_of
from eckart.jobs.compare.reading import read_ranks, read_results, read_study, read_table, read_terms

if TYPE_CHECKING:
    import pandas as pd

TEMPLATES = Path(__file__).parent / "templates"
STATES = {
    "running": "This study is still running: the numbers and the advice may change.",
    "interrupted": "This study was interrupted: run the same command again to finish it.",
    "setback": "Runs of this study met a lack of memory or disk and are not done: run the same command again.",
    "timeout": "The time was up: run the same command again, or with more --time, to go on where this stopped.",
}


def build_report(directory: str | os.PathLike[str]) -> Path:
    """Write ``report.html`` from the files of a study; the same files give the same page.

    Args:
        directory: the ``--output`` directory of a comparison, with ``compare.json``, ``results.csv`` and, where
            learning curves were kept, ``curves.csv``.

    Raises:
        InputError: a file is missing or is not what its name says.
    """
    folder = Path(directory)
    study = read_study(folder / "compare.json")
    rows = read_results(folder)
    examples = read_examples(folder / "examples.parquet")
    judgement = judge(rows, examples, read_terms(study))
    board = judgement.board
    held, name = reference(board)
    curves = folder / "curves.csv"
    quantities = quantities_of(board)
    data = _data(judgement, rows, quantities, read_table(curves) if curves.exists() else None)
    forgotten = forgetting_shown(board) or [""] * len(board)
    page = _render(
        **_words(study, judgement, rows),
        board=[
            tables.entry(row, study, metric_of(rows), held)
            | {"row": row, "arm": arm, "forgetting": forgotten[row.Index]}
            for row, arm in zip(board.itertuples(), data["arms"], strict=True)
        ],
        has_forgetting=any(forgotten),
        has_curves=bool(data["curves"]),
        has_rates=bool(data["rates"]),
        level=judgement.terms.level,
        held=name,
        quantities=quantities,
        limits={key: quantities[key] for key in COSTS.values() if key in quantities},
        rank_maps=tables.rank_maps(board, rows, read_ranks(folder)),
        disagreements=tables.disagreements(board, rows, examples),
        confusions=tables.confusions(board, rows, examples),
        results_url=_download(folder / "results.csv", "text/csv"),
        study_url=_download(folder / "compare.json", "application/json"),
        data=_json(data),
    )
    target = folder / "report.html"
    with atomic_write(target) as temporary:
        temporary.write_text(page, encoding="utf-8")
    return target


def _data(
    judgement: Judgement, rows: pd.DataFrame, quantities: Mapping[str, Quantity], points: pd.DataFrame | None
) -> dict[str, Any]:
    """What the page's script reads: the charts and what they show."""
    from eckart.jobs.compare.figures import figures

    board, metric, greater = judgement.board, metric_of(rows), _greater(rows)
    scale = series.score_range(board)
    return {
        "metric": {
            "name": metric.name,
            "scale": metric.scale,
            "suffix": metric.suffix,
            "decimals": metric.decimals,
            "range": scale,
        },
        "greaterIsBetter": greater,
        "quantities": {key: {"label": item.label} for key, item in quantities.items()},
        "arms": series.arms(judgement, rows, metric),
        "fronts": series.fronts(board) if len(board) else {},
        "curves": [] if points is None else series.curves(board, rows, points),
        "rates": series.rates(board, rows),
        "charts": figures(metric, greater, scale),
    }


def _words(study: dict[str, Any], judgement: Judgement, rows: pd.DataFrame) -> dict[str, Any]:
    """What the page says, and its tables."""
    board, metric, said = judgement.board, metric_of(rows), sentences(judgement)
    task = study.get("task") or {}
    names = [Path(str(task[key])).name for key in ("model", "data") if task.get(key)]
    return {
        "title": " on ".join(names) or "Comparison",
        "study": study,
        "notice": STATES.get(str(study.get("state")), ""),
        "verdict": said[0],
        "advice": said[1:],
        "metric": metric,
        "greater": _greater(rows),
        "tuning": tables.tuning(board, rows, metric),
        "runs": tables.runs(rows, metric, quantities_of(board)),
        "stages": list(dict.fromkeys(rows["stage"])),
        "statuses": list(dict.fromkeys(rows["status"])),
        "facts": tables.facts(study, rows),
        "finished": tables.date(study.get("finished") or study.get("started")),
    }


def _render(**content: Any) -> str:
    """The template, filled; only the two scripts that it holds may run in the page."""
    from eckart.jobs.charts import script

    jinja2 = require("jinja2", extra="compare")
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(TEMPLATES),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    own = (TEMPLATES / "report.js").read_text(encoding="utf-8")
    page: str = environment.get_template("report.html.j2").render(
        **content,
        finite=math.isfinite,
        style=(TEMPLATES / "report.css").read_text(encoding="utf-8"),
        scripts=[script(), own],
        hashes=[_digest(text) for text in (script(), own)],
    )
    return page


def _greater(rows: pd.DataFrame) -> bool:
    return bool(rows["greater_is_better"].iloc[0]) if len(rows) else True


def _digest(text: str) -> str:
    return base64.b64encode(hashlib.sha256(text.encode("utf-8")).digest()).decode("ascii")


def _json(value: Any) -> str:
    """JSON that can stand inside a script element: no ``<``, ``>``, ``&`` and no line separators of JavaScript."""
    text = json.dumps(value, allow_nan=False, ensure_ascii=True, separators=(",", ":"))
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def _download(path: Path, kind: str) -> str:
    return f"data:{kind};charset=utf-8;base64,{base64.b64encode(path.read_bytes()).decode('ascii')}"
