"""Every case replays; and the harness refuses what it must."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import eckart

CASES = Path(__file__).parent / "cases"
GATED = ("adapters", "training", "layers", "metrics", "recovery")
"""Families of which every method has a case; in the others some are baselines of a well-kept package."""


def test_replay(case: Any) -> None:
    case.check()


HELD_ELSEWHERE = {
    "sara-selection": "sara",
    "snella-allocation": "snella",
    "lora-core": "increlora",
    "lora-mgpo": "lora-ggpo",
}
"""Parts of a method that have a slug of their own, and whose numbers stand in the method's case. MGPO is no part of
GGPO's code: its own equations are in tests/training/test_lora_mgpo.py."""


@pytest.mark.parametrize("slug", [method.slug for method in eckart.methods() if method.family in GATED])
def test_every_method_has_a_case(slug: str) -> None:
    """Its numbers come from its own published code, or from a reference that was written from the paper's equations."""
    slug = HELD_ELSEWHERE.get(slug, slug)
    assert list((CASES / slug).glob("*.npz")), f"add tests/parity/cases/{slug}/case1.npz: see CONTRIBUTING.md"


@pytest.fixture
def copy_of_nola(tmp_path: Path, make_case: Any) -> Any:
    shutil.copytree(CASES / "nola", tmp_path / "nola")
    return make_case(tmp_path / "nola" / "case1.npz")


def _edit(case: Any, **changes: np.ndarray) -> None:
    np.savez(case.path, **{**case.arrays, **changes})
    del case.__dict__["arrays"]


def test_one_wrong_number_fails(copy_of_nola: Any) -> None:
    wrong = copy_of_nola.arrays["y"].copy()
    wrong.flat[3] += 1e-6
    _edit(copy_of_nola, y=wrong)
    with pytest.raises(AssertionError, match=r"y: 1 of \d+ differ, worst by 1\.000e-06"):
        copy_of_nola.check()


def test_an_array_that_nobody_returns_fails(copy_of_nola: Any) -> None:
    _edit(copy_of_nola, something_new=np.ones(3))
    with pytest.raises(AssertionError, match="something_new: not returned"):
        copy_of_nola.check()


def test_a_method_without_replayer_fails(tmp_path: Path, make_case: Any) -> None:
    (tmp_path / "no-such-method").mkdir()
    np.savez(tmp_path / "no-such-method" / "case1.npz", y=np.ones(2))
    (tmp_path / "no-such-method" / "case1.json").write_text(json.dumps({"rtol": 0, "atol": 0}))
    with pytest.raises(AssertionError, match=r"no replayer .*no_such_method\.py"):
        make_case(tmp_path / "no-such-method" / "case1.npz").check()
