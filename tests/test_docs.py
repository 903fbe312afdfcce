"""The documentation holds: every example runs, every method and command has its page, tables come from the rows.

An example that cannot run here says why in a comment on the line above its fence: <!-- no-run: takes ten minutes -->
"""

from __future__ import annotations

import json
import re
import runpy
import shlex
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path

import pytest

import eckart

ROOT = Path(__file__).resolve().parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
HEADINGS = ("Equation", "When to use it", "Cost", "Options", "Published numbers", "Discrepancies", "Example")
FAMILY_HEADINGS = {
    "adapters": ("What it saves",),
    "compression": ("What it saves",),
    "federated": ("What it saves",),
    "layers": ("What it saves",),
    "metrics": ("What it does not measure",),
    "optim": ("What it saves",),
    "recovery": ("Attributes",),
    "training": (),
}
GENERATE = runpy.run_path(str(ROOT / "docs" / "generate.py"))
REPOSITORY = GENERATE["PROJECT"]["urls"]["Repository"]
FENCE = re.compile(
    r"""^(?P<indent>[ ]*)(?:<!--[ ]no-run:[ ]*(?P<reason>.*?)[ ]*-->\n+[ ]*)?
    ```(?P<language>\w*)(?:[ ]title="(?P<title>[^"]+)")?[^`\n]*\n
    (?P<body>.*?)
    ^(?P=indent)```[ ]*$""",
    re.DOTALL | re.MULTILINE | re.VERBOSE,
)


@dataclass(frozen=True)
class Block:
    """One fenced block of a page; ``reason`` says why it does not run, if it does not; a title names a file."""

    language: str
    body: str
    line: int
    reason: str | None
    title: str | None

    def runs(self) -> bool:
        if self.reason is not None:
            return False
        return self.language == "python" or (self.language == "bash" and bool(commands(self.body)))


def blocks(page: Path) -> Iterator[Block]:
    text = page.read_text("utf-8")
    for fence in FENCE.finditer(text):
        line = text.count("\n", 0, fence.start("body"))
        yield Block(fence["language"], textwrap.dedent(fence["body"]), line, fence["reason"], fence["title"])


def commands(body: str) -> list[list[str]]:
    """The `eckart …` commands of a shell block, without the word `eckart`."""
    lines = body.replace("\\\n", " ").splitlines()
    return [shlex.split(line, comments=True)[1:] for line in lines if line.startswith("eckart ")]


def name(page: Path) -> str:
    return str(page.relative_to(ROOT))


@pytest.mark.parametrize("page", [p for p in PAGES if any(b.runs() for b in blocks(p))], ids=name)
def test_examples_run(
    page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The blocks of a page run in its order, in one namespace and one empty directory."""
    from eckart.cli import main

    monkeypatch.chdir(tmp_path)
    namespace: dict[str, object] = {"__name__": "__main__"}
    for block in blocks(page):
        if not block.runs():
            continue
        if block.title is not None:
            Path(block.title).write_text(block.body, "utf-8")
        elif block.language == "python":
            source = "\n" * block.line + block.body
            exec(compile(source, str(page), "exec", dont_inherit=True), namespace)
        for arguments in commands(block.body) if block.language == "bash" else ():
            assert main(arguments) == 0, f"eckart {shlex.join(arguments)}\n{capsys.readouterr().err}"


def test_contributing_example_runs(tmp_path: Path) -> None:
    """The new method of CONTRIBUTING.md works; in a process of its own, since it enters the registry."""
    source = "\n".join(
        b.body for b in blocks(ROOT / "CONTRIBUTING.md") if b.language == "python" and b.runs()
    )
    (tmp_path / "example.py").write_text(source, "utf-8")
    done = subprocess.run([sys.executable, "example.py"], cwd=tmp_path, capture_output=True, text=True)
    assert source and done.returncode == 0, done.stderr


@pytest.mark.parametrize("page", [ROOT / "CONTRIBUTING.md", *PAGES], ids=name)
def test_what_does_not_run_says_why(page: Path) -> None:
    assert "no-run" not in FENCE.sub("", page.read_text("utf-8")), (
        "a no-run comment that stands above no fence"
    )
    assert all(block.reason is None or len(block.reason) >= 10 for block in blocks(page))


@pytest.mark.parametrize("method", eckart.methods(), ids=lambda method: method.slug)
def test_method_has_its_page(method: eckart.MethodInfo) -> None:
    page = ROOT / "docs" / GENERATE["page"](method)
    found = re.findall(r"^##+ +(.+?) *$", page.read_text("utf-8"), re.MULTILINE)
    expected = (*HEADINGS, *FAMILY_HEADINGS[method.family])
    assert [heading for heading in expected if heading not in found] == []
    assert any(block.language == "python" and block.runs() for block in blocks(page))


def test_command_has_its_page() -> None:
    from typer.main import get_command

    from eckart.cli import app

    names = get_command(app).commands  # type: ignore[attr-defined]
    assert {name.replace(" ", "-") for name in names} == {
        page.stem for page in (ROOT / "docs" / "commands").glob("*.md")
    }


def test_generated_parts_are_up_to_date() -> None:
    stale = [
        name(path)
        for path, text in GENERATE["render"]().items()
        if not path.exists() or path.read_text("utf-8") != text
    ]
    assert stale == [], "run `make docs`"


@pytest.mark.parametrize("page", sorted((ROOT / "docs" / "evidence").glob("*.md")), ids=name)
def test_tables_of_evidence_are_written_from_rows(page: Path) -> None:
    """By hand stand only tables that judge a claim, beside the numbers they judge by."""
    typed = re.sub(r"<!-- ([\w-]+):begin -->.*?<!-- \1:end -->", "", page.read_text("utf-8"), flags=re.DOTALL)
    heads = re.findall(r"^(\|.*\|)\n\|(?: ?:?-+:? ?\|)+$", typed, re.MULTILINE)
    assert [head for head in heads if not head.startswith("| claim")] == []


def test_every_page_of_evidence_is_written_from_rows() -> None:
    pages = {page.stem for page in (ROOT / "docs" / "evidence").glob("*.md")}
    assert pages == {"index", *import_module("_tables").PAGES}


@pytest.mark.parametrize("page", ["CONTRIBUTING.md", "CHANGELOG.md", "SECURITY.md"])
def test_links_lead_somewhere(page: str) -> None:
    """Links of the pages outside docs/ (the build of the site checks those inside)."""
    targets = re.findall(r"\]\((?!https?:|#)([^)#\s]+)", (ROOT / page).read_text("utf-8"))
    assert [target for target in targets if not (ROOT / target).exists()] == []


FIGURE = runpy.run_path(str(ROOT / "benchmarks" / "_figure.py"))


def test_every_figure_has_its_rows() -> None:
    figures = {path.stem for path in (ROOT / "docs" / "evidence" / "figures").iterdir()}
    assert figures == {path.stem for path in FIGURE["ROWS"].glob("*.json")}


@pytest.mark.parametrize("path", sorted(FIGURE["ROWS"].glob("*.json")), ids=lambda path: path.stem)
def test_a_figure_shows_its_rows(path: Path) -> None:
    """Every mark's words, which hold its numbers; where they stand depends on the machine's fonts."""
    words = re.compile('aria-label="([^"]*)"')
    kept = (FIGURE["FIGURES"] / f"{path.stem}.svg").read_text("utf-8")
    assert words.findall(FIGURE["draw"](json.loads(path.read_text("utf-8")))) == words.findall(kept)


def test_links_of_the_readme_lead_somewhere_wherever_it_is_read() -> None:
    """The README is also the page on PyPI: its links are absolute, and those to this repository exist here."""
    targets = re.findall(r"\]\(([^)\s]+)", (ROOT / "README.md").read_text("utf-8"))
    assert [target for target in targets if not target.startswith("https://")] == []
    raw = REPOSITORY.replace("github.com", "raw.githubusercontent.com")
    ours = re.compile(rf"(?:{REPOSITORY}/blob|{raw})/main/([^#]+)(?:#(.+))?")
    found = [match for match in map(ours.fullmatch, targets) if match]
    assert len(found) > 20
    for match in found:
        page = ROOT / match[1]
        assert page.exists(), match[0]
        if match[2]:
            headings = re.findall(r"^#+ +(.+?) *$", page.read_text("utf-8"), re.MULTILINE)
            assert match[2] in {re.sub(r"[^\w -]", "", h).lower().replace(" ", "-") for h in headings}, match[
                0
            ]


@pytest.mark.parametrize("path", ["README.md", "CITATION.cff", "SECURITY.md", "pyproject.toml"])
def test_the_repository_has_one_address(path: str) -> None:
    """`[project.urls]` says it; what must repeat it says the same."""
    owner = REPOSITORY.removeprefix("https://github.com/").partition("/")[0]
    found = re.findall(rf"https://github\.com/{owner}[\w./-]*", (ROOT / path).read_text("utf-8"))
    assert found and all(url == REPOSITORY or url.startswith(f"{REPOSITORY}/") for url in found)
