"""Language modelling on plain text, in blocks."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch.nn.functional as F

from eckart.data.splits import PARTS, Split
from eckart.tasks.encode import Rows, check_length, load_tokenizer, token_blocks
from eckart.tasks.kinds.kind import Encoded, Examples, Kind, Shrink, texts_of
from eckart.tasks.metrics import Metric, Outcomes, bits, by_name, tokens_right
from eckart.tasks.pretrained import Checkpoint


class CausalLM(Kind):
    """An outcome is the bits of a block, −Σ log₂ p(token | tokens before it), over its tokens but the first, how many
    those are, and of how many the likeliest token is the right one."""

    name = "causal-lm"
    reads = (False, None)
    languages = True
    metrics = by_name(
        Metric("bits_per_token", each=bits, greater_is_better=False),
        Metric("token_accuracy", each=tokens_right),
    )

    def outputs(self) -> list[str] | None:
        """The model's own tokens."""
        return None

    def encode(self, checkpoint: Checkpoint, model: Any, max_length: int, shrink: Shrink) -> Encoded:
        """All texts joined and cut into blocks of ``max_length`` tokens."""
        from transformers import default_data_collator

        tokenizer = load_tokenizer(checkpoint, model)
        check_length(max_length, tokenizer, model.config)
        blocks = shrink(
            {
                part: Split(
                    list(
                        token_blocks(
                            self.data.splits[part], tokenizer, max_length, f"--data: the {part} split"
                        )
                    )
                )
                for part in PARTS
            }
        )
        train, validation, test = (
            Rows([{"input_ids": b, "labels": b} for b in blocks[part].inputs]) for part in PARTS
        )
        return Encoded(train, validation, test, default_data_collator, tokenizer)

    def outcomes(self, outputs: Any, batch: Mapping[str, Any]) -> Outcomes:
        """Bits, tokens and tokens that are right of each block; NaN bits where the logits are not finite."""
        logits, wanted = outputs.logits.detach()[:, :-1].float(), batch["labels"][:, 1:]
        nats = F.cross_entropy(logits.transpose(1, 2), wanted, reduction="none")
        told = nats.double().sum(1).cpu().numpy() / math.log(2)
        right = (logits.argmax(2) == wanted).sum(1).cpu().numpy()
        return np.stack([told, np.full(len(told), float(wanted.shape[1])), right], axis=1)

    def trivial(self, train: Examples, test: Examples, model: Any) -> tuple[str, Outcomes]:
        """Every token by its frequency in the train split, with one added to the count of each token of the
        vocabulary: bits = −log₂ p(token); the likeliest is the most frequent one."""
        known = [np.asarray(train[i]["labels"])[1:] for i in range(len(train))]  # type: ignore[arg-type]
        asked = [np.asarray(test[i]["labels"])[1:] for i in range(len(test))]  # type: ignore[arg-type]
        return "unigram", unigram(known, asked, model.config.vocab_size)

    def example(self, train: Examples, letters: int) -> str:
        """The beginning of the text."""
        return texts_of(self.data.splits["train"], letters)


def unigram(known: list[np.ndarray], asked: list[np.ndarray], vocabulary: int) -> Outcomes:
    """Bits, tokens and tokens that are right of each text, by how often each token is in the known ones, plus one."""
    counts = np.bincount(np.concatenate(known), minlength=vocabulary) + 1
    told = np.log2(counts.sum()) - np.log2(counts)
    likeliest = counts.argmax()
    return np.array([[told[ids].sum(), len(ids), (ids == likeliest).sum()] for ids in asked], dtype=float)
