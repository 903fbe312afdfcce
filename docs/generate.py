"""Write what the documentation takes from the registry: the tables of methods and the site's navigation.

Run by `make docs`; the tests check that the committed files are what this script writes.
"""

from __future__ import annotations

import re
from pathlib import Path

import eckart

ROOT = Path(__file__).resolve().parent.parent
INDEX_HEAD = """# Methods

Every method of this version, from the registry: `eckart methods` prints the same table, `eckart.methods()` returns it.
*Knob* is the option that a [budget](../budgets.md) sets; *saved* is what a checkpoint holds.

"""


def table(link: str) -> str:
    """The methods as a Markdown table; ``link`` is the folder of their pages as seen from the page it stands on."""
    lines = ["| method | name | source | trains | knob | saved |", "| --- | --- | --- | --- | --- | --- |"]
    for method in eckart.methods():
        source = f"{method.paper}, [arXiv:{method.arxiv}](https://arxiv.org/abs/{method.arxiv})"
        row = (
            f"[`{method.slug}`]({link}{method.slug}.md)",
            method.name,
            source,
            method.trains,
            f"`{method.knob}`",
            method.saves,
        )
        lines.append(f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in row)} |")
    return "\n".join(lines) + "\n"


def navigation() -> str:
    """The entries of mkdocs.yml for the methods' pages."""
    return "".join(f"      - {method.name}: methods/{method.slug}.md\n" for method in eckart.methods())


def between(text: str, begin: str, end: str, new: str) -> str:
    """``text`` with the lines between the lines that hold the two marks replaced by ``new``."""
    pattern = re.compile(
        rf"(^[^\n]*{re.escape(begin)}[^\n]*\n).*?(^[^\n]*{re.escape(end)})", re.DOTALL | re.MULTILINE
    )
    text, found = pattern.subn(lambda match: match[1] + new + match[2], text)
    if found != 1:
        raise SystemExit(f"marks {begin} … {end}: found {found} times, should be once")
    return text


def render() -> dict[Path, str]:
    """Path → text of every generated file."""
    readme, site = ROOT / "README.md", ROOT / "mkdocs.yml"
    return {
        readme: between(readme.read_text("utf-8"), "methods:begin", "methods:end", table("docs/methods/")),
        site: between(site.read_text("utf-8"), "methods:begin", "methods:end", navigation()),
        ROOT / "docs/methods/index.md": INDEX_HEAD + table(""),
    }


if __name__ == "__main__":
    for path, text in render().items():
        path.write_text(text, "utf-8")
