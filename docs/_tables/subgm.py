"""RobustLowRank."""

from __future__ import annotations

from _rows import Blocks, listed, row, rows, short, table


def blocks() -> Blocks:
    found = [r for r in rows("subgm") if "arm" in r]
    shares = list(dict.fromkeys(r["outliers"] for r in found))
    errors = {
        arm: [r["error"] for r in found if r["arm"] == arm] for arm in dict.fromkeys(r["arm"] for r in found)
    }
    full, exact, square = (errors[arm][3] for arm in ("ℓ1, r′ = 20", "ℓ1, r′ = 3", "ℓ2, r′ = 20"))
    starts = [r for r in rows("subgm") if "alpha" in r]
    floors = listed(short(r["error"]) for r in starts)
    return {
        "outliers": table(
            ("share of outliers", *shares), [(arm, *map(short, values)) for arm, values in errors.items()]
        )
        + f"\nAt {shares[3]:.0%} outliers over-estimating the rank seven-fold, r′ = 20 = d, multiplies the error by "
        f"{full / exact:.1f}, and the square loss by {square / full:,.0f}.\n",
        "genes": genes(),
        "starts": f"α = {listed(r['alpha'] for r in starts)} end at {floors}.\n",
    }


def genes() -> str:
    found = rows("gene_expression", "benchmarks")
    cases = list(dict.fromkeys((r["data"], r["failed probes"]) for r in found))
    lines = [
        (
            name,
            *(
                f"{row('gene_expression', 'benchmarks', **of(case), **{'filled by': name})['error']:.2f}"
                for case in cases
            ),
        )
        for name in dict.fromkeys(r["filled by"] for r in found)
    ]
    return table(("filled by", *(f"{data}, {failed:.0%} failed" for data, failed in cases)), lines)


def of(case: tuple[str, float]) -> dict[str, object]:
    return {"data": case[0], "failed probes": case[1]}
