"""A study directory with made-up but plausible numbers, for the tests of the page and for its picture."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pandas as pd

BUDGET = "0.5%"
# slug: label, options, true accuracy, trained numbers, saved bytes, step ÷ floor, peak MB, seconds, best lr
METHODS = {
    "head-only": ("head only", {}, 0.668, 0, 21_000, 1.00, 610, 5, 1e-2),
    "full": ("full fine-tuning", {}, 0.786, 22_713_216, 90_900_000, 1.92, 1_010, 31, 1e-4),
    "lora": ("LoRA", {"r": 8, "lora_alpha": 16}, 0.764, 110_592, 466_000, 1.06, 688, 16, 2e-3),
    "randlora": ("RandLoRA", {"r": 20}, 0.779, 113_400, 476_500, 1.18, 742, 19, 2e-3),
    "nola": ("NOLA", {"k": 3150}, 0.748, 113_400, 475_000, 1.31, 731, 21, 1e-2),
    "mos": ("MoS", {"e": 8, "r": 8, "l": 4}, 0.770, 110_592, 472_000, 1.09, 690, 17, 2e-3),
    "svfit": ("SVFit", {"r": 384}, 0.741, 6_912, 53_000, 1.12, 705, 17, 1e-2),
    "salt": ("SALT", {"r": 8}, 0.757, 113_300, 470_000, 1.14, 712, 18, 1e-2),
    "loldu": ("LoLDU", {"r": 384}, 0.722, 6_930, 52_400, 1.11, 702, 17, 1e-2),
    "bone": ("Bone", {"r": 16}, 0.766, 110_592, 465_000, 1.02, 676, 15, 2e-3),
    "snell": ("SNELL", {"r": 4, "sparsity": 0.9}, 0.761, 112_000, 470_000, 1.22, 701, 20, 2e-3),
    "flora-tucker": ("FLoRA (Tucker)", {"r": [12, 12, 6]}, 0.769, 109_900, 462_000, 1.10, 694, 17, 1e-2),
}


def write_study(
    directory: Path,
    *,
    seeds: int = 3,
    labels: list[str] | None = None,
    state: str = "complete",
    rng_seed: int = 7,
) -> Path:
    """Write results.csv, curves.csv and compare.json of a study of twelve methods."""
    directory.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(rng_seed)
    labels = labels or [
        "asyncio",
        "concurrent",
        "distutils",
        "email",
        "http",
        "idlelib",
        "importlib",
        "lib2to3",
    ]
    versions = json.dumps({"eckart": "0.1.0", "torch": "2.13.0", "peft": "0.21.2", "transformers": "5.23.0"})
    runs: list[dict[str, object]] = []
    curves: list[dict[str, object]] = []

    def add(stage: str, slug: str, lr: float, seed: int) -> None:
        label, options, truth, count, saved, ratio, memory, seconds, best = METHODS[slug]
        run = {"run_id": f"{slug}-{stage}-{lr:g}-{seed}", "stage": stage, "method": slug, "label": label}
        run |= {"options": json.dumps(options), "budget": BUDGET, "lr": lr, "seed": seed, "steps": 300}
        run |= {"trainable_parameters": count, "head_parameters": 4_620, "saved_bytes": saved}
        off = abs(np.log10(lr / best))
        status = "complete"
        if stage == "tune" and off > 1.9:
            status = "pruned"
        if (slug, lr) == ("full", 2e-3) and stage == "tune":
            status = "diverged"
        if slug == "loldu" and stage == "final" and seed == 1:
            status = "failed"
        ends = {"complete": 300, "pruned": 100, "diverged": 60, "failed": 180}[status]
        score = truth - 0.02 * off**1.5 + rng.normal(0, 0.004)
        for step in range(20, ends + 1, 20):
            done = 1 - np.exp(-step / 70)
            base = 2.1 if status != "diverged" else 2.1 + step / 20
            loss = base - 1.35 * done * score + rng.normal(0, 0.03)
            curves.append(
                {
                    "run_id": run["run_id"],
                    "step": step,
                    "split": "train",
                    "loss": round(loss, 4),
                    "score": None,
                }
            )
            if step % 60 == 0:
                now = 0.09 + (score - 0.09) * done + rng.normal(0, 0.003)
                curves.append(
                    {
                        "run_id": run["run_id"],
                        "step": step,
                        "split": "validation",
                        "loss": round(loss + 0.05, 4),
                        "score": round(now, 4),
                    }
                )
        run |= {"status": status, "metric": "accuracy", "greater_is_better": True}
        run["validation_score"] = None if status in ("diverged", "failed") else round(score + 0.004, 4)
        if stage == "final" and status == "complete":
            spread = 1.96 * np.sqrt(score * (1 - score) / 1_214)
            run |= {
                "score": round(score, 4),
                "ci_low": round(score - spread, 4),
                "ci_high": round(score + spread, 4),
            }
        run |= {
            "step_time_ratio": round(ratio + rng.normal(0, 0.01), 3),
            "step_seconds": round(0.047 * ratio, 4),
            "peak_memory_mb": memory,
            "seconds": round(seconds * ends / 300, 1),
            "error": {
                "diverged": "loss is NaN at step 60",
                "failed": "RuntimeError: the factor L is singular in encoder.layer.3.attention.self.key",
            }.get(status),
            "versions": versions,
            "machine": "x86_64, 2 cores, 8 GB",
        }
        runs.append(run)

    for slug in METHODS:
        rates = (2e-5, 1e-4, 2e-3) if slug == "full" else (3e-4, 2e-3, 1e-2)
        for lr in rates:
            add("tune", slug, lr, 0)
        for seed in range(seeds):
            add("final", slug, METHODS[slug][-1], seed)

    pd.DataFrame(runs).to_csv(directory / "results.csv", index=False)
    pd.DataFrame(curves).to_csv(directory / "curves.csv", index=False)
    study = {
        "format": 1,
        "state": state,
        "command": "eckart compare --methods all --budget 0.5% --steps 300 --seeds 3 --output comparison",
        "options": {
            "methods": "all",
            "budget": BUDGET,
            "steps": 300,
            "seeds": seeds,
            "batch_size": 32,
            "max_length": 128,
        },
        "task": {
            "kind": "text-classification",
            "model": "all-MiniLM-L6-v2",
            "data": "made-up example numbers",
            "sizes": {"train": 4_912, "validation": 1_193, "test": 1_214},
            "labels": labels,
            "metric": "accuracy",
            "greater_is_better": True,
        },
        "budget": BUDGET,
        "versions": json.loads(versions) | {"python": "3.11.2"},
        "machine": {"processor": "x86_64", "cores": 2, "memory": "8 GB", "device": "cpu", "system": "Linux"},
        "started": "2025-11-24T06:02:11+00:00",
        "finished": "2025-11-24T06:11:40+00:00" if state == "complete" else None,
    }
    (directory / "compare.json").write_text(json.dumps(study, indent=2), encoding="utf-8")
    return directory
