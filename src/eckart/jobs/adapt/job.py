"""What a run of `eckart adapt` is: everything that decides its numbers."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True)
class Job:
    """Everything that decides the numbers of a run; kept in run.json, and a resumed run must agree with it."""

    model: str | None
    data: str | None
    task: dict[str, Any]
    fingerprint: str
    method: str
    budget: str | None
    options: dict[str, Any]
    target_modules: list[str] | str | None
    steps: int
    batch_size: int
    lr: float
    head_lr: float
    seed: int
    save_every: int
    validate_every: int
    optimizer: str
    optimizer_options: dict[str, Any]
    loram: dict[str, Any] | None = None
    keep: str = "last"
    patience: int | None = None

    def plain(self) -> dict[str, Any]:
        """The values as run.json gives them back."""
        plain: dict[str, Any] = json.loads(json.dumps(asdict(self)))
        return plain
