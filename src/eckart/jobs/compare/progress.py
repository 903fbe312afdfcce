"""Live progress: one line for each method on a terminal, one line for each finished run elsewhere."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from types import TracebackType
from typing import TYPE_CHECKING

from rich.console import Console
from rich.live import Live
from rich.table import Table

from eckart.jobs.compare.plan import FINAL, FLOOR, TUNE, Plan, Records, Row

if TYPE_CHECKING:
    from eckart.jobs.compare.contender import Contender
    from eckart.jobs.compare.study import Run

STEP_ESTIMATE = 1.6
"""Seconds of a step, with its share of set-up and evaluation, over the frozen floor's, for a method not yet seen."""


@dataclass
class Line:
    """What is known of one method: where it is and its score."""

    stage: str = "waiting"
    score: str = ""
    done: bool = False


def duration(seconds: float) -> str:
    """A duration as a person says it: ``45 s``, ``3 min``, ``2.5 h``."""
    if seconds < 100:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


class Progress:
    """A table that is redrawn in place on a terminal; without a terminal only `say` and `ran` print.

    Args:
        labels: what each method is called, by name, in the order shown.
        show: False prints nothing at all.
        console: where to print; standard error by default, so that standard output stays free for results.
    """

    def __init__(
        self, labels: Mapping[str, str], *, show: bool = True, console: Console | None = None
    ) -> None:
        self.lines = {name: Line() for name in labels}
        self._labels, self._show, self._step = labels, show, ""
        self._console = console or Console(stderr=True, highlight=False)
        self._started = time.monotonic()
        self._live: Live | None = None
        if show and self._console.is_terminal:
            self._live = Live(get_renderable=self._table, console=self._console, refresh_per_second=4)

    def __enter__(self) -> Progress:
        if self._live:
            self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._step = ""
        if self._live:
            self._live.stop()

    def say(self, text: str) -> None:
        """Print a line of its own, above the table where there is one."""
        if self._show:
            self._console.print(text, markup=False, soft_wrap=True)

    def ran(self, text: str) -> None:
        """Say that a run is done, where no table shows it."""
        if self._live is None:
            self.say(text)

    def step(self, text: str) -> None:
        """Say where the run in flight is; only the table shows it."""
        self._step = text

    def _table(self) -> Table:
        elapsed = duration(time.monotonic() - self._started)
        caption = f"{elapsed} gone"
        table = Table(box=None, pad_edge=False, caption_justify="left")
        table.caption = f"{caption}; {self._step}" if self._step else caption
        for column in ("method", "stage", "score"):
            table.add_column(column, justify="left" if column in ("method", "stage") else "right")
        for name, line in self.lines.items():
            style = "dim" if line.stage == "waiting" else "green" if line.done else None
            table.add_row(self._labels[name], line.stage, line.score, style=style)
        return table


class Scoreboard:
    """Turns the records of a study into the lines of a `Progress`.

    Args:
        everyone: all methods, also those left out.
        plan: the runs of those that take part.
        metric: name of the score.
        progress: where it is shown.
    """

    def __init__(self, everyone: Sequence[Contender], plan: Plan, metric: str, progress: Progress) -> None:
        from eckart.jobs.compare.leaderboard import metric_named

        self.dropped: dict[str, str] = {}
        self.everyone, self.plan, self.progress = everyone, plan, progress
        self.metric = metric_named(metric)

    def update(self, records: Records) -> None:
        """Bring every line up to date."""
        self.dropped = self.plan.dropped(records)
        for contender in self.everyone:
            self.progress.lines[contender.name] = self._line(contender, records)

    def announce(self, floor: Row) -> None:
        """Say what is to come, once the frozen floor is known."""
        step = (
            f"takes {floor['step_seconds']:.2g} s" if floor["step_seconds"] else f"failed: {floor['error']}"
        )
        self.progress.say(f"{len(self.plan.contenders)} methods; a step of the frozen model {step}")

    def tell(self, row: Row, records: Records) -> None:
        """Say how a run went."""
        score = row["score"] if row["stage"] == FINAL else row["validation_score"]
        told = f" {self.metric.name} {self.metric.show(score)}" if score is not None else ""
        what = f"lr {row['lr']:g}" if row["stage"] == TUNE else f"seed {row['seed']}"
        error = f": {row['error']}" if row["error"] else ""
        self.progress.ran(
            f"[{len(records)}] {row['label']}, {row['stage']} of {row['steps']} steps, {what}: "
            f"{row['status']}{told}{error}"
        )

    def expected(self, run: Run, records: Records) -> float:
        """Seconds that a run will take, from the runs so far: those of its method and kind where there are some."""
        rows = [r["row"] for r in records.values() if r["row"]["stage"] != FLOOR and r["row"]["seconds"]]
        given = run.parameters
        mine = [r for r in rows if r["method"] == given["method"]]
        alike = [r for r in mine if r["stage"] == given["stage"] and r["steps"] == given["steps"]]
        if alike:
            return float(max(r["seconds"] for r in alike))
        steps = [r for r in mine or rows if r["steps"]]
        floor = records.get(FLOOR, {}).get("row", {}).get("step_seconds") or 0.0
        pace = max((r["seconds"] / r["steps"] for r in steps), default=floor * STEP_ESTIMATE)
        finals = [
            r["seconds"]
            for r in rows
            if r["stage"] == given["stage"] == FINAL and r["steps"] == given["steps"]
        ]
        return float(max([pace * given["steps"], *([fmean(finals)] if finals else [])]))

    def _line(self, contender: Contender, records: Records) -> Line:
        if contender.reason:
            return Line("left out", done=True)
        trials, finals = self.plan.trials(contender, records), self.plan.finals(contender, records)
        scores = [row["score"] for row in finals if row["score"] is not None]
        usable = [row for row in trials if row["status"] == "complete"]
        score = self.metric.show(fmean(scores)) if scores else ""
        if usable and not scores:
            score = f"({self.metric.show(min(usable, key=self.plan.rank)['validation_score'])})"
        dropped = contender.name in self.dropped
        if finals:
            stage = f"on the test split, seed {len(finals)}"
        elif trials:
            stage = f"tuning, {len(trials)} runs"
        else:
            stage = "waiting"
        return Line("dropped" if dropped else stage, score, done=dropped)
