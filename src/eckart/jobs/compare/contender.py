"""A method in a comparison: how a model is made ready for it, and how the trained one is used."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, cast

from eckart.errors import InputError, first_line
from eckart.jobs.compare.names import ADAMW, AT, FULL
from eckart.jobs.compare.peft_methods import METHODS, PREFIX

if TYPE_CHECKING:
    from peft import PeftConfig, PeftModel
    from torch import nn

    from eckart.adapters._method import MethodConfig
    from eckart.tasks.task import Task
    from eckart.tasks.trainer import Recipe
    from eckart.training import Rule


def checkpoint_bytes(model: PeftModel) -> int:
    """Bytes of a checkpoint with adapter and head."""
    from peft import get_peft_model_state_dict

    saved = get_peft_model_state_dict(model, save_embedding_layers=False).values()
    return sum(tensor.numel() * tensor.element_size() for tensor in saved)


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
