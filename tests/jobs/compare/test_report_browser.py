"""The report page in a real browser: headless Chromium opens it from the disk, as a user would."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from report_browser import chromium, find_chromium, screenshot, show
from report_study import METHODS, write_study
from test_report import HOSTILE

from eckart.jobs.compare.leaderboard import leaderboard
from eckart.jobs.compare.reading import read_results
from eckart.jobs.compare.report import build_report

pytest.importorskip("selenium", reason="selenium is not installed: pip install -e '.[dev]'")
pytestmark = pytest.mark.skipif(
    find_chromium() is None,
    reason="no chromium with chromedriver here: apt-get install chromium chromium-driver",
)

CONTRAST = """
const parse = (c) => { const n = c.match(/[\\d.]+/g).map(Number); return n.length < 4 ? [...n, 1] : n; };
const linear = (v) => (v / 255 <= .03928 ? v / 255 / 12.92 : ((v / 255 + .055) / 1.055) ** 2.4);
const light = (c) => { const [r, g, b] = c.map(linear);
  return .2126 * r + .7152 * g + .0722 * b; };
const over = (top, under) => [0, 1, 2].map((i) => top[i] * top[3] + under[i] * (1 - top[3]));
function ground(node) {
  const layers = [];
  for (let n = node; n instanceof Element; n = n.parentElement) layers.push(parse(getComputedStyle(n).backgroundColor));
  return layers.reverse().reduce((under, top) => over(top, under), [255, 255, 255]);
}
const bad = [];
let seen = 0;
for (const node of document.querySelectorAll("body *:not(script):not(noscript):not(option)")) {
  const text = [...node.childNodes].filter((c) => c.nodeType === 3).map((c) => c.data.trim()).join("");
  if (!text || !node.checkVisibility() || node.closest(".hidden")) continue;
  const style = getComputedStyle(node);
  const ink = over(parse(node instanceof SVGElement ? style.fill : style.color), ground(node));
  const [a, b] = [light(ink), light(ground(node))].sort((x, y) => y - x);
  seen += 1;
  if ((a + .05) / (b + .05) < 4.5) bad.push([text.slice(0, 40), ((a + .05) / (b + .05)).toFixed(2)]);
}
return [seen, bad];
"""


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = write_study(tmp_path_factory.mktemp("study"))
    build_report(directory)
    return directory


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with chromium() as window:
        yield window


@pytest.fixture
def page(browser: Any, study: Path) -> Any:
    show(browser, study / "report.html")
    return browser


def texts(window: Any, selector: str) -> list[str]:
    script = "return [...document.querySelectorAll(arguments[0])].map((n) => n.textContent.trim())"
    return window.execute_script(script, selector)


def click(window: Any, selector: str) -> None:
    window.execute_script("document.querySelector(arguments[0]).click()", selector)


def choose(window: Any, selector: str, value: str) -> None:
    """Set a control as a user's choice would, with its events."""
    window.execute_script(
        "const c = document.querySelector(arguments[0]); c.value = arguments[1];"
        "for (const e of ['input', 'change']) c.dispatchEvent(new Event(e, { bubbles: true }));",
        selector,
        value,
    )


def column(window: Any, table: str, heading: str) -> list[str]:
    """The texts of a table's visible cells under a heading, from top to bottom."""
    script = """
    const table = document.getElementById(arguments[0]);
    const at = [...table.tHead.rows[0].cells].findIndex((c) => c.textContent.trim() === arguments[1]);
    const rows = [...table.tBodies[0].rows].filter((r) => r.checkVisibility());
    return rows.map((r) => r.cells[at].firstChild.textContent.trim())"""
    return window.execute_script(script, table, heading)


def sort(window: Any, table: str, heading: str) -> None:
    script = """[...document.querySelectorAll('#' + arguments[0] + ' th button')]
        .find((b) => b.textContent.trim() === arguments[1]).click()"""
    window.execute_script(script, table, heading)


SLUGS = {label: slug for slug, (label, *_) in METHODS.items()}


def described(window: Any, selector: str) -> list[str]:
    """What a chart's marks are called in the accessibility tree."""
    return window.execute_script(
        "return [...document.querySelectorAll(arguments[0])].map((n) => n.ariaLabel)", selector
    )


def front(window: Any) -> set[str]:
    points = described(window, "#pareto .points_marks path")
    return {SLUGS[words.partition(":")[0]] for words in points if words.endswith("on the front")}


def names(window: Any) -> list[str]:
    """The labels that stand in the plot."""
    return texts(window, "#pareto .names_marks text[opacity='1']")


def focus(window: Any, label: str) -> None:
    window.execute_script(
        "const points = [...document.querySelectorAll('.points_marks path')];"
        "points.find((n) => n.ariaLabel.startsWith(arguments[0])).focus()",
        label,
    )


def unbeaten(study: Path, x: str, y: str, without: tuple[str, ...] = ()) -> set[str]:
    """The front by the definition, from the numbers in the files."""
    board = leaderboard(read_results(study))
    board = board[~board["method"].isin(without)].dropna(subset=[x, y])
    points = {
        row.method: tuple(-getattr(row, q) if q == "score" else getattr(row, q) for q in (x, y))
        for row in board.itertuples()
    }
    return {
        name
        for name, (a, b) in points.items()
        if not any(c <= a and d <= b and (c, d) != (a, b) for c, d in points.values())
    }


def requests(window: Any) -> list[str]:
    entries = (json.loads(entry["message"])["message"] for entry in window.get_log("performance"))
    return [e["params"]["request"]["url"] for e in entries if e["method"] == "Network.requestWillBeSent"]


def test_opens_without_errors_and_asks_for_nothing_else(browser: Any, study: Path):
    browser.get_log("performance")
    browser.get_log("browser")
    show(browser, study / "report.html")
    click(browser, "#curves-all")
    choose(browser, "#pareto-x", "seconds")
    asked = [url for url in requests(browser) if not url.startswith("data:")]
    assert asked == [(study / "report.html").resolve().as_uri()]
    assert browser.get_log("browser") == []


def test_leaderboard_is_in_the_order_of_the_scores(page: Any, study: Path):
    board = leaderboard(read_results(study))
    assert column(page, "leaderboard", "Method") == list(board["label"])
    assert column(page, "leaderboard", "Accuracy") == [f"{100 * score:.1f}%" for score in board["score"]]
    marked = (
        "return [...document.querySelectorAll('#leaderboard tr:has(.badge)')].map((r) => r.dataset.method)"
    )
    assert set(page.execute_script(marked)) == {"head-only", "full", "lora"}


def test_whiskers_stand_where_the_numbers_say(page: Any, study: Path):
    """Dots lie on one line with the scores: the same slope between any two rows."""
    places = page.execute_script(
        "return [...document.querySelectorAll('#leaderboard .dot_marks path')].map((d) => d.getBoundingClientRect().x)"
    )
    scores = list(leaderboard(read_results(study))["score"])
    slope = (places[0] - places[-1]) / (scores[0] - scores[-1])
    assert slope > 0
    assert places == pytest.approx([places[0] + slope * (score - scores[0]) for score in scores], abs=0.6)


def test_sorting_a_column_reorders_rows_and_back(page: Any, study: Path):
    board = leaderboard(read_results(study)).sort_values("saved_bytes", kind="stable")
    sort(page, "leaderboard", "Saved")
    assert column(page, "leaderboard", "Method") == list(board["label"])
    sort(page, "leaderboard", "Saved")
    assert column(page, "leaderboard", "Method")[0] == METHODS["full"][0]
    sort(page, "leaderboard", "#")
    assert column(page, "leaderboard", "#") == [str(i) for i in range(1, len(METHODS) + 1)]


def test_runs_sort_by_number_stably_with_missing_last(page: Any, study: Path):
    results = read_results(study)
    sort(page, "runs", "Test")
    expected = results.sort_values("score", kind="stable", na_position="last")
    assert column(page, "runs", "Run") == list(expected["run_id"])
    sort(page, "runs", "Test")
    expected = expected.sort_values("score", ascending=False, kind="stable", na_position="last")
    assert column(page, "runs", "Run") == list(expected["run_id"])
    sort(page, "runs", "Learning rate")
    again = expected.sort_values("lr", kind="stable")
    assert column(page, "runs", "Run") == list(again["run_id"])


def test_keyboard_sorts(page: Any):
    from selenium.webdriver.common.keys import Keys

    button = page.find_element("css selector", "#leaderboard th:nth-child(2) button")
    button.send_keys(Keys.ENTER)
    names = column(page, "leaderboard", "Method")
    assert names == sorted(names, key=str.lower)
    assert (
        page.execute_script("return document.querySelector('#leaderboard th:nth-child(2)').ariaSort")
        == "ascending"
    )


@pytest.mark.parametrize(
    ("x", "y"),
    [
        ("trained_parameters", "score"),
        ("saved_bytes", "score"),
        ("peak_memory_mb", "score"),
        ("step_time_ratio", "score"),
        ("saved_bytes", "step_time_ratio"),
        ("score", "saved_bytes"),
    ],
)
def test_front_is_what_nothing_beats_on_the_chosen_axes(page: Any, study: Path, x: str, y: str):
    choose(page, "#pareto-x", "seconds")
    choose(page, "#pareto-y", y)
    choose(page, "#pareto-x", x)
    assert front(page) == unbeaten(study, x, y)
    click(page, "#pareto-all")
    assert front(page) == unbeaten(study, x, y, without=("full", "head-only"))
    assert not set(names(page)) & {METHODS["full"][0], METHODS["head-only"][0]}


def test_another_axis_redraws_the_plot(page: Any):
    line = "return document.querySelector('#pareto .front_marks path').getAttribute('d')"
    before = page.execute_script(line)
    assert "(logarithmic)" in page.execute_script("return document.querySelector('#pareto').textContent")
    choose(page, "#pareto-x", "step_time_ratio")
    assert page.execute_script(line) != before
    text = page.execute_script("return document.querySelector('#pareto').textContent")
    assert "step time" in text and "(logarithmic)" not in text


def test_the_same_quantity_twice_swaps_the_axes(page: Any):
    choose(page, "#pareto-x", "score")
    assert page.execute_script("return document.querySelector('#pareto-y').value") == "trained_parameters"


def test_a_point_in_focus_tells_its_numbers(page: Any):
    focus(page, "Bone")
    tip = page.find_element("id", "tip")
    assert tip.is_displayed()
    assert tip.text.startswith("Bone") and "465 kB" in tip.text
    page.execute_script("document.activeElement.blur()")
    assert not tip.is_displayed()


def test_the_wheel_zooms_with_ctrl_only_and_a_double_click_resets(page: Any):
    def after(event: str, kind: str, **more: Any) -> set[str]:
        """The numbers on the axes once this has happened in the middle of the plot."""
        page.execute_script(
            f"""const plot = document.querySelector('#pareto .role-frame path.background');
            const box = plot.getBoundingClientRect();
            plot.dispatchEvent(new {kind}('{event}', {{ bubbles: true, cancelable: true,
                clientX: box.x + box.width / 2, clientY: box.y + box.height / 2, ...arguments[0] }}))""",
            more,
        )
        return set(texts(page, "#pareto .role-axis-label text"))

    before = set(texts(page, "#pareto .role-axis-label text"))
    assert after("wheel", "WheelEvent", deltaY=-400) == before
    assert after("wheel", "WheelEvent", deltaY=-400, ctrlKey=True) != before
    assert after("dblclick", "MouseEvent") == before


def test_a_wider_window_has_a_wider_chart(page: Any):
    from report_browser import resize

    def widths() -> list[float]:
        return page.execute_script(
            "return ['#pareto svg', '#curves svg'].map((s) => document.querySelector(s).getBoundingClientRect().width)"
        )

    before = widths()
    resize(page, 800)
    assert all(now < then - 200 for now, then in zip(widths(), before, strict=True))


def test_curves_are_switched_and_read_by_keyboard(page: Any):
    from selenium.webdriver.common.keys import Keys

    def drawn() -> set[str]:
        return {SLUGS[label] for label in described(page, "#curves .lines_marks path")}

    first = drawn()
    assert {"head-only", "full", "lora", "randlora"} <= first < set(METHODS)
    click(page, "#curves-all")
    assert drawn() == set(METHODS)
    click(page, "#curve-legend input")
    assert len(drawn()) == len(METHODS) - 1
    choose(page, "#curve-series", "1")
    chart = page.find_element("css selector", "#curves svg")
    chart.send_keys(Keys.ARROW_LEFT)
    assert page.find_element("id", "tip").text.startswith("step 300")
    chart.send_keys(Keys.ARROW_LEFT)
    assert page.find_element("id", "tip").text.startswith("step 240")
    click(page, "#curves-none")
    assert drawn() == set()


def test_filters_narrow_the_runs(page: Any, study: Path):
    results = read_results(study)
    choose(page, "#run-stage", "final")
    assert column(page, "runs", "Run") == list(results[results["stage"] == "final"]["run_id"])
    choose(page, "#run-status", "failed")
    assert column(page, "runs", "Run") == ["loldu-final-0.01-1"]
    assert texts(page, "#run-count") == [f"1 of {len(results)} runs"]
    choose(page, "#run-status", "")
    choose(page, "#run-stage", "")
    choose(page, "#run-search", "SNELL pruned")
    assert column(page, "runs", "Run") == []
    choose(page, "#run-search", "nan at step")
    assert column(page, "runs", "Method") == ["full fine-tuning"]


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
@pytest.mark.parametrize("width", [1200, 390])
def test_every_text_can_be_read(browser: Any, study: Path, dark: bool, width: int):
    """WCAG AA: contrast of at least 4.5 between each text and what it stands on; nothing wider than the screen."""
    show(browser, study / "report.html", width=width, dark=dark)
    ground = browser.execute_script("return getComputedStyle(document.body).backgroundColor")
    assert (ground == "rgb(255, 255, 255)") is not dark
    seen, bad = browser.execute_script(CONTRAST)
    assert seen > 300
    assert bad == []
    assert browser.execute_script("return document.documentElement.scrollWidth") <= width


def test_is_labelled_for_screen_readers(page: Any):
    unnamed = page.execute_script("""
        const named = (n) => n.labels?.length || n.getAttribute("aria-label") || n.textContent.trim();
        const controls = "input, select, button, [role=region], [role=img], svg:not([aria-hidden], [aria-hidden] *)";
        const bad = [...document.querySelectorAll(controls)].filter((n) => !named(n));
        return bad.map((n) => n.outerHTML.slice(0, 80))""")
    assert unnamed == []
    assert len(texts(page, "h1")) == 1
    assert page.execute_script("return document.documentElement.lang") == "en"


def test_prints_all_runs_in_black_on_white(browser: Any, study: Path):
    show(browser, study / "report.html", dark=True)
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": "print"})
    try:
        box = "const s = document.querySelector('.scroll.tall'); return [s.scrollHeight, s.clientHeight]"
        whole, shown = browser.execute_script(box)
        assert whole == shown
        assert (
            browser.execute_script("return getComputedStyle(document.body).backgroundColor")
            == "rgb(255, 255, 255)"
        )
    finally:
        browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": ""})


def test_hostile_texts_do_nothing(browser: Any, tmp_path: Path):
    directory = write_study(tmp_path, labels=[HOSTILE])
    results = pd.read_csv(directory / "results.csv")
    results.loc[results["method"] == "bone", ["label", "error"]] = HOSTILE
    results.to_csv(directory / "results.csv", index=False)
    browser.get_log("browser")
    show(browser, build_report(directory))
    click(browser, "#curves-all")
    focus(browser, HOSTILE[:10])
    assert browser.title != "1"
    assert browser.execute_script("return document.querySelectorAll('#evil, img').length") == 0
    assert browser.find_element("css selector", "#tip b").text.startswith("</script ><!--<script>")
    assert browser.get_log("browser") == []


def test_a_score_far_from_the_rest_does_not_squeeze_them(browser: Any, tmp_path: Path):
    directory = write_study(tmp_path)
    results = pd.read_csv(directory / "results.csv")
    lost = (results["method"] == "salt") & (results["stage"] == "final")
    results.loc[lost, ["score", "ci_low", "ci_high"]] = [0.09, 0.08, 0.10]
    results.to_csv(directory / "results.csv", index=False)
    show(browser, build_report(directory))
    assert "SALT (off the scale: 9.0%)" in names(browser)
    assert texts(browser, "tr[data-method=salt] svg text") == ["◂"]
    spread = """const all = [...document.querySelectorAll('#pareto .points_marks path')];
        const y = all.filter((n) => !n.ariaLabel.startsWith('SALT')).map((n) => n.getBoundingClientRect().y);
        return Math.max(...y) - Math.min(...y)"""
    assert browser.execute_script(spread) > 150


@pytest.mark.parametrize("rows", [0, 1])
def test_a_study_just_begun_opens_too(browser: Any, tmp_path: Path, rows: int):
    directory = write_study(tmp_path, state="running")
    pd.read_csv(directory / "results.csv").iloc[:rows].to_csv(directory / "results.csv", index=False)
    browser.get_log("browser")
    show(browser, build_report(directory))
    assert texts(browser, ".verdict")[0].startswith("Not enough data yet")
    assert browser.get_log("browser") == []


def test_a_picture_can_be_taken(browser: Any, study: Path, tmp_path: Path):
    show(browser, study / "report.html")
    screenshot(browser, tmp_path / "shot.png", height=400)
    assert (tmp_path / "shot.png").read_bytes().startswith(b"\x89PNG")


def test_limits_fade_what_is_over_and_name_who_is_left(browser: Any, study: Path):
    show(browser, study / "report.html")
    set_to = """
const slider = document.getElementById('limit-saved_bytes');
slider.value = arguments[0] === null ? slider.max : arguments[0];
slider.dispatchEvent(new Event('input'));
return [slider.nextElementSibling.textContent, document.getElementById('limits-answer').textContent,
  [...document.querySelectorAll('#leaderboard tr.over')].map((row) => row.dataset.method)];"""
    sizes = {slug: saved for slug, (_, _, _, _, saved, *_) in METHODS.items()}
    cheap = sorted(set(sizes.values()))
    shown, left, over = browser.execute_script(set_to, 1)
    assert shown == "52.4 kB" and set(over) == {slug for slug, size in sizes.items() if size > cheap[1]}
    assert "over a limit: run the command with --max-" in left
    shown, left, over = browser.execute_script(set_to, 2)
    assert left == "Within these limits and not told from the best: SVFit."
    assert browser.execute_script(set_to, None) == ["any", "", []]


def test_scores_are_drawn_against_learning_rates(browser: Any, study: Path):
    show(browser, study / "report.html")
    for _ in range(100):
        if browser.execute_script("return document.querySelectorAll('#rates svg .mark-line path').length"):
            break
        browser.execute_async_script("setTimeout(arguments[0], 100)")
    drawn = browser.execute_script("return document.querySelectorAll('#rates svg .mark-line path').length")
    ticked = browser.execute_script("return document.querySelectorAll('#curve-legend input:checked').length")
    assert drawn == ticked > 1
