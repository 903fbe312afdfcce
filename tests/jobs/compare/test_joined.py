"""Several comparisons on one page."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pytest
from report_study import METHODS, write_study

from eckart.errors import InputError
from eckart.jobs.compare.joined import build_joined, ranks
from eckart.jobs.compare.paired import Difference


def judged(behind: dict[str, float], error: float = 0.01) -> Any:
    """A judgement in which methods are so far behind the best, the first."""
    rows = [SimpleNamespace(Index=i, label=label, method=label, score=0.5) for i, label in enumerate(behind)]
    differences = {
        i: Difference(value, 3, error**2, 0.0, 50.0) for i, value in enumerate(behind.values()) if i
    }
    return SimpleNamespace(rows=rows, best=0, against={"best": differences})


def test_ranks_are_means_and_what_is_not_tested_has_none() -> None:
    found = {r.label: r for r in ranks([judged({"a": 0, "b": 1, "c": 2}), judged({"c": 0, "a": 1})])}
    assert (found["a"].rank, found["b"].rank, found["c"].rank) == (1.5, 2.0, 2.0)
    assert (found["a"].comparisons, found["b"].comparisons) == (2, 1)
    assert (found["b"].low, found["b"].high) == (2.0, 2.0)
    assert (found["a"].low, found["a"].high) == (1.0, 2.0), "which comparisons are made is luck"


def test_ranks_are_unsure_where_differences_are() -> None:
    sure = ranks([judged({"a": 0, "b": 0.1, "c": 0.2}, error=0.001)] * 4)
    unsure = ranks([judged({"a": 0, "b": 0.1, "c": 0.2}, error=1.0)] * 4)
    assert [r.high - r.low for r in sure] == [0, 0, 0]
    assert all(r.high - r.low > 0.4 for r in unsure)
    assert [r.label for r in unsure] == ["a", "b", "c"]
    assert ranks([judged({"a": 0, "b": 0.1}, error=1.0)] * 3) == ranks(
        [judged({"a": 0, "b": 0.1}, error=1.0)] * 3
    )


def test_a_page_over_two_comparisons(tmp_path: Path) -> None:
    one, two = write_study(tmp_path / "one"), write_study(tmp_path / "two", rng_seed=8)
    results = pd.read_csv(two / "results.csv")
    results[results["method"] != "svfit"].to_csv(two / "results.csv", index=False)
    told = build_joined([one, two], tmp_path / "joined.html")
    by_label = {rank["label"]: rank for rank in told["ranks"]}
    assert set(by_label) == {label for label, *_ in METHODS.values()}
    assert by_label["SVFit"]["comparisons"] == 1
    assert np.all(np.diff([rank["rank"] for rank in told["ranks"]]) >= 0)
    page = (tmp_path / "joined.html").read_text("utf-8")
    assert "src=" not in page and 'href="data:,"' in page
    for each in told["comparisons"]:
        assert each["answer"].startswith(("Use ", "Any of these ", "Not enough data yet: "))
        assert each["directory"] in page


def test_bad_directories(tmp_path: Path) -> None:
    one = write_study(tmp_path / "one")
    for given in ([one], [one, one], []):
        with pytest.raises(InputError, match="give two different directories"):
            build_joined(given, tmp_path / "x.html")
    with pytest.raises(InputError, match=r"compare\.json is not there"):
        build_joined([one, tmp_path], tmp_path / "x.html")
    assert not (tmp_path / "x.html").exists()


def test_the_page_of_one_comparison_is_made_again(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from eckart.cli import main

    one = write_study(tmp_path / "one")
    assert main(["report", str(one)]) == 0 and str(one / "report.html") in capsys.readouterr().out
    assert "<html" in (one / "report.html").read_text("utf-8")
    assert main(["report", str(one), "--output", str(tmp_path / "x.html")]) == 2
    assert "--output is for a page over several" in capsys.readouterr().err
