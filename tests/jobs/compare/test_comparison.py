"""`compare` from end to end on a toy task, in this process."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from toy_task import ToyTask, install

from eckart.errors import InputError
from eckart.jobs.compare import outputs, presets, starting
from eckart.jobs.compare.comparison import compare
from eckart.jobs.compare.judgement import Judgement
from eckart.jobs.compare.runs import COLUMNS, Runner

RATES = [3e-4, 1e-3, 3e-3]
SMALL = {"methods": "lora", "budget": "2k", "steps": 4, "seeds": 2, "batch_size": 8, "progress": False}
SMALL |= {"learning_rates": RATES}


@pytest.fixture(autouse=True)
def toy(monkeypatch: pytest.MonkeyPatch) -> ToyTask:
    import eckart.tasks.task as tasks

    torch.set_num_threads(1)
    monkeypatch.setattr(tasks, "load_task", tasks.load_task)  # put back what install replaces
    return install()


@dataclass
class Finished:
    """A comparison that was done from end to end, and what each of its runs read."""

    output: Path
    results: pd.DataFrame
    toy: ToyTask
    read: dict[str, dict[str, list[int]]]


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Finished]:
    import eckart.tasks.task as tasks

    output = tmp_path_factory.mktemp("done") / "a {comparison} at 50% c?"
    read: dict[str, dict[str, list[int]]] = {}
    do = Runner.do
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tasks, "load_task", tasks.load_task)
        task = install()
        splits = {name: getattr(task, name) for name in ("train", "validation", "test")}

        def watched(self: Runner, run: Any, *rest: Any) -> Any:
            for split in splits.values():
                split.read.clear()
            task.batched.clear()
            result = do(self, run, *rest)
            read[run.id] = {name: list(split.read) for name, split in splits.items()}
            read[run.id]["batched"] = task.batched[
                : 8 * run.parameters["steps"]
            ]  # what is scored comes later
            return result

        patch.setattr(Runner, "do", watched)
        results = compare(**SMALL | {"methods": "lora,randlora", "output": output})
    yield Finished(output, results, task, read)


@pytest.fixture
def output(tmp_path: Path) -> Path:
    return tmp_path / "results"


@pytest.fixture
def copy(finished: Finished, tmp_path: Path) -> Path:
    """A directory with a finished comparison that a test may change."""
    return Path(shutil.copytree(finished.output, tmp_path / "copy"))


def files(output: Path) -> dict[str, str]:
    return {path.name: path.read_text() for path in output.glob("*.csv")}


def test_every_method_is_tuned_and_scored_alike(finished: Finished) -> None:
    results = finished.results
    assert list(results.columns) == COLUMNS
    assert set(results["status"]) == {"complete"}
    methods = {"head-only", "full", "lora", "randlora"}
    tuned, final = (results[results["stage"] == stage] for stage in ("tune", "final"))
    rounds = tuned.groupby(["method", "steps"]).size().to_dict()
    assert rounds == {(method, 2): 3 for method in methods}
    assert final.groupby("method").size().to_dict() == dict.fromkeys(methods, 2) | {"trivial": 1}
    assert tuned["score"].isna().all() and final["score"].between(0, 1).all()
    assert ((final["ci_low"] <= final["score"]) & (final["score"] <= final["ci_high"])).all()
    assert (final["ci_low"] < final["ci_high"]).all()
    for method in methods:
        mine = tuned[tuned["method"] == method]
        best = mine[mine["validation_score"] == mine["validation_score"].max()]["lr"]
        assert set(final[final["method"] == method]["lr"]) <= set(best)
    adapted = final[final["method"].isin(["lora", "randlora"])]
    heads = {json.loads(options)["head_lr"] for options in adapted["options"]}
    assert heads == set(final[final["method"] == "head-only"]["lr"])


def test_sizes_and_costs(finished: Finished) -> None:
    final = finished.results[finished.results["stage"] == "final"].set_index("method").drop("trivial")
    assert (final["head_parameters"] == 99).all()
    assert (final.loc["head-only", "trainable_parameters"] == 0).all()
    base = sum(p.numel() for p in finished.toy.fresh_model(0).parameters()) - 99
    assert (final.loc["full", "trainable_parameters"] == base).all()
    assert (final.loc[["lora", "randlora"], "trainable_parameters"] <= 2000).all()
    assert (final.loc["full", "saved_bytes"] == 4 * (base + 99)).all()
    assert (final.loc["lora", "saved_bytes"] == 4 * (final.loc["lora", "trainable_parameters"] + 99)).all()
    assert (final["step_time_ratio"] > 0).all() and (final["step_seconds"] > 0).all()
    memory = final.groupby("method")["peak_memory_mb"].max()
    assert memory["head-only"] < memory["lora"] < memory["full"]
    assert memory["full"] * 1e6 > 4 * 4 * base, "weights, gradients and two moments"


def test_the_files_tell_the_same(finished: Finished) -> None:
    output, results = finished.output, finished.results
    read = pd.read_csv(output / "results.csv")
    table = pd.read_parquet(output / "results.parquet")
    assert list(read["run_id"]) == list(results["run_id"]) == list(table["run_id"])
    curves = pd.read_csv(output / "curves.csv")
    assert set(curves["run_id"]) == set(results["run_id"]) - {"floor", "final/trivial"}
    assert len(curves[curves["run_id"] == "final/lora/seed=0"]) == 4
    about = json.loads((output / "compare.json").read_text())
    assert about["state"] == "complete" and about["advice"] and about["finished"] >= about["started"]
    assert "randlora" in about["command"]
    assert (output / "report.html").read_text().startswith("<!")
    assert sorted(path.name for path in (output / "adapters").iterdir()) == ["lora", "randlora"]
    assert not [path.name for path in output.iterdir() if path.name.startswith(".")]


def test_the_saved_adapter_is_the_one_that_was_scored(finished: Finished) -> None:
    from peft import PeftModel

    from eckart.tasks.scoring import evaluate

    row = finished.results.set_index("run_id").loc["final/lora/seed=0"]
    toy = finished.toy
    written = json.loads((finished.output / "adapters" / "lora" / "adapter_config.json").read_text())
    assert written["peft_type"] == "LORA", "it loads where eckart is not installed"
    model = PeftModel.from_pretrained(toy.fresh_model(0), finished.output / "adapters" / "lora")
    assert evaluate(model, toy, toy.test, 16).score == row["score"]


def test_the_test_split_is_not_looked_at_before_the_learning_rate_is_settled(finished: Finished) -> None:
    stages = [name.partition("/")[0] for name in finished.read]
    assert stages == ["floor"] + ["tune"] * 12 + ["final"] * 8
    for name, read in finished.read.items():
        assert len(set(read["test"])) == (64 if name.startswith("final") else 0)
        assert bool(read["validation"]) == name.startswith("tune")


def test_all_methods_see_the_same_examples_in_the_same_order(finished: Finished) -> None:
    orders = {name: read["batched"] for name, read in finished.read.items()}
    for seed in (0, 1):
        same = [orders[f"final/{method}/seed={seed}"] for method in ("head-only", "full", "lora", "randlora")]
        assert len(set(same[0])) == 32 and all(order == same[0] for order in same)
    assert orders["final/lora/seed=0"] != orders["final/lora/seed=1"]
    for name in orders:
        if name.startswith("tune"):
            assert orders[name][:8] == orders["final/lora/seed=0"][:8], name


def test_the_same_call_again_repeats_nothing(
    copy: Path, finished: Finished, monkeypatch: pytest.MonkeyPatch
) -> None:
    (copy / "report.html").unlink()
    monkeypatch.setattr(Runner, "do", lambda *_: pytest.fail("a finished run was repeated"))
    again = compare(**SMALL | {"methods": "lora,randlora", "output": copy})
    pd.testing.assert_frame_equal(finished.results, again)
    assert (copy / "report.html").exists()


def test_methods_and_seeds_can_be_added(
    copy: Path, finished: Finished, monkeypatch: pytest.MonkeyPatch
) -> None:
    done: list[str] = []
    do = Runner.do
    monkeypatch.setattr(Runner, "do", lambda self, run, *rest: (done.append(run.id), do(self, run, *rest))[1])
    monkeypatch.setattr(Judgement, "settled", False)
    monkeypatch.setattr(Judgement, "reasons", lambda self: {})
    after = compare(**SMALL | {"output": copy, "methods": "bone", "seeds": 3})
    before = finished.results
    assert set(done) == set(after["run_id"]) - set(before["run_id"])
    assert "final/bone/seed=2" in done and "final/lora/seed=2" in done
    was = after.set_index("run_id").loc[before["run_id"]].reset_index()
    pd.testing.assert_frame_equal(was[before.columns], before)


def test_a_failing_method_is_recorded_and_the_others_go_on(
    output: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from eckart.adapters import get_config

    def build(self: Any, *args: Any) -> Any:
        raise RuntimeError("no luck\nat all")

    monkeypatch.setattr(get_config("randlora"), "build", build)
    results = compare(**SMALL | {"output": output, "methods": "lora,randlora", "seeds": 1})
    failed = results[results["method"] == "randlora"]
    assert list(failed["status"]) == ["failed"] * 3, "and no further learning rate is tried"
    assert set(failed["error"]) == {"RuntimeError: no luck at all"}
    assert (results[results["method"] == "lora"]["stage"] == "final").sum() == 1
    assert json.loads((output / "compare.json").read_text())["state"] == "complete"


def test_a_budget_that_one_method_cannot_meet(output: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import eckart.adapters as adapters

    solve = adapters.solve_budget

    def strict(model: Any, config: Any, budget: Any) -> Any:
        if config.slug == "randlora":
            raise InputError("budget '2k' cannot be met by randlora")
        return solve(model, config, budget)

    monkeypatch.setattr(adapters, "solve_budget", strict)
    monkeypatch.setattr(
        adapters, "ADAPTERS", {k: v for k, v in adapters.ADAPTERS.items() if k in ("lora", "randlora")}
    )
    with pytest.raises(InputError, match="cannot be met by randlora"):
        compare(**SMALL | {"output": output, "methods": "randlora"})
    assert not output.exists()
    results = compare(**SMALL | {"output": output, "methods": "all", "quick": True, "learning_rates": None})
    row = results[results["method"] == "randlora"]
    assert list(row["status"]) == ["failed"] and "cannot be met" in row["error"].iloc[0]
    assert "final/lora/seed=0" in set(results["run_id"])


def test_a_timeout_writes_what_there_is(output: Path) -> None:
    results = compare(**SMALL | {"output": output, "time": 1e-9})
    assert results.empty and (output / "report.html").exists()
    assert json.loads((output / "compare.json").read_text())["state"] == "timeout"


def test_an_interrupt_writes_what_there_is(output: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    do, count = Runner.do, iter(range(100))

    def interrupted(self: Runner, *rest: Any) -> Any:
        if next(count) == 3:
            raise KeyboardInterrupt
        return do(self, *rest)

    monkeypatch.setattr(Runner, "do", interrupted)
    with pytest.raises(KeyboardInterrupt):
        compare(**SMALL | {"output": output})
    assert len(pd.read_csv(output / "results.csv")) == 3 + 1, "with the trivial predictor"
    assert json.loads((output / "compare.json").read_text())["state"] == "interrupted"
    assert (output / "report.html").exists()


def test_another_comparison_in_the_same_directory_is_refused(copy: Path, toy: ToyTask) -> None:
    before = files(copy)
    with pytest.raises(InputError, match=r"steps is 4 there and 6 here.*--overwrite"):
        compare(**SMALL | {"output": copy, "steps": 6})
    toy.fingerprint = "other"
    with pytest.raises(InputError, match="model and data have changed"):
        compare(**SMALL | {"output": copy})
    toy.data_name = "words"
    with pytest.raises(InputError, match="tiny-bert on tokens there and tiny-bert on words here"):
        compare(**SMALL | {"output": copy})
    assert files(copy) == before


def test_a_directory_with_other_files_is_refused(output: Path) -> None:
    output.mkdir()
    (output / "notes.txt").write_text("mine")
    with pytest.raises(InputError, match="is not empty"):
        compare(**SMALL | {"output": output})
    (output / "compare.json").write_text('{"something": "else"}')
    with pytest.raises(InputError, match=r"its compare\.json is not a comparison's"):
        compare(**SMALL | {"output": output})
    assert sorted(path.name for path in output.iterdir()) == ["compare.json", "notes.txt"]


def test_overwrite_begins_anew_and_leaves_other_files_alone(copy: Path) -> None:
    (copy / "notes.txt").write_text("mine")
    with pytest.raises(InputError, match="not a database URL"):
        compare(**SMALL | {"output": copy, "overwrite": True, "storage": "nonsense"})
    assert (copy / "adapters").exists(), "nothing goes before all input is known to be good"
    again = compare(**SMALL | {"output": copy, "overwrite": True, "time": 1e-9})
    assert again.empty and not (copy / "adapters").exists()
    assert (copy / "notes.txt").read_text() == "mine"


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"steps": 0}, "steps is 0"),
        ({"seeds": -1}, "seeds is -1"),
        ({"batch_size": 0}, "batch_size is 0"),
        ({"time": "-5"}, "time is '-5'"),
        ({"time": "soon"}, "time is 'soon'"),
        ({"max_memory": "lots"}, "max_memory is 'lots'"),
        ({"cost": "beauty"}, "cost is 'beauty'"),
        ({"methods": "lroa"}, "did you mean 'lora'"),
        ({"budget": "lots"}, "is not understood"),
        ({"budget": 1}, "cannot be met"),
        ({"target_modules": ["nowhere"]}, "nowhere"),
        ({"learning_rates": {"bone": [1e-3]}}, "does not take part"),
        ({"learning_rates": {"lora": [1e-3], "full": [1e-4, 1e-3]}}, "not equally many"),
        ({"learning_rates": [1e-3, -1.0]}, "positive"),
        ({"storage": "nonsense"}, "not a database URL"),
    ],
)
def test_bad_input_is_one_line_and_nothing_is_trained(
    output: Path, monkeypatch: pytest.MonkeyPatch, given: dict[str, Any], words: str
) -> None:
    monkeypatch.setattr(Runner, "do", lambda *_: pytest.fail("trained"))
    with pytest.raises(InputError, match=words) as error:
        compare(**SMALL | {"output": output} | given)
    assert "\n" not in str(error.value)
    assert not (output / "results.csv").exists()


def test_presets_are_taken_where_nothing_is_said(
    output: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("my.csv").write_text("text,label\n")
    asked: list[tuple[Any, ...]] = []
    monkeypatch.setattr(
        starting,
        "Plan",
        lambda people, steps, seeds, *_: asked.append((steps, seeds)) or pytest.skip.Exception,
    )
    import eckart.tasks.task as tasks

    load = tasks.load_task
    limits: list[Any] = []
    monkeypatch.setattr(
        tasks, "load_task", lambda *a, **k: (limits.append((k["max_length"], k["limits"])), load(*a, **k))[1]
    )
    for given in (
        {},
        {"quick": True},
        {"data": "my.csv"},
        {"steps": 7, "seeds": 1, "limits": {"train": 9, "test": 5}},
    ):
        with pytest.raises((AttributeError, TypeError)):
            compare(methods="lora", budget="2k", output=output, overwrite=True, progress=False, **given)
    embedded, quick, own = presets.EMBEDDED, presets.QUICK, presets.OWN
    assert asked == [
        (embedded.steps, embedded.seeds),
        (quick.steps, quick.seeds),
        (own.steps, own.seeds),
        (7, 1),
    ]
    assert limits[0] == (embedded.max_length, {"validation": embedded.validation}), "the whole test split"
    assert limits[2] == (own.max_length, {"validation": own.validation})
    assert limits[3] == (embedded.max_length, {"validation": embedded.validation, "test": 5, "train": 9})


def test_every_final_run_keeps_its_examples(finished: Finished) -> None:
    table = pd.read_parquet(finished.output / "examples.parquet")
    assert list(table.columns) == ["run_id", "example", "group", "score", "prediction", "label"]
    final = finished.results[finished.results["stage"] == "final"].set_index("run_id")
    assert set(table["run_id"]) == set(final.index)
    assert (table.groupby("run_id").size() == 64).all()
    means = table.groupby("run_id")["score"].mean()
    assert means.to_dict() == pytest.approx(final["score"].to_dict())
    # in the order of the split, though examples were scored by their length
    toy = finished.toy
    majority = [float(row["labels"] == 0) for row in toy.test.rows]
    assert list(table[table["run_id"] == "final/trivial"]["score"]) == majority


def test_what_overwrite_removes(tmp_path: Path) -> None:
    """The adapters of every kind of contender, and no other files beside them."""
    mine = [
        tmp_path / "adapters" / name for name in ("mine/adapter_config.json", "lora/notes.txt", "notes.txt")
    ]
    saved = [
        tmp_path / "adapters" / name / "adapter_config.json"
        for name in ("lora", "peft:dora", "lora+allora+mgpo")
    ]
    for path in (*mine, *saved):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("{}")
    outputs.clear(tmp_path)
    assert all(path.exists() for path in mine) and not any(path.exists() for path in saved)
    assert not (tmp_path / "adapters" / "peft:dora").exists()
