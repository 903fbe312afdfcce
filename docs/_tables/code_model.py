"""The embedded code model beside counts of tokens and SmolLM2."""

from __future__ import annotations

from _rows import Blocks, machine, result, row, rows, table


def blocks() -> Blocks:
    corpus = row("code-model", part="corpus")
    sizes = [
        (split, f"{one['documents']:,}", f"{one['bytes']:,}", f"{one['tokens']:,}")
        for split, one in corpus["splits"].items()
    ]
    scored = [
        [(r["model"], f"{r['bits a byte']:.3f}") for r in rows("code-model", part=part) if "model" in r]
        for part in ("test split", "passages")
    ]
    head = ("model", "bits a byte")
    tried = [
        (r["steps"], r["optimizer"], f"{r['lr']:g}", f"{r['loss']:.3f}")
        for r in rows("code-model", part="tried")
    ]
    return {
        "corpus": table(("split", "files", "bytes", "tokens"), sizes) + f"\nOf Python {corpus['python']}.\n",
        "scores": table(head, scored[0]) + "\n" + machine(result("code-model")),
        "passages": table(head, scored[1]),
        "tried": table(("updates", "optimiser", "rate", "validation loss"), tried),
    }
