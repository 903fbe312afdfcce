"""Conversations: tables of instructions and answers, of prompts and completions, or of messages, as one form.

A conversation is a list of messages, each with a ``role`` (system, user, assistant) and a ``content``; it ends with
what the assistant says.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from eckart.data.columns import existing
from eckart.data.tables import Table, is_missing
from eckart.errors import InputError

MESSAGES = ("messages", "conversation", "conversations")
TURNS = (
    ("prompt", "completion"),
    ("instruction", "output"),
    ("question", "answer"),
    ("prompt", "response"),
    ("instruction", "response"),
    ("prompt", "chosen"),
    ("query", "response"),
)
"""Columns of what is asked and what is answered, in the order in which they are looked for."""
CONTEXT = "input"
"""Alpaca's third column, put under the instruction where it holds something."""
ROLES = {"system": "system", "user": "user", "human": "user", "assistant": "assistant", "gpt": "assistant"}
Conversation = list[dict[str, str]]


def chat_columns(table: Table, text_column: str | None = None, *, wanted: bool = False) -> list[str]:
    """The columns that hold conversations; none where the table has no such.

    Args:
        table: as it was read.
        text_column: one column of messages, or two of what is asked and what is answered, joined by a comma.
        wanted: refuse a table that has none.

    Raises:
        InputError: a column that is not there; none, where they are wanted.
    """
    if text_column is not None and (wanted or _holds_messages(table, text_column)):
        names = [existing(table, name.strip(), "--text-column") for name in text_column.split(",")]
        if len(names) > 2 or (len(names) == 1 and not _holds_messages(table, names[0])):
            raise InputError(
                f"--text-column {text_column}: name one column of messages, or two: what is asked, what is answered"
            )
        return names
    if text_column is not None:
        return []
    lower = {column.lower(): column for column in reversed(table.columns)}
    for name in MESSAGES:
        if name in lower and _holds_messages(table, lower[name]):
            return [lower[name]]
    for asked, answered in TURNS:
        if asked in lower and answered in lower:
            more = [lower[CONTEXT]] if asked == "instruction" and CONTEXT in lower else []
            return [lower[asked], *more, lower[answered]]
    if wanted:
        known = ", ".join("/".join(pair) for pair in TURNS)
        raise InputError(
            f"--kind chat: no column of messages and none of {known} in {table.listed}; name two with --text-column"
        )
    return []


def read_conversations(table: Table, columns: Sequence[str]) -> list[Conversation]:
    """The conversations of a table, every cell checked.

    Raises:
        InputError: a cell that is missing or of the wrong type, a conversation that the assistant does not end.
    """
    found = []
    for row, cells in enumerate(zip(*(table.columns[name] for name in columns), strict=True), 1):
        where = f"--data {table.source}, row {row}"
        if len(columns) == 1:
            conversation = _messages(cells[0], f"{where}, column {columns[0]}")
        else:
            conversation = _turns(cells, columns, where)
        if not conversation or conversation[-1]["role"] != "assistant":
            raise InputError(
                f"{where}: the conversation does not end with the assistant's answer; remove the row"
            )
        found.append(conversation)
    return found


def _holds_messages(table: Table, name: str) -> bool:
    first = next((cell for cell in table.columns.get(name, ()) if not is_missing(cell)), None)
    return isinstance(first, list) and bool(first) and isinstance(first[0], dict)


def _turns(cells: Sequence[Any], columns: Sequence[str], where: str) -> Conversation:
    """What is asked (with its context), and the answer."""
    *asked, answered = cells
    told: Conversation = []
    if isinstance(asked[0], list):
        told = _messages(asked[0], f"{where}, column {columns[0]}")
    else:
        texts = [_text(asked[0], f"{where}, column {columns[0]}")]
        texts += [str(cell) for cell in asked[1:] if not is_missing(cell) and str(cell).strip()]
        told = [{"role": "user", "content": "\n\n".join(texts)}]
    end = f"{where}, column {columns[-1]}"
    if isinstance(answered, list):
        return told + _messages(answered, end)
    return [*told, {"role": "assistant", "content": _text(answered, end)}]


def _text(cell: Any, where: str) -> str:
    if is_missing(cell) or (isinstance(cell, str) and not cell.strip()):
        raise InputError(f"{where}: the text is missing; fill it in or remove the row")
    if not isinstance(cell, str):
        raise InputError(f"{where}: {cell!r:.40} is not text; choose other columns with --text-column")
    return cell


def _messages(cell: Any, where: str) -> Conversation:
    """Messages as ``role`` and ``content``, or as ShareGPT's ``from`` and ``value``."""
    if is_missing(cell) or not cell:
        raise InputError(f"{where}: the messages are missing; fill them in or remove the row")
    if not isinstance(cell, list):
        raise InputError(f"{where}: {cell!r:.40} is no list of messages with role and content")
    told: Conversation = []
    for message in cell:
        fields: Mapping[str, Any] = message if isinstance(message, dict) else {}
        role, content = fields.get("role", fields.get("from")), fields.get("content", fields.get("value"))
        if role not in ROLES:
            raise InputError(f"{where}: {message!r:.40} is no message: its role is one of {', '.join(ROLES)}")
        told.append({"role": ROLES[role], "content": _text(content, where)})
    return told
