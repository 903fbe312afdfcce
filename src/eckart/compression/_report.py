"""What was done to a model: one row for each layer, sums, and a card in words."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from eckart.compression._method import LayerRow
from eckart.escapes import markdown


@dataclass(frozen=True)
class Report:
    """What `compress` did.

    Attributes:
        method: its slug.
        options: of the method.
        ratio: share of the layers' parameters that was to be removed; None where an option said how much.
        rows: one for each layer.
        parameters_before: of the whole model.
        parameters_after: likewise.
        tokens: calibration rows that the first layer saw, 0 without calibration.
        losses: of the training that belongs to the method, if it has some.
        architecture: the model's class.
    """

    method: str
    options: dict[str, Any]
    ratio: float | None
    rows: tuple[LayerRow, ...]
    parameters_before: int
    parameters_after: int
    tokens: int = 0
    losses: Sequence[float] = field(default=())
    architecture: str = ""

    @property
    def removed(self) -> float:
        """Share of the layers' parameters that is gone."""
        before = sum(row.parameters_before for row in self.rows)
        return 1 - sum(row.parameters_after for row in self.rows) / before

    def card(self, more: Mapping[str, str] | None = None) -> str:
        """The card in Markdown.

        Args:
            more: further rows of its table.
        """
        changed = sum(row.rank is not None for row in self.rows)
        asked = "by its own rule" if self.ratio is None else f"{self.ratio:.1%} asked for"
        options = ", ".join(
            f"{name}={value!r}" for name, value in self.options.items() if value not in (None, [], ())
        )
        lines = [
            "---",
            "library_name: transformers",
            "tags: [eckart, low-rank, compression]",
            "---",
            "",
            f"# {markdown(self.architecture)}, compressed by {self.method}",
            "",
            "Load it with `import eckart` and then `from_pretrained` as usual.",
            "",
            "| | |",
            "| --- | --- |",
            f"| method | `{self.method}` |",
            f"| options | {markdown(options) or 'defaults'} |",
            f"| removed from the compressed layers | {self.removed:.1%} ({asked}) |",
            f"| parameters of the model | {self.parameters_before:,} → {self.parameters_after:,} |",
            f"| layers changed | {changed} of {len(self.rows)} |",
            f"| calibration | {f'{self.tokens:,} tokens' if self.tokens else 'none'} |",
            *(f"| {markdown(name)} | {markdown(value)} |" for name, value in (more or {}).items()),
            "",
            "Ranks and relative errors of all layers: `layers.csv`.",
            "",
        ]
        return "\n".join(lines)
