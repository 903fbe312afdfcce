"""What DePT saves: the step (forward + backward + AdamW) over that of PEFT's prompt tuning with as many numbers.

Run: python benchmarks/prompt_length.py [--lengths 64 128 256] [--tokens 2048] [--seconds 60]

Prompt tuning has 100 vectors; DePT has 40, and a rank that brings it to the same count. An encoder of MiniLM-L6's shape
with a classifier, texts of one length; one thread, whose own time counts. Bar: at most 0.85 of prompt tuning's step.
"""

from __future__ import annotations

import argparse
import time
import warnings
from collections.abc import Callable
from typing import Any

import peft
import torch
from _harness import interleave, save, table
from torch import nn
from transformers import BertConfig, BertForSequenceClassification

from eckart.adapters import DePTConfig

LONG, SHORT = 100, 40
SHAPE = {"hidden_size": 384, "num_hidden_layers": 6, "num_attention_heads": 12, "intermediate_size": 1536}


def arm(name: str, length: int) -> nn.Module:
    """The frozen encoder with one arm's prompt before it."""
    torch.manual_seed(0)
    quiet = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0, "vocab_size": 1000}
    model = BertForSequenceClassification(BertConfig(**SHAPE, **quiet))
    if name == "prompt tuning":
        config: Any = peft.PromptTuningConfig(task_type="SEQ_CLS", num_virtual_tokens=LONG)
    else:
        config = DePTConfig(task_type="SEQ_CLS", num_virtual_tokens=SHORT, max_length=length)
    return peft.get_peft_model(model, config).train()


def numbers(model: nn.Module) -> int:
    """What trains beside the classifier."""
    return sum(p.numel() for n, p in model.named_parameters() if p.requires_grad and "classifier" not in n)


def make_step(model: nn.Module, length: int, batch: int) -> Callable[[], None]:
    """One training step of an arm."""
    ids = torch.randint(1000, (batch, length))
    given = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": ids[:, 0] % 2}
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-3)

    def step() -> None:
        optimizer.zero_grad()
        model(**given).loss.backward()
        optimizer.step()

    return step


def main() -> None:
    """Print and save one row for each length of the text and arm."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--lengths", nargs="+", type=int, default=[64, 128, 256], help="tokens of a text")
    parser.add_argument("--tokens", type=int, default=2048, help="tokens in a step, prompts not counted")
    parser.add_argument("--seconds", type=float, default=60, help="time for each length")
    options = parser.parse_args()
    warnings.filterwarnings("ignore")
    torch.set_num_threads(1)
    rows: list[dict[str, Any]] = []
    for length in options.lengths:
        arms = {name: arm(name, length) for name in ("prompt tuning", "dept")}
        steps = {name: make_step(m, length, options.tokens // length) for name, m in arms.items()}
        times = interleave(steps, options.seconds, clock=time.thread_time)
        for name, seconds in times.items():
            rows.append(
                {
                    "model": "minilm",
                    "tokens": length,
                    "arm": name,
                    "numbers": numbers(arms[name]),
                    "positions": length + (LONG if name == "prompt tuning" else SHORT),
                    "ms": 1e3 * seconds,
                    "x prompt tuning": seconds / times["prompt tuning"],
                }
            )
    table(rows)
    save("prompt_length", rows)


if __name__ == "__main__":
    main()
