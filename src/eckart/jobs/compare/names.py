"""Names of who takes part in a comparison: methods, baselines, rules and optimisers joined to them."""

from __future__ import annotations

import math
from collections.abc import Sequence

from eckart.errors import InputError
from eckart.jobs.compare.peft_methods import peft_name

HEAD_ONLY, FULL, LORA, TRIVIAL, DENSE = "head-only", "full", "lora", "trivial", "dense"
ADAMW, AT = "adamw", "@"
LABELS = {HEAD_ONLY: "head only", FULL: "full fine-tuning"}
LORAM, MAESTRO = "loram", "maestro"
ELSEWHERE = {
    MAESTRO: "it trains all of a layer's weights, which no budget of an adapter holds: "
    "`eckart compare compression --methods maestro --steps N` sets it beside others of its size"
}
"""Methods that are no contenders at an adapter's budget, with the reason and the command that does it."""


def method_names(methods: str | Sequence[str]) -> tuple[list[str], set[str]]:
    """The names of all who take part, baselines first, and the set of those that were asked for by name.

    Args:
        methods: ``"all"``, ``"a,b,c"`` or a list of names; ``"a+rule"`` is an adapter under a rule, ``"peft:dora"`` a
            method of PEFT's own, ``"loram:0.5"`` a LoRA trained on half of the base, and ``"a@muon"`` any of them
            trained by an optimiser of its own.

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
    share = pruned_share(method)
    slug = get_config(method).slug if share is None else f"{LORAM}:{share:g}"
    return [slug, *(get_rule(rule).slug for rule in rules)]


def pruned_share(word: str) -> float | None:
    """The share of the base that is pruned while a LoRA trains, of ``"loram:0.5"``; None where a word names another
    method.

    Raises:
        InputError: LoRAM without a share, or one out of range; a method of `ELSEWHERE`.
    """
    slug, _, share = word.strip().lower().partition(":")
    if slug in ELSEWHERE:
        raise InputError(f"{slug} cannot take part: {ELSEWHERE[slug]}")
    if slug != LORAM:
        return None
    try:
        found = float(share)
    except ValueError:
        found = math.nan
    if not 0 < found < 1:
        raise InputError(
            f"{word.strip()}: give the share of the base that is pruned while the LoRA trains, above 0 and below 1, "
            f"such as {LORAM}:0.5"
        )
    return found
