"""The order of work, from records alone: nothing is trained here."""

from __future__ import annotations

import math
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest

from eckart.errors import InputError
from eckart.jobs.compare.contender import Contender
from eckart.jobs.compare.contenders import rates_of, spaced
from eckart.jobs.compare.names import method_names
from eckart.jobs.compare.outputs import command_line
from eckart.jobs.compare.plan import EXTENSIONS, FEW, Plan
from eckart.jobs.compare.presets import limits_of_use, seconds

RATES = (1e-4, 1e-3, 1e-2)
BEST = {"head-only": 1e-3, "full": 1e-3}


class Judge:
    """Rules out, after so many seeds, the methods it was told to."""

    def __init__(self, out: dict[int, set[str]] | None = None, settled_after: int = 99) -> None:
        self.out, self.settled_after, self.seen = out or {}, settled_after, []

    def __call__(self, records: Any) -> Any:
        seeds = {r["row"]["seed"] for r in records.values() if r["row"]["stage"] == "final"}
        self.seen.append(sorted(seeds))
        gone = {name: "behind" for count, names in self.out.items() if count <= len(seeds) for name in names}
        return SimpleNamespace(reasons=lambda: gone, settled=len(seeds) >= self.settled_after)


def plan(
    *names: str,
    rates: tuple[float, ...] = RATES,
    seeds: int = 2,
    greater: bool = True,
    judge: Any = None,
    extend: bool = True,
) -> Plan:
    people = [Contender(name, name, rates) for name in ("head-only", *names)]
    return Plan(people, 60, seeds, greater, judge or Judge(), extend)


def finish(records: dict[str, Any], run: Any, **row: Any) -> None:
    """Pretend a run was done."""
    known = {"lr": None} | dict(run.parameters) | {"run_id": run.id, "status": "complete"}
    records[run.id] = {"row": known | {"validation_score": 0.5, "validation_loss": 1.0, "seconds": 1.0} | row}


def peaked(best: dict[str, float], heights: dict[str, float] | None = None) -> Any:
    """A validation score that is largest at each method's best rate."""
    heights = heights or {}

    def score(run: Any) -> float:
        method = run.parameters["method"]
        rate = run.parameters.get("lr") or 1.0
        away = abs(math.log10(rate / best.get(method, 1e-3)))
        return heights.get(method, 0.5) - 0.1 * away

    return score


def work_off(plan: Plan, score: Any = None, records: dict[str, Any] | None = None) -> list[Any]:
    """Every run of a plan in the order in which one worker does them."""
    records = {} if records is None else records
    score = score or peaked(BEST)
    order = []
    while runs := plan(records):
        order.append(runs[0])
        finish(records, runs[0], validation_score=score(runs[0]))
    return order


def stages(done: list[Any], method: str) -> list[tuple[str, int, Any]]:
    mine = (run.parameters for run in done if run.parameters["method"] == method)
    return [(p["stage"], p["steps"], p["lr"] if p["stage"] == "tune" else p["seed"]) for p in mine]


def test_every_method_is_tuned_in_two_rounds_and_then_tested() -> None:
    done = work_off(plan("full", "lora", "bone"))
    for method in ("head-only", "full", "lora", "bone"):
        tuned = [("tune", 30, lr) for lr in (1e-3, 1e-4, 1e-2)]
        assert stages(done, method) == [*tuned, ("final", 60, 0), ("final", 60, 1)]
    assert len({run.id for run in done}) == len(done) == 1 + 4 * 5
    order = [
        (r.parameters["method"], r.parameters["lr"]) for r in done[1:] if r.parameters["stage"] == "tune"
    ]
    assert order[:3] == [("head-only", lr) for lr in (1e-3, 1e-4, 1e-2)]
    assert order[3:7] == [("full", 1e-3), ("lora", 1e-3), ("bone", 1e-3), ("full", 1e-4)]


def test_the_heads_rate_is_tuned_first_and_is_the_same_for_all() -> None:
    best = {"head-only": 1e-2, "lora": 1e-4, "bone": 1e-3}
    done = work_off(plan("lora", "bone", extend=False), peaked(best))
    assert [run.parameters["method"] for run in done[:6]] == [
        "frozen-floor",
        *["head-only"] * 3,
        "lora",
        "bone",
    ]
    others = [run.parameters for run in done[4:] if run.parameters["method"] != "head-only"]
    assert {p["head_lr"] for p in others} == {1e-2}
    assert {p["method"]: p["lr"] for p in (r.parameters for r in done) if p["stage"] == "final"} == best


def test_the_best_rate_does_not_stay_at_an_end() -> None:
    done = work_off(plan("lora"), peaked({"lora": 8e-2}))
    tried = [lr for stage, _, lr in stages(done, "lora") if stage == "tune"]
    assert tried == [1e-3, 1e-4, 1e-2, 3e-2, 9e-2, 0.27]
    assert len(tried) - 3 == EXTENSIONS
    final = next(r.parameters["lr"] for r in done if r.id == "final/lora/seed=0")
    assert final == 9e-2
    below = work_off(plan("lora"), peaked({"lora": 4e-5}))
    assert [lr for stage, _, lr in stages(below, "lora") if stage == "tune"][3:] == [3.3e-5, 1.1e-5]
    further = work_off(plan("lora"), peaked({"lora": 1e-9}))
    assert len(stages(further, "lora")) == 3 + EXTENSIONS + 2
    kept = work_off(plan("lora", extend=False), peaked({"lora": 8e-2}))
    assert max(r.parameters["lr"] for r in kept if r.parameters.get("lr")) == 1e-2


def test_thirds_go_on_and_the_baselines_always_do() -> None:
    names = [f"m{i:02d}" for i in range(15)]
    low = {"lora": 0.1, "full": 0.1, "head-only": 0.1}
    heights = {name: 0.9 - i / 100 for i, name in enumerate(names)} | low
    records: dict[str, Any] = {}
    race = plan("full", "lora", *names)
    done = work_off(race, peaked(BEST | {"m05": 1e-4}, heights | {"m05": 0.96}), records)
    more = {r.parameters["method"] for r in done if r.parameters.get("lr") == 1e-2}
    tested = [r.parameters["method"] for r in done if r.id.startswith("final") and r.id.endswith("seed=0")]
    assert more == {"head-only", "full", "lora", *names[:6]}
    assert tested == ["head-only", "full", "m05", *names[:2], "lora"], "by the best rate, not the middle one"
    told = race.dropped(records)
    assert set(told) == set(names[2:]) - {"m05"}
    first, second = "at its middle learning rate, in runs of 30 steps: ", "at its best, in runs of 30 steps: "
    assert told["m14"] == first + "place 15 of 16 on the validation split, of which 6 went on"
    assert told["m04"] == second + "place 6 of 7 on the validation split, of which 3 went on"
    few = work_off(plan("lora", *names[: FEW - 1]))
    assert {r.parameters["method"] for r in few if r.parameters["stage"] == "final"} >= set(names[: FEW - 1])


def test_who_diverges_at_its_middle_rate_is_the_last_and_goes_on_only_among_few() -> None:
    def records_of(race: Plan) -> dict[str, Any]:
        records: dict[str, Any] = {}
        while runs := race(records):
            bad = runs[0].id.startswith("tune/m0/lr=0.001/")
            finish(
                records,
                runs[0],
                status="diverged" if bad else "complete",
                validation_score=0.9 if bad else 0.5,
            )
        return records

    among_few = records_of(plan("lora", "m0", "m1"))
    assert "final/m0/seed=1" in among_few
    race = plan("lora", "m0", "m1", "m2", "m3")
    among_many = records_of(race)
    assert not any(name.startswith(("final/m0", "tune/m0/lr=0.01")) for name in among_many)
    assert race.dropped(among_many)["m0"].endswith("in runs of 30 steps: no run came through")


@pytest.mark.parametrize(("seconds", "stays"), [(10.0, True), (10.1, False)])
def test_who_is_too_slow_for_the_time_leaves_after_the_first_run(seconds: float, stays: bool) -> None:
    def worked_off(race: Plan) -> dict[str, Any]:
        records: dict[str, Any] = {}
        while runs := race(records):
            slow = runs[0].parameters["method"] in ("lora", "full", "bone")
            finish(records, runs[0], seconds=seconds if slow else 1.0)
        return records

    race = replace(plan("lora", "full", "bone", "svfit"), time=600.0)  # a run of 60 steps takes twice as long
    records = worked_off(race)
    assert ("final/bone/seed=0" in records, "tune/bone/lr=0.01/steps=30" in records) == (stays, stays)
    assert {"final/lora/seed=0", "final/full/seed=0", "final/svfit/seed=0"} <= set(records)
    words = "after its first run: one of 60 steps would take some 20 s of the 600 s there are: give it more --time"
    assert race.dropped(records) == ({} if stays else {"bone": words})
    assert "final/bone/seed=0" in worked_off(replace(race, time=None)), "all the time it needs"


def test_seeds_go_to_those_that_are_not_ruled_out() -> None:
    judge = Judge({2: {"bone"}, 3: {"lora"}}, settled_after=4)
    records: dict[str, Any] = {}
    race = plan("lora", "bone", "svfit", seeds=6, judge=judge)
    done = work_off(race, records=records)
    finals = [run.id for run in done if run.id.startswith("final")]
    assert [f for f in finals if "bone" in f] == [f"final/bone/seed={s}" for s in range(2)]
    assert [f for f in finals if "lora" in f] == [f"final/lora/seed={s}" for s in range(3)]
    assert [f for f in finals if "svfit" in f] == [f"final/svfit/seed={s}" for s in range(4)]
    assert race.dropped(records) == {"bone": "after 2 seeds: behind", "lora": "after 3 seeds: behind"}
    assert [0] not in judge.seen, "nothing is judged by one seed"


def test_rounds_do_not_depend_on_the_order_in_which_their_runs_end() -> None:
    judge = Judge({2: {"bone"}})
    race = plan("lora", "bone", seeds=3, judge=judge)
    records: dict[str, Any] = {}
    while runs := race(records):  # a worker that always takes the last
        finish(records, runs[-1], validation_score=peaked(BEST)(runs[-1]))
    assert set(records) == {run.id for run in work_off(race)}


def test_a_race_goes_on_where_it_was() -> None:
    race = plan("full", "lora", "bone", seeds=3, judge=Judge({2: {"bone"}}))
    whole = work_off(race)
    for cut in range(0, len(whole), 5):
        records: dict[str, Any] = {}
        for run in whole[:cut]:
            finish(records, run, validation_score=peaked(BEST)(run))
        assert [run.id for run in work_off(race, records=records)] == [run.id for run in whole[cut:]]


@pytest.mark.parametrize(("greater", "chosen"), [(True, 1e-2), (False, 1e-4)])
def test_the_best_rate_follows_the_direction_of_the_score(greater: bool, chosen: float) -> None:
    both = plan("lora", greater=greater, extend=False)
    done = work_off(both, lambda run: run.parameters.get("lr"))
    assert {r.parameters["lr"] for r in done if r.id.startswith("final/lora")} == {chosen}


def test_a_tie_goes_to_the_lower_loss_then_to_the_smaller_rate() -> None:
    rows = [
        {"validation_score": 0.7, "validation_loss": 0.9, "lr": 1e-3},
        {"validation_score": 0.7, "validation_loss": 0.8, "lr": 1e-2},
        {"validation_score": 0.7, "validation_loss": 0.8, "lr": 1e-4},
    ]
    assert [row["lr"] for row in sorted(rows, key=plan().rank)] == [1e-4, 1e-2, 1e-3]


def test_a_method_whose_trials_all_fail_has_no_final_run_and_the_others_go_on() -> None:
    records: dict[str, Any] = {}
    two = plan("lora", "bone")
    while runs := two(records):
        bad = runs[0].id.startswith("tune/lora")
        finish(records, runs[0], status="diverged" if bad else "complete")
    assert not any(name.startswith("final/lora") for name in records)
    assert sum(name.startswith("final/bone") for name in records) == 2


def test_one_rate_needs_no_tuning() -> None:
    done = work_off(plan("lora", rates=(1e-3,), seeds=1))
    assert [run.id for run in done] == ["floor", "final/head-only/seed=0", "final/lora/seed=0"]
    assert done[2].parameters["head_lr"] == 1e-3


def test_without_a_head_the_frozen_model_is_scored_once() -> None:
    people = [Contender("head-only", "frozen", ()), Contender("lora", "LoRA", RATES)]
    bare = replace(plan(greater=False), contenders=people)
    mine = [run.parameters for run in work_off(bare) if run.parameters["method"] == "head-only"]
    assert [(p["stage"], p["steps"]) for p in mine] == [("final", 0)]


def test_adding_seeds_adds_runs_and_repeats_none() -> None:
    before = {run.id for run in work_off(plan("lora", seeds=1))}
    after = {run.id for run in work_off(plan("lora", seeds=3))}
    assert before < after


def test_times_and_limits() -> None:
    assert [seconds(text) for text in ("90s", "10m", "1.5 h", "2min", 30, "45")] == [
        90,
        600,
        5400,
        120,
        30,
        45,
    ]
    assert limits_of_use("4GB", "1.5MB", "2x") == {"memory": 4000, "bytes": 1.5e6, "step-time": 2}
    assert limits_of_use(None, None, 1.25) == {"step-time": 1.25}
    for call in (lambda: seconds("soon"), lambda: seconds("0s"), lambda: seconds("-1m")):
        with pytest.raises(InputError, match="give one such as 90s, 10m or 2h"):
            call()
    with pytest.raises(InputError, match="max_memory is '4 stones': give a size"):
        limits_of_use("4 stones", None, None)
    with pytest.raises(InputError, match="max_step_time is '2s'"):
        limits_of_use(None, None, "2s")


def test_baselines_are_always_there() -> None:
    assert method_names("randlora")[0] == ["head-only", "full", "lora", "randlora"]
    assert method_names(["full", "randlora"])[1] == {"full", "randlora"}
    assert set(method_names("all")[0]) >= {"head-only", "full", "lora", "randlora"}


@pytest.mark.parametrize(
    ("given", "words"), [("", "methods is empty"), ("lora,radnlora", "did you mean 'randlora'")]
)
def test_bad_method_names(given: str, words: str) -> None:
    with pytest.raises(InputError, match=words):
        method_names(given)


def test_learning_rates() -> None:
    assert spaced(1e-3, 3) == (0.00033, 1e-3, 3e-3)
    assert rates_of("lora", RATES, None, 1) == (1e-3,)
    assert rates_of("lora", RATES, [3e-3, 1e-3], 3) == (1e-3, 3e-3)
    assert len(rates_of("full", RATES, [3e-3, 1e-3], 3)) == 2
    assert max(rates_of("full", RATES, [3e-3, 1e-3], 3)) < 1e-3
    assert rates_of("full", RATES, {"full": [2e-5]}, 3) == (2e-5,)
    for bad in ([], [0.0], [-1e-3], [float("nan")], [float("inf")]):
        with pytest.raises(InputError, match="learning_rates of lora"):
            rates_of("lora", RATES, bad, 3)


def test_the_command_repeats_the_call() -> None:
    call = {
        "data": "my data.csv",
        "methods": ["lora", "bone"],
        "budget": "1MB",
        "learning_rates": {"lora": [1e-3, 3e-3]},
    }
    rest = {"limits": {"test": 50}, "quick": True, "overwrite": True, "time": "5m", "progress": False}
    assert command_line(call | rest | {"storage": "postgresql://me:secret@host/db"}) == (
        "eckart compare --data 'my data.csv' --methods lora,bone --budget 1MB --lr lora=0.001,0.003 "
        "--limit test=50 --quick --time 5m --storage 'postgresql://me:***@host/db'"
    )
