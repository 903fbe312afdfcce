"""Write what follows from elsewhere: tables of methods and navigation from the registry, figures from the rows that
evidence/ and benchmarks/ keep, and the typed faces of the rooms in which every file is a method.

Run by `make docs`; the tests check that the committed files are what this script writes.
"""

from __future__ import annotations

import tomllib
from functools import cache
from pathlib import Path

import _compressing
from _findings import findings
from _rows import ROOT, between, machine, result, signed
from _rows import table as markdown
from _stubs import ROOMS, stub
from _tables import PAGES, blocks, curves

import eckart
from eckart.adapters._census import REASONS
from eckart.arguments import RANGES

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
DOCS = f"{PROJECT['urls']['Repository']}/blob/main/docs/"
"""Where docs/ is for a reader of the README, which also stands where no file is beside it."""
INDEX_HEAD = """# Methods

Every method of this version: `eckart methods` prints the same list, `eckart.methods()` returns it. *Knob* is the option
that sets the size of a method, for adapters the one that a [budget](../budgets.md) solves for; *saved* is what a
checkpoint holds.

"""
COMBINED = """
## What combines with what

Rules with adapters, asked of the code: *yes*, or the option of the adapter with which the rule suits it.
`eckart compare --methods lora+allora` names such a pair. Prompts take no rule, nor do PEFT's own methods (`peft:dora`).

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
    "federated": (
        "Federated",
        "Strategies in `eckart.federated`, for [`eckart federate`]({docs}commands/federate.md).",
        "federated",
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
    "optim": (
        "Optimisers",
        "`torch.optim.Optimizer`s in `eckart.optim`; also [`eckart pretrain --optimizer`]({docs}commands/pretrain.md).",
        "optim",
    ),
    "recovery": (
        "Matrix recovery",
        "scikit-learn estimators in `eckart.recovery`; two also as [`eckart recover`]({docs}commands/recover.md).",
        "recovery",
    ),
    "training": (
        "Training rules",
        "Rules of `eckart.training` that act while adapters train: `.attach(model, optimizer)`, a callback for "
        "transformers' Trainer, and [`eckart compare --methods lora+allora`]({docs}commands/compare.md).",
        "training",
    ),
}
"""Of each family the title, a line about it, and the folder of its pages."""


def page(method: eckart.MethodInfo) -> str:
    """The page of a method, as seen from docs/."""
    own = f"{FAMILIES[method.family][2]}/{method.slug}.md"
    # A rule that is part of an adapter's procedure is described on the adapter's page.
    return own if (ROOT / "docs" / own).exists() else f"methods/{method.slug.partition('-')[0]}.md"


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


@cache
def combined() -> str:
    """Rules and adapters: which suits which, and why not."""
    from eckart.training import combinations

    cells: dict[str, dict[str, str]] = {}
    reasons: dict[str, set[str]] = {}
    for found in combinations():
        options = ", ".join(f"`{name}={value!r}`" for name, value in found.options.items())
        cells.setdefault(found.adapter, {})[found.rule] = "–" if found.reason else options or "yes"
        if found.reason:
            reasons.setdefault(found.rule, set()).add(found.reason)
    rules = list(next(iter(cells.values())))
    lines = [[f"`{adapter}`", *(row[rule] for rule in rules)] for adapter, row in cells.items()]
    told = [f"- `{rule}`: {'; '.join(sorted(why))}" for rule, why in sorted(reasons.items())]
    shown = markdown(["adapter", *(f"`{rule}`" for rule in rules)], lines)
    return shown + "\nWhat an adapter has where a rule does not suit it:\n\n" + "\n".join(told) + "\n"


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


def with_figures(name: str) -> str:
    """A page of evidence with what is written on it between marks."""
    text = (ROOT / "docs" / "evidence" / f"{name}.md").read_text("utf-8")
    for mark, block in blocks(name).items():
        text = between(text, mark, f"\n{block}\n")
    return text


def chosen_memory(*arms: str) -> str:
    """Peak memory of a step of some arms, by tokens."""
    found = result("chosen_weights_memory", "benchmarks")["rows"]
    lines = [
        (
            r["tokens"],
            r["arm"],
            f"{r['peak MiB']:.1f}",
            f"{r['x all weights']:.2f}",
            f"{r['x lora']:.2f}",
            signed(r["matrices above lora"], 1),
        )
        for r in found
        if r["arm"] in arms
    ]
    head = ("tokens", "arm", "MiB", "of all weights'", "of LoRA's", "matrices of a layer above LoRA's")
    return f"\n{markdown(head, lines)}\n"


def ranges() -> str:
    """What numbers may be, from the table that all constructors and commands are held to."""
    names: dict[str, list[str]] = {}
    for name, allowed in RANGES.items():
        names.setdefault(allowed.words, []).append(f"`{name}`")
    lines = [(words, ", ".join(sorted(set(found), key=str.lower))) for words, found in names.items()]
    return f"\n{markdown(('what it may be', 'options'), lines)}\n"


def reasons() -> str:
    """Why a layer cannot be adapted, from the census of a model."""
    shown = {"parent": "the module above it", "max_norm": "…", "option": "scale_grad_by_freq or sparse"}
    shown |= {"kind": "its class"}
    return "\n" + "".join(f"- {reason.format(**shown)};\n" for reason in REASONS.values()) + "\n"


def sizes() -> str:
    """Accuracies of one network cut to several sizes, an arm a line."""
    rows = result("maestro_sizes", "benchmarks")["rows"]
    ratios = sorted({row["removed"] for row in rows})
    found = {(row["arm"], row["removed"]): f"{row['accuracy']:.1%}" for row in rows}
    lines = [(arm, *(found[arm, ratio] for ratio in ratios)) for arm in dict.fromkeys(r["arm"] for r in rows)]
    head = ("removed", *(f"{ratio:.0%}" for ratio in ratios))
    return f"\n{markdown(head, lines)}\nMean of {rows[0]['seeds']} seeds.\n\n"


def optimizer_steps(kind: str) -> str:
    """Times of a step of an optimiser by rank, an arm and a shape a line."""
    found = result("optimizer_step", "benchmarks")
    chosen = [row for row in found["rows"] if row["arm"].startswith(kind)]
    ranks = sorted({row["rank"] for row in chosen})
    lines = []
    for shape, arm in dict.fromkeys((row["shape"], row["arm"]) for row in chosen):
        own = {row["rank"]: row for row in chosen if (row["shape"], row["arm"]) == (shape, arm)}
        times = (f"{own[r]['x least rank']:.2f}" for r in ranks[1:])
        last = own[ranks[-1]]
        muon = next(r["ms"] for r in found["rows"] if (r["shape"], r["arm"]) == (shape, "torch Muon"))
        against = (f"{last['SVD / this']:.1f}", f"{last['x AdamW']:.1f}", f"{muon / last['ms']:.1f}")
        lines.append((shape.replace("x", "×"), arm, f"{own[ranks[0]]['ms']:.1f}", *times, *against))
    head = ("matrix", "optimiser", f"ms, r = {ranks[0]}", *(f"r = {r}, times that" for r in ranks[1:]))
    against = ("a decomposition takes times as long", "AdamW's time, times", "Muon takes times as long")
    return f"\n{markdown((*head, *against), lines)}\n{machine(found)}\n"


def pruned_memory() -> str:
    """Peak memory of training on pruned bases."""
    rows = result("loram_memory", "benchmarks")["rows"]
    lines = [
        (
            f"{r['ratio']:g}",
            r["base"],
            *(f"{r[k]:,.0f}" for k in ("base MiB", "peak MiB")),
            f"{r['x unpruned']:.2f}",
        )
        for r in rows
    ]
    head = ("ratio", "base", "weights in float32, MiB", "peak, MiB", "of the whole model's")
    return f"\n{markdown(head, lines)}\n1 × {rows[0]['tokens']} tokens a step.\n\n"


def pruned_quality() -> str:
    """What training on pruned bases costs in quality."""
    found = result("loram_smollm2", "benchmarks")
    keys = ("no adapter", "small", "recovered")
    lines = [
        (f"{r['ratio']:g}", r["align steps"], f"{r['small M']:.0f} M", *(f"{r[key]:.3f}" for key in keys))
        for r in found["rows"]
    ]
    head = (
        "ratio",
        "align steps",
        "trained base",
        "whole model without",
        "pruned with adapter",
        "whole with it",
    )
    steps = found["rows"][0]["steps"]
    return f"\n{markdown(head, lines)}\nBits per token, {steps} steps, one seed. {machine(found)}\n"


def render() -> dict[Path, str]:
    """Path → text of every generated file."""
    readme, site, index = ROOT / "README.md", ROOT / "mkdocs.yml", ROOT / "docs/evidence/index.md"
    shrinking, refused = ROOT / "docs/commands/compress.md", ROOT / "docs/refused.md"
    cutting, pruning = ROOT / "docs/layers/maestro.md", ROOT / "docs/compression/loram.md"
    chosen = {
        ROOT / "docs/methods/sara.md": ("all weights", "sara", "lora"),
        ROOT / "docs/methods/snella.md": ("lora", "snell", "snella"),
    }
    shown = {path: curves.on_page(path.read_text("utf-8"), arms) for path, arms in curves.pages().items()}
    for path, arms in chosen.items():
        shown[path] = between(shown.get(path, path.read_text("utf-8")), "memory", chosen_memory(*arms))
    dct, trion = ROOT / "docs/optim/dct-lowrank.md", ROOT / "docs/optim/trion.md"
    menu = between(site.read_text("utf-8"), "methods", navigation())
    return {
        readme: between(readme.read_text("utf-8"), "methods", "\n" + tables(DOCS, "###") + "\n"),
        site: between(menu, "evidence", evidence()),
        index: between(index.read_text("utf-8"), "findings", findings() + "\n"),
        refused: between(between(refused.read_text("utf-8"), "ranges", ranges()), "layers", reasons()),
        shrinking: _compressing.on_page(shrinking.read_text("utf-8")),
        dct: between(dct.read_text("utf-8"), "steps", optimizer_steps("DCTAdamW")),
        trion: between(trion.read_text("utf-8"), "steps", optimizer_steps("Trion")),
        cutting: between(cutting.read_text("utf-8"), "sizes", sizes()),
        pruning: between(
            between(pruning.read_text("utf-8"), "memory", pruned_memory()), "quality", pruned_quality()
        ),
        **shown,
        ROOT / "docs/methods/index.md": INDEX_HEAD + tables("../", "##") + COMBINED + combined(),
        **{ROOT / f"docs/evidence/{name}.md": with_figures(name) for name in PAGES},
        **{ROOT / f"src/eckart/{room}/__init__.pyi": stub(room) for room in ROOMS},
    }


if __name__ == "__main__":
    for path, text in render().items():
        path.write_text(text, "utf-8")
