"""The model card beside a federated adapter: what was trained, by whom, how well, and how to load it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from eckart.escapes import code, markdown
from eckart.tasks.pretrained import base_name

if TYPE_CHECKING:
    from eckart.jobs.federate.plan import Plan

_CLASSES = {
    "text-classification": "AutoPeftModelForSequenceClassification",
    "causal-lm": "AutoPeftModelForCausalLM",
}


def model_card(plan: Plan, metrics: dict[str, Any], directory: Path) -> str:
    """README.md for the directory of a run.

    Args:
        plan: the run.
        metrics: what metrics.json holds.
        directory: where the card will be.
    """
    front = {
        "base_model": base_name(plan.model) or "sentence-transformers/all-MiniLM-L6-v2",
        "library_name": "peft",
        "tags": ["eckart", "federated", "lora", plan.strategy],
    }
    rule = plan.rule()
    rows = {
        "strategy": f"{rule.title} ({rule.paper}, [arXiv:{rule.arxiv}](https://arxiv.org/abs/{rule.arxiv}))",
        "options": markdown(", ".join(f"{name} {value}" for name, value in plan.options.items()))
        or "its own",
        "clients": f"{plan.clients}, {plan.asked} a round, {metrics['rounds']} rounds, {markdown(plan.partition)}",
        "ranks": ", ".join(map(str, metrics["ranks"])),
        "a client's round": f"{plan.local_epochs} passes, batches of {plan.batch_size}, AdamW at {plan.lr:g} "
        f"(factors) and {plan.head_lr:g} (head)",
        "data": markdown(metrics["data"]),
        "bytes": f"{metrics['bytes_up']:,} up, {metrics['bytes_down']:,} down",
        "seed": str(plan.seed),
    }
    scores = "\n".join(f"| {split} | {_score(metrics[split])} |" for split in ("validation", "test"))
    loader = _CLASSES.get(metrics["kind"], "AutoPeftModel")
    return f"""---
{chr(10).join(f"{key}: {json.dumps(value, ensure_ascii=False)}" for key, value in front.items())}
---

# LoRA for {markdown(Path(metrics["model"]).name)} by {rule.title}

Trained with `eckart federate` {metrics["versions"]["eckart"]}. This directory holds one LoRA adapter and the head.

| | |
| --- | --- |
{chr(10).join(f"| {key} | {value} |" for key, value in rows.items())}

| split | {metrics["metric"].replace("_", " ")} (95% interval) |
| --- | --- |
{scores}

`rounds.csv` and `clients.csv` hold the course of the run, `metrics.json` these numbers.

```python
from peft import {loader}

model = {loader}.from_pretrained({code(str(directory))})
```
"""


def _score(scored: dict[str, float]) -> str:
    return f"{scored['score']:.4f} ({scored['ci_low']:.4f} to {scored['ci_high']:.4f})"
