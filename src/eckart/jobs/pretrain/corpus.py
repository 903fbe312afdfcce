"""A corpus of any size as one file of tokens on disk: encoded once as it is read, never held in memory."""

from __future__ import annotations

import hashlib
import json
import math
import shutil
import struct
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.utils.data import Dataset

from eckart.errors import InputError
from eckart.files import atomic_write

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

SPLITS = ("train", "validation", "test")
HELD_OUT = {"validation": 0.05, "test": 0.05}
"""Shares of the documents, dealt by the hash of their names."""
BATCH = 256
"""Documents encoded at once."""


@dataclass(frozen=True)
class Stored:
    """One split on disk.

    Attributes:
        documents, tokens, bytes: how many; bytes of UTF-8.
        fingerprint: SHA-256 of the tokens.
    """

    documents: int
    tokens: int
    bytes: int
    fingerprint: str


def split_of(name: str) -> str:
    """The split of a document, by the hash of its name."""
    place = int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "big") / 2**64
    for split, share in HELD_OUT.items():
        if place < share:
            return split
        place -= share
    return "train"


class TokenStore(Dataset[dict[str, Tensor]]):
    """The tokens of one split, cut into sequences; a sequence is read from disk when it is asked for.

    Args:
        path: a safetensors file with the one tensor ``tokens``.
        length: tokens of a sequence; what is left over at the end is not used.

    Raises:
        InputError: the split is shorter than one sequence.
    """

    def __init__(self, path: Path, length: int) -> None:
        self.path, self.length = path, length
        if self.tokens < length:
            raise InputError(
                f"--data: its {path.stem} split has {self.tokens:,} tokens, shorter than one sequence of {length:,}: "
                "give more text or a smaller --length"
            )

    @cached_property
    def _slice(self) -> Any:
        from safetensors import safe_open

        return safe_open(self.path, "pt").get_slice("tokens")  # type: ignore[no-untyped-call]

    @property
    def tokens(self) -> int:
        """All tokens of the split."""
        return int(self._slice.get_shape()[0])

    def __len__(self) -> int:
        return self.tokens // self.length

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        if not 0 <= index < len(self):
            raise IndexError(index)
        ids = self._slice[index * self.length : (index + 1) * self.length].long()
        return {"input_ids": ids, "labels": ids}

    def __getstate__(self) -> dict[str, Any]:
        return {"path": self.path, "length": self.length}


def encode(
    found: Iterable[tuple[str, str | list[int]]], tokenizer: Any, directory: Path
) -> dict[str, Stored]:
    """Write the tokens of every split, each document followed by the end token, to ``<split>.safetensors``.

    Args:
        found: name, and text or ids, of every document.
        tokenizer: has an end token.
        directory: is made; ``corpus.json`` in it tells what was written.

    Raises:
        InputError: no document in some split, or a token beyond the vocabulary.
    """
    directory.mkdir(parents=True, exist_ok=True)
    writers = {split: _Writer(directory / f"{split}.safetensors") for split in SPLITS}
    batch: list[tuple[str, str | list[int]]] = []
    try:
        for item in found:
            batch.append(item)
            if len(batch) == BATCH:
                _encode(batch, tokenizer, writers)
                batch = []
        _encode(batch, tokenizer, writers)
        for split, writer in writers.items():
            if not writer.tokens:
                raise InputError(f"--data: no document fell to the {split} split; give more documents")
            if not writer.bytes:
                raise InputError(f"--data: all documents of the {split} split are empty; give some with text")
        stored = {split: writer.finish() for split, writer in writers.items()}
    finally:
        for writer in writers.values():
            writer.close()
    with atomic_write(directory / "corpus.json") as temporary:
        temporary.write_text(json.dumps({split: asdict(one) for split, one in stored.items()}, indent=1))
    return stored


def _encode(batch: list[tuple[str, Any]], tokenizer: Any, writers: dict[str, _Writer]) -> None:
    texts = [value for _, value in batch if isinstance(value, str)]
    encoded = iter(tokenizer(texts, add_special_tokens=False)["input_ids"] if texts else [])
    for name, value in batch:
        if isinstance(value, str):
            ids, size = next(encoded), len(value.encode())
        elif max(value, default=0) >= len(tokenizer):
            raise InputError(
                f"--data {name}: token id {max(value)} is beyond the tokenizer's vocabulary of {len(tokenizer)}"
            )
        else:
            ids, size = value, len(tokenizer.decode(value).encode())
        writers[split_of(name)].add([*ids, tokenizer.eos_token_id], size)


def read_stored(directory: Path) -> dict[str, Stored]:
    """What `encode` wrote."""
    found = json.loads((directory / "corpus.json").read_text("utf-8"))
    return {split: Stored(**one) for split, one in found.items()}


class _Writer:
    """Tokens appended to a temporary file, which becomes a safetensors file when their number is known."""

    def __init__(self, path: Path) -> None:
        self.path, self.raw = path, path.with_suffix(".partial")
        self.file = self.raw.open("wb")
        self.digest = hashlib.sha256()
        self.documents = self.tokens = self.bytes = 0

    def add(self, ids: list[int], size: int) -> None:
        data = torch.tensor(ids, dtype=torch.int32).numpy().tobytes()
        self.file.write(data)
        self.digest.update(data)
        self.documents, self.tokens, self.bytes = (
            self.documents + 1,
            self.tokens + len(ids),
            self.bytes + size,
        )

    def finish(self) -> Stored:
        self.file.flush()
        spec = {"dtype": "I32", "shape": [self.tokens], "data_offsets": [0, 4 * self.tokens]}
        header = json.dumps({"tokens": spec}).encode()
        header += b" " * (-len(header) % 8)
        with atomic_write(self.path) as temporary, temporary.open("wb") as out, self.raw.open("rb") as raw:
            out.write(struct.pack("<Q", len(header)) + header)
            shutil.copyfileobj(raw, out)
        return Stored(self.documents, self.tokens, self.bytes, self.digest.hexdigest())

    def close(self) -> None:
        self.file.close()
        self.raw.unlink(missing_ok=True)


def train_tokenizer(texts: Iterable[str], vocabulary: int) -> PreTrainedTokenizerFast:
    """A byte-level BPE tokenizer learned from texts, with an end token and nothing unknown to it.

    Args:
        texts: read once.
        vocabulary: tokens, above 256 bytes and the end token.

    Raises:
        InputError: a vocabulary that cannot hold all bytes.
    """
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    if vocabulary < 258:
        raise InputError(f"--vocabulary {vocabulary}: give at least 258, for 256 bytes, the end and a merge")
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        special_tokens=["<|end|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token="<|end|>", bos_token="<|end|>", pad_token="<|end|>"
    )


def bits_per_byte(loss: float, stored: Stored) -> float:
    """Of a mean loss a token, in nats, over a split."""
    return loss * stored.tokens / stored.bytes / math.log(2)
