"""Write what the documentation takes from the registry: the tables of methods and the site's navigation.

Run by `make docs`; the tests check that the committed files are what this script writes.
"""

from __future__ import annotations

import json
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
    "compression": (
        "Compression",
        "For `eckart.compress` and [`eckart compress`]({docs}commands/compress.md).",
        "compression",
    ),
    "layers": (
        "Layers",
        "Modules to train from scratch, in `eckart.layers`; also as [transformers' models]({docs}layers/s4d.md).",
        "layers",
    ),
    "metrics": (
        "Metrics",
        "Functions in `eckart.metrics`, torchmetrics classes, and [`eckart measure`]({docs}commands/measure.md).",
        "metrics",
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


def measured(name: str, models: str, value: str, unit: str, *ratios: str) -> str:
    """The rows of benchmarks/results as Markdown.

    Args:
        name: of the results.
        models: the column that, with the tokens where there are any, tells one block of rows from another.
        value: the column measured.
        unit: its heading.
        ratios: columns to show beside it.
    """
    found = json.loads((ROOT / "benchmarks" / "results" / f"{name}.json").read_text("utf-8"))
    machine = found["machine"]
    titles = [models, *(["tokens"] if "tokens" in found["rows"][0] else []), "arm"]
    lines = [f"| {' | '.join([*titles, unit, *ratios])} |", "| --- " * (len(titles) + 1 + len(ratios)) + "|"]
    for row in found["rows"]:
        numbers = [f"{row[key]:.3f}" if isinstance(row[key], float) else str(row[key]) for key in ratios]
        shown = f"{row[value]:,.1f}" if isinstance(row[value], float) else f"{row[value]:,}"
        lines.append(f"| {' | '.join([*(str(row[title]) for title in titles), shown, *numbers])} |")
    cores = f"{machine['threads']} of {machine['cores']} cores"
    versions = f"torch {machine['torch']}, PEFT {machine['peft']}"
    return "\n" + "\n".join(lines) + f"\n\nOn {machine['cpu']}, {cores}, {versions}.\n\n"


def speed(text: str) -> str:
    """The page of the benchmarks with its tables."""
    text = between(text, "step-time", measured("step_time", "model", "ms", "ms", "x frozen floor", "x PEFT"))
    text = between(text, "memory", measured("peak_memory", "model", "peak MiB", "MiB", "x lora"))
    text = between(
        text, "depth", measured("memory_by_depth", "model", "MiB a layer", "MiB a layer", "x lora")
    )
    return between(text, "bytes", measured("checkpoint_bytes", "model", "bytes", "bytes", "x PEFT"))


def ladder(text: str) -> str:
    """The page of `eckart compress` with its perplexities."""
    found = json.loads((ROOT / "benchmarks" / "results" / "compression_ladder.json").read_text("utf-8"))
    about, machine = found["about"], found["machine"]
    lines = ["| method | asked | removed | parameters | perplexity | s |", "| --- " * 6 + "|"]
    for row in sorted(found["rows"], key=lambda row: (row["ratio"], row.get("perplexity", 0))):
        if "refused" in row:
            lines.append(f"| {row['method']} | {row['ratio']:.0%} | refused: no such rank | | | |")
            continue
        size = f"{row['parameters']:,}" if "parameters" in row else ""
        seconds = f"{row['seconds']:.0f}" if "seconds" in row else ""
        value = row["perplexity"]
        shown = f"{value:.1f}" if value < 1e4 else f"{value:.1e}"
        lines.append(
            f"| {row['method']} | {row['ratio']:.0%} | {row['removed']:.1%} | {size} | {shown} | {seconds} |"
        )
    tokens = f"{about['calibration tokens']:,} tokens of calibration, {about['test tokens']:,} of test"
    threads = f"{machine['threads']} of {machine['cores']} cores of {machine['cpu']}, shared with other work"
    return between(
        text,
        "ladder",
        "\n" + "\n".join(lines) + f"\n\nContext {about['context']}; {tokens}; {threads}.\n\n",
    )


def between(text: str, mark: str, new: str) -> str:
    """``text`` with the lines between the lines that hold ``mark``:begin and ``mark``:end replaced by ``new``."""
    pattern = re.compile(rf"(^[^\n]*{mark}:begin[^\n]*\n).*?(^[^\n]*{mark}:end)", re.DOTALL | re.MULTILINE)
    text, found = pattern.subn(lambda match: match[1] + new + match[2], text)
    if found != 1:
        raise SystemExit(f"marks {mark}:begin … {mark}:end: found {found} times, should be once")
    return text


def render() -> dict[Path, str]:
    """Path → text of every generated file."""
    readme, site, costs = ROOT / "README.md", ROOT / "mkdocs.yml", ROOT / "docs/evidence/speed.md"
    shrinking = ROOT / "docs/commands/compress.md"
    menu = between(site.read_text("utf-8"), "methods", navigation())
    return {
        readme: between(readme.read_text("utf-8"), "methods", "\n" + tables("docs/", "###") + "\n"),
        site: between(menu, "evidence", evidence()),
        costs: speed(costs.read_text("utf-8")),
        shrinking: ladder(shrinking.read_text("utf-8")),
        ROOT / "docs/methods/index.md": INDEX_HEAD + tables("../", "##"),
    }


if __name__ == "__main__":
    for path, text in render().items():
        path.write_text(text, "utf-8")
