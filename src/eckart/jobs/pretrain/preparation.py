"""A corpus and its tokenizer made ready on disk, and the check that a run that is resumed is the same run."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from eckart.errors import InputError
from eckart.files import atomic_directory, atomic_write
from eckart.jobs.pretrain.corpus import (
    SPLITS,
    Stored,
    TokenStore,
    encode,
    read_stored,
    split_of,
    train_tokenizer,
)
from eckart.jobs.pretrain.documents import documents
from eckart.processes import shared

ABOUT, TOKENS, RUNS = "pretrain.json", "tokens", "checkpoints"
FOR_TOKENIZER = 20_000
"""Documents that a tokenizer is learned from at most."""


@dataclass(frozen=True)
class Prepared:
    """A tokenizer, what is stored, and a `TokenStore` for each split."""

    tokenizer: Any
    stored: dict[str, Stored]
    splits: dict[str, TokenStore]


def prepare(given: Mapping[str, Any], directory: Path, *, fresh: bool = False) -> Prepared:
    """Encode the corpus unless that was done, of several processes in the first, and open its splits.

    Args:
        given: the arguments of `pretrain`.
        directory: of the run.
        fresh: another run begins here: encode again, and once that is done remove an older run's checkpoints.

    Raises:
        InputError: a corpus or tokenizer that cannot be used, a split shorter than one sequence.
    """
    from transformers import AutoTokenizer

    shared(lambda: _store(given, directory, fresh))
    tokenizer = AutoTokenizer.from_pretrained(directory / TOKENS)
    splits = {s: TokenStore(directory / TOKENS / f"{s}.safetensors", given["length"]) for s in SPLITS}
    return Prepared(tokenizer, read_stored(directory / TOKENS), splits)


def _store(given: Mapping[str, Any], directory: Path, fresh: bool) -> None:
    """Put tokenizer and tokens in their place unless they are there; of several commands at once the others wait."""
    from filelock import FileLock

    directory.mkdir(parents=True, exist_ok=True)
    with FileLock(directory / ".tokens.lock"):
        if not fresh and (directory / TOKENS / "corpus.json").is_file():
            return
        with atomic_directory(directory / TOKENS, overwrite=True) as temporary:
            tokenizer = _tokenizer(given)
            tokenizer.save_pretrained(temporary)
            encode(documents(given["data"], given["column"]), tokenizer, temporary)
            for split in SPLITS:
                TokenStore(temporary / f"{split}.safetensors", given["length"])
            if fresh:
                begin(given, directory)


def _tokenizer(given: Mapping[str, Any]) -> Any:
    from transformers import AutoTokenizer

    if given["tokenizer"] is None:
        read = islice(documents(given["data"], given["column"]), FOR_TOKENIZER)
        texts = (text for name, text in read if split_of(name) == "train" and isinstance(text, str))
        return train_tokenizer(texts, given["vocabulary"])
    path = Path(given["tokenizer"])
    if not path.is_dir():
        raise InputError(f"--tokenizer {path}: no such directory")
    try:
        tokenizer = AutoTokenizer.from_pretrained(path)
    except (OSError, ValueError, KeyError) as error:
        raise InputError(f"--tokenizer {path}: {str(error).splitlines()[0]}") from None
    if tokenizer.eos_token_id is None:
        raise InputError(f"--tokenizer {path}: it has no end token; give one that has")
    return tokenizer


def begin(given: Mapping[str, Any], directory: Path) -> None:
    """Write what run this is, and remove the checkpoints of an older one."""
    (directory / ABOUT).unlink(missing_ok=True)
    shutil.rmtree(directory / RUNS, ignore_errors=True)
    directory.mkdir(parents=True, exist_ok=True)
    with atomic_write(directory / ABOUT) as temporary:
        temporary.write_text(json.dumps(_identity(given), indent=1) + "\n")


def check_same(given: Mapping[str, Any], directory: Path) -> None:
    """Refuse to resume another run.

    Raises:
        InputError: there is none, or it was begun with another method, tokenizer or other argument.
    """
    try:
        there = json.loads((directory / ABOUT).read_text("utf-8"))
    except (OSError, UnicodeDecodeError, json.JSONDecodeError):
        raise InputError(
            f"--resume: {directory} holds no run to go on with; start one without --resume"
        ) from None
    here = json.loads(json.dumps(_identity(given)))
    for name, value in here.items():
        if there.get(name) != value:
            raise InputError(
                f"--resume: {name.replace('_', '-')} is {there.get(name)} in {directory} and {value} here; give the "
                "same or start another run"
            )


def _identity(given: Mapping[str, Any]) -> dict[str, Any]:
    """What makes two runs the same: the arguments, and the files of a tokenizer that was given."""
    found = dict(given)
    if given["tokenizer"] is not None:
        files = sorted(Path(given["tokenizer"]).glob("*.json"))
        digest = hashlib.sha256(b"".join(path.read_bytes() for path in files)).hexdigest()
        found["tokenizer"] = f"{given['tokenizer']} ({digest[:12]})"
    return found
