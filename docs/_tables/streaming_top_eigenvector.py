"""StreamingPCA."""

from __future__ import annotations

from _rows import Blocks, listed, row, rows, short, signed, table


def blocks() -> Blocks:
    slug, miss = "streaming-top-eigenvector", "1 - cos^2"
    memory = rows(slug, part="memory")
    slope = signed(row(slug, part="exponent")["exponent"])
    counts, sizes = (listed(f"{r[key]:,}" for r in memory) for key in ("rows", "bytes"))

    def against(part: str, title: str) -> str:
        found = rows(slug, part=part)
        arms = dict.fromkeys(r["arm"] for r in found)
        head = (title, *dict.fromkeys(r[part] for r in found))
        return table(head, [(arm, *(short(r[miss]) for r in found if r["arm"] == arm)) for arm in arms])

    return {
        "gap": against("gap", "R")
        + f"\nFitted to the block method for R ≥ 2: 1 − cos² ∝ R^{slope}, below 1/R everywhere.\n",
        "heavy": against("heavy", "heavy rows"),
        "held": f"Bytes held between chunks after {counts} rows: {sizes}.\n",
    }
