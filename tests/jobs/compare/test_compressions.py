"""Comparisons of compressions: who takes part, what a run records, and what the answer says of the dense model."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from test_real_tasks import prose, sentences
from tiny_models import save_bert, save_gpt2

import eckart
from eckart.compression import report
from eckart.errors import InputError
from eckart.jobs.compare.advice import sentences as told
from eckart.jobs.compare.compressed import TURNS, Compressed, Maestro, relative_time
from eckart.jobs.compare.compression import compare_compression
from eckart.jobs.compare.examples import read_examples
from eckart.jobs.compare.judgement import judge
from eckart.jobs.compare.reading import read_study, read_terms
from eckart.layers.ordered_dropout import OrderedDropout, maestro_layers
from eckart.tasks.scoring import evaluate
from eckart.tasks.smaller import calibration_batches
from eckart.tasks.task import load_task
from eckart.tasks.trainer import Recipe

RECIPE = Recipe(steps=3, batch_size=4, learning_rate=1e-2, head_learning_rate=1e-2)
SMALL: dict[str, Any] = {"batch_size": 4, "max_length": 16, "calibration": 12, "progress": False}


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny language model and text."""
    place = tmp_path_factory.mktemp("language")
    save_gpt2(place / "model")
    prose(place)
    return place


@pytest.fixture(scope="module")
def compared(place: Path) -> pd.DataFrame:
    """All methods at three tenths less, nothing healed."""
    torch.set_num_threads(1)
    return compare_compression(
        str(place / "model"), str(place / "data.txt"), ratio=0.3, output=place / "out", **SMALL
    )


def final(results: pd.DataFrame) -> pd.DataFrame:
    return results[results["stage"] == "final"].set_index("method")


def test_fewer_examples_than_the_statistics_are_to_see_are_told(place: Path, tmp_path: Path) -> None:
    def stop(task: dict[str, Any]) -> None:
        raise KeyboardInterrupt(task["notes"])

    files = str(place / "model"), str(place / "data.txt")
    options = {**SMALL, "methods": ["svd"], "limits": {"train": 11}}
    with pytest.raises(KeyboardInterrupt, match="calibration sees all 11 training examples, 12 were asked"):
        compare_compression(*files, ratio=0.3, output=tmp_path / "out", on_task=stop, **options)


def test_every_method_that_fits_is_scored_beside_the_dense_model(place: Path, compared: pd.DataFrame) -> None:
    rows = final(compared)
    failed = rows[rows["status"] == "failed"]
    assert set(failed.index) == {"modegpt", "trp", "maestro"} and (failed["error"] != "").all()
    assert failed.loc["maestro", "error"] == "its ranks are put in order by training: give steps"
    done = rows[rows["status"] == "complete"]
    assert {"dense", "trivial", "svd", "whitened-svd", "lord", "welore", "afm", "pela"} == set(done.index)
    assert (done.drop("trivial")["steps"] == 0).all() and len(compared[compared["stage"] == "tune"]) == 0
    task = load_task(str(place / "model"), str(place / "data.txt"), max_length=16)
    plain = evaluate(task.fresh_model(0), task, task.test, 8)
    assert done.loc["dense", "score"] == pytest.approx(plain.score, rel=1e-5)
    size = sum(4 * p.numel() for p in task.fresh_model(0).parameters())
    small = done.drop(["trivial", "dense"])
    assert done.loc["dense", "saved_bytes"] == size and (small["saved_bytes"] < size).all()
    assert (small[["forward_ratio", "generation_ratio", "prepare_seconds"]] > 0).all().all()
    assert (done["trainable_parameters"] == 0).all()
    assert set(small["budget"]) == {"0.3 of the layers removed"} and done.loc["dense", "budget"] == ""


def test_the_dense_model_is_no_candidate_and_every_method_is_held_against_it(
    place: Path, compared: pd.DataFrame
) -> None:
    terms = read_terms(read_study(place / "out" / "compare.json"))
    judgement = judge(compared, read_examples(place / "out" / "examples.parquet"), terms)
    rows = judgement.rows
    assert "dense" not in {row.method for row in judgement.candidates}
    assert {rows[place].method for place in judgement.against["dense"]} == {
        row.method for row in judgement.candidates
    }
    said = told(judgement)
    assert any(sentence.startswith("The dense model ") for sentence in said)
    assert not any("seed" in sentence or "Not compared with" in sentence for sentence in said)
    page = (place / "out" / "report.html").read_text("utf-8")
    assert "To the dense model" in page and "To LoRA" not in page and ">Generation<" in page


def test_a_run_is_what_compress_makes(place: Path) -> None:
    task = load_task(str(place / "model"), str(place / "data.txt"), max_length=16)
    contender = Compressed("svd", "SVD", (), ratio=0.3, calibration=12, batch_size=4)
    mine = contender.prepare(task.fresh_model(0), task, 0)
    theirs = eckart.compress(
        task.fresh_model(0), "svd", ratio=0.3, calibration=calibration_batches(task, 12, 4)
    )
    for name, tensor in theirs.state_dict().items():
        torch.testing.assert_close(mine.state_dict()[name], tensor)
    assert not any(p.requires_grad for p in mine.parameters())
    healed = Compressed("svd", "SVD", (1e-3,), ratio=0.3, calibration=12, batch_size=4)
    small = healed.prepare(task.fresh_model(0), task, 0)
    found = report(small)
    assert found is not None
    changed = [row.layer for row in found.rows if row.rank is not None]
    free = {name for name, p in small.named_parameters() if p.requires_grad}
    assert changed and all(any(name.startswith(layer) for name in free) for layer in changed)
    assert not any("wte" in name for name in free)


def test_healing_is_tuned_and_repeated_by_seeds(tmp_path: Path, place: Path) -> None:
    rates = [1e-3, 3e-3]
    results = compare_compression(
        str(place / "model"),
        str(place / "data.txt"),
        methods="svd",
        budget="90%",
        steps=2,
        seeds=2,
        learning_rates=rates,
        output=tmp_path / "out",
        **SMALL,
    )
    tuned = results[results["stage"] == "tune"]
    assert sorted(tuned[tuned["method"] == "svd"]["lr"]) == rates and set(tuned["steps"]) == {1}
    rows = results[(results["stage"] == "final") & (results["method"] == "svd")]
    assert list(rows["seed"]) == [0, 1] and set(rows["steps"]) == {2}
    assert (rows["trainable_parameters"] > 0).all() and rows["budget"].eq("90% of the model").all()
    dense = final(results).loc["dense"]
    assert (dense["steps"] == 2).all() and (rows["saved_bytes"] < dense["saved_bytes"].iloc[0]).all()


@pytest.mark.parametrize("size", [{"ratio": 0.3}, {"budget": "85%"}])
def test_maestro_trains_ordered_ranks_and_is_cut_to_the_size_of_the_others(
    tmp_path: Path, size: dict[str, Any]
) -> None:
    model, data = str(save_bert(tmp_path / "model")), str(sentences(tmp_path))
    results = compare_compression(
        model,
        data,
        methods="svd,maestro",
        steps=3,
        seeds=1,
        learning_rates=[1e-2],
        output=tmp_path / "out",
        **size,
        **SMALL,
    )
    rows = final(results)
    assert (rows["status"] == "complete").all(), list(rows["error"])
    ordered, svd, dense = (rows.loc[name] for name in ("maestro", "svd", "dense"))
    assert ordered["saved_bytes"] == pytest.approx(svd["saved_bytes"], rel=0.05)
    assert ordered["saved_bytes"] < dense["saved_bytes"]
    task = load_task(model, data, max_length=16)
    contender = Maestro("maestro", "Maestro", (1e-2,), ratio=0.3)
    ready = contender.prepare(task.fresh_model(0), task, 0)
    assert {type(rule).__mro__[1] for rule in contender.rules(task, RECIPE)} == {OrderedDropout}
    before = sum(layer.importance().numel() for layer in maestro_layers(ready).values())
    small = contender.finish(ready, task, 0)
    assert 0 < sum(contender.ranks(small).values()) < before
    assert not any(name.startswith("classifier") for name in contender.ranks(ready))


def test_a_new_head_asks_for_steps(tmp_path: Path) -> None:
    model, data = str(save_bert(tmp_path / "model")), str(sentences(tmp_path))
    with pytest.raises(InputError, match=r"steps is 0, and the head of this task \(classifier"):
        compare_compression(model, data, output=tmp_path / "out", **SMALL)
    assert not (tmp_path / "out").exists()
    results = compare_compression(
        model,
        data,
        methods=["svd"],
        steps=2,
        seeds=1,
        learning_rates=[1e-3],
        output=tmp_path / "out",
        **SMALL,
    )
    row = final(results).loc["svd"]
    assert row["status"] == "complete" and row["head_parameters"] > 0
    assert row["generation_ratio"] is None or pd.isna(row["generation_ratio"])


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"ratio": 0.2, "budget": "70%"}, "both given"),
        ({"ratio": 1.0}, "ratio is 1.0"),
        ({"ratio": 0.0}, "ratio is 0.0"),
        ({"ratio": float("nan")}, "ratio is nan"),
        ({"methods": ""}, "methods is empty"),
        ({"methods": "svd,lora"}, "methods names 'lora'"),
        ({"methods": "trp"}, "trp cannot take part: .*Conv2d"),
        ({"methods": "maestro"}, "maestro cannot take part: .*give steps"),
        ({"methods": "loram"}, "loram cannot take part: .*eckart compare --methods loram:0.5"),
        ({"budget": "1%"}, "budget '1%'"),
        ({"budget": "much"}, "budget 'much'"),
        ({"learning_rates": [1e-3]}, "learning_rates without steps"),
        ({"seeds": 2}, "seeds without steps"),
        ({"steps": -1}, "steps is -1"),
        ({"calibration": 0}, "calibration is 0"),
        ({"max_bytes": "none"}, "max_bytes"),
        ({"time": "soon"}, "time is 'soon'"),
        ({"steps": 2, "learning_rates": {"lora": [1e-3]}}, "learning_rates names 'lora'"),
    ],
)
def test_bad_input_is_refused_before_anything_is_written(
    place: Path, tmp_path: Path, options: dict[str, Any], words: str
) -> None:
    with pytest.raises(InputError, match=words):
        compare_compression(
            str(place / "model"),
            str(place / "data.txt"),
            output=tmp_path / "out",
            **{"methods": "svd", **SMALL, **options},
        )
    assert not (tmp_path / "out").exists()


def test_times_are_taken_in_turns_and_the_first_is_not_counted() -> None:
    model, dense = torch.nn.Linear(2, 2).train(), torch.nn.Linear(2, 2)
    order: list[Any] = []
    assert relative_time(order.append, model, dense) > 0
    assert order == [model, dense] * (TURNS + 1) and model.training


def test_the_command_resumes_and_repeats_itself(place: Path, compared: pd.DataFrame, tmp_path: Path) -> None:
    from eckart.cli.app import main

    about = json.loads((place / "out" / "compare.json").read_text("utf-8"))
    assert about["command"].startswith("eckart compare compression --model ")
    again = ["compare", "compression", "--config", str(place / "out" / "compare.json"), "--json"]
    assert main([*again, "--output", str(place / "out")]) == 0
    assert json.loads((place / "out" / "compare.json").read_text("utf-8"))["state"] == "complete"
    assert main([*again, "--methods", "svd,welore", "--output", str(tmp_path / "two")]) == 0
    repeated = final(pd.read_csv(tmp_path / "two" / "results.csv"))
    for method in ("svd", "welore", "dense"):
        assert repeated.loc[method, "score"] == pytest.approx(final(compared).loc[method, "score"], rel=1e-6)
    assert main(["compare", "--config", str(place / "out" / "compare.json")]) == 2
