"""Checks of arguments that need no torch: the commands make them before anything is loaded, the jobs whoever calls."""

from __future__ import annotations

import difflib
import functools
import inspect
import math
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from numbers import Integral, Real
from typing import Any, Literal, TypeVar, cast

from eckart.errors import InputError

PARAMETER_UNITS = {"": 1, "k": 10**3, "m": 10**6, "g": 10**9}
F = TypeVar("F", bound=Callable[..., Any])
Kind = Literal["bool", "int", "float"]
BYTE_UNITS = {"b": 1, "kb": 10**3, "mb": 10**6, "gb": 10**9, "kib": 2**10, "mib": 2**20, "gib": 2**30}
_BUDGET = re.compile(r"\s*([0-9]*\.?[0-9]+(?:e[0-9]+)?)\s*(%|[a-z]*)\s*", re.IGNORECASE)

_FOREIGN = {
    *(
        "adalora",
        "boft",
        "c3a",
        "corda",
        "dora",
        "eva",
        "fourierft",
        "gralora",
        "hra",
        "ia3",
        "ln-tuning",
        "loftq",
    ),
    *(
        "loha",
        "lokr",
        "oft",
        "olora",
        "osf",
        "p-tuning",
        "pissa",
        "prefix-tuning",
        "prompt-tuning",
        "psoft",
        "pvera",
    ),
    *("qalora", "qlora", "road", "shira", "tinylora", "vblora", "vera", "waveft", "xlora"),
}
"""Methods that PEFT has and this library has not; many are a letter from one that it has."""
LARGEST = 2**31 - 1
"""What a whole number is at most: more is a slip, and no memory holds it."""


@dataclass(frozen=True)
class Range:
    """The numbers that an option may be; ``words`` says so to a person."""

    words: str
    low: float = -math.inf
    high: float = math.inf
    open_low: bool = False
    open_high: bool = False
    infinite: bool = False

    def __contains__(self, value: object) -> bool:
        number: Any = value
        above: bool = number > self.low if self.open_low else number >= self.low
        below: bool = number < self.high if self.open_high else number <= self.high
        return above and below


_COUNT = Range("a whole number of at least 1", 1, LARGEST)
_COUNT_OR_NONE = Range("a whole number of at least 0", 0, LARGEST)
_POSITIVE = Range("a positive number", 0, open_low=True)
_PART = Range("a share in (0, 1]", 0, 1, open_low=True)
_SHARE = Range("a share in [0, 1)", 0, 1, open_high=True)
_LEAST_0 = Range("a number of at least 0", 0)
_BEYOND = Range("a positive number, or infinity", 0, open_low=True, infinite=True)
RANGES: Mapping[str, Range] = {
    **dict.fromkeys(("r", "rank", "mini_r", "equivalent_rank", "shards_per_vector"), _COUNT),
    **dict.fromkeys(("num_basis", "num_basis_B", "chunk_size", "num_bases", "max_length"), _COUNT),
    **dict.fromkeys(("r_lora", "private_rank", "num_virtual_tokens"), _COUNT_OR_NONE),
    **dict.fromkeys(("d_model", "d_state", "n_ssm", "channels", "in_features", "out_features"), _COUNT),
    **dict.fromkeys(("num_channels", "hidden_size", "num_hidden_layers", "num_labels"), _COUNT),
    **dict.fromkeys(
        ("vocab_size", "max_position", "update_gap", "restart_every", "max_shape", "ns_steps"), _COUNT
    ),
    **dict.fromkeys(("first", "last", "D", "cg_steps", "patience", "n_samples"), _COUNT),
    **dict.fromkeys(
        ("oversample", "max_heavy", "shuffle_buffer", "switch_iter", "warm_start", "rewarm"), _COUNT_OR_NONE
    ),
    **dict.fromkeys(
        ("lora_alpha", "randlora_alpha", "scale", "offset_lr_scale", "dt_min", "dt_max"), _POSITIVE
    ),
    **dict.fromkeys(
        ("galore_scale", "g_scale", "eta0", "delta", "heavy_factor", "incoherence", "power"), _POSITIVE
    ),
    **dict.fromkeys(("lr", "weight_decay", "eps", "adamw_scale", "basis_memory"), _LEAST_0),
    **dict.fromkeys(("real_scale", "imag_scale", "growth_constant", "switch_tol", "tol", "reg"), _LEAST_0),
    **dict.fromkeys(("bandlimit", "p"), _BEYOND),
    **dict.fromkeys(("ratio", "energy", "rank_ratio", "decay"), _PART),
    **dict.fromkeys(("discard", "validation_fraction"), _SHARE),
    **dict.fromkeys(("momentum", "quantile", "prune"), Range("a share in [0, 1]", 0, 1)),
    "dropout": Range("a probability in [0, 1)", 0, 1, open_high=True),
    "sparsity": _SHARE,
    "norm_p": Range("a number of at least 1", 1),
    "seed": Range(f"a whole number from 0 to {2**32 - 1}", 0, 2**32 - 1),
}
"""The ranges of options by name; the same name means the same wherever it is an option."""
_BY_PLACE = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
_WORDS = {"bool": "True or False", "int": "a whole number", "float": "a number"}


def plain(value: Any) -> Any:
    """A number of NumPy's or of torch's as Python's own; everything else as it is."""
    if type(value).__module__ in ("numpy", "torch") and getattr(value, "ndim", None) == 0:
        return value.item()
    return value


def check_number(name: str, value: Any, kind: Kind) -> Any:
    """Hold a value to its type and to the range that `RANGES` has for its name.

    Returns:
        the value as Python's own number; a float that is whole becomes an int where one is wanted.

    Raises:
        InputError: naming the option, the value and what it may be.
    """
    value, allowed = plain(value), RANGES.get(name)
    ranged = allowed is not None and (kind == "int" or (isinstance(value, Real) and value == value))
    wanted = allowed.words if allowed is not None and ranged else _WORDS[kind]
    right = isinstance(value, Real) and isinstance(value, bool) == (kind == "bool")
    if right and kind != "bool":
        right = math.isfinite(value) or (
            allowed is not None and allowed.infinite and kind == "float" and value == math.inf
        )
        right = right and (kind == "float" or value == int(value)) and (allowed is None or value in allowed)
        if right and kind == "int" and allowed is None and value > LARGEST:
            right, wanted = False, f"at most {LARGEST}"
    if not right:
        raise InputError(f"{name} is {value!r}: give {wanted}")
    return int(value) if kind == "int" else float(value) if isinstance(value, float) else value


def plain_options(function: Callable[..., Any]) -> dict[str, tuple[Kind, bool]]:
    """The arguments that are annotated as one number or boolean, with its type, and whether None is another value."""
    found: dict[str, tuple[Kind, bool]] = {}
    for name, annotation in inspect.get_annotations(function).items():
        text = annotation if isinstance(annotation, str) else getattr(annotation, "__name__", str(annotation))
        words = [word.strip() for word in text.split("|")]
        kinds = [word for word in words if word != "None"]
        if name != "return" and len(kinds) == 1 and kinds[0] in _WORDS:
            found[name] = cast(Kind, kinds[0]), "None" in words
    return found


def checked(function: F) -> F:
    """A function, or the constructor of a class, that holds each number and boolean it is given to its annotation and
    to the range that `RANGES` has for its name, and gets them as Python's own.

    Raises:
        InputError: naming the argument, the value and what it may be.
    """
    kinds = plain_options(function)
    places = [name for name, p in inspect.signature(function).parameters.items() if p.kind in _BY_PLACE]

    def held(name: str, value: Any) -> Any:
        kind, optional = kinds.get(name, (None, True))
        return value if kind is None or (optional and value is None) else check_number(name, value, kind)

    @functools.wraps(function)
    def run(*args: Any, **named: Any) -> Any:
        known = map(held, places, args)
        return function(*known, *args[len(places) :], **{name: held(name, named[name]) for name in named})

    return cast(F, run)


def check_attributes(instance: Any, constructor: Callable[..., Any]) -> None:
    """As `checked`, for what a constructor has stored under the names of its arguments.

    Raises:
        InputError: naming the argument, the value and what it may be.
    """
    for name, (kind, optional) in plain_options(constructor).items():
        value = getattr(instance, name)
        if not (optional and value is None):
            setattr(instance, name, check_number(name, value, kind))


def check_seed(seed: Any) -> int:
    """A seed that torch and NumPy take, as an int.

    Raises:
        InputError: it is none.
    """
    return int(check_number("seed", seed, "int"))


def check_pattern(name: str, value: Any) -> None:
    """Refuse a word that is meant as a regular expression and is none.

    Raises:
        InputError: saying where it breaks.
    """
    if isinstance(value, str):
        try:
            re.compile(value)
        except re.error as error:
            raise InputError(f"{name} {value!r} is no regular expression: {error}") from None


def hint(name: str, known: Iterable[str], otherwise: str | None = None, *, cutoff: float = 0.6) -> str:
    """The remedy for a name that is not known: the nearest that is, or else all of them.

    Args:
        name: what was given.
        known: what there is.
        otherwise: what to say where none is near; that these are known when None.
        cutoff: how near, from 0 (anything) to 1 (equal).
    """
    names = list(known)
    near = difflib.get_close_matches(name, names, n=1, cutoff=cutoff)
    return f"did you mean {near[0]!r}?" if near else otherwise or f"known are {', '.join(names)}"


def method_hint(slug: str, known: Iterable[str]) -> str:
    """The remedy for an adapter method that is not known."""
    if slug in _FOREIGN:
        return "it is PEFT's own, so use PEFT for it."
    return hint(slug, known, "see `eckart methods --family adapters`.", cutoff=0.4)


def check_least(least: int, **numbers: int | None) -> None:
    """Refuse numbers below ``least``; None is whatever the job chooses.

    Raises:
        InputError: naming the argument.
    """
    for name, value in numbers.items():
        if value is None:
            continue
        if isinstance(value, bool) or not isinstance(plain(value), Integral):
            raise InputError(f"{name} is {value!r}: give a whole number of at least {least}")
        if value < least:
            raise InputError(f"{name} is {value}: give at least {least}")
        if value > LARGEST:
            raise InputError(f"{name} is {value}: give at most {LARGEST}")


def check_positive(**numbers: float | None) -> None:
    """Refuse what is not positive and finite; None is whatever the job chooses.

    Raises:
        InputError: naming the argument.
    """
    for name, value in numbers.items():
        if value is not None and (
            isinstance(value, bool) or not isinstance(plain(value), Real) or not 0 < value < math.inf
        ):
            raise InputError(f"{name} is {value}: give a positive number")


def check_share(name: str, value: float, *, zero: bool = False) -> None:
    """Refuse what is no share in (0, 1), or in [0, 1) where ``zero`` is one.

    Raises:
        InputError: naming the argument.
    """
    if not (0 < value < 1 or (zero and value == 0)):
        remedy = "in [0, 1)" if zero else "between 0 and 1, such as 0.9"
        raise InputError(f"{name} is {value}: give a share {remedy}")


def read_budget(budget: str | int) -> tuple[float, str]:
    """The number of a budget and its unit: ``"%"``, one of `PARAMETER_UNITS` or one of `BYTE_UNITS`.

    Raises:
        InputError: not a budget, or one of nothing.
    """
    match = _BUDGET.fullmatch(str(budget))
    unit = match[2].lower() if match else None
    if match is None or unit not in {"%", *PARAMETER_UNITS, *BYTE_UNITS} or not float(match[1]) < 1e18:
        raise InputError(
            f"budget {str(budget)!r} is not understood: write 0.5%, 200k, 1.5M (parameters) or 1MB (bytes)"
        )
    if not (value := float(match[1])):
        raise InputError(f"budget {str(budget)!r} comes to 0: give a larger one")
    return value, unit
