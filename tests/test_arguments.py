"""Checks that need no torch: their bounds, and the words in which they refuse."""

from __future__ import annotations

import math

import pytest

from eckart.arguments import check_least, check_positive, check_share, hint, read_budget
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
