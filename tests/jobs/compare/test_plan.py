"""The order of work, from records alone: nothing is trained here."""

from __future__ import annotations

from typing import Any

import pytest

from eckart.errors import InputError
from eckart.jobs.compare.contenders import Contender, _rates, method_names, spaced
from eckart.jobs.compare.outputs import command_line
from eckart.jobs.compare.plan import Plan

RATES = (1e-4, 1e-3, 1e-2)


def plan(*names: str, rates: tuple[float, ...] = RATES, seeds: int = 2, greater: bool = True) -> Plan:
    return Plan([Contender(name, name, rates) for name in ("head-only", *names)], 60, seeds, greater)


def finish(records: dict[str, Any], run: Any, **row: Any) -> None:
    """Pretend a run was done."""
    given = {
        "status": "complete",
        "validation_score": 0.5,
        "validation_loss": 1.0,
        "lr": run.parameters["lr"],
    }
    records[run.id] = {"row": given | row}


def work_off(plan: Plan, score: Any = lambda run: 0.5) -> list[Any]:
    """Every run of a plan in the order in which one worker does them."""
    records: dict[str, Any] = {}
    order = []
    while runs := plan(records):
        order.append(runs[0])
        runs[0].parameters.setdefault("lr", 0.0)  # the floor has none
        finish(records, runs[0], validation_score=score(runs[0]))
    return order


def test_every_method_has_as_many_trials_and_as_many_finals() -> None:
    done = work_off(plan("full", "lora", "bone"))
    for method in ("head-only", "full", "lora", "bone"):
        mine = [run.parameters for run in done if run.parameters["method"] == method]
        assert [p["stage"] for p in mine].count("tune") == 3
        assert [p["seed"] for p in mine if p["stage"] == "final"] == [0, 1]
        assert {p["steps"] for p in mine if p["stage"] == "tune"} == {30}
        assert {p["steps"] for p in mine if p["stage"] == "final"} == {60}
    assert len({run.id for run in done}) == len(done) == 1 + 4 * 5


def test_the_heads_rate_is_tuned_first_and_is_the_same_for_all() -> None:
    best = {"head-only": 1e-2, "lora": 1e-4, "bone": 1e-3}
    done = work_off(
        plan("lora", "bone"), lambda run: float(run.parameters["lr"] == best.get(run.parameters["method"]))
    )
    assert [run.parameters["method"] for run in done[:4]] == ["frozen-floor", *["head-only"] * 3]
    others = [run.parameters for run in done[4:] if run.parameters["method"] != "head-only"]
    assert {p["head_lr"] for p in others} == {1e-2}
    finals = {p["method"]: p["lr"] for p in (run.parameters for run in done) if p["stage"] == "final"}
    assert finals == best


def test_trials_start_in_the_middle_and_go_round_the_methods() -> None:
    done = [run.parameters for run in work_off(plan("lora", "bone")) if run.parameters["stage"] == "tune"]
    rounds = [(p["method"], p["lr"]) for p in done if p["method"] != "head-only"]
    assert rounds == [(m, lr) for lr in (1e-3, 1e-4, 1e-2) for m in ("lora", "bone")]


def test_a_trial_waits_for_the_earlier_ones_of_its_method_only() -> None:
    records: dict[str, Any] = {}
    two = plan("lora", "bone")
    while (run := two(records)[0]).parameters["method"] in ("frozen-floor", "head-only"):
        run.parameters.setdefault("lr", 0.0)
        finish(records, run)
    ready = [run.id for run in two(records) if run.parameters["stage"] == "tune"]
    assert ready == ["tune/lora/lr=0.001", "tune/bone/lr=0.001"]
    finish(records, next(run for run in two(records) if run.id == "tune/bone/lr=0.001"))
    ready = [run.id for run in two(records) if run.parameters["stage"] == "tune"]
    assert ready == ["tune/lora/lr=0.001", "tune/bone/lr=0.0001"]


@pytest.mark.parametrize(("greater", "chosen"), [(True, 1e-2), (False, 1e-4)])
def test_the_best_rate_follows_the_direction_of_the_score(greater: bool, chosen: float) -> None:
    both = plan("lora", greater=greater)
    done = work_off(both, lambda run: run.parameters["lr"])
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
        runs[0].parameters.setdefault("lr", 0.0)
        bad = runs[0].id.startswith("tune/lora")
        finish(records, runs[0], status="diverged" if bad else "complete")
    assert not any(name.startswith("final/lora") for name in records)
    assert sum(name.startswith("final/bone") for name in records) == 2


def test_one_rate_needs_no_tuning() -> None:
    done = work_off(plan("lora", rates=(1e-3,), seeds=1))
    assert [run.id for run in done] == ["floor", "final/head-only/seed=0", "final/lora/seed=0"]
    assert done[2].parameters["head_lr"] == 1e-3


def test_without_a_head_the_frozen_model_is_scored_once() -> None:
    bare = Plan([Contender("head-only", "frozen", ()), Contender("lora", "LoRA", RATES)], 60, 2, False)
    mine = [run.parameters for run in work_off(bare) if run.parameters["method"] == "head-only"]
    assert [(p["stage"], p["steps"]) for p in mine] == [("final", 0)]


def test_adding_seeds_and_methods_adds_runs_and_repeats_none() -> None:
    before = {run.id for run in work_off(plan("lora", seeds=1))}
    after = {run.id for run in work_off(plan("lora", "bone", seeds=3))}
    assert before < after


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
    assert _rates("lora", RATES, None, 1) == (1e-3,)
    assert _rates("lora", RATES, [3e-3, 1e-3], 3) == (1e-3, 3e-3)
    assert len(_rates("full", RATES, [3e-3, 1e-3], 3)) == 2
    assert max(_rates("full", RATES, [3e-3, 1e-3], 3)) < 1e-3
    assert _rates("full", RATES, {"full": [2e-5]}, 3) == (2e-5,)
    for bad in ([], [0.0], [-1e-3], [float("nan")], [float("inf")]):
        with pytest.raises(InputError, match="learning_rates of lora"):
            _rates("lora", RATES, bad, 3)


def test_the_command_repeats_the_call() -> None:
    call = {
        "data": "my data.csv",
        "methods": ["lora", "bone"],
        "budget": "1MB",
        "learning_rates": {"lora": [1e-3, 3e-3]},
    }
    rest = {"limits": {"test": 50}, "quick": True, "overwrite": True, "timeout": 5, "progress": False}
    assert command_line(call | rest | {"storage": "postgresql://me:secret@host/db"}) == (
        "eckart compare --data 'my data.csv' --methods lora,bone --budget 1MB --lr lora=0.001,0.003 "
        "--limit test=50 --quick --storage 'postgresql://me:***@host/db'"
    )
