"""Every claim has its script, its help and its rows, and the rows are what the script gives."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from evidence.__main__ import claims, main

SLUGS = sorted(claims())
RESULTS = Path(__file__).resolve().parents[1] / "evidence" / "results"


def test_every_claim_has_rows_and_no_rows_are_of_no_claim() -> None:
    assert sorted(path.stem for path in RESULTS.iterdir()) == SLUGS
    assert all(json.loads((RESULTS / f"{slug}.json").read_text("utf-8"))["rows"] for slug in SLUGS)


def test_without_a_slug_the_claims_are_listed(capsys: pytest.CaptureFixture[str]) -> None:
    main([])
    out = capsys.readouterr().out
    assert all(f"    {slug} " in out or f"    {slug}\n" in out for slug in SLUGS)


@pytest.mark.parametrize("slug", SLUGS)
def test_help_tells_the_claim(slug: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        main([slug, "--help"])
    assert stopped.value.code == 0
    assert claims()[slug] in capsys.readouterr().out


@pytest.mark.parametrize("slug", ["ratings", "s4d-fashion", "s4d-listops", "sst2"])
def test_data_that_is_not_given_is_asked_for(slug: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        main([slug])
    assert stopped.value.code == 2
    assert "--data" in capsys.readouterr().err


def test_a_script_gives_the_rows_that_are_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The quickest one, in full."""
    kept = json.loads((RESULTS / "robust-altmin.json").read_text("utf-8"))["rows"]
    monkeypatch.setattr("evidence._record.RESULTS", tmp_path)
    for folder in ("FIGURES", "ROWS"):
        monkeypatch.setattr(f"benchmarks._figure.{folder}", tmp_path / folder)
        (tmp_path / folder).mkdir()
    main(["robust-altmin"])
    found = json.loads((tmp_path / "robust-altmin.json").read_text("utf-8"))["rows"]
    assert [row["solver"] for row in found] == [row["solver"] for row in kept]
    for new, old in zip(found, kept, strict=True):
        assert new["factor of an iteration"] == pytest.approx(old["factor of an iteration"], rel=1e-3)
    assert (tmp_path / "FIGURES" / "robust-altmin.svg").exists()
