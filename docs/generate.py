"""Write what the documentation takes from the registry: the tables of methods and the site's navigation.

Run by `make docs`; the tests check that the committed files are what this script writes.
"""

from __future__ import annotations

import re
from pathlib import Path

import eckart

ROOT = Path(__file__).resolve().parent.parent
INDEX_HEAD = """# Methods

Every method of this version: `eckart methods` prints the same list, `eckart.methods()` returns it. *Knob* is the option
that sets the size of a method, for adapters the one that a [budget](../budgets.md) solves for; *saved* is what a
checkpoint holds.

"""
FAMILIES = {
    "adapters": (
        "Adapters",
        "For [`eckart.adapt`]({docs}quickstart.md) and [`eckart compare`]({docs}commands/compare.md).",
        "methods",
    ),
    "recovery": (
        "Matrix recovery",
        "scikit-learn estimators in `eckart.recovery`; two also as [`eckart recover`]({docs}commands/recover.md).",
        "recovery",
    ),
}
"""Of each family the title, a line about it, and the folder of its pages."""


def page(method: eckart.MethodInfo) -> str:
    """The page of a method, as seen from docs/."""
    return f"{FAMILIES[method.family][2]}/{method.slug}.md"


def tables(docs: str, heading: str) -> str:
    """The methods as Markdown tables, one a family.

    Args:
        docs: leads to docs/ from the page that they stand on.
        heading: the mark of their headings.
    """
    return "\n".join(
        f"{heading} {title}\n\n{about.format(docs=docs)}\n\n{table(family, docs)}"
        for family, (title, about, _) in FAMILIES.items()
    )


def table(family: str, docs: str) -> str:
    """The methods of one family."""
    lines = ["| method | name | source | trains | knob | saved |", "| --- | --- | --- | --- | --- | --- |"]
    for method in eckart.methods(family):
        source = f"{method.paper}, [arXiv:{method.arxiv}](https://arxiv.org/abs/{method.arxiv})"
        row = (
            f"[`{method.slug}`]({docs}{page(method)})",
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
    return "".join(
        f"      - {title}:\n"
        + "".join(f"          - {method.name}: {page(method)}\n" for method in eckart.methods(family))
        for family, (title, *_) in FAMILIES.items()
    )


def evidence() -> str:
    """The entries of mkdocs.yml for the methods that have a page of evidence."""
    pages = ((method.name, f"evidence/{method.slug}.md") for method in eckart.methods())
    return "".join(f"      - {name}: {path}\n" for name, path in pages if (ROOT / "docs" / path).exists())


def between(text: str, mark: str, new: str) -> str:
    """``text`` with the lines between the lines that hold ``mark``:begin and ``mark``:end replaced by ``new``."""
    pattern = re.compile(rf"(^[^\n]*{mark}:begin[^\n]*\n).*?(^[^\n]*{mark}:end)", re.DOTALL | re.MULTILINE)
    text, found = pattern.subn(lambda match: match[1] + new + match[2], text)
    if found != 1:
        raise SystemExit(f"marks {mark}:begin … {mark}:end: found {found} times, should be once")
    return text


def render() -> dict[Path, str]:
    """Path → text of every generated file."""
    readme, site = ROOT / "README.md", ROOT / "mkdocs.yml"
    menu = between(site.read_text("utf-8"), "methods", navigation())
    return {
        readme: between(readme.read_text("utf-8"), "methods", "\n" + tables("docs/", "###") + "\n"),
        site: between(menu, "evidence", evidence()),
        ROOT / "docs/methods/index.md": INDEX_HEAD + tables("../", "##"),
    }


if __name__ == "__main__":
    for path, text in render().items():
        path.write_text(text, "utf-8")
