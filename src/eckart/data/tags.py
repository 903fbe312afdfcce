"""Sentences whose words have tags: a column of lists of words, and one of lists of their tags, names or numbers."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from eckart.data.columns import existing
from eckart.data.splits import Split
from eckart.data.structured import Structured, listed, named, place
from eckart.data.tables import Table, is_missing
from eckart.errors import InputError

TAGS = "tags"
"""A target as `CLASSES` and its like are: a tag for each word."""
WORDS = ("tokens", "words")
TAG_COLUMNS = ("ner_tags", "tags", "labels", "ner", "pos_tags", "upos")
OUTSIDE = "O"
PREFIXES = "BIESLU"
"""Of a tag such as B-PER: begins, inside, ends (or last), single (or unit)."""


def read_tags(
    tables: Mapping[str, Table],
    text_column: str | None,
    label_column: str | None,
    notes: list[str],
    *,
    wanted: bool,
) -> Structured | None:
    """Words and the tag of each; None where the tables hold no such.

    Args:
        tables: by split.
        text_column: of lists of words.
        label_column: of lists of tags.
        notes: what is found is added.
        wanted: refuse tables that have none.

    Raises:
        InputError: a column that is not there, lists that are empty or of different lengths, a word that is no text, a
            tag that is missing, tags some of which are of a scheme such as BIO and some are not.
    """
    first = next(iter(tables.values()))
    columns = _columns(first, text_column, label_column, wanted)
    if columns is None:
        return None
    words, tags = columns
    read = {}
    for part, table in tables.items():
        existing(table, words, "--text-column")
        existing(table, tags, "--label-column")
        read[part] = [_row(table, row, words, tags) for row in range(len(table))]
    names = _names(tag for rows in read.values() for _, own in rows for tag in own)
    if len(names) < 2:
        raise InputError(
            f"--data {first.source}: every word has the tag {names[0]!r}; at least two are needed"
        )
    has_types(names, first.source)
    known = {tag for _, own in read.get("train", ()) for tag in own}
    if known and (rare := [name for name in names if name not in known]):
        notes.append(f"tags that the train split has not: {', '.join(rare)}")
    index = {name: i for i, name in enumerate(names)}
    splits = {
        part: Split([own for own, _ in rows], [[index[tag] for tag in own] for _, own in rows])
        for part, rows in read.items()
    }
    return Structured(splits, names, [words, tags])


def _columns(table: Table, text: str | None, label: str | None, wanted: bool) -> tuple[str, str] | None:
    words = existing(table, text, "--text-column") if text else _lists(table, WORDS)
    tags = existing(table, label, "--label-column") if label else _lists(table, TAG_COLUMNS)
    both = [name for name in (words, tags) if name is not None]
    if len(both) == 2 and (wanted or all(_holds_lists(table, name) for name in both)):
        return both[0], both[1]
    if not wanted:
        return None
    what, option, known = (
        ("words", "--text-column", WORDS) if words is None else ("tags", "--label-column", TAG_COLUMNS)
    )
    raise InputError(
        f"--kind token-classification: no column of lists of {what} ({', '.join(known)}) in {table.listed}; name it "
        f"with {option}"
    )


def _lists(table: Table, names: Iterable[str]) -> str | None:
    return next(
        (found for name in names if (found := named(table, (name,))) and _holds_lists(table, found)), None
    )


def _holds_lists(table: Table, name: str) -> bool:
    first = next((cell for cell in table.columns[name] if not is_missing(cell)), None)
    return isinstance(first, list | tuple)


def _row(table: Table, row: int, words: str, tags: str) -> tuple[tuple[str, ...], list[str]]:
    wheres = [place(table, row + 1, name) for name in (words, tags)]
    own = listed(table.columns[words][row], wheres[0], "words")
    said = listed(table.columns[tags][row], wheres[1], "tags")
    if len(own) != len(said):
        raise InputError(f"{wheres[1]}: {len(said)} tags for {len(own)} words; give one for each")
    if bad := [word for word in own if not isinstance(word, str) or not word.strip()]:
        raise InputError(f"{wheres[0]}: {bad[0]!r:.40} is no word; remove it with its tag")
    return tuple(own), [_tag(tag, wheres[1]) for tag in said]


def _tag(tag: Any, where: str) -> str:
    if isinstance(tag, bool) or not isinstance(tag, str | int) or not str(tag).strip():
        raise InputError(f"{where}: {tag!r:.40} is no tag; give names, or whole numbers from 0")
    if isinstance(tag, int) and tag < 0:
        raise InputError(f"{where}: the tag {tag} is below 0; give names, or whole numbers from 0")
    return str(tag).strip()


def _names(tags: Iterable[str]) -> list[str]:
    """Outside first, then by type and prefix; numbers in their order."""
    found = set(tags)
    if all(name.isdigit() for name in found):
        return sorted(found, key=int)
    return sorted(found, key=lambda name: (name != OUTSIDE, name.partition("-")[2], name))


def has_types(names: Sequence[str], source: str) -> bool:
    """Whether tags are of a scheme that marks where entities begin (BIO, BIOES, BILOU): O, B-PER, I-PER, ….

    Raises:
        InputError: some are and others are not.
    """
    marked = [name for name in names if name[0] in PREFIXES and name[1:2] == "-" and name[2:]]
    plain = [name for name in names if name not in marked and name != OUTSIDE]
    if marked and plain:
        raise InputError(
            f"--data {source}: the tag {marked[0]!r} is of the scheme BIO and {plain[0]!r} is not; write all as O, "
            "B-TYPE and I-TYPE, or none"
        )
    return bool(marked)


def entities(tags: Sequence[str]) -> set[tuple[str, int, int]]:
    """The entities of a sentence, type and first and last word, as CoNLL's scorer finds them: one begins at B or S, and
    at another tag of a type where the tag before is O, of another type, or an end.

    Source: Tjong Kim Sang & Buchholz, CoNLL-2000, conlleval.
    """
    found, kind, start = set(), "", 0
    before = OUTSIDE
    for place_, tag in enumerate([*tags, OUTSIDE]):
        prefix, _, name = tag.partition("-")
        begins = prefix in "BSU" or before[0] in "OESLU" or name != kind
        if kind and (begins or prefix == OUTSIDE):
            found.add((kind, start, place_ - 1))
            kind = ""
        if prefix != OUTSIDE and begins:
            kind, start = name, place_
        before = tag
    return found
