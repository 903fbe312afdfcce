"""Token classification: a tag for each word, such as those of named entities."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from eckart.data.read import Data
from eckart.data.splits import PARTS, Split
from eckart.data.tags import OUTSIDE, TAGS, entities, has_types
from eckart.errors import InputError
from eckart.tasks.encode import Rows, check_length, load_tokenizer
from eckart.tasks.kinds.chat import IGNORED
from eckart.tasks.kinds.kind import Encoded, Examples, Kind, Shrink
from eckart.tasks.metrics import Metric, Outcomes, by_name, counted_macro_f1, counted_micro_f1, ratio_of_sums
from eckart.tasks.options import Words
from eckart.tasks.pretrained import Checkpoint


class TokenClassification(Kind):
    """An outcome is how many words have the right tag and how many there are; then of each type of entity how many are
    found rightly, said, and there. Of tags that mark no entities each tag is its own type.

    An entity is right where its type and both its ends are.
    """

    name = "token-classification"
    reads = (None, TAGS)

    def __init__(self, data: Data, words: Words) -> None:
        super().__init__(data, words)
        self.tags = data.labels or []
        self.entities = has_types(self.tags, data.name)
        accuracy = Metric("token_accuracy", each=ratio_of_sums)
        micro, macro = (Metric(name, whole=counts) for name, counts in
                        (("entity_f1", counted_micro_f1), ("entity_macro_f1", counted_macro_f1)))  # fmt: skip
        self.metrics = by_name(micro, macro, accuracy)
        self.types = sorted({tag.partition("-")[2] for tag in self.tags if tag != OUTSIDE})
        if not self.entities:
            self.metrics = by_name(accuracy, Metric("macro_f1", whole=counted_macro_f1))
            self.types = self.tags
            data.notes.append("tags mark no entities as B-TYPE and I-TYPE do: the accuracy of words decides")

    def encode(self, checkpoint: Checkpoint, model: Any, max_length: int, shrink: Shrink) -> Encoded:
        """Words joined by blanks; the first token of each has its tag, all others `IGNORED`."""
        from transformers import DataCollatorForTokenClassification

        tokenizer = load_tokenizer(checkpoint, model, pad=True)
        check_length(max_length, tokenizer, model.config)
        train, validation, test = (
            self._encoded(self.data.splits[part], part, tokenizer, max_length) for part in PARTS
        )
        return Encoded(train, validation, test, DataCollatorForTokenClassification(tokenizer), tokenizer)

    def _encoded(self, split: Split, part: str, tokenizer: Any, max_length: int) -> Rows:
        texts = [" ".join(words) for words in split.inputs]
        encoded = tokenizer(texts, truncation=True, max_length=max_length, return_offsets_mapping=True)
        offsets = encoded.pop("offset_mapping")
        rows, lost = [], 0
        for i, (words, tags) in enumerate(zip(split.inputs, split.labels or (), strict=True)):
            labels = first_tokens(words, tags, offsets[i])
            tagged = sum(label != IGNORED for label in labels)
            lost += len(words) - tagged
            if tagged:
                rows.append({**{name: encoded[name][i] for name in encoded}, "labels": labels})
        if not rows:
            raise InputError(
                f"--max-length {max_length}: no word of the {part} split is within so many tokens"
            )
        if lost:
            total, gone = sum(map(len, split.inputs)), len(texts) - len(rows)
            self.data.notes.append(
                f"{part}: {lost:,} of {total:,} words have no token within --max-length {max_length} and do not count"
                + (f", {gone:,} sentences none at all" if gone else "")
            )
        return Rows(rows)

    def outcomes(self, outputs: Any, batch: Mapping[str, Any]) -> Outcomes:
        """Counts of each sentence; NaN where a logit is not finite."""
        logits, labels = outputs.logits.detach().float().cpu(), batch["labels"].cpu()
        rows = []
        for given, wanted in zip(logits, labels, strict=True):
            asked = wanted != IGNORED
            finite = bool(given[asked].isfinite().all())
            counts = self._counts(wanted[asked].tolist(), given[asked].argmax(-1).tolist())
            rows.append(counts if finite else [np.nan] * len(counts))
        return np.array(rows, dtype=np.float64)

    def _counts(self, wanted: Sequence[int], said: Sequence[int]) -> list[int]:
        hits = [one == other for one, other in zip(wanted, said, strict=True)]
        there, found = self._types(wanted), self._types(said)
        table = {kind: [0, 0, 0] for kind in self.types}
        for column, things in enumerate((there & found, found, there)):
            for kind, *_ in things:
                table[kind][column] += 1
        return [sum(hits), len(hits), *(number for counts in table.values() for number in counts)]

    def _types(self, tags: Sequence[int]) -> set[tuple[str, int, int]]:
        """What is counted, and where it stands: entities, or each word with its tag."""
        names = [self.tags[tag] for tag in tags]
        return entities(names) if self.entities else {(name, i, i) for i, name in enumerate(names)}

    def trivial(self, train: Examples, test: Examples, model: Any) -> tuple[str, Outcomes]:
        """The tag that most words of the train split have."""
        known, asked = (_tags(split) for split in (train, test))
        most = int(np.bincount(np.concatenate(known)).argmax())
        return "most frequent tag", np.array(
            [self._counts(own, [most] * len(own)) for own in asked], dtype=float
        )

    def example(self, train: Examples, letters: int) -> str:
        """Its words, each with its tag where that is not `OUTSIDE`."""
        split = self.data.splits["train"]
        tags = [self.tags[tag] for tag in (split.labels or [[]])[0]]
        told = (w if t == OUTSIDE else f"{w}/{t}" for w, t in zip(split.inputs[0], tags, strict=True))
        return " ".join(told)[: 2 * letters]


def first_tokens(words: Sequence[str], tags: Sequence[int], offsets: Sequence[tuple[int, int]]) -> list[int]:
    """Of each token the tag of the word that it is the first of, else `IGNORED`.

    Args:
        words: of a sentence, which was tokenised with blanks between them.
        tags: of the words.
        offsets: where each token begins and ends, equal for one that stands for no letters.
    """
    owner = [place for own, word in enumerate(words) for place in (*[own] * len(word), -1)]
    labels, seen = [], set()
    for start, end in offsets:
        place = owner[end - 1] if end > start else -1
        labels.append(tags[place] if place >= 0 and place not in seen else IGNORED)
        seen.add(place)
    return labels


def _tags(split: Any) -> list[list[int]]:
    return [[label for label in row["labels"] if label != IGNORED] for row in split.rows]
