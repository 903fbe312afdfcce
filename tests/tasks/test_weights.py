"""Weights of classes: the loss by hand, in parts as whole, and on the models that are trained."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from sklearn.utils.class_weight import compute_class_weight
from task_checks import refuse
from tiny_models import WORDS, save_vit

from eckart.adapters import adapt
from eckart.tasks.instruments import FrozenFloor
from eckart.tasks.task import load_task
from eckart.tasks.weights import balanced_weights


@pytest.fixture(scope="module")
def uneven(root: Path) -> Path:
    """Four of five texts are good."""
    rows = [{"text": f"{WORDS[i % 16]} film", "label": "good" if i % 5 else "bad"} for i in range(100)]
    path = root / "uneven.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_weights_are_scikit_learns() -> None:
    labels = [0] * 3 + [1] * 10 + [2] * 7
    wanted = compute_class_weight("balanced", classes=np.arange(3), y=labels)
    assert balanced_weights(labels, 3).tolist() == pytest.approx(wanted)


def test_the_loss_of_a_task(bert: Path, uneven: Path) -> None:
    task = load_task(bert, uneven, max_length=16, class_weights="balanced")
    assert "weights of the classes in the loss: bad 2.5, good 0.625" in task.data.notes
    batch = task.collator([task.train[i] for i in range(10)])
    for model in (task.fresh_model(0), adapt(task.fresh_model(0), "lora", r=2, target_modules=["query"])):
        outputs = model(**batch)
        each = F.cross_entropy(outputs.logits, batch["labels"], reduction="none")
        weights = torch.where(batch["labels"] == 0, 2.5, 0.625)
        assert outputs.loss.item() == pytest.approx((weights * each).mean().item(), rel=1e-5)
        assert outputs["loss"] is outputs.loss
        parts = [model(**{name: value[part] for name, value in batch.items()}).loss.item()
                 for part in (slice(0, 5), slice(5, 10))]  # fmt: skip
        assert sum(parts) / 2 == pytest.approx(outputs.loss.item(), rel=1e-5)
        assert model(**{name: value for name, value in batch.items() if name != "labels"}).loss is None
    assert FrozenFloor(task.fresh_model(0)).step(batch) > 0
    plain = load_task(bert, uneven, max_length=16)
    assert plain.fresh_model(0)(**batch).loss.item() != pytest.approx(outputs.loss.item(), rel=1e-3)


def test_images_too_and_nothing_else(
    root: Path, bert: Path, gpt2: Path, pictures: Path, corpus: Path
) -> None:
    task = load_task(save_vit(root / "weighted"), pictures, class_weights="balanced")
    assert "weights of the classes in the loss: 0 1, 1 1, 2 1" in task.data.notes
    refuse(gpt2, corpus, "--class-weights is for text-classification and image-classification, not causal-lm",
           class_weights="balanced")  # fmt: skip
    refuse(bert, pictures, "--class-weights even: choose balanced", class_weights="even")
