"""A comparison at work: runs are claimed and done, judged, and the files of the results kept up to date."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from time import monotonic
from typing import TYPE_CHECKING, Any, cast

import numpy as np

from eckart.escapes import frame
from eckart.files import atomic_directory, atomic_write
from eckart.jobs.compare import outputs
from eckart.jobs.compare.contender import Contender
from eckart.jobs.compare.examples import PREDICTIONS, SCORES, of_records, pack
from eckart.jobs.compare.examples import table as examples_table
from eckart.jobs.compare.judgement import Judgement, Terms, judge
from eckart.jobs.compare.names import TRIVIAL
from eckart.jobs.compare.plan import FINAL, FLOOR, TUNE, Plan, Records
from eckart.jobs.compare.progress import Progress, Scoreboard
from eckart.jobs.compare.study import Claim, Outcome, Run, Study
from eckart.quiet import quiet, short_collections

if TYPE_CHECKING:
    import pandas as pd
    from peft import PeftModel

    from eckart.jobs.compare.runs import Runner

END_SECONDS = 6.0
"""What is kept of the time for the last tables and the page."""

CURVE_COLUMNS = ["run_id", "step", "split", "loss", "score"]
RANK_COLUMNS = ["run_id", "layer", "rank"]


class OutOfTime(BaseException):
    """The time is up in the middle of a run: no failure of the run, which is free again."""


class Jury:
    """Judges the records of a study, each state of them once.

    Args:
        runner: whose task is scored on.
        everyone: all methods, also those left out.
        terms: to judge by.
    """

    def __init__(self, runner: Runner, everyone: Sequence[Contender], terms: Terms) -> None:
        from eckart.jobs.compare.runs import trivial_record

        self.runner, self.everyone, self.terms = runner, everyone, terms
        self.trivial = {f"{FINAL}/{TRIVIAL}": trivial_record(runner)}
        self._seen: dict[frozenset[str], Judgement] = {}

    def results(self, records: Records) -> pd.DataFrame:
        """One row for each run, for the trivial predictor and for each method left out."""
        import pandas as pd

        from eckart.jobs.compare.runs import COLUMNS, left_out

        known = {**records, **self.trivial} if records else {}
        rows = [record["row"] for record in known.values()]
        rows += [left_out(self.runner, contender) for contender in self.everyone if contender.reason]
        return pd.DataFrame(rows, columns=COLUMNS)

    def judge(self, records: Records, dropped: Mapping[str, str] | None = None) -> Judgement:
        """What the records say, and with them which methods were dropped."""
        key = frozenset(records)
        if dropped is None and key in self._seen:
            return self._seen[key]
        examples = of_records({**records, **self.trivial}, self.runner.task)
        found = judge(self.results(records), examples, replace(self.terms, dropped=dropped or {}))
        if dropped is None:
            self._seen[key] = found
        return found


class Race:
    """Works off a plan in a study and keeps the files of the results up to date.

    Args:
        runner: does the runs.
        plan: says which.
        jury: judges them.
        study: where runs are claimed and kept.
        directory: where results are written.
        about: what ``compare.json`` says besides the state of the study.
        progress: where to show what happens.
    """

    def __init__(
        self,
        runner: Runner,
        plan: Plan,
        jury: Jury,
        study: Study,
        directory: Path,
        about: Mapping[str, Any],
        progress: Progress,
    ) -> None:
        self.runner, self.plan, self.jury = runner, plan, jury
        self.study, self.directory, self.about, self.progress = study, directory, about, progress
        self.scoreboard = Scoreboard(jury.everyone, self.plan, runner.task.metric, progress)
        self.contenders = {c.name: c for c in self.plan.contenders}
        self._kept: list[str] | None = None
        self.state = "running"

    def work(self, deadline: float | None) -> pd.DataFrame:
        """Do what is left to do and write the results after every run, the report at the end of each round.

        Raises:
            KeyboardInterrupt: after the results were written; the run in flight is free again.
        """
        self.write("running")

        def fits(run: Run) -> bool:
            if deadline is None:
                return True
            expected = self.scoreboard.expected(run, self.study.records())
            return monotonic() + expected < deadline - END_SECONDS

        def on_step(words: str) -> None:
            self.progress.step(words)
            if deadline is not None and monotonic() > deadline - END_SECONDS:
                raise OutOfTime

        self.runner.on_step, done = on_step, False
        try:
            with self.progress, quiet(), short_collections():
                self._show(self.study.records(), FLOOR)
                done = self.study.work(
                    self.plan, self._execute, fits=fits, after=self._after, waiting=self._wait
                )
        except OutOfTime:
            self.progress.say("the time is up: the run in flight is left for another call")
        except KeyboardInterrupt:
            self.write("interrupted", report=True)
            raise
        for run_id, met in self.study.setbacks.items():
            self.progress.say(f"{run_id} is left for another call: {met[-1]}")
        self.state = "complete" if done else "setback" if self.study.setbacks else "timeout"
        return self.write(self.state, report=True)

    def _execute(self, claim: Claim) -> Outcome:
        from eckart.adapters._export import save_adapter

        run = claim.run
        contender = self.contenders.get(run.parameters["method"])
        result = self.runner.do(run, contender)
        row, record = result.row, {"row": result.row, "curve": result.curve, "ranks": result.ranks}
        first = run.parameters["stage"] == FINAL and run.parameters["seed"] == 0
        if first and contender and contender.config and row["status"] == "complete":
            with atomic_directory(
                self.directory / outputs.ADAPTERS / contender.name, overwrite=True
            ) as folder:
                save_adapter(cast("PeftModel", result.model), folder)
        if result.scored is not None and row["status"] == "complete":
            record[SCORES] = pack(result.scored.scores)
            if result.scored.predictions is not None:
                record[PREDICTIONS] = pack(result.scored.predictions, np.int32)
        value = row["validation_score"] if run.parameters["stage"] == TUNE else row["score"]
        status = "failed" if row["status"] == "complete" and value is None else row["status"]
        return Outcome(record, status, value)

    def _after(self, run: Run) -> None:
        records = self.study.records()
        left = self.plan(records)
        rounds = [
            (r.parameters["stage"], r.parameters["seed"], r.parameters["steps"]) for r in (run, *left[:1])
        ]
        self.write("running", report=rounds[0][0] != FLOOR and len(set(rounds)) == 2)
        self._show(records, run.id)

    def _wait(self) -> None:
        self.scoreboard.update(self.study.records())
        self.progress.step("waiting for other workers")

    def _show(self, records: Records, run_id: str) -> None:
        """Bring the display up to date and say how a run went."""
        self.scoreboard.update(records)
        if run_id in records:
            row = records[run_id]["row"]
            self.scoreboard.announce(row) if run_id == FLOOR else self.scoreboard.tell(row, records)

    def write(self, state: str, report: bool = False) -> pd.DataFrame:
        """Write the results as they are, each file whole."""
        import pandas as pd

        from eckart.jobs.compare.advice import sentences
        from eckart.jobs.compare.report import build_report

        records = self.study.records()
        results = self.jury.results(records)
        dropped = self.plan.dropped(records)
        points = [[run, *point] for run, record in records.items() for point in record["curve"]]
        with atomic_write(self.directory / outputs.RESULTS) as path:
            frame(results).to_csv(path, index=False)
        with atomic_write(self.directory / outputs.TABLE) as path:
            results.to_parquet(path, index=False)
        scored = {run: record for run, record in records.items() if record.get(SCORES)}
        if list(scored) != self._kept:
            known = {**scored, **self.jury.trivial} if records else {}
            with atomic_write(self.directory / outputs.EXAMPLES) as path:
                examples_table(known, self.runner.task).to_parquet(path, index=False)
            self._kept = list(scored) if records else None
        with atomic_write(self.directory / outputs.CURVES) as path:
            pd.DataFrame(points, columns=CURVE_COLUMNS).to_csv(path, index=False)
        ranks = [[run, *pair] for run, record in records.items() for pair in record.get("ranks", {}).items()]
        if ranks:
            with atomic_write(self.directory / outputs.RANKS) as path:
                pd.DataFrame(ranks, columns=RANK_COLUMNS).to_csv(path, index=False)
        finished = outputs.now() if state in ("complete", "timeout") else None
        told = " ".join(sentences(self.jury.judge(records, dropped)))
        about = {**self.about, "state": state, "finished": finished, "dropped": dropped, "advice": told}
        outputs.write_about(self.directory, about)
        if report:
            build_report(self.directory)
        return results
