"""Maestro's training: ordered dropout of ranks, hierarchical group lasso, ranks that shrink.

Every step one layer i uses its first b ranks, the others all of theirs, (i, b) uniform over all pairs; to the gradient
comes that of

    λ Σ_i Σ_b ‖U_{i,:,b:}‖_F + ‖V_{i,:,b:}‖_F

and from time to time ranks of importance ‖U_{:,b:}‖_F ‖V_{:,b:}‖_F < ε are dropped for good.

Source: Horváth et al., ICML 2024, arXiv:2308.14929.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, cast

import torch
from torch import Tensor, nn
from torch.optim import SGD, Optimizer

from eckart.errors import InputError
from eckart.layers._maestro import MaestroLayer
from eckart.tensors import Stateful


@dataclass
class OrderedDropout(Stateful):
    """Orders the ranks of a model's Maestro layers by importance, and drops those that are not needed.

    Lifecycle:
        attach       the layers are found, the first (layer, rank) is drawn
        before step  the gradient of the group lasso is added (SGD)
        after step   other optimisers, which would normalise it away, step along it by lr λ; dropped ranks are zeroed;
                     every ``shrink_every`` steps ranks are dropped, and the next (layer, rank) is drawn
        detach       the layers use all their ranks

    Evaluation always uses all ranks. The draw holds from step to step: with gradient accumulation for all its passes.

    Args:
        gp_lambda: λ; found by a sweep over decades, larger is smaller models.
        threshold: ε.
        hierarchical: norms of a rank and all after it, so that what is left is a prefix; False: of the rank alone.
        sampling: "per_layer" draws every pair once in each sweep of Σ R_i steps; "across_layers" draws a rank for every
            layer each step.
        shrink_every: steps between droppings; None: a tenth of the training where its length is known, else only when
            `shrink` is called; 0: only then.
        seed: of the draws.

    Raises:
        InputError: an option out of its range.

    Source: Horváth et al., 2024, arXiv:2308.14929.
    """

    gp_lambda: float = 1e-6
    threshold: float = 1e-5
    hierarchical: bool = True
    sampling: Literal["per_layer", "across_layers"] = "per_layer"
    shrink_every: int | None = None
    seed: int = 0

    slug: ClassVar[str] = "maestro"

    def __post_init__(self) -> None:
        for name in ("gp_lambda", "threshold"):
            if not 0 <= getattr(self, name) < math.inf:
                raise InputError(f"{name}={getattr(self, name)}: give a number from 0 up")
        if self.sampling not in ("per_layer", "across_layers"):
            raise InputError(f"sampling={self.sampling!r}: choose per_layer or across_layers")
        every = self.shrink_every
        if every is not None and (not isinstance(every, int) or every < 0):
            raise InputError(f"shrink_every={every!r}: give a whole number from 0 up")
        self.step = 0
        self.layers: dict[str, MaestroLayer] = {}
        self._handles: list[Any] = []

    def attach(self, model: nn.Module, optimizer: Optimizer, *, steps: int | None = None) -> OrderedDropout:
        """Begin to act whenever the optimiser steps.

        Args:
            model: after ``convert(model, "maestro")``.
            optimizer: over its parameters.
            steps: how many steps the training has.

        Raises:
            InputError: attached already, no such layer, an optimiser without their parameters, a shrinking that would
                come after the end; nothing was changed.
        """
        if self._handles:
            raise InputError("OrderedDropout is attached already: detach it first, or make another")
        optimizer = cast(Optimizer, getattr(optimizer, "optimizer", optimizer))  # accelerate's wrapper
        layers = maestro_layers(model)
        hooks = optimizer._optimizer_step_pre_hooks.values()
        if any(isinstance(getattr(hook, "__self__", None), OrderedDropout) for hook in hooks):
            raise InputError("another OrderedDropout acts on this optimiser: detach that first")
        held = {id(p) for group in optimizer.param_groups for p in group["params"]}
        for name, layer in layers.items():
            if any(p.requires_grad and id(p) not in held for p in layer.weights):
                raise InputError(f"the optimiser does not hold the factors of {name}: make it after convert")
        if steps is not None:
            self.check_length(steps)
        every = self.shrink_every
        self._every = max(1, steps // 10) if every is None and steps else every or 0
        self.optimizer, self.layers = optimizer, layers
        self._generator = torch.Generator().manual_seed(self.seed)
        self._refresh()
        self._draw()
        self._handles = [
            optimizer.register_step_pre_hook(self._before),
            optimizer.register_step_post_hook(self._after),
        ]
        return self

    def check_length(self, steps: int) -> None:
        """Refuse a training that ends before ranks are dropped.

        Raises:
            InputError: it does.
        """
        if (self.shrink_every or 0) > steps:
            raise InputError(f"shrink_every={self.shrink_every}: the training ends after {steps} steps")

    def detach(self) -> None:
        """Stop acting; the ranks that are left stay."""
        for handle in self._handles:
            handle.remove()
        for layer in self.layers.values() if self._handles else ():
            layer.use(None)
        self._handles = []

    def penalty(self) -> Tensor:
        """Σ_i Σ_b of the group lasso, without λ."""
        return torch.stack(
            [layer.group_lasso(self.hierarchical).sum() for layer in self.layers.values()]
        ).sum()

    @contextmanager
    def full(self) -> Iterator[None]:
        """All layers use all their ranks meanwhile, as the teacher of a step with self-distillation does."""
        gates = [layer.gate for layer in self.layers.values()]
        for layer in self.layers.values():
            layer.gate = layer.low_rank.clone()
        try:
            yield
        finally:
            for layer, gate in zip(self.layers.values(), gates, strict=True):
                layer.gate = gate

    def shrink(self) -> dict[str, int]:
        """Drop the ranks below the threshold and the optimiser's moments of them, and begin a new sweep.

        Returns:
            How many ranks each layer has left.

        Raises:
            InputError: a factor is not finite.
        """
        for name, layer in self.layers.items():
            try:
                layer.shrink(self.threshold, self.hierarchical)
            except InputError as error:
                raise InputError(f"{name}: {error}") from None
        self._refresh()
        self._clear_moments()
        self._draw()
        return dict(zip(self.layers, self._ranks, strict=True))

    def _refresh(self) -> None:
        """Look how many ranks are left, and begin a new sweep over them."""
        self._ranks = [layer.rank for layer in self.layers.values()]
        self._shrunk = [layer for layer in self.layers.values() if layer.rank < len(layer.low_rank)]
        self._sweep, self._position = torch.empty(0, dtype=torch.int64), 0

    @torch.no_grad()
    def _clear_moments(self) -> None:
        for layer in self._shrunk:
            for parameter, kept in layer.kept():
                for value in self.optimizer.state.get(parameter, {}).values():
                    if type(value) is type(parameter.data) and value.shape == parameter.shape:
                        value.mul_(kept)

    def _draw(self) -> None:
        """The ranks of the next step."""
        if self.sampling == "across_layers":
            drawn = [int(torch.randint(r, (1,), generator=self._generator)) + 1 for r in self._ranks]
        else:
            if self._position == len(self._sweep):
                self._sweep = torch.randperm(sum(self._ranks), generator=self._generator)
                self._position = 0
            pair = int(self._sweep[self._position])
            self._position += 1
            drawn = list(self._ranks)
            chosen = 0
            while pair >= self._ranks[chosen]:
                pair -= self._ranks[chosen]
                chosen += 1
            drawn[chosen] = pair + 1
        self._use(drawn)

    def _use(self, drawn: list[int]) -> None:
        self.drawn = drawn
        for layer, rank in zip(self.layers.values(), drawn, strict=True):
            layer.use(rank)

    def _gradient(self) -> list[tuple[Tensor, Tensor]]:
        factors = [p for layer in self.layers.values() for p in layer.weights if p.requires_grad]
        with torch.enable_grad():
            return list(zip(factors, torch.autograd.grad(self.penalty(), factors), strict=True))

    @torch.no_grad()
    def _before(self, optimizer: Optimizer, *_: Any) -> None:
        if self.gp_lambda and isinstance(optimizer, SGD):
            for parameter, gradient in self._gradient():
                if parameter.grad is None:
                    parameter.grad = torch.zeros_like(parameter)
                parameter.grad.add_(gradient, alpha=self.gp_lambda)

    @torch.no_grad()
    def _after(self, optimizer: Optimizer, *_: Any) -> None:
        self.step += 1
        if self.gp_lambda and not isinstance(optimizer, SGD):
            rates = {id(p): float(group["lr"]) for group in optimizer.param_groups for p in group["params"]}
            for parameter, gradient in self._gradient():
                parameter.sub_(gradient, alpha=rates[id(parameter)] * self.gp_lambda)
        for layer in self._shrunk:
            layer.clear()
        if self._every and self.step % self._every == 0:
            self.shrink()
        else:
            self._draw()

    def state_dict(self) -> dict[str, Tensor]:
        """Generator, sweep, and the ranks of the next step; which ranks are left is in the model."""
        return {
            "generator": self._generator.get_state(),
            "sweep": self._sweep,
            "position": torch.tensor(self._position),
            "drawn": torch.tensor(self.drawn),
            "ranks": torch.tensor(self._ranks),
        }

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Go on from there, once attached and the model is loaded.

        Raises:
            InputError: the state is of another model.
        """
        self._refresh()
        if state["ranks"].tolist() != self._ranks:
            raise InputError(
                f"the state of maestro is of ranks {state['ranks'].tolist()[:5]}…, the model has {self._ranks[:5]}…: "
                "load the model that was saved with it first"
            )
        self._generator.set_state(state["generator"])
        self._sweep, self._position = state["sweep"], int(state["position"])
        self._use(state["drawn"].tolist())


def maestro_layers(model: nn.Module) -> dict[str, MaestroLayer]:
    """Name → Maestro layer.

    Raises:
        InputError: there is none.
    """
    found = {name: m for name, m in model.named_modules() if isinstance(m, MaestroLayer)}
    if not found:
        raise InputError(f"{type(model).__name__} has no Maestro layer: convert(model, 'maestro') makes them")
    return found
