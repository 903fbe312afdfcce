"""Checks of the options of a parameter group."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from eckart.arguments import Kind, check_number
from eckart.errors import InputError

NUMBERS: Mapping[str, Kind] = {
    **dict.fromkeys(("lr", "weight_decay", "eps", "rank_ratio", "momentum", "adamw_scale"), "float"),
    **dict.fromkeys(("galore_scale",), "float"),
    **dict.fromkeys(("rank", "update_gap", "max_shape", "ns_steps"), "int"),
    **dict.fromkeys(("low_rank", "weighted", "rotate"), "bool"),
}
MAY_BE_ABSENT = ("rank", "rank_ratio")
CHOICES: dict[str, tuple[Any, ...]] = {
    "basis": ("dct2", "dct3", "random_qr"),
    "transform": ("auto", "matmul", "fft"),
    "norm": (1, 2),
    "error_feedback": (None, "full", "int8"),
    "scale": ("kj", "none", "kimi", "dion"),
}
STRUCTURE = ("low_rank", "rank", "rank_ratio", "basis", "error_feedback", "max_shape")
"""Options that decide what the state holds and means."""


def check_options(group: Mapping[str, Any]) -> None:
    """Refuse what no update could use.

    Raises:
        InputError: an option out of its range, both or neither of ``rank`` and ``rank_ratio``.
    """
    for name, kind in NUMBERS.items():
        if name in group and not (group[name] is None and name in MAY_BE_ABSENT):
            check_number(name, group[name], kind)
    betas = group["betas"]
    if not (
        isinstance(betas, Sequence)
        and len(betas) == 2
        and all(isinstance(beta, int | float) and 0 <= beta < 1 for beta in betas)
    ):
        raise InputError(f"betas={betas!r}: give two numbers in [0, 1)")
    for name, known in CHOICES.items():
        if name in group and group[name] not in known:
            raise InputError(f"{name}={group[name]!r}: choose one of {', '.join(map(str, known))}")
    if group.get("basis") == "random_qr" and group["transform"] == "fft":
        raise InputError(
            "transform='fft' with basis='random_qr': only the cosine bases have a fast transform"
        )
    if group["low_rank"] and (group["rank"] is None) == (group["rank_ratio"] is None):
        raise InputError(f"rank={group['rank']} and rank_ratio={group['rank_ratio']}: give one of the two")
