"""Finished blocks on disk, so that a run that was stopped goes on where it was."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import nn

from eckart.compression._layers import Spec
from eckart.compression._method import Change, Compressor, LayerRow
from eckart.errors import InputError
from eckart.files import atomic_write

PLAN = "plan.json"


class Finished:
    """A directory with one pair of files for each finished block.

    Args:
        directory: made if it is not there.
        plan: what the run is; another run's directory is refused.

    Raises:
        InputError: the directory holds another run.
    """

    def __init__(self, directory: str | Path, plan: Mapping[str, Any]) -> None:
        self.place = Path(directory)
        text = json.dumps(plan, sort_keys=True, default=str)
        wanted = {"fingerprint": hashlib.sha256(text.encode()).hexdigest(), "plan": plan}
        path = self.place / PLAN
        if path.is_file():
            self._check(path, wanted)
            return
        with atomic_write(path) as temporary:
            temporary.write_text(json.dumps(wanted, indent=1, default=str) + "\n", "utf-8")

    def _check(self, path: Path, wanted: Mapping[str, Any]) -> None:
        remedy = "choose another directory, or delete it"
        try:
            found = json.loads(path.read_text("utf-8"))
            fingerprint, plan = found["fingerprint"], dict(found["plan"])
        except (ValueError, KeyError, TypeError):
            raise InputError(f"resume {self.place}: {path.name} is damaged: {remedy}") from None
        if fingerprint == wanted["fingerprint"]:
            return
        now = json.loads(json.dumps(wanted["plan"], default=str))
        told = [
            name if isinstance(value, list) else f"{name} {plan.get(name)} there, {value} now"
            for name, value in now.items()
            if plan.get(name) != value
        ]
        raise InputError(
            f"resume {self.place} holds finished blocks of another run ({'; '.join(told)}): {remedy}"
        )

    def load(
        self, index: int, method: Compressor, model: nn.Module
    ) -> tuple[dict[str, Change], list[LayerRow]] | None:
        """The changes of a block, or None where it is not finished or its files are damaged."""
        tensors, table = self.place / f"block-{index:04d}.safetensors", self.place / f"block-{index:04d}.json"
        if not (tensors.is_file() and table.is_file()):
            return None
        try:
            found, state = json.loads(table.read_text("utf-8")), load_file(tensors)
            changes = {}
            for name, spec in found["specs"].items():
                module = method.rebuild(spec, model.get_submodule(name))
                prefix = f"{name}/"
                module.load_state_dict(
                    {k.removeprefix(prefix): v for k, v in state.items() if k.startswith(prefix)}
                )
                changes[name] = Change(module, spec)
            return changes, [LayerRow(*row) for row in found["rows"]]
        except (SafetensorError, ValueError, KeyError, TypeError, RuntimeError):
            return None

    def save(self, index: int, changes: Mapping[str, Change], rows: list[LayerRow]) -> None:
        """Keep the changes of a block: the tensors first, then the table that makes them count."""
        state = {
            f"{n}/{k}": v.contiguous() for n, c in changes.items() for k, v in c.module.state_dict().items()
        }
        specs: dict[str, Spec] = {name: change.spec for name, change in changes.items()}
        with atomic_write(self.place / f"block-{index:04d}.safetensors") as temporary:
            save_file(state, temporary)
        with atomic_write(self.place / f"block-{index:04d}.json") as temporary:
            temporary.write_text(json.dumps({"specs": specs, "rows": rows}) + "\n", "utf-8")
