"""Adapters under training rules as contenders of a comparison."""

from __future__ import annotations

import pytest
from toy_task import ToyTask

from eckart.catalog import find_rule
from eckart.errors import InputError
from eckart.jobs.compare.contenders import contenders, method_names
from eckart.training import RULES


def chosen(methods: str) -> list[str]:
    return [c.name for c in contenders(ToyTask(), methods, "5%", None, 3, None)]


def test_a_contender_brings_fresh_rules_to_each_run() -> None:
    found = contenders(ToyTask(), "lora+allora", "5%", None, 3, None)
    assert [c.name for c in found] == ["head-only", "full", "lora", "lora+allora"]
    ruled = found[-1]
    assert ruled.label == "LoRA + ALLoRA"
    first, second = ruled.rules(), ruled.rules()
    assert [type(rule) for rule in first] == [RULES["allora"]]
    assert first[0] is not second[0]
    assert found[2].rules() == []
    assert ruled.finish(model := object()) is model  # type: ignore[arg-type]


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
