"""Checks that need no torch: their bounds, and the words in which they refuse."""

from __future__ import annotations

import math

import numpy as np
import pytest

from eckart.arguments import (
    check_least,
    check_number,
    check_pattern,
    check_positive,
    check_share,
    hint,
    read_budget,
)
from eckart.errors import InputError


def test_least() -> None:
    check_least(2, a=2, b=None, c=9)
    with pytest.raises(InputError, match=r"^b is 1: give at least 2$"):
        check_least(2, a=2, b=1)


@pytest.mark.parametrize("value", [0, -1e-9, math.nan, math.inf])
def test_positive(value: float) -> None:
    check_positive(lr=1e-9, steps=1, head_lr=None)
    with pytest.raises(InputError, match=r"lr is .*: give a positive number"):
        check_positive(lr=value)


@pytest.mark.parametrize("value", [0.0, 1.0, -0.1, math.nan])
def test_share(value: float) -> None:
    check_share("energy", 0.999)
    check_share("energy", 0.0, zero=True)
    with pytest.raises(InputError, match=r"energy is .*: give a share between 0 and 1"):
        check_share("energy", value)
    if value:
        with pytest.raises(InputError, match=r"give a share in \[0, 1\)"):
            check_share("energy", value, zero=True)


def test_hint() -> None:
    assert hint("lorra", ["bone", "lora"]) == "did you mean 'lora'?"
    assert hint("x", ["bone", "lora"]) == "known are bone, lora"
    assert hint("x", ["bone", "lora"], "see the list") == "see the list"
    assert hint("bo", ["bonexx"], cutoff=0.4) == "did you mean 'bonexx'?"
    assert hint("bo", ["bonexx"]) == "known are bonexx"


def test_budget() -> None:
    assert read_budget("0.5%") == (0.5, "%")
    assert read_budget(" 1.5 M ") == (1.5, "m")
    assert read_budget(200_000) == (200_000, "")
    assert read_budget("2e3KiB") == (2000, "kib")
    for text in ("much", "-1", "1 parsec", "", "%"):
        with pytest.raises(InputError, match=r"is not understood: write 0.5%, 200k"):
            read_budget(text)


@pytest.mark.parametrize(
    ("name", "value", "kind", "words"),
    [
        ("r", 2.5, "int", "a whole number of at least 1"),
        ("r", 0, "int", "a whole number of at least 1"),
        ("r", True, "int", "a whole number of at least 1"),
        ("r", float("inf"), "int", "a whole number of at least 1"),
        ("r", 2**31, "int", "a whole number of at least 1"),
        ("r_lora", -1, "int", "a whole number of at least 0"),
        ("lora_alpha", 0, "float", "a positive number"),
        ("lora_alpha", float("inf"), "float", "a positive number"),
        ("lora_alpha", float("nan"), "float", "a number"),
        ("dropout", 1, "float", r"a probability in \[0, 1\)"),
        ("energy", 1.01, "float", r"a share in \(0, 1\]"),
        ("seed", -1, "int", "a whole number from 0 to 4294967295"),
        ("seed", 2**32, "int", "a whole number from 0 to 4294967295"),
        ("relu", 1, "bool", "True or False"),
        ("other", "3", "float", "a number"),
    ],
)
def test_numbers_outside_their_range(name: str, value: object, kind: str, words: str) -> None:
    with pytest.raises(InputError, match=rf"^{name} is .*: give {words}$"):
        check_number(name, value, kind)


def test_numbers_in_their_range_become_pythons_own() -> None:
    for value, kind, there in (
        (np.int64(4), "int", 4),
        (np.float32(2.0), "int", 2),
        (np.float64(0.5), "float", 0.5),
        (np.bool_(True), "bool", True),
    ):
        found = check_number("other", value, kind)
        assert (found, type(found)) == (there, type(there))
    assert [check_number("energy", 1, "float"), check_number("r", 2**31 - 1, "int")] == [1, 2**31 - 1]
    assert [check_number("seed", s, "int") for s in (0, 2**32 - 1)] == [0, 2**32 - 1]
    assert check_number("dropout", 0.0, "float") == 0.0


def test_patterns_and_budgets() -> None:
    check_pattern("x", "a|b")
    check_pattern("x", None)
    with pytest.raises(InputError, match=r"^x '\(' is no regular expression: "):
        check_pattern("x", "(")
    for budget in ("1e400", "1e30", "-5", "nan", "inf"):
        with pytest.raises(InputError, match=r"is not understood"):
            read_budget(budget)
    for budget in ("0", "0%", "0.0MB"):
        with pytest.raises(InputError, match=rf"^budget '{budget}' comes to 0: give a larger one$"):
            read_budget(budget)
    with pytest.raises(InputError, match=r"steps is 2\.5: give a whole number of at least 1"):
        check_least(1, steps=2.5)  # type: ignore[arg-type]
    check_least(1, steps=np.int64(1))
