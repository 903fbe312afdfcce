"""How hard a task is: the fewest dimensions in which training reaches a share of full training (intrinsic dimension).

Training moves in random subspaces of d dimensions, θ = θ₀ + P θ_d, for several d; d_share is where the mean score
crosses the mark, between two d linearly in log d. The mark is the share of full training's score, as in the papers, or
of what full training gains over the trivial predictor. The learning rate is tuned for each d, for the head alone, whose
rate is that of every head, and for full training.

Sources: Li et al., 2018, arXiv:1804.08838; for fine-tuning, Aghajanyan et al., 2020, arXiv:2012.13255.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, Any, Literal, Unpack, get_args

from eckart.arguments import check_least
from eckart.errors import InputError
from eckart.extras import require
from eckart.files import atomic_write, check_apart, check_output, locked, remove_owned
from eckart.jobs.compare.contender import Contender
from eckart.jobs.compare.contenders import MIDDLE_RATES, spaced
from eckart.jobs.compare.names import FULL, HEAD_ONLY, LABELS
from eckart.jobs.compare.presets import EMBEDDED, OWN
from eckart.jobs.earlier import check_same, read_earlier
from eckart.jobs.measure.dimension_runs import RUNS, Arm, Bank
from eckart.quiet import quiet, short_collections
from eckart.tasks.asked import check_asked
from eckart.tasks.options import TaskOptions, beyond_data

if TYPE_CHECKING:
    from eckart.tasks.task import Task

SLUG = "intrinsic-dimension"
DIMENSIONS = (10, 30, 100, 300, 1000, 3000)
Of = Literal["score", "gain"]
ABOUT, TABLE, PICTURE = "dimension.json", "dimension.csv", "dimension.svg"
COLUMNS = ("d", "method", "lr", "seeds", "score", "low", "high", "parameters")


def measure_dimension(
    model: str | None = None,
    data: str | None = None,
    *,
    output: str | Path,
    dimensions: Sequence[int] = DIMENSIONS,
    share: float = 0.9,
    of: Of = "score",
    projection: str = "fastfood",
    structure: str = "global",
    steps: int | None = None,
    seeds: int = 3,
    learning_rates: Sequence[float] | None = None,
    batch_size: int | None = None,
    max_length: int | None = None,
    limits: Mapping[str, int] | None = None,
    overwrite: bool = False,
    on_run: Callable[[int, int], None] | None = None,
    on_task: Callable[[dict[str, Any]], None] | None = None,
    **task_options: Unpack[TaskOptions],
) -> dict[str, Any]:
    """Measure the intrinsic dimension of a task for a model.

    The same call again goes on after the last run that has ended; dimensions and seeds may be added.

    Args:
        model: directory or hub name of a `transformers` model; an embedded one when None.
        data: file, directory or hub name; the embedded docstrings when None.
        output: directory of the results.
        dimensions: d of each subspace, over the weights and biases of the adapted layers; the head trains beside it.
        share: of full training that is to be reached, in (0, 1].
        of: the share is of full training's "score", or of its "gain" over the trivial predictor. A score of which
            less is better has only a gain.
        projection, structure: as `eckart.adapters.IntrinsicDimensionConfig`.
        steps: optimiser steps of a run; tuning runs have half as many.
        seeds: runs of each d on the test split; each has a subspace of its own.
        learning_rates: for the subspaces; the method's own when None.
        batch_size: examples in a step.
        max_length: tokens of an example at most.
        limits: most examples of a split.
        overwrite: discard what is in ``output``.
        on_run: called with the number of runs that have ended and of all.
        on_task: called with `Task.describe`, before anything is trained.
        task_options: what the task is: see `eckart.tasks.options.TaskOptions`.

    Returns:
        What ``dimension.json`` holds: ``dimension``, the d at the mark, None where none of the given reaches it, and
        that of each seed alone in ``by_seed``; ``mark``, ``full``, ``trivial`` and ``head`` (scores); the ``curve``.

    Raises:
        InputError: bad input, with the remedy; nothing was trained.
    """
    check_least(1, steps=steps, seeds=seeds, batch_size=batch_size, max_length=max_length)
    wanted = sorted(set(dimensions))
    if not wanted or wanted[0] < 1:
        raise InputError(f"dimensions is {list(dimensions)}: give one or more, each at least 1")
    if not 0 < share <= 1:
        raise InputError(f"share is {share}: give one above 0 and at most 1, such as 0.9")
    if of not in get_args(Of):
        raise InputError(f"of is {of!r}: give one of {', '.join(get_args(Of))}")
    preset = EMBEDDED if data is None else OWN
    steps, batch_size = steps or preset.steps, batch_size or preset.batch_size
    max_length, directory = max_length or preset.max_length, Path(output)
    inputs = {"--model": model, "--data": data}
    check_apart(directory, inputs)
    if overwrite or not (directory / ABOUT).is_file():
        check_output(directory, overwrite=overwrite, inputs=inputs)
    check_asked(model, data, batch_size, task_options)
    for module in ("pandas", "psutil", "scipy"):
        require(module, extra="compare")

    from eckart.adapters import IntrinsicDimensionConfig
    from eckart.jobs.compare.runs import Runner
    from eckart.tasks.task import load_task

    IntrinsicDimensionConfig(projection=projection, structure=structure)  # type: ignore[arg-type]
    with quiet():
        task = load_task(
            model,
            data,
            max_length=max_length,
            limits=preset.limits(limits),
            seed=0,
            **task_options,
        )
        if of == "score" and not task.greater_is_better:
            raise InputError(f"of='score' with {task.metric}, of which less is better: give of='gain'")
        arms = _arms(task, wanted, projection, structure, learning_rates)
    if on_task is not None:
        on_task(task.describe())
    identity = {
        **{"fingerprint": task.fingerprint, "projection": projection, "structure": structure},
        **{"steps": steps, "batch_size": batch_size, "max_length": max_length},
        "learning_rates": list(arms[-1].contender.learning_rates),
        **beyond_data(task_options),
    }
    with locked(directory):
        _begin(directory, identity, overwrite)
        bank = Bank(directory, Runner(task, batch_size, ""), steps, seeds, on_run or (lambda *_: None))
        with quiet(), short_collections():
            bank.fill(arms)
        found = _found(task, bank, arms, share, of)
        told = {**found, "sentence": sentence(found)}
        _write(directory, {"identity": identity, "task": task.describe(), **told})
    return told


def _arms(
    task: Task,
    dimensions: Sequence[int],
    projection: str,
    structure: str,
    learning_rates: Sequence[float] | None,
) -> list[Arm]:
    """The head alone, full training and each subspace, checked against the model."""
    from eckart.adapters import IntrinsicDimensionConfig, target_shapes

    heads, trials = list(task.head_modules), 3
    rates = tuple(sorted(set(learning_rates or IntrinsicDimensionConfig.learning_rates)))
    if not all(0 < rate < math.inf for rate in rates):
        raise InputError(f"learning_rates is {list(rates)}: give positive numbers")

    def plain(name: str) -> Contender:
        own = spaced(MIDDLE_RATES[name], trials) if heads or name == FULL else ()
        return Contender(name, LABELS[name], own)

    arms = [Arm(plain(HEAD_ONLY), 0), Arm(plain(FULL), None)]
    model, told = task.fresh_model(0), {"projection": projection, "structure": structure}
    for d in dimensions:
        config = IntrinsicDimensionConfig(
            target_modules=task.default_targets,
            modules_to_save=heads or None,
            d=d,
            train_bias=True,
            **told,  # type: ignore[arg-type]
        )
        counts = list(config.tensors(target_shapes(model, config)).values())
        config.dimensions(counts)
        if d > sum(counts):
            raise InputError(
                f"dimensions names {d:,}, and the adapted layers hold {sum(counts):,} numbers: give less"
            )
        arms.append(Arm(Contender(SLUG, f"{d:,} dimensions", rates, config), d))
    return arms


def crossing(dimensions: Sequence[int], scores: Sequence[float], mark: float) -> float | None:
    """The least d at which scores reach a mark, linear in log d since the d before; None where none does.

    Args:
        dimensions: ascending.
        scores: one each, larger is better; NaN reaches nothing.
        mark: to be reached.
    """
    for place, score in enumerate(scores):
        if score >= mark:
            before = scores[place - 1] if place else math.nan
            if not before < mark:
                return float(dimensions[place])
            part = (mark - before) / (score - before)
            return float(dimensions[place - 1] ** (1 - part) * dimensions[place] ** part)
    return None


def _mean(scores: Sequence[float]) -> float:
    """Over those that came through; NaN where none did."""
    known = [score for score in scores if math.isfinite(score)]
    return fmean(known) if known else math.nan


def _found(task: Task, bank: Bank, arms: Sequence[Arm], share: float, of: Of) -> dict[str, Any]:
    """The curve, the mark, and where the curve crosses it."""
    from eckart.tasks.statistics import combined_interval

    scores = {arm.name: bank.finals(arm) for arm in arms}
    full, head = scores[FULL], _mean(scores[HEAD_ONLY])
    trivial = float(task.trivial()[1].mean())
    base = trivial if of == "gain" else 0.0
    marks = [base + share * (score - base) for score in full]
    mark, spaces, sign = _mean(marks), [arm for arm in arms if arm.d], 1 if task.greater_is_better else -1

    def crossed(values: Sequence[float], at: float) -> float | None:
        return crossing([arm.d or 0 for arm in spaces], [sign * value for value in values], sign * at)

    curve = []
    for arm in arms:
        rows = [row for row in bank.finals_of(arm) if row["score"] is not None]
        ends = [[row[name] for row in rows] for name in ("score", "ci_low", "ci_high")]
        low, high = combined_interval(*ends) if rows else (math.nan, math.nan)
        told = (arm.d, arm.contender.name, bank.rate(arm), len(rows), _mean(scores[arm.name]), low, high)
        curve.append(dict(zip(COLUMNS, (*told, bank.parameters(arm)), strict=True)))
    return {
        "metric": task.metric,
        "share": share,
        "of": of,
        "dimension": crossed([_mean(scores[arm.name]) for arm in spaces], mark),
        "by_seed": [
            crossed([scores[arm.name][seed] for arm in spaces], marks[seed]) for seed in range(bank.seeds)
        ],
        "mark": mark,
        "full": _mean(full),
        "head": head,
        "head_reaches": bool(sign * head >= sign * mark),
        "trivial": trivial,
        "curve": curve,
    }


def sentence(found: Mapping[str, Any]) -> str:
    """What was found, as people say it."""
    part = f"{found['share']:.0%} of full training's {'score' if found['of'] == 'score' else 'gain'}"
    if found["head_reaches"]:
        return f"The head alone reaches {part}: the task asks for no dimension of the model."
    if found["dimension"] is None:
        return f"None of the dimensions tried reaches {part}: give larger ones."
    known = [d for d in found["by_seed"] if d is not None]
    spread = f" ({min(known):,.0f} to {max(known):,.0f} by seed)" if len(known) > 1 else ""
    missed = len(found["by_seed"]) - len(known)
    lost = f"; {missed} of {len(found['by_seed'])} seeds alone do not reach it" if missed else ""
    return f"About {found['dimension']:,.0f} dimensions reach {part}{spread}{lost}."


def _begin(directory: Path, identity: Mapping[str, Any], overwrite: bool) -> None:
    """Refuse a directory that holds another measurement, or clear it where that was asked for."""
    if overwrite:
        remove_owned(directory, (ABOUT, RUNS, TABLE, PICTURE))
    if (directory / ABOUT).is_file():
        there = read_earlier(directory / ABOUT, "measurement", lambda about: dict(about["identity"]))
        here = json.loads(json.dumps(identity))
        check_same(directory, "measurement", there, here, {"fingerprint": "model or data have changed"})
        return
    directory.mkdir(parents=True, exist_ok=True)
    with atomic_write(directory / ABOUT) as path:
        path.write_text(json.dumps({"identity": dict(identity)}, indent=2) + "\n", encoding="utf-8")


def _write(directory: Path, found: Mapping[str, Any]) -> None:
    """The result, its table and its picture, each whole."""
    import pandas as pd

    from eckart.jobs.measure.dimension_picture import draw

    with atomic_write(directory / ABOUT) as path:
        path.write_text(json.dumps(plain(found), indent=2) + "\n", encoding="utf-8")
    with atomic_write(directory / TABLE) as path:
        pd.DataFrame(found["curve"], columns=list(COLUMNS)).to_csv(path, index=False)
    with atomic_write(directory / PICTURE) as path:
        path.write_text(draw(found), encoding="utf-8")


def plain(value: Any) -> Any:
    """A value as JSON has it: NaN is null."""
    if isinstance(value, Mapping):
        return {name: plain(item) for name, item in value.items()}
    if isinstance(value, list):
        return [plain(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
