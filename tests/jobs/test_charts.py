"""One place draws: the words of a picture, the script of a page, and who imports the library."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from xml.etree import ElementTree

import pytest

import eckart
from eckart.jobs import charts

ROOT = Path(__file__).parents[2]


def points(**more: object) -> object:
    rows = [{"x": 1, "y": 2, "name": 'a<b>&"c'}, {"x": 3, "y": 5, "name": "d"}]
    return (
        charts.alt.Chart(charts.alt.Data(values=rows), **more)
        .mark_point()
        .encode(x="x:Q", y="y:Q", detail="name:N")
    )


def test_a_picture_says_what_it_shows_to_those_who_do_not_see_it() -> None:
    picture = ElementTree.fromstring(charts.svg(points(), 'Two "points" & <b>'))
    assert (picture.get("role"), picture.get("aria-label")) == ("img", 'Two "points" & <b>')
    marks = [mark.get("aria-label", "") for mark in picture.iter() if mark.get("role") == "graphics-symbol"]
    assert any("x: 3; y: 5; name: d" in words for words in marks)


def test_texts_of_a_picture_stay_texts() -> None:
    title = "</svg><script>1</script>"
    picture = ElementTree.fromstring(charts.svg(points(title=title), "words"))
    texts = [node.text for node in picture.iter("{http://www.w3.org/2000/svg}text")]
    assert title in texts
    assert not list(picture.iter("{http://www.w3.org/2000/svg}script"))


def test_series_differ_in_colour_and_in_shape() -> None:
    assert len(set(charts.COLOURS)) == len(charts.COLOURS) == len(set(charts.SHAPES)) == len(charts.SHAPES)


def test_the_script_of_a_page_is_whole_small_and_always_the_same() -> None:
    script = charts.script()
    assert "vegaEmbed" in script and "</script" not in script and "<!--" not in script
    assert len(script.encode()) < 1_000_000
    code = "import hashlib; from eckart.jobs.charts import script; print(hashlib.sha256(script().encode()).hexdigest())"
    seen = {subprocess.check_output([sys.executable, "-c", code]) for _ in range(2)}
    assert len(seen) == 1


@pytest.mark.parametrize("package", ["altair", "vl_convert"])
def test_one_module_alone_imports_the_library(package: str) -> None:
    source = Path(eckart.__file__).parent
    files = [*source.rglob("*.py"), *(ROOT / "benchmarks").glob("*.py")]
    named = {path.name for path in files if f"import {package}" in path.read_text("utf-8")}
    asked = {path.name for path in files if f'= require("{package}"' in path.read_text("utf-8")}
    assert named == set() and asked == {"charts.py"}
