"""The contract of a rule: what it suits, how it is attached to a training run, and the state that a resume needs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Self, TypeVar, cast

from torch import Tensor, nn
from torch.optim import Optimizer

from eckart.adapters import AdaptedWeight, Adapter, walk
from eckart.arguments import hint
from eckart.errors import InputError
from eckart.registry import entry
from eckart.tensors import Stateful

if TYPE_CHECKING:
    from transformers import TrainerCallback

RULES: dict[str, type[Rule]] = {}
R = TypeVar("R", bound="type[Rule]")


@dataclass
class Rule(Stateful):
    """A rule that acts while adapters train. It is attached to one model and its optimiser and acts by their hooks,
    so that it works in any loop.

    A rule is a dataclass of its options. What it learns while it runs is in attributes that are no fields, and what of
    them a resumed run needs is in `state_dict`.

    Lifecycle:
        attach       every adapter is checked, then `begin`
        before_step  each time the optimiser is about to step: gradients are there, weights are not yet changed
        after_step   each time it has stepped
        detach       what `begin` put into the model is taken out; the adapters stay as they are
    """

    # What the registry tells of the rule.
    slug: ClassVar[str] = ""
    kind: ClassVar[str] = "rule "
    title: ClassVar[str] = ""
    paper: ClassVar[str] = ""
    arxiv: ClassVar[str] = ""
    family: ClassVar[str] = "training"
    trains: ClassVar[str] = ""
    saves: ClassVar[str] = ""
    knob: ClassVar[str] = ""
    claims: ClassVar[str] = ""  # what no second rule may change meanwhile, such as "ranks"

    def __post_init__(self) -> None:
        self.step = 0
        self.adapters: list[tuple[str, AdaptedWeight, str, Adapter]] = []
        self._handles: list[Any] = []

    @classmethod
    def for_task(cls, loss: Callable[[nn.Module, int], Tensor]) -> Rule:
        """The rule with its defaults, for a training on a task.

        Args:
            loss: of a model on other examples than those of a step: ``loss(model, step)``.
        """
        return cls()

    @classmethod
    def suits(cls, adapter: Adapter) -> str:
        """Why the rule does not suit an adapter, in a few words; empty where it does."""
        return ""

    def begin(self, steps: int | None) -> None:
        """Put what the rule needs into the model; ``self.adapters`` and ``self.optimizer`` are there.

        Args:
            steps: optimiser steps of the whole training, where known.
        """

    def before_step(self) -> None:
        """Act on the gradients."""

    def after_step(self) -> None:
        """Act on the weights."""

    def end(self) -> None:
        """Take out of the model what `begin` put there."""

    def attach(
        self,
        model: nn.Module,
        optimizer: Optimizer,
        *,
        steps: int | None = None,
        adapter_name: str | None = None,
    ) -> Self:
        """Begin to act on the adapters of a model whenever its optimiser steps.

        Args:
            model: a model with adapters.
            optimizer: the optimiser that trains them.
            steps: how many steps the training has, for rules with a schedule.
            adapter_name: which adapter; the active ones when None.

        Raises:
            InputError: attached already; no adapter, or one that the rule does not suit; an optimiser without their
                parameters; a schedule that does not fit. The model is left as it was.
        """
        name = self.slug or type(self).__name__
        if self._handles:
            raise InputError(f"rule {name} is attached already: detach it first, or make another")
        optimizer = cast(Optimizer, getattr(optimizer, "optimizer", optimizer))  # accelerate's wrapper
        for hook in optimizer._optimizer_step_pre_hooks.values():
            other = getattr(hook, "__self__", None)
            if isinstance(other, Rule) and (
                type(other) is type(self) or (self.claims and other.claims == self.claims)
            ):
                raise InputError(
                    f"rule {name} cannot act beside rule {other.slug or type(other).__name__} on this optimiser: "
                    "detach that first"
                )
        adapters = list(walk(model, adapter_name))
        for layer, _, _, adapter in adapters:
            if reason := self.suits(adapter):
                raise InputError(
                    f"rule {name} does not suit {type(adapter).__name__} of layer {layer}: {reason}"
                )
        held = {id(parameter) for group in optimizer.param_groups for parameter in group["params"]}
        for layer, _, _, adapter in adapters:
            if any(p.requires_grad and id(p) not in held for p in adapter.parameters()):
                raise InputError(
                    f"the optimiser does not hold the parameters of layer {layer}: make it after the adapters, over "
                    "the parameters that require gradients"
                )
        self.model, self.optimizer, self.adapters = model, optimizer, adapters
        try:
            self.begin(steps)
        except Exception:
            self.end()
            self.adapters = []
            raise
        self._handles = [
            optimizer.register_step_pre_hook(self._before),
            optimizer.register_step_post_hook(self._after),
        ]
        return self

    def _before(self, *_: Any) -> None:
        self.before_step()

    def _after(self, *_: Any) -> None:
        self.step += 1
        self.after_step()

    def detach(self) -> None:
        """Stop acting."""
        for handle in self._handles:
            handle.remove()
        if self._handles:
            self.end()
        self._handles = []

    def state_dict(self) -> dict[str, Tensor]:
        """What a resumed run needs, as tensors."""
        return {}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Take up the state of a rule of the same options, attached to a model of the same shapes.

        Raises:
            InputError: the state is of another rule or model.
        """
        if state:
            raise InputError(f"the state of {self.slug} holds {min(state)}, which it has no use for")

    def callback(self) -> TrainerCallback:
        """The rule as a callback of transformers' Trainer, which attaches it, saves its state with each checkpoint and
        reads it when the training is resumed."""
        from eckart.training._callback import RuleCallback

        return RuleCallback(self)


def register_rule(
    slug: str, *, title: str, paper: str, arxiv: str, trains: str, saves: str, knob: str = ""
) -> Callable[[R], R]:
    """Class decorator that makes a rule known by its slug.

    Args:
        slug: the rule's name on the command line and in the registry.
        title: its name as its authors write it.
        paper: authors and year.
        arxiv: the arXiv id.
        trains: what it changes, in a few words.
        saves: what its state holds, in a few words.
        knob: the option that matters most.

    Raises:
        InputError: the slug is taken.
    """

    facts = {"title": title, "paper": paper, "arxiv": arxiv, "trains": trains, "saves": saves, "knob": knob}
    return entry(RULES, "rule", slug, **facts)


def get_rule(name: str) -> type[Rule]:
    """The class of a rule by its slug.

    Raises:
        InputError: no such rule; names the nearest.
    """
    slug = name.strip().lower().replace("_", "-")
    if slug not in RULES:
        near = hint(slug, RULES, "see `eckart methods --family training`.", cutoff=0.4)
        raise InputError(f"unknown rule {name!r}: {near} Known: {', '.join(sorted(RULES))}")
    return RULES[slug]
