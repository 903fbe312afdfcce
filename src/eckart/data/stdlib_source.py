"""A text corpus that every machine has: the source files of Python's own standard library.

Files are split, not lines: no split has seen a file of another. Test suites and vendored packages are left out, and so
is a file that is nearly another one: two files are near-duplicates where their sets of lines (longer than a few
characters, white space apart) have a Jaccard similarity of at least 0.8; the first by name stays.

The corpus depends on the Python version alone.
"""

from __future__ import annotations

import hashlib
import sysconfig
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

from eckart.data.stdlib_docs import NOT_SOURCE
from eckart.errors import InputError

SIMILAR = 0.8
SHORT = 6
"""Lines of fewer characters (brackets, else:, pass) say nothing about where a file is from."""
BANDS, ROWS = 16, 4
"""Of the MinHash signatures: a pair of similarity 0.8 meets in one of the bands with a probability of 0.9998."""


def stdlib_sources(library: Path | None = None) -> Iterator[tuple[str, str]]:
    """Name and text of every source file, near-duplicates dropped, in the order of the names.

    Args:
        library: directory of the library; the running interpreter's own by default.

    Raises:
        InputError: the interpreter carries no library sources (a zipped or stripped installation).
    """
    library = library or Path(sysconfig.get_paths()["stdlib"])
    seen: dict[tuple[int, bytes], list[frozenset[bytes]]] = defaultdict(list)
    found = 0
    for path in sorted(library.rglob("*.py")):
        name = path.relative_to(library)
        if not NOT_SOURCE.isdisjoint(name.parts):
            continue
        try:
            text = path.read_text("utf-8")
        except (UnicodeDecodeError, OSError):
            continue
        if not text.strip() or _seen_before(text, seen):
            continue
        found += 1
        yield name.as_posix(), text
    if not found:
        raise InputError(f"--data: no sources of the standard library in {library}; give a directory of text")


def _seen_before(text: str, seen: dict[tuple[int, bytes], list[frozenset[bytes]]]) -> bool:
    """Whether a near-duplicate was seen; otherwise remember this one."""
    lines = {line.strip() for line in text.splitlines()}
    shingles = frozenset(
        hashlib.blake2b(line.encode(), digest_size=8).digest() for line in lines if len(line) >= SHORT
    )
    if not shingles:
        return False
    keys = _bands(shingles)
    for key in keys:
        for other in seen[key]:
            if len(shingles & other) >= SIMILAR * len(shingles | other):
                return True
    for key in keys:
        seen[key].append(shingles)
    return False


def _bands(shingles: frozenset[bytes]) -> list[tuple[int, bytes]]:
    """Locality-sensitive keys of a set: its least hashes under many hash functions, in bands."""
    numbers = [int.from_bytes(shingle, "big") for shingle in shingles]
    prime = (1 << 61) - 1
    signature = [
        min((number * (2 * i + 3) + (i + 1) * 0x9E3779B97F4A7C15) % prime for number in numbers)
        for i in range(BANDS * ROWS)
    ]
    return [(band, repr(signature[band * ROWS : (band + 1) * ROWS]).encode()) for band in range(BANDS)]
