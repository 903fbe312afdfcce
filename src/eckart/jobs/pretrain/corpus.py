"""A corpus of any size as one file of tokens on disk: read as a stream, encoded once, never held in memory."""

from __future__ import annotations

import hashlib
import json
import math
import shutil
import struct
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.utils.data import Dataset

from eckart.data.stdlib_source import stdlib_sources
from eckart.errors import InputError, first_line
from eckart.extras import require
from eckart.files import atomic_write

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

BUILT_IN = "stdlib"
TEXT = (".txt", ".md", ".rst", ".py", ".jsonl", ".parquet")
SPLITS = ("train", "validation", "test")
HELD_OUT = {"validation": 0.05, "test": 0.05}
"""Shares of the documents, dealt by the hash of their names."""
BATCH = 256
"""Documents encoded at once."""
PIECE, LEAST, PIECES = 2**20, 2**8, 400
"""Characters after which a text file is cut at a line end; where one file is all there is, at least so many, for so
many pieces."""


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


def documents(data: str, column: str = "text") -> Iterator[tuple[str, str | list[int]]]:
    """Name and text of every document, in a fixed order, one at a time.

    A text file is a document, or several where it is large or all there is: cut at line ends. A row of a Parquet or
    JSON-lines file is one. A column of lists holds token ids.

    Args:
        data: a directory or a file, or ``"stdlib"`` for the source of Python's standard library.
        column: of the text, in files that have columns.

    Raises:
        InputError: nothing to read, a file that is no UTF-8, a column that is missing, ids that are no whole numbers.
    """
    if data == BUILT_IN:
        yield from stdlib_sources()
        return
    root = Path(data)
    if not root.exists():
        raise InputError(f"--data {data}: no such file or directory")
    files = (
        [root] if root.is_file() else sorted(p for p in root.rglob("*") if p.suffix in TEXT and p.is_file())
    )
    if not files:
        raise InputError(f"--data {data}: no file there ends in {', '.join(TEXT)}")
    piece = PIECE if root.is_dir() else min(PIECE, max(LEAST, root.stat().st_size // PIECES))
    for path in files:
        name = path.name if path == root else path.relative_to(root).as_posix()
        for part, text in _read(path, column, piece):
            yield name + part, text


def _read(path: Path, column: str, piece: int) -> Iterator[tuple[str, str | list[int]]]:
    if path.suffix == ".parquet":
        yield from _parquet(path, column)
        return
    row = 0
    try:
        if path.suffix != ".jsonl":
            yield from _pieces(path, piece)
            return
        with path.open(encoding="utf-8") as lines:
            for row, line in enumerate(lines):
                if line.strip():
                    yield f"#{row}", _checked(json.loads(line)[column], f"{path}, row {row}")
    except UnicodeDecodeError:
        raise InputError(f"--data {path}: not UTF-8 text") from None
    except (json.JSONDecodeError, KeyError, TypeError):
        raise InputError(f"--data {path}, row {row}: a line is no JSON object with {column!r}") from None


def _parquet(path: Path, column: str) -> Iterator[tuple[str, str | list[int]]]:
    reader = require("pyarrow.parquet", extra="compare").ParquetFile
    arrow = require("pyarrow", extra="compare")
    try:
        file = reader(path)
        if column not in file.schema_arrow.names:
            raise InputError(
                f"--column {column}: {path} has the columns {', '.join(file.schema_arrow.names)}"
            )
        row = 0
        for batch in file.iter_batches(batch_size=1024, columns=[column]):
            for value in batch.column(0).to_pylist():
                yield f"#{row}", _checked(value, f"{path}, row {row}")
                row += 1
    except (arrow.ArrowException, OSError) as error:
        raise InputError(f"--data {path}: no Parquet file, or a damaged one ({first_line(error)})") from None


def _pieces(path: Path, size: int) -> Iterator[tuple[str, str]]:
    """The text of a file, however large, in pieces that end with a line where lines are shorter; the first piece has
    the name of the file alone."""
    number, held, kept = 0, 0, list[str]()
    with path.open(encoding="utf-8") as file:
        while line := file.readline(size):
            kept.append(line)
            held += len(line)
            if held >= size:
                yield f"#{number}" if number else "", "".join(kept)
                number, held, kept = number + 1, 0, []
    if kept or not number:
        yield f"#{number}" if number else "", "".join(kept)


def _checked(value: Any, place: str) -> str | list[int]:
    """Text as it is, and ids as whole numbers; nothing is an empty text."""
    if value is None or isinstance(value, str):
        try:
            (value or "").encode()
        except UnicodeEncodeError as error:
            raise InputError(f"--data {place}: no text that UTF-8 can hold ({error.reason})") from None
        return value or ""
    if not isinstance(value, list):
        raise InputError(f"--data {place}: {str(value)[:20]} is neither text nor a list of token ids")
    for token in value:
        if isinstance(token, bool) or not isinstance(token, int | float) or token != token // 1 or token < 0:
            raise InputError(f"--data {place}: {token} is no token id; ids are whole numbers from 0 up")
    return [int(token) for token in value]


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
