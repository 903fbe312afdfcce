"""What LoRAM prunes by: names alone, without torch."""

from __future__ import annotations

from typing import Literal, get_args

Criterion = Literal["magnitude", "random", "taylor", "unstructured", "semi"]
CRITERIA: tuple[Criterion, ...] = get_args(Criterion)
