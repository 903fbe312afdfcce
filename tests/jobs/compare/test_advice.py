"""The answer: one of three sentences, never against its own table."""

from __future__ import annotations

import math
import re
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from eckart.jobs.compare.advice import advice, answer, more, sentences
from eckart.jobs.compare.examples import Examples
from eckart.jobs.compare.judgement import Judgement, Terms, judge, look_level
from eckart.jobs.compare.paired import Difference

KINDS = ("Use ", "Any of these ", "Not enough data yet: ")
RATES = (1e-4, 3e-4, 1e-3)
TRAINED = {"full": 20_000_000, "head-only": 0, "trivial": 0}


def study(
    arms: dict[str, float | list[float]],
    *,
    examples: int = 400,
    seeds: int = 3,
    flips: float = 0.02,
    trivial: float | None = 0.5,
    metric: str = "accuracy",
    rates: tuple[float, ...] = RATES,
    rate: float = 3e-4,
    **columns: Any,
) -> tuple[pd.DataFrame, Examples]:
    """Runs of arms of such accuracy; they are right on the same easy examples, but for a few that luck decides."""
    generator = np.random.default_rng(5)
    hard = generator.random(examples)
    rows: list[dict[str, Any]] = []
    scores: dict[str, np.ndarray] = {}
    better = metric != "bits_per_token"
    everyone = dict(arms) | ({} if trivial is None else {"trivial": [trivial]})
    for method, given_ in everyone.items():
        values = given_ if isinstance(given_, list) else [given_] * seeds
        run = {"method": method, "label": method.upper(), "metric": metric, "greater_is_better": better}
        run |= {"budget": "" if method in TRAINED else "0.5%", "status": "complete", "head_parameters": 0}
        run |= {"trainable_parameters": TRAINED.get(method, 100_000), "saved_bytes": 400_000.0}
        run |= {"step_time_ratio": 1.2, "peak_memory_mb": 300.0}
        tuned = [] if method == "trivial" else rates if len(rates) > 1 else []
        for lr in tuned:
            name = f"tune/{method}/{lr:g}"
            rows.append(
                run | {"run_id": name, "stage": "tune", "lr": lr, "validation_score": 0.7, "steps": 30}
            )
        for seed, value in enumerate(values):
            name = f"final/{method}/seed={seed}"
            right = hard < value
            if method != "trivial":
                right = right ^ (generator.random(examples) < flips)
            scores[name] = right.astype(float) if better else 4.0 - 2.0 * right
            score = float(scores[name].mean()) if math.isfinite(value) else math.nan
            final = {"run_id": name, "stage": "final", "seed": seed, "score": score}
            final |= {"ci_low": score - 0.04, "ci_high": score + 0.04}
            final |= {
                "lr": math.nan if method == "trivial" else rate,
                "steps": 0 if method == "trivial" else 60,
            }
            final |= {} if math.isfinite(value) else {"status": "diverged"}
            rows.append(run | final | columns)
    return pd.DataFrame(rows), Examples(scores)


def said(*args: Any, terms: Terms | None = None, **given_: Any) -> list[str]:
    return sentences(judge(*study(*args, **given_), terms))


BASE = {"head-only": 0.60, "full": 0.72, "lora": 0.72}


def test_a_clear_winner_is_used() -> None:
    told = said(BASE | {"svfit": 0.82, "nola": 0.75})
    assert re.fullmatch(
        r"Use SVFIT: accuracy 8\d\.\d%, ahead of the 3 others, of NOLA by \d\.\d points "
        r"\(interval \d\.\d to 1?\d\.\d\)\.",
        told[0],
    )
    assert any(s.startswith("SVFIT is ahead of LORA by ") for s in told)
    assert "The head alone is behind all 3 methods." in told
    assert any("Full fine-tuning" in s and "200 times as many parameters" in s for s in told)


def test_examples_tell_apart_what_single_scores_do_not() -> None:
    results, examples = study(BASE | {"svfit": 0.80, "nola": 0.76})
    assert advice(results, examples).startswith("Use SVFIT")
    assert not advice(results).startswith("Use")


def test_what_cannot_be_told_apart_is_any_of_these_and_the_cheapest_is_named() -> None:
    results, examples = study(BASE | {"svfit": 0.80, "nola": 0.80}, examples=2000)
    results["saved_bytes"] = results["method"].map({"svfit": 9_000, "nola": 5_000}).fillna(1e6)
    results["step_time_ratio"] = results["method"].map({"svfit": 1.04, "nola": 1.2}).fillna(2)
    told = sentences(judge(results, examples))
    assert re.fullmatch(
        r"Any of these 2: \w+ and \w+; NOLA is the cheapest of them \(saved 5\.00 kB\)\.", told[0]
    )
    assert re.fullmatch(r"Ruled out, behind \w+: LORA and HEAD-ONLY\.", told[1])
    other = answer(judge(results, examples, Terms(cost="step-time")))
    assert "SVFIT is the cheapest of them (step time 1.04×)" in other


def test_few_examples_are_not_enough_and_what_would_be_is_said() -> None:
    told = said(BASE | {"svfit": 0.76, "nola": 0.74}, examples=60, flips=0.1)[0]
    assert told.startswith("Not enough data yet: ")
    assert re.search(r"by up to \d+\.\d points; about .* (seeds?|examples) would settle it\.", told)


@pytest.mark.parametrize(
    ("given_", "reason"),
    [
        ({"rates": (3e-4,)}, "its learning rate is not tuned"),
        ({"rate": 1e-3}, "its best learning rate is the largest tried; a run of its larger learning rates"),
        ({"rate": 1e-4}, "its best learning rate is the smallest tried"),
        ({"seeds": 1}, "it was trained with a single seed; about 1 more seed would settle it"),
    ],
)
def test_use_is_not_said_of_what_is_not_proven(given_: dict[str, Any], reason: str) -> None:
    told = said(BASE | {"svfit": 0.85}, **given_)
    assert told[0].startswith("Not enough data yet: SVFIT leads")
    assert reason in told[0]


def test_a_winner_that_lost_a_run_is_not_used() -> None:
    told = said(BASE | {"svfit": [0.85, 0.86, math.nan]})[0]
    assert "SVFIT leads" in told and "1 of its 3 runs on the test split diverged or failed" in told


def test_the_head_alone_can_be_the_answer() -> None:
    told = said(BASE | {"svfit": 0.65, "lora": 0.66, "head-only": 0.75, "full": 0.7})
    assert told[0].startswith("Use HEAD-ONLY: ")
    assert (
        "The head alone is ahead of SVFIT and LORA." in told
        or "The head alone is ahead of LORA and SVFIT." in told
    )


def test_full_fine_tuning_is_no_candidate_and_is_judged_against_every_arm() -> None:
    told = said(BASE | {"svfit": 0.85, "nola": 0.78, "full": 0.85})
    assert told[0].startswith("Use SVFIT")
    full = next(s for s in told if s.startswith("Full fine-tuning"))
    assert "cannot be told apart from SVFIT" in full
    assert "ahead of NOLA and LORA" in full


def test_collapse() -> None:
    """95 % of one label, and every arm says it."""
    told = said({"head-only": 0.95, "full": 0.95, "lora": 0.95, "svfit": 0.95}, flips=0.0, trivial=0.95)
    assert told[0].startswith("Not enough data yet: no method does better than TRIVIAL; about 120 steps")
    results, examples = study({"head-only": 0.95, "lora": 0.94}, flips=0.0, trivial=0.95)
    results.loc[results["method"] == "head-only", "steps"] = 0
    assert "about 120 steps a run" in answer(judge(results, examples)), (
        "nothing was trained in the best of them"
    )
    one = said(BASE | {"svfit": 0.85, "nola": 0.5})
    assert one[0].startswith("Use SVFIT")
    assert "Collapsed, since no better than TRIVIAL: NOLA." in one


def test_limits_take_candidates_out() -> None:
    results, examples = study(BASE | {"svfit": 0.88, "nola": 0.82})
    results["saved_bytes"] = results["method"].map({"svfit": 2e6}).fillna(1e5)
    plain = answer(judge(results, examples))
    told = sentences(judge(results, examples, Terms(at_most={"bytes": 1e6})))
    assert plain.startswith("Use SVFIT") and told[0].startswith("Use NOLA")
    assert "Over your limits: SVFIT (--max-bytes)." in told
    nobody = answer(judge(results, examples, Terms(at_most={"memory": 1.0})))
    assert nobody.startswith("Not enough data yet: no method keeps the limits")


def test_lower_is_better() -> None:
    results, examples = study(
        {"lora": 0.6, "bone": 0.8, "full": 0.9, "head-only": 0.4}, metric="bits_per_token"
    )
    judgement = judge(results, examples)
    assert re.match(
        r"Use BONE: bits per token 2\.\d+, ahead of the 2 others, of LORA by 0\.\d+ bits", answer(judgement)
    )
    board = judgement.board.set_index("method")
    assert board.loc["lora", "to_best"] > 0 > board.loc["bone", "to_lora"]
    assert list(judgement.board["method"])[:2] == ["full", "bone"]


def test_a_study_under_way_says_what_is_missing() -> None:
    results, examples = study(BASE | {"svfit": 0.85})
    tuned = results[(results["stage"] == "tune") & (results["method"] == "lora")]
    waiting = pd.concat(
        [results, tuned.assign(method="nola", label="NOLA", run_id=[f"n{i}" for i in range(3)])]
    )
    told = answer(judge(waiting, examples))
    assert told.startswith("Not enough data yet: SVFIT leads") and "NOLA is still to be tested" in told
    dropped = sentences(judge(waiting, examples, Terms(dropped={"nola": "place 5 of 6"})))
    tested = len(judge(waiting, examples).candidates)
    assert dropped[0].startswith(f"Use SVFIT, of the {tested} methods tested: ")
    assert "Dropped in tuning, and not tested: NOLA; it may be as good." in dropped


def test_nothing_finished_and_all_failed() -> None:
    results, _ = study(BASE)
    assert advice(results.iloc[:0]) == "Not enough data yet: no run has finished."
    failed = results[results["stage"] == "final"].assign(status="failed", score=math.nan)
    assert "no method at the budget has a test score" in advice(failed)


def test_a_study_without_scores_of_examples_still_has_an_answer() -> None:
    results, _ = study(BASE | {"svfit": 0.95}, trivial=None)
    told = answer(judge(results.drop(columns=["steps"])))
    assert told.startswith("Use SVFIT")


def test_more_says_seeds_or_examples() -> None:
    few_seeds = Difference(0.02, 3, 0.00001, 0.001, 20.0)
    assert re.fullmatch(r"about \d+ more seeds?", more(few_seeds, 0.0))
    few_examples = Difference(0.02, 3, 0.001, 0.00001, 20.0)
    assert re.fullmatch(r"about \d+(\.\d+)? times the test examples", more(few_examples, 0.0))
    both = Difference(0.001, 3, 0.001, 0.001, 20.0)
    assert more(both, 0.0).endswith("times the seeds and test examples")


def test_looks_share_the_level() -> None:
    assert look_level(0) == look_level(1) == 0.05
    assert look_level(4) == 0.0182
    assert look_level(100) == 0.0005


def consistent(judgement: Judgement) -> None:
    """What the sentences say is what the board's intervals show."""
    board, said_ = judgement.board.set_index("label"), sentences(judgement)
    assert said_[0].startswith(KINDS)
    if judgement.best is None:
        return
    best = judgement.rows[judgement.best]
    away = (board["to_best_low"] > 0) | (board["to_best_high"] < 0)
    left = {row.label for row in judgement.left}
    for label, row in board.iterrows():
        if label in {r.label for r in judgement.candidates} - {best.label}:
            assert (label not in left) == bool(away[label]) == row["ruled_out"]
    if said_[0].startswith("Use "):
        assert left == {best.label} and best.tuned and not best.edge and best.seeds >= 2
        assert re.match(rf"Use {re.escape(best.label)}(, of the \d+ methods tested)?: ", said_[0])
    if said_[0].startswith("Any of these "):
        assert said_[0].startswith(f"Any of these {len(left)}: ")
        assert all(label in said_[0] for label in left)
    for s in said_:
        if s.startswith("Ruled out"):
            assert not any(f" {label}." in s or f" {label}," in s for label in left - {best.label})


@given(
    st.lists(st.floats(0.45, 0.9), min_size=2, max_size=5),
    st.integers(1, 3),
    st.sampled_from([40, 300]),
    st.sampled_from([0.01, 0.15]),
    st.booleans(),
)
@settings(max_examples=12, deadline=None)
def test_the_sentences_never_contradict_the_table(
    values: list[float], seeds: int, examples: int, flips: float, lower: bool
) -> None:
    arms: dict[str, Any] = {"head-only": 0.6, "full": 0.7} | {f"m{i}": v for i, v in enumerate(values)}
    metric = "bits_per_token" if lower else "accuracy"
    results, scores = study(arms, seeds=seeds, examples=examples, flips=flips, metric=metric)
    consistent(judge(results, scores))
    consistent(judge(results))
