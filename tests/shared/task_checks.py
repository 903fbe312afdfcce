"""Checks of tasks: the scores of examples, and what is refused in one line."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from eckart.errors import InputError
from eckart.tasks.task import load_task


def scores(task: Any, model: Any, rows: list[Any]) -> np.ndarray:
    batch = task.collator(rows)
    with torch.no_grad():
        return task.scores(task.outcomes(model(**batch), batch))[0]


def refuse(model: object, data: object, *words: str, **options: object) -> None:
    with pytest.raises(InputError) as caught:
        load_task(model, data, **{"max_length": 16} | options)  # type: ignore[arg-type]
    assert "\n" not in str(caught.value)
    for word in words:
        assert word in str(caught.value)
