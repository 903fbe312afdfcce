"""Who takes part in a comparison: adapters solved for one budget, and the baselines beside them."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING

from eckart.errors import InputError
from eckart.jobs.compare.contender import Contender, PeftContender
from eckart.jobs.compare.names import ADAMW, AT, FULL, HEAD_ONLY, LABELS, LORA, method_names, pruned_share
from eckart.jobs.compare.peft_methods import METHODS, PREFIX, peft_config
from eckart.jobs.compare.pruned import Pruned

if TYPE_CHECKING:
    from torch import nn

    from eckart.tasks.task import Task

SPACING = 3.0
MIDDLE_RATES = {HEAD_ONLY: 5e-3, FULL: 1e-4}
"""The middle of the learning rates tried for the baselines that are no adapters; neighbours are a factor `SPACING`
apart. That of full fine-tuning is a tenth of LoRA's (Schulman et al., LoRA Without Regret, 2025)."""

Rates = Sequence[float] | Mapping[str, Sequence[float]] | None


def spaced(middle: float, count: int) -> tuple[float, ...]:
    """``count`` learning rates, neighbours a factor `SPACING` apart, rounded to two digits."""
    return tuple(float(f"{middle * SPACING ** (i - count // 2):.2g}") for i in range(count))


def outward(rates: Sequence[float], best: float) -> float | None:
    """The next learning rate where the best of some, ascending, is the largest or smallest; otherwise None."""
    factor = {rates[0]: 1 / SPACING, rates[-1]: SPACING}.get(best)
    return None if factor is None else float(f"{best * factor:.2g}")


def rates_of(name: str, default: Sequence[float], given: Rates, trials: int) -> tuple[float, ...]:
    """The learning rates of a method: the given ones, or the middle ones of its own."""
    if isinstance(given, Mapping):
        given = given.get(name)
    elif given is not None and name in MIDDLE_RATES:
        given = spaced(MIDDLE_RATES[name], len(given))
    if given is None:
        start = max(0, len(default) - trials) // 2
        given = default[start : start + trials]
    rates = tuple(sorted({float(rate) for rate in given}))
    if not rates or not all(0 < rate < math.inf for rate in rates):
        raise InputError(f"learning_rates of {name} are {list(given)}: give positive numbers")
    return rates


def contenders(
    task: Task,
    methods: str | Sequence[str],
    budget: str | int,
    learning_rates: Rates,
    trials: int,
    target_modules: str | Sequence[str] | None,
    optimizer: str = ADAMW,
) -> list[Contender]:
    """Every method with its config solved for the budget; nothing is trained.

    A method that cannot meet the budget takes part with a ``reason`` instead of a config, unless it was asked for
    by name.

    Args:
        task: whose model is adapted.
        methods: as `method_names`.
        budget: as `eckart.adapters.parse_budget`.
        learning_rates: a list for every adapter (the baselines' own middle is kept), a list for each method by
            name, or None for each method's own.
        trials: how many of its own learning rates a method tries, the middle ones; as many as the others where
            ``learning_rates`` names those of some methods only.
        target_modules: the layers adapted; None for the task's own.
        optimizer: that trains all but the head alone and those that name another.

    Raises:
        InputError: an unknown method; a named one that cannot meet the budget; none that can; unequal numbers of
            learning rates.
    """
    from eckart.adapters import get_config

    names, named = method_names(methods)
    if isinstance(learning_rates, Mapping) and (unknown := set(learning_rates) - set(names)):
        raise InputError(
            f"learning_rates names {min(unknown)!r}, which does not take part: {', '.join(names)} do"
        )
    if (
        isinstance(learning_rates, Mapping)
        and len(counts := {len(set(r)) for r in learning_rates.values()}) == 1
    ):
        trials = counts.pop()
    model, targets = task.fresh_model(0), task.default_targets if target_modules is None else target_modules
    targets = targets if isinstance(targets, str) else list(targets)
    found: list[Contender] = []
    failures: list[InputError] = []
    for name in names:
        plain, _, own = name.partition(AT)
        given = learning_rates.get(name) if isinstance(learning_rates, Mapping) else learning_rates
        try:
            one = _contender(task, model, plain, budget, given, trials, targets)
        except InputError as error:
            if name in named:
                raise
            failures.append(error)
            kind = get_config(plain)
            rates = rates_of(plain, kind.learning_rates, given, trials)
            one = Contender(plain, kind.title, rates, reason=str(error))
        label = f"{one.label}, {own}" if own else one.label
        chosen = ADAMW if plain == HEAD_ONLY else own or optimizer
        found.append(replace(one, name=name, label=label, optimizer=chosen))
    if failures and not any(c.config for c in found):
        raise failures[0]
    check_counts(found)
    return found


def _contender(
    task: Task,
    model: nn.Module,
    name: str,
    budget: str | int,
    rates: Sequence[float] | None,
    trials: int,
    targets: str | list[str],
) -> Contender:
    """One of them, solved for the budget and checked against the model.

    Raises:
        InputError: it cannot meet the budget, or cannot be combined so.
    """
    from eckart.adapters import get_config, solve_budget
    from eckart.training import get_rule, options_for

    heads = list(task.head_modules)
    if name in MIDDLE_RATES:
        tried = rates_of(name, spaced(MIDDLE_RATES[name], trials), rates, trials)
        reason = _too_large(task, model) if name == FULL else ""
        return Contender(name, LABELS[name], tried if heads or name == FULL else (), reason=reason)
    one: Contender
    if name.startswith(PREFIX):
        method = METHODS[name.removeprefix(PREFIX)]
        config, sizes = peft_config(name, model, budget, targets, heads)
        one = PeftContender(
            name, method.title, rates_of(name, method.learning_rates, rates, trials), config, sizes=sizes
        )
    else:
        slug, *words = name.split("+")
        share = pruned_share(slug)
        kind, rules = get_config(slug if share is None else LORA), [get_rule(word) for word in words]
        options = kind.for_task(target_modules=targets, max_length=task.max_length)
        options |= options_for(kind.slug, rules) if rules else {}
        solved = solve_budget(model, kind(modules_to_save=heads or None, **options), budget)
        title = kind.title if share is None else f"LoRAM, {share:.0%} pruned"
        made = Contender if share is None else partial(Pruned, share=share)
        one = made(
            name,
            " + ".join([title, *(rule.title for rule in rules)]),
            rates_of(name, kind.learning_rates, rates, trials),
            solved,
            rule_kinds=tuple(rules),
        )
    one.check_rules(task)
    return one


def _too_large(task: Task, model: nn.Module) -> str:
    """Why all of a model cannot be trained; nothing where it can."""
    from eckart.tasks.memory import full_memory

    if task.memory.quantize is not None:
        return f"full fine-tuning is left out: the base is kept in {task.memory.quantize}, which cannot be trained"
    return full_memory(sum(p.numel() for p in model.parameters()))


def check_counts(found: Sequence[Contender]) -> None:
    """Refuse methods with different numbers of learning rates: who tries more may win by luck."""
    counts = {len(c.learning_rates): c.name for c in found if c.learning_rates}
    if len(counts) > 1:
        told = ", ".join(f"{name} has {count}" for count, name in sorted(counts.items()))
        raise InputError(
            f"learning_rates are not equally many ({told}): give every method the same number of trials"
        )
