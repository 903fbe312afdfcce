"""RobustLowRank."""

from __future__ import annotations

from _rows import Blocks, listed, rows, short, table


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
        "starts": f"α = {listed(r['alpha'] for r in starts)} end at {floors}.\n",
    }
