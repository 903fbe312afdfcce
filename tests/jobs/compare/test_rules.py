"""Adapters under training rules as contenders of a comparison."""

from __future__ import annotations

from pathlib import Path

import pytest
from toy_task import ToyTask, install

from eckart.catalog import find_rule
from eckart.errors import InputError
from eckart.jobs.compare.contenders import contenders
from eckart.jobs.compare.names import method_names
from eckart.tasks.trainer import Recipe, data_order, loss_beside
from eckart.training import RULES

RECIPE = Recipe(steps=4, batch_size=8, learning_rate=1e-3, head_learning_rate=1e-3)


def chosen(methods: str) -> list[str]:
    return [c.name for c in contenders(ToyTask(), methods, "5%", None, 3, None)]


def test_a_contender_brings_fresh_rules_to_each_run() -> None:
    found = contenders(ToyTask(), "lora+allora", "5%", None, 3, None)
    assert [c.name for c in found] == ["head-only", "full", "lora", "lora+allora"]
    ruled = found[-1]
    assert ruled.label == "LoRA + ALLoRA"
    first, second = (ruled.rules(ToyTask(), RECIPE) for _ in range(2))
    assert [type(rule) for rule in first] == [RULES["allora"]]
    assert first[0] is not second[0]
    assert found[2].rules(ToyTask(), RECIPE) == []
    assert ruled.finish(model := object(), ToyTask(), 0) is model  # type: ignore[arg-type]


def test_names_are_read_with_their_rules() -> None:
    assert method_names("LoRA + ALLORA")[1] == {"lora+allora"}
    with pytest.raises(InputError, match="unknown rule 'alora': did you mean 'allora'"):
        method_names("lora+alora")
    with pytest.raises(InputError, match="unknown rule 'alora': did you mean 'allora'"):
        find_rule("alora")
    with pytest.raises(InputError, match="names a rule twice"):
        chosen("lora+allora+allora")
    with pytest.raises(InputError, match="sara-selection does not suit it"):
        chosen("lora+sara-selection")


def test_a_prompt_takes_part_without_rules() -> None:
    found = contenders(ToyTask(), "dept", "5%", None, 3, None)[-1]
    assert found.options["max_length"] == ToyTask().max_length
    assert set(found.options) == {"num_virtual_tokens", "max_length", "r"}
    assert "dept" in method_names("all")[0]
    with pytest.raises(InputError, match=r"dept\+allora cannot be combined: a prompt adapts no layer"):
        chosen("dept+allora")


def test_a_rule_is_given_what_it_needs_of_the_task() -> None:
    task = ToyTask()
    found = {c.name: c for c in contenders(task, "lora+diffora,lora-core+triadaptlora", "5%", None, 3, None)}
    assert found["lora-core+triadaptlora"].config.core == "full"  # type: ignore[union-attr]
    (rule,) = found["lora+diffora"].rules(task, RECIPE)
    model, loss = task.fresh_model(0), rule.validation  # type: ignore[attr-defined]
    task.train.read.clear()
    first, again, other = (float(loss(model.eval(), step)) for step in (0, 0, 1))
    assert first == again != other
    trained = set(data_order([len(row["input_ids"]) for row in task.train.rows], 4, 8, 0))
    assert not trained & set(task.train.read) and len(set(task.train.read[:8])) == 8
    everything = Recipe(steps=40, batch_size=8, learning_rate=1e-3, head_learning_rate=1e-3)
    assert float(loss_beside(task, everything)(model, 0)) > 0


# Optimisers


def test_a_method_may_have_an_optimiser_of_its_own() -> None:
    found = contenders(ToyTask(), "lora@muon,full@galore,lora+allora@dct-adamw", "5%", None, 3, None)
    told = [(c.name, c.plain, c.optimizer) for c in found]
    assert told == [
        ("head-only", "head-only", "adamw"),
        ("full", "full", "adamw"),
        ("lora", "lora", "adamw"),
        ("lora@muon", "lora", "muon"),
        ("full@galore", "full", "galore"),
        ("lora+allora@dct-adamw", "lora+allora", "dct-adamw"),
    ]
    assert found[3].label == f"{found[2].label}, muon" and found[3].config.r == found[2].config.r
    assert found[4].learning_rates == found[1].learning_rates and len(found[5].rules(ToyTask(), RECIPE)) == 1
    everyone = contenders(ToyTask(), "lora@adamw", "5%", None, 3, None, "muon")
    assert [c.optimizer for c in everyone] == ["adamw", "muon", "muon", "adamw"]


@pytest.mark.parametrize(
    ("word", "words"),
    [
        ("lora@none", "--optimizer none: choose one of"),
        ("lora@", "--optimizer : choose one of"),
        ("head-only@muon", "leave @muon out"),
        ("lorra@muon", "lorra"),
        ("peft:none@muon", "peft:none"),
    ],
)
def test_unknown_optimisers_are_refused(word: str, words: str) -> None:
    with pytest.raises(InputError, match=words):
        contenders(ToyTask(), word, "5%", None, 3, None)


def test_runs_are_trained_by_their_optimiser(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import eckart.tasks.task as tasks
    from eckart.jobs.compare.comparison import compare
    from eckart.tasks import trainer

    monkeypatch.setattr(tasks, "load_task", tasks.load_task)  # put back what install replaces
    install()
    asked: list[str] = []
    made = trainer.make_optimizer
    monkeypatch.setattr(
        trainer, "make_optimizer", lambda name, *rest: asked.append(name) or made(name, *rest)
    )
    given = {
        "budget": "2k",
        "steps": 2,
        "seeds": 1,
        "batch_size": 8,
        "learning_rates": [1e-3],
        "progress": False,
    }
    results = compare(methods="lora@muon,full@galore", output=tmp_path / "out", **given)
    final = results[results["stage"] == "final"].set_index("method")
    assert (final["status"] == "complete").all() and {"lora@muon", "full@galore"} <= set(final.index)
    assert sorted(asked) == ["adamw", "adamw", "adamw", "galore", "muon"]
    assert final.loc["full@galore", "trainable_parameters"] == final.loc["full", "trainable_parameters"]
    assert (tmp_path / "out" / "adapters" / "lora@muon" / "adapter_config.json").exists()
    asked.clear()
    compare(methods="lora", optimizer="muon", output=tmp_path / "all", **given)
    assert sorted(asked) == ["adamw", "muon", "muon"]
    with pytest.raises(InputError, match="optimizer is muon there and None here"):
        compare(methods="lora", output=tmp_path / "all", **given)
    compare(methods="lora", output=tmp_path / "out", overwrite=True, **given)
    assert not (tmp_path / "out" / "adapters" / "lora@muon").exists()
