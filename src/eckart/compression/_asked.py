"""What a compression is asked for, looked at before torch, a model or data are loaded."""

from __future__ import annotations

from numbers import Real
from typing import Any

from eckart.arguments import plain, read_budget
from eckart.errors import InputError

COMPRESSORS = {
    "afm": ("afm", "AFM"),
    "lord": ("lord", "LoRD"),
    "modegpt": ("modegpt", "MoDeGPT"),
    "pela": ("pela", "PELA"),
    "svd": ("svd", "PlainSVD"),
    "trp": ("trp", "TRP"),
    "welore": ("welore", "WeLore"),
    "whitened-svd": ("svd", "WhitenedSVD"),
}
"""Slug → module and class."""
_ELSEWHERE = {
    "loram": "prunes the base of a LoRA while it trains: `eckart adapt --loram` does that",
    "maestro": (
        "shrinks networks that were trained with ordered dropout: `eckart pretrain --method maestro --cut 0.5` trains "
        "and cuts one, eckart.layers.cut one that is trained"
    ),
}


def find_compressor(method: str) -> tuple[str, str]:
    """Module and class of a method.

    Raises:
        InputError: no method of this name, or one of another command.
    """
    if method in _ELSEWHERE:
        raise InputError(f"method {method!r} {_ELSEWHERE[method]}")
    if method not in COMPRESSORS:
        raise InputError(f"method {method!r} is not known: known are {', '.join(COMPRESSORS)}")
    return COMPRESSORS[method]


def check_size(ratio: float | None, budget: str | int | None) -> None:
    """Refuse a share or a size that is none, and both together.

    Raises:
        InputError: naming it.
    """
    share: Any = plain(ratio)
    if ratio is not None and not (isinstance(share, Real) and 0 < float(share) < 1):
        raise InputError(f"ratio is {share!r}: give the share to remove, above 0 and below 1")
    if ratio is not None and budget is not None:
        raise InputError(f"ratio ({ratio}) and budget ({budget}) are both given: leave one out")
    if budget is not None:
        read_budget(budget)
