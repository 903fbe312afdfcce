"""Names of who takes part in a comparison: methods, baselines, rules and optimisers joined to them."""

from __future__ import annotations

from collections.abc import Sequence

from eckart.errors import InputError
from eckart.jobs.compare.peft_methods import peft_name

HEAD_ONLY, FULL, LORA, TRIVIAL, DENSE = "head-only", "full", "lora", "trivial", "dense"
ADAMW, AT = "adamw", "@"
LABELS = {HEAD_ONLY: "head only", FULL: "full fine-tuning"}


def method_names(methods: str | Sequence[str]) -> tuple[list[str], set[str]]:
    """The names of all who take part, baselines first, and the set of those that were asked for by name.

    Args:
        methods: ``"all"``, ``"a,b,c"`` or a list of names; ``"a+rule"`` is an adapter under a rule, ``"peft:dora"`` a
            method of PEFT's own, and ``"a@muon"`` any of them trained by an optimiser of its own.

    Raises:
        InputError: none, or an unknown one.
    """
    from eckart.adapters import ADAPTERS, PROMPTS

    given = methods.split(",") if isinstance(methods, str) else methods
    words = [word.strip() for word in given if word.strip()]
    if not words:
        raise InputError("methods is empty: name some, such as 'lora,randlora', or give 'all'")
    if words == ["all"]:
        return list(dict.fromkeys([HEAD_ONLY, FULL, LORA, *sorted([*ADAPTERS, *PROMPTS])])), set()
    named = [_name(word) for word in words]
    return list(dict.fromkeys([HEAD_ONLY, FULL, LORA, *named])), set(named)


def _name(word: str) -> str:
    """The name of who is meant by a word."""
    from eckart.tasks.optimizers import check_optimizer

    plain, at, optimizer = word.partition(AT)
    name = plain if plain in LABELS else peft_name(plain) or "+".join(_parts(plain))
    if not at:
        return name
    check_optimizer(optimizer)
    if name == HEAD_ONLY:
        raise InputError(
            f"{word}: the head is no matter of low rank and has AdamW: leave {AT}{optimizer} out"
        )
    return f"{name}{AT}{optimizer}"


def _parts(word: str) -> list[str]:
    """The slugs of an adapter and of the rules that are joined to it by ``+``."""
    from eckart.adapters import get_config
    from eckart.training import get_rule

    method, *rules = word.split("+")
    return [get_config(method).slug, *(get_rule(rule).slug for rule in rules)]
