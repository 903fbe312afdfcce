"""Multiple choice by likelihood: the choice that a language model finds likeliest after the context."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from eckart.data.choices import CHOICES
from eckart.data.splits import PARTS, Split
from eckart.errors import InputError
from eckart.tasks.encode import Rows, check_length, load_tokenizer, opening
from eckart.tasks.kinds.chat import IGNORED, Padded, answer_bits
from eckart.tasks.kinds.kind import Encoded, Examples, Kind, Shrink
from eckart.tasks.metrics import Each, Metric, Outcomes, by_name
from eckart.tasks.pretrained import Checkpoint


def _choices(outcomes: Outcomes, normalised: bool) -> np.ndarray:
    """The log-likelihood of each choice, −∞ where an example has no such; over its letters where ``normalised``."""
    half = outcomes.shape[1] // 2
    told, letters = outcomes[:, 1 : half + 1], outcomes[:, half + 1 :]
    scores: np.ndarray = np.where(letters > 0, told / np.maximum(letters, 1) if normalised else told, -np.inf)
    return scores


def _right(outcomes: Outcomes, normalised: bool = False) -> Each:
    """1 where the likeliest choice is the right one; NaN where a likelihood is not finite."""
    scores = (_choices(outcomes, normalised).argmax(1) == outcomes[:, 0]).astype(float)
    return np.where(np.isfinite(outcomes).all(1), scores, math.nan)


class MultipleChoice(Kind):
    """An outcome is the right choice's index, and of each choice the log-likelihood of its tokens after the context and
    how many letters it has (0 where an example has fewer choices than another).

    Training is on the right choice alone, −log p(its tokens | context); the wrong ones are scored, not trained on.
    """

    name = "multiple-choice"
    reads = (None, CHOICES)
    metrics = by_name(
        Metric("accuracy", each=_right),
        Metric("accuracy_norm", each=lambda outcomes: _right(outcomes, normalised=True)),
    )
    labelled = True
    unseen = ("own", "right", "sizes", "letters")

    @property
    def sequences(self) -> int:
        """The most choices that an example has."""
        return max(len(choices) for split in self.data.splits.values() for _, choices in split.inputs)

    def outputs(self) -> list[str] | None:
        """The model's own tokens."""
        return None

    def encode(self, checkpoint: Checkpoint, model: Any, max_length: int, shrink: Shrink) -> Encoded:
        """Context, a blank and a choice as one text; of what is too long the context loses its beginning."""
        tokenizer = load_tokenizer(checkpoint, model, pad=True)
        check_length(max_length, tokenizer, model.config)
        begins = opening(tokenizer)
        parts = {
            part: self._encoded(self.data.splits[part], part, tokenizer, max_length, begins) for part in PARTS
        }
        train = Rows([row["choices"][row["right"]] for row in parts["train"].rows])
        collator = Choices(tokenizer.pad_token_id, self.sequences)
        return Encoded(train, parts["validation"], parts["test"], collator, tokenizer)

    def _encoded(
        self, split: Split, part: str, tokenizer: Any, max_length: int, begins: Sequence[int]
    ) -> Rows:
        rows, cut = [], 0
        for (context, choices), right in zip(split.inputs, split.labels or (), strict=True):
            texts = [f"{context} {choice}" for choice in choices]
            encoded = tokenizer(texts, add_special_tokens=False, return_offsets_mapping=True)
            sequences = []
            for ids, offsets, choice in zip(
                encoded["input_ids"], encoded["offset_mapping"], choices, strict=True
            ):
                own = sum(end > len(context) for _, end in offsets)
                if own >= max_length:
                    raise InputError(
                        f"--max-length {max_length}: a choice of the {part} split has {own} tokens; give "
                        f"{own + 1} or more"
                    )
                room = max_length - len(begins)
                cut += len(ids) > room
                kept = [*begins, *ids[-room:]] if room > own else list(ids[-max_length:])
                labels = [IGNORED] * (len(kept) - own) + kept[len(kept) - own :]
                sequences.append({"input_ids": kept, "labels": labels, "letters": len(choice)})
            rows.append({"input_ids": sequences[right]["input_ids"], "choices": sequences, "right": right})
        if cut:
            self.data.notes.append(
                f"{part}: {cut:,} of {sum(len(row['choices']) for row in rows):,} choices with their context are "
                f"longer than --max-length {max_length}: the context loses its beginning"
            )
        return Rows(rows)

    def outcomes(self, outputs: Any, batch: Mapping[str, Any]) -> Outcomes:
        """The right choice, and log-likelihood and letters of each; NaN where logits are not finite."""
        sizes, most = batch["sizes"].tolist(), batch["letters"].shape[1]
        nats = -math.log(2) * answer_bits(outputs.logits, batch["own"])[0]
        told = np.zeros((len(sizes), most))
        told[np.arange(most) < np.array(sizes)[:, None]] = nats
        return np.concatenate(
            [batch["right"].cpu().numpy()[:, None], told, batch["letters"].cpu().numpy()],
            axis=1,
            dtype=np.float64,
        )

    def said(self, outcomes: Outcomes) -> tuple[np.ndarray, np.ndarray]:
        """Indices of choices."""
        return outcomes[:, 0].astype(int), _choices(outcomes, normalised=False).argmax(1)

    def trivial(self, train: Examples, test: Examples, model: Any) -> tuple[str, Outcomes]:
        """The place at which the right choice stands most often in the train split."""
        most = self.sequences
        counts = np.bincount(self.data.splits["train"].labels or [], minlength=most)
        split = self.data.splits["test"]
        there = np.array([np.arange(most) < len(choices) for _, choices in split.inputs], dtype=float)
        right = np.asarray(split.labels, dtype=float)[:, None]
        return "most frequent place", np.concatenate([right, counts * there, there], axis=1)

    def example(self, train: Examples, letters: int) -> str:
        """The end of its context and its right choice."""
        split = self.data.splits["train"]
        (context, choices), right = split.inputs[0], (split.labels or [0])[0]
        end = " ".join(context.split())
        shown = end if len(end) <= letters else f"…{end[-letters:]}"
        return f"{shown} → {' '.join(choices[right].split())[:letters]} (of {len(choices)})"


@dataclass(frozen=True)
class Choices:
    """Collator: texts with the right choice as they are; or all choices of each example, one after the other."""

    pad: int
    most: int

    def __call__(self, rows: Sequence[Mapping[str, Any]]) -> dict[str, Tensor]:
        if "choices" not in rows[0]:
            return Padded(self.pad)(rows)
        choices = [choice for row in rows for choice in row["choices"]]
        batch = Padded(self.pad)(choices)
        sizes = torch.tensor([len(row["choices"]) for row in rows])
        right = torch.tensor([row["right"] for row in rows])
        letters = torch.zeros(len(rows), self.most, dtype=torch.long)
        for place, row in enumerate(rows):
            letters[place, : len(row["choices"])] = torch.tensor([c["letters"] for c in row["choices"]])
        own = batch["labels"].clone()
        wrong = torch.ones(len(choices), dtype=torch.bool)
        wrong[sizes.cumsum(0) - sizes + right] = False
        batch["labels"][wrong] = IGNORED
        return {**batch, "own": own, "right": right, "sizes": sizes, "letters": letters}
