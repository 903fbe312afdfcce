"""The leaderboard, its intervals, the Pareto front, the advice and the page's text."""

from __future__ import annotations

import base64
import json
import math
import re
from html.parser import HTMLParser
from pathlib import Path

import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from report_study import METHODS, write_study

from eckart.errors import InputError
from eckart.jobs.compare import tables
from eckart.jobs.compare.examples import Examples
from eckart.jobs.compare.leaderboard import leaderboard, pareto_front
from eckart.jobs.compare.reading import read_results
from eckart.jobs.compare.report import build_report

BUDGET = "0.5%"


def runs(
    scores: dict[str, list[float]], *, half: float = 0.01, metric: str = "accuracy", **columns: object
) -> pd.DataFrame:
    """Final runs: one for each score of each method, with intervals of ``half`` to both sides."""
    rows = [
        {
            "run_id": f"{method}-{seed}",
            "stage": "final",
            "method": method,
            "label": method.upper(),
            "budget": BUDGET,
            "seed": seed,
            "status": "complete" if math.isfinite(score) else "diverged",
            "score": score,
            "ci_low": score - half,
            "ci_high": score + half,
            "metric": metric,
            "greater_is_better": metric != "bits_per_token",
            "trainable_parameters": {"full": 20_000_000, "head-only": 0}.get(method, 100_000),
            "head_parameters": 0,
        }
        | columns
        for method, values in scores.items()
        for seed, score in enumerate(values)
    ]
    return pd.DataFrame(rows)


def board_row(frame: pd.DataFrame, method: str) -> object:
    return next(row for row in leaderboard(frame).itertuples() if row.method == method)


class TestLeaderboard:
    def test_best_first_means_over_seeds_and_costs(self):
        frame = runs({"a": [0.5, 0.6], "b": [0.8, 0.9]}, step_time_ratio=1.5, peak_memory_mb=100.0)
        frame.loc[frame["run_id"] == "b-1", ["step_time_ratio", "peak_memory_mb"]] = [2.5, 300.0]
        board = leaderboard(frame)
        assert list(board["method"]) == ["b", "a"]
        assert list(board["rank"]) == [1, 2]
        assert list(board["score"]) == pytest.approx([0.85, 0.55])
        assert list(board["step_time_ratio"]) == [2.0, 1.5]
        assert list(board["peak_memory_mb"]) == [300.0, 100.0]
        assert list(board["seeds"]) == [2, 2]

    def test_lower_is_better_sorts_the_other_way(self):
        board = leaderboard(runs({"a": [3.0], "b": [2.0], "c": [4.0]}, metric="bits_per_token"))
        assert list(board["method"]) == ["b", "a", "c"]

    def test_accuracy_stays_between_zero_and_one(self):
        row = board_row(runs({"a": [0.99, 1.0]}, half=0.02), "a")
        assert row.ci_high == 1.0

    def test_what_did_not_finish_is_last_and_says_why(self):
        frame = runs({"a": [0.7, math.nan], "b": [math.nan], "c": [0.6]})
        frame.loc[frame["run_id"] == "b-0", "status"] = "failed"
        tuned = runs({"d": [math.nan]}, stage="tune", status="pruned")
        waiting = runs({"e": [math.nan]}, stage="tune", status="complete")
        board = leaderboard(pd.concat([waiting, frame, tuned])).set_index("method")
        assert list(board.index[:2]) == ["a", "c"]
        assert board["state"].to_dict() == {
            "a": "partial", "b": "failed", "c": "complete", "d": "pruned", "e": "pending"
        }  # fmt: skip
        assert (board.loc["a", "seeds"], board.loc["a", "seeds_run"]) == (1, 2)

    def test_a_finished_run_without_a_number_has_diverged(self):
        board = leaderboard(runs({"a": [math.nan]}, status="complete"))
        assert board.loc[0, "state"] == "diverged"

    def test_a_seed_that_succeeded_later_is_whole(self):
        frame = runs({"a": [0.7, 0.8]})
        lost = frame.iloc[[1]].assign(run_id="a-1-lost", status="failed", score=math.nan)
        row = board_row(pd.concat([lost, frame]), "a")
        assert (row.state, row.seeds, row.seeds_run) == ("complete", 2, 2)

    def test_tuning_and_floor_runs_do_not_score(self):
        frame = pd.concat(
            [runs({"a": [0.7]}), runs({"a": [0.9]}, stage="tune"), runs({"frozen": [0.95]}, stage="floor")]
        )
        board = leaderboard(frame)
        assert list(board["method"]) == ["a"]
        assert board.loc[0, "score"] == 0.7
        assert board.loc[0, "trials"] == 1

    def test_a_table_of_something_else_is_refused(self):
        with pytest.raises(InputError, match="no column run_id, stage, method, status, score"):
            leaderboard(pd.DataFrame({"x": [1]}))


class TestPareto:
    @given(
        st.lists(st.tuples(st.integers(0, 5), st.integers(0, 5)), min_size=1, max_size=12),
        st.booleans(),
    )
    @settings(max_examples=60, deadline=None)
    def test_is_what_nothing_beats(self, points: list[tuple[int, int]], greater: bool):
        board = pd.DataFrame(points, columns=["score", "saved_bytes"], dtype=float)
        board["greater_is_better"] = greater
        front = pareto_front(board, "saved_bytes", "score")

        def beats(one: tuple[int, int], other: tuple[int, int]) -> bool:
            sign = 1 if greater else -1
            no_worse = sign * one[0] >= sign * other[0] and one[1] <= other[1]
            return no_worse and one != other

        expected = [i for i, point in enumerate(points) if not any(beats(rival, point) for rival in points)]
        assert front == expected

    def test_a_missing_number_is_neither_on_it_nor_beats_others(self):
        board = pd.DataFrame({"score": [math.nan, 0.5, 0.4], "seconds": [1.0, 2.0, math.nan]})
        board["greater_is_better"] = True
        assert pareto_front(board, "seconds", "score") == [1]

    def test_two_costs(self):
        board = pd.DataFrame({"seconds": [1.0, 2.0, 3.0], "saved_bytes": [3.0, 2.0, 2.5], "score": [0.0] * 3})
        board["greater_is_better"] = True
        assert pareto_front(board, "seconds", "saved_bytes") == [0, 1]


class Outline(HTMLParser):
    """Elements with their attributes, and the text inside scripts of data."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.text: list[str] = []
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.text.append(data)

    def data(self) -> dict[str, object]:
        return next(json.loads(text) for text in self.text if text.startswith('{"metric"'))


HOSTILE = '</script ><!--<script><b id="evil">&amp;\u2028<img src=x onerror="document.title=1">'


class TestPage:
    def test_is_a_pure_function_of_the_files(self, tmp_path: Path):
        directory = write_study(tmp_path)
        first = build_report(directory).read_bytes()
        assert build_report(directory).read_bytes() == first
        assert build_report(directory) == tmp_path / "report.html"
        assert sorted(p.name for p in tmp_path.iterdir()) == [
            "compare.json", "curves.csv", "report.html", "results.csv"
        ]  # fmt: skip

    def test_refers_to_nothing_outside(self, tmp_path: Path):
        outline = Outline(build_report(write_study(tmp_path)).read_text("utf-8"))
        links = [
            v for _, attributes in outline.elements for k, v in attributes.items() if k in ("src", "href")
        ]
        assert links and all(link.startswith("data:") for link in links)
        css = next(text for text in outline.text if ":root" in text)
        assert "url(" not in css and "@import" not in css

    def test_shows_every_method_run_and_fact(self, tmp_path: Path):
        page = build_report(write_study(tmp_path)).read_text("utf-8")
        text = "\n".join(Outline(page).text)
        for label, *_ in METHODS.values():
            assert label in text
        for fact in (
            "eckart compare --methods all",
            "torch 2.13.0",
            "train 4,912",
            "cores 2",
            "2025-11-24 06:02 UTC",
        ):
            assert fact in text
        assert page.count("<tr data-stage") == len(read_results(tmp_path))
        assert "loss is NaN at step 60" in text
        assert len(page) < 1_200_000

    def test_the_data_inside_are_the_files(self, tmp_path: Path):
        outline = Outline(build_report(write_study(tmp_path)).read_text("utf-8"))
        links = {a["download"]: a["href"] for tag, a in outline.elements if tag == "a" and "download" in a}
        for name in ("results.csv", "compare.json"):
            assert base64.b64decode(links[name].partition("base64,")[2]) == (tmp_path / name).read_bytes()

    def test_hostile_texts_stay_texts(self, tmp_path: Path):
        directory = write_study(tmp_path, labels=[HOSTILE, "fine"])
        results = pd.read_csv(directory / "results.csv")
        clean = Outline(build_report(directory).read_text("utf-8"))
        for column in ("label", "error", "options"):
            results.loc[results["method"] == "bone", column] = HOSTILE
        results.to_csv(directory / "results.csv", index=False)
        study = json.loads((directory / "compare.json").read_text("utf-8"))
        study["command"] = study["task"]["data"] = study["machine"] = HOSTILE
        (directory / "compare.json").write_text(json.dumps(study), "utf-8")
        outline = Outline(build_report(directory).read_text("utf-8"))
        assert not [a for _, a in outline.elements if a.get("id") == "evil" or "onerror" in a]
        assert [tag for tag, _ in outline.elements].count("script") == 3
        assert "img" not in {tag for tag, _ in outline.elements}
        assert HOSTILE in {arm["label"] for arm in outline.data()["arms"]}
        assert len(clean.data()["arms"]) == len(outline.data()["arms"])

    def test_curves_are_means_over_final_runs(self, tmp_path: Path):
        directory = write_study(tmp_path)
        data = Outline(build_report(directory).read_text("utf-8")).data()
        bone = next(arm["id"] for arm in data["arms"] if arm["method"] == "bone")
        loss = next(series for series in data["curves"] if series["name"] == "training loss")
        table = pd.read_csv(directory / "curves.csv")
        last = table[
            table["run_id"].str.startswith("bone-final")
            & (table["split"] == "train")
            & (table["step"] == 300)
        ]["loss"]
        step, mean, low, high = loss["lines"][str(bone)][-1]
        assert (step, mean) == (300, pytest.approx(last.mean(), rel=1e-4))
        assert (low, high) == pytest.approx((last.min(), last.max()), rel=1e-4)

    def test_the_best_rate_at_an_end_is_pointed_out(self, tmp_path: Path):
        page = build_report(write_study(tmp_path)).read_text("utf-8")
        table = re.search(r'<table class="tuning">.*?</table>', page, re.DOTALL)[0]
        rows = dict(re.findall(r'<tr><th scope="row">(.*?)</th>(.*?)</tr>', table, re.DOTALL))
        assert "a larger one may be better" in rows["SALT"]
        assert "may be better" not in rows["LoRA"]

    @pytest.mark.parametrize(
        ("state", "said"), [("complete", "No learning rate was tuned"), ("running", "No trial has ended yet")]
    )
    def test_a_study_without_tuning_says_whether_it_is_over(self, tmp_path: Path, state: str, said: str):
        directory = write_study(tmp_path, state=state)
        results = pd.read_csv(directory / "results.csv")
        results[results["stage"] == "final"].to_csv(directory / "results.csv", index=False)
        assert said in build_report(directory).read_text("utf-8")

    @pytest.mark.parametrize("state", ["running", "interrupted", "timeout"])
    def test_a_study_that_is_not_over_says_so(self, tmp_path: Path, state: str):
        page = build_report(write_study(tmp_path, state=state)).read_text("utf-8")
        assert 'class="notice"' in page

    @pytest.mark.parametrize("rows", ["none", "tuning", "failed"])
    def test_a_study_without_scores_has_a_page(self, tmp_path: Path, rows: str):
        directory = write_study(tmp_path, state="running")
        results = pd.read_csv(directory / "results.csv")
        if rows == "none":
            results = results.iloc[:0]
            (directory / "curves.csv").unlink()
        elif rows == "tuning":
            results = results[results["stage"] == "tune"]
        else:
            results = results.assign(status="failed", score=math.nan, ci_low=math.nan, ci_high=math.nan)
        results.to_csv(directory / "results.csv", index=False)
        page = build_report(directory).read_text("utf-8")
        assert "Not enough data yet" in page
        assert "NaN" not in json.dumps(Outline(page).data())

    def test_labels_name_the_budget_only_where_there_are_several(self, tmp_path: Path):
        directory = write_study(tmp_path)
        results = pd.read_csv(directory / "results.csv")
        results.loc[results["method"].isin(["full", "head-only"]), "budget"] = None
        results.to_csv(directory / "results.csv", index=False)
        arms = Outline(build_report(directory).read_text("utf-8")).data()["arms"]
        assert "Bone" in {arm["label"] for arm in arms}
        results.loc[results["method"] == "svfit", "budget"] = "0.1%"
        results.to_csv(directory / "results.csv", index=False)
        arms = Outline(build_report(directory).read_text("utf-8")).data()["arms"]
        assert {"Bone · 0.5%", "SVFit · 0.1%", "full fine-tuning"} <= {arm["label"] for arm in arms}

    def test_lower_is_better_has_a_page(self, tmp_path: Path):
        directory = write_study(tmp_path)
        results = pd.read_csv(directory / "results.csv")
        results = results.assign(metric="bits_per_token", greater_is_better=False)
        results.to_csv(directory / "results.csv", index=False)
        page = build_report(directory).read_text("utf-8")
        assert "bits per token, lower is better" in page
        first = next(a for tag, a in Outline(page).elements if tag == "tr" and "data-method" in a)
        assert first["data-method"] == "head-only"

    @pytest.mark.parametrize(
        ("name", "content", "message"),
        [
            ("compare.json", None, "compare.json is not there"),
            ("results.csv", None, "results.csv is not there"),
            ("compare.json", b"{", "compare.json is not JSON"),
            ("compare.json", b"[]", "compare.json holds no JSON object"),
            ("results.csv", b"", "results.csv is not a CSV table"),
            ("results.csv", b"a,b\n1,2\n", "results has no column"),
            ("results.csv", b"\xff\xfe\x00", "results.csv is not a CSV table"),
            ("curves.csv", b"a,b\n1,2\n", "curves.csv has no column"),
        ],
    )
    def test_bad_files_are_named_and_leave_no_page(
        self, tmp_path: Path, name: str, content: bytes | None, message: str
    ):
        directory = write_study(tmp_path)
        (directory / name).unlink() if content is None else (directory / name).write_bytes(content)
        with pytest.raises(InputError, match=message) as caught:
            build_report(directory)
        assert "\n" not in str(caught.value)
        assert not (directory / "report.html").exists()


def test_what_is_taken_for_what() -> None:
    """Rows are the true labels, columns what was said; seeds are averaged; other runs and many labels are left out."""
    board = pd.DataFrame({"method": ["lora", "bone"], "label": ["LoRA", "Bone"], "budget": ["1%", "1%"]})
    runs = pd.DataFrame(
        [("lora", "LoRA", "1%", "one"), ("lora", "LoRA", "1%", "two"), ("bone", "Bone", "1%", "none")],
        columns=["method", "label", "budget", "run_id"],
    )
    said = {"one": ["x", "x", "y", "x", "y"], "two": ["x", "x", "x", "y", "x"], "other": ["y"] * 5}
    found = tables.confusions(board, runs, Examples(said=said, labels=["x", "x", "x", "x", "y"]))
    assert found["names"] == ["x", "y"] and found["counts"] == ["4", "1"]
    assert found["arms"] == [{"label": "LoRA", "rows": [["75.0", "25.0"], ["50.0", "50.0"]]}]
    many = [f"label {i}" for i in range(tables.MOST_LABELS + 1)]
    assert tables.confusions(board, runs, Examples(said={"one": many}, labels=many)) == {"names": []}
    assert tables.confusions(board, runs, Examples()) == {"names": []}
