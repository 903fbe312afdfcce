"""Who takes part in a comparison: adapters solved for one budget, and the baselines beside them."""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import TYPE_CHECKING, Any, cast

from eckart.errors import InputError, first_line
from eckart.jobs.compare.names import ADAMW, AT, FULL, HEAD_ONLY, LABELS, LORA, method_names, pruned_share
from eckart.jobs.compare.peft_methods import METHODS, PREFIX, peft_config

if TYPE_CHECKING:
    from peft import PeftConfig
    from torch import nn

    from eckart.adapters._method import MethodConfig
    from eckart.tasks.task import Task
    from eckart.tasks.trainer import Recipe
    from eckart.training import Rule

SPACING = 3.0
MIDDLE_RATES = {HEAD_ONLY: 5e-3, FULL: 1e-4}
"""The middle of the learning rates tried for the baselines that are no adapters; neighbours are a factor `SPACING`
apart. That of full fine-tuning is a tenth of LoRA's (Schulman et al., LoRA Without Regret, 2025)."""

Rates = Sequence[float] | Mapping[str, Sequence[float]] | None


@dataclass(frozen=True)
class Contender:
    """A method in the comparison: `prepare` a model, train it under `rules`, and `finish` it for use.

    Args:
        name: its name in commands and tables; an adapter and its rules are joined by ``+``.
        label: its name for people.
        learning_rates: what is tried, ascending; empty where nothing is trained.
        config: the adapter's config at the budget; None for a baseline that is no adapter.
        reason: why it does not take part; empty when it does.
        rule_kinds: the rules that act while it trains.
        optimizer: that trains it, by its name on the command line.
    """

    name: str
    label: str
    learning_rates: tuple[float, ...]
    config: PeftConfig | None = None
    reason: str = ""
    rule_kinds: tuple[type[Rule], ...] = ()
    optimizer: str = ADAMW

    @property
    def plain(self) -> str:
        """Its name without that of an optimiser."""
        return self.name.partition(AT)[0]

    @property
    def options(self) -> dict[str, Any]:
        return cast("MethodConfig", self.config).solved_options() if self.config else {}

    @property
    def trials(self) -> list[float]:
        """The learning rates from the middle outwards: the likeliest first, so that the others can be given up."""
        rates = self.learning_rates
        return [rates[i] for i in sorted(range(len(rates)), key=lambda i: (abs(i - len(rates) // 2), i))]

    def prepare(self, model: nn.Module, task: Task, seed: int) -> nn.Module:
        """The model with what this method trains, and the task's head, ready to train."""
        from peft import get_peft_model

        from eckart.tasks.trainer import in_head

        if self.config is not None:
            return get_peft_model(model, replace(cast("MethodConfig", self.config), seed=seed))
        if self.plain == FULL:
            model.float()  # a step of AdamW is lost in the digits of a smaller dtype
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(self.plain == FULL or in_head(name, task.head_modules))
        return model

    def rules(self, task: Task, recipe: Recipe) -> list[Rule]:
        """Its rules, new ones for each run."""
        from eckart.tasks.trainer import loss_beside

        return [kind.for_task(loss_beside(task, recipe)) for kind in self.rule_kinds]

    def finish(self, model: nn.Module, task: Task, seed: int) -> nn.Module:
        """The trained model as it is used from then on: scored, sized and saved."""
        return model

    @property
    def at_budget(self) -> bool:
        """Whether it has the size that the comparison gives to all."""
        return self.config is not None

    def ranks(self, model: nn.Module) -> dict[str, int]:
        """The rank of each layer by its name; empty where the method has none."""
        from eckart.adapters import AdapterConfig
        from eckart.adapters._walk import ranks_of

        return ranks_of(model) if isinstance(self.config, AdapterConfig) else {}

    def costs(self, model: nn.Module, task: Task, prepared: float) -> dict[str, float]:
        """What it costs besides training, by columns of the results, where `prepare` took so many seconds."""
        return {}

    def check_rules(self, task: Task) -> None:
        """Refuse rules that do not suit the adapter or each other.

        Raises:
            InputError: naming both and the reason.
        """
        from eckart.adapters import AdapterConfig, walk

        if len(set(self.rule_kinds)) < len(self.rule_kinds):
            raise InputError(f"{self.name} names a rule twice: give each once")
        if self.rule_kinds and not isinstance(self.config, AdapterConfig):
            raise InputError(
                f"{self.name} cannot be combined: a prompt adapts no layer, on which rules act: name it without them"
            )
        if self.rule_kinds:
            for _, _, _, adapter in walk(self.prepare(task.fresh_model(0), task, 0)):
                for kind in self.rule_kinds:
                    if reason := kind.suits(adapter):
                        raise InputError(
                            f"{self.name} cannot be combined: {kind.slug} does not suit it: {reason}"
                        )


@dataclass(frozen=True)
class PeftContender(Contender):
    """A method of PEFT's own in the comparison.

    Args:
        sizes: the options that the budget has set.
    """

    sizes: Mapping[str, Any] = field(default_factory=dict)

    @property
    def options(self) -> dict[str, Any]:
        return {name: value for name, value in self.sizes.items() if name != "rank_pattern"}

    def prepare(self, model: nn.Module, task: Task, seed: int) -> nn.Module:
        import torch
        from peft import get_peft_model

        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            adapted = get_peft_model(model, copy.deepcopy(cast("PeftConfig", self.config)))
        for name, parameter in adapted.named_parameters():
            for part, factor in METHODS[self.plain.removeprefix(PREFIX)].lr_scale.items():
                if parameter.requires_grad and f".{part}." in name:
                    cast(Any, parameter).lr_scale = factor
        return adapted

    def check_rules(self, task: Task) -> None:
        """Refuse layers that PEFT's tuner cannot adapt.

        Raises:
            InputError: naming the method and the reason.
        """
        try:
            self.prepare(task.fresh_model(0), task, 0)
        except (ValueError, TypeError, NotImplementedError) as error:
            raise InputError(f"{self.name} cannot take part: {first_line(error)}") from None

    def rules(self, task: Task, recipe: Recipe) -> list[Any]:
        return [rule() for rule in METHODS[self.plain.removeprefix(PREFIX)].rules]


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
    from eckart.jobs.compare.pruned import Pruned
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
