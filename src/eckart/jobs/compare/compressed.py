"""Who takes part in a comparison of compressions: methods that remove the same share, and the dense model."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from statistics import median
from typing import TYPE_CHECKING, Any

from eckart.errors import InputError
from eckart.jobs.compare.contender import Contender
from eckart.jobs.compare.contenders import Rates, check_counts, rates_of, spaced
from eckart.jobs.compare.names import DENSE, LORAM, MAESTRO

if TYPE_CHECKING:
    from torch import nn

    from eckart.compression._census import Outline
    from eckart.tasks.task import Task
    from eckart.tasks.trainer import Recipe

RATIO = 0.2
"""Share of the linear layers' parameters that is removed."""
TURNS = 5
"""Times that a model is timed, in turn with the dense one."""
PROMPT, ANSWER = 16, 12
"""Tokens that generation is timed on: given, and made."""


@dataclass(frozen=True)
class Compressed(Contender):
    """A method of compression: the model is made smaller, healed for the run's steps, and scored.

    Args:
        ratio: share of the linear layers' parameters to remove.
        size: instead, the size of the whole model: "70%", "95M", "180MB".
        calibration: training examples that the statistics see.
        batch_size: examples of a batch of these.
    """

    ratio: float | None = None
    size: str | None = None
    calibration: int = 1
    batch_size: int = 1

    @property
    def at_budget(self) -> bool:
        return True

    def prepare(self, model: nn.Module, task: Task, seed: int) -> nn.Module:
        from eckart.compression import compress, report
        from eckart.tasks.smaller import calibration_batches, train_factors

        small = compress(
            model,
            self.name,
            ratio=self.ratio,
            budget=self.size,
            calibration=calibration_batches(task, self.calibration, self.batch_size),
            exclude=task.head_modules,
        )
        found = report(small)
        assert found is not None
        if not self.learning_rates:
            return small.requires_grad_(False)
        train_factors(small, [row.layer for row in found.rows if row.rank is not None], task)
        return small

    def ranks(self, model: nn.Module) -> dict[str, int]:
        from eckart.compression import report

        found = report(model)
        return {row.layer: row.rank for row in found.rows if row.rank is not None} if found else {}

    def costs(self, model: nn.Module, task: Task, prepared: float) -> dict[str, float]:
        return {**weights(model), **speeds(model, task), "prepare_seconds": prepared}

    def check(self, model: nn.Module, task: Task) -> None:
        """Refuse a model that the method does not fit, or that it cannot make so small.

        Raises:
            InputError: saying what would be needed.
        """
        from eckart.compression._compress import suited

        suited(model, self.name, self.ratio, self.size, {"exclude": task.head_modules})


@dataclass(frozen=True)
class Dense(Contender):
    """The model as it is, trained for the run's steps where the others are healed."""

    def prepare(self, model: nn.Module, task: Task, seed: int) -> nn.Module:
        return model.requires_grad_(bool(self.learning_rates))

    def costs(self, model: nn.Module, task: Task, prepared: float) -> dict[str, float]:
        return {**weights(model), "forward_ratio": 1.0}


@dataclass(frozen=True)
class Maestro(Compressed):
    """Maestro: the layers train in factors of ordered ranks, and are then cut to the size of the others."""

    def prepare(self, model: nn.Module, task: Task, seed: int) -> nn.Module:
        from eckart.layers import convert
        from eckart.tasks.smaller import train_factors

        layers = list(self._outline(model, task).layers)
        ordered = convert(model, self.name, target_modules=layers, seed=seed)
        train_factors(ordered, layers, task)
        return ordered

    def rules(self, task: Task, recipe: Recipe) -> list[Any]:
        from eckart.layers import OrderedDropout
        from eckart.training._callback import RuleCallback

        class Ordering(OrderedDropout):
            def callback(self) -> RuleCallback:
                return RuleCallback(self)

        return [Ordering(seed=recipe.seed)]

    def finish(self, model: nn.Module, task: Task, seed: int) -> nn.Module:
        from eckart.compression._compress import ratio_for_budget
        from eckart.layers import cut

        ratio = self.ratio
        if self.size is not None:
            ratio = ratio_for_budget(self._outline(task.fresh_model(seed), task), self.size)
        assert ratio is not None
        return cut(model, ratio)

    def ranks(self, model: nn.Module) -> dict[str, int]:
        from eckart.layers._maestro import MaestroLayer

        return {name: m.rank for name, m in model.named_modules() if isinstance(m, MaestroLayer)}

    def check(self, model: nn.Module, task: Task) -> None:
        from eckart.compression._compress import ratio_for_budget

        if not self.learning_rates:
            raise InputError("its ranks are put in order by training: give steps")
        outline = self._outline(model, task)
        if self.size is not None:
            ratio_for_budget(outline, self.size)

    def _outline(self, model: nn.Module, task: Task) -> Outline:
        from torch.nn import Linear

        from eckart.compression._census import census

        return census(model, (Linear,), task.head_modules)


def weights(model: nn.Module) -> dict[str, float]:
    """Bytes of a model's weights."""
    return {"saved_bytes": sum(p.numel() * p.element_size() for p in model.parameters())}


def speeds(model: nn.Module, task: Task) -> dict[str, float]:
    """Times of a forward pass and of generation, as multiples of the dense model's, which takes its turns with it."""
    import torch

    from eckart.tasks.options import LANGUAGE
    from eckart.tasks.smaller import calibration_batches

    device = next(model.parameters()).device
    dense = task.fresh_model(0).to(device)
    batch = next(calibration_batches(task, 1, 1))
    batch = {name: value.to(device) for name, value in batch.items() if name != "labels"}
    found = {"forward_ratio": relative_time(lambda one: one(**batch), model, dense)}
    if task.kind in LANGUAGE and batch["input_ids"].shape[1] > 1:
        prompt = batch["input_ids"][:, :PROMPT]
        some = {"max_new_tokens": ANSWER, "min_new_tokens": ANSWER, "do_sample": False}

        def answer(one: Any) -> None:
            one.generate(prompt, attention_mask=torch.ones_like(prompt), **some)

        found["generation_ratio"] = relative_time(answer, model, dense)
    return found


def relative_time(work: Callable[[Any], Any], model: nn.Module, dense: nn.Module) -> float:
    """Median time of some work of a model over that of the dense one, which takes its turns with it."""
    import torch

    from eckart.tasks.instruments import synchronize

    device = next(model.parameters()).device
    training = model.training
    seconds: dict[str, list[float]] = {"model": [], "dense": []}
    with torch.inference_mode():
        for turn in range(TURNS + 1):
            for name, one in (("model", model), ("dense", dense)):
                one.eval()
                synchronize(device)
                start = time.perf_counter()
                work(one)
                synchronize(device)
                if turn:  # the first warms up
                    seconds[name].append(time.perf_counter() - start)
    model.train(training)
    return median(seconds["model"]) / median(seconds["dense"])


def compressions(
    task: Task,
    methods: str | Sequence[str],
    sizes: Mapping[str, Any],
    learning_rates: Rates,
    trials: int,
) -> list[Contender]:
    """The dense model and every method, checked against the model; nothing is compressed.

    A method that does not fit takes part with a ``reason``, unless it was asked for by name.

    Args:
        task: whose model is made smaller.
        methods: ``"all"``, ``"a,b,c"`` or a list.
        sizes: what all of them have in common: the fields of `Compressed`.
        learning_rates: of healing, for all or by name; None for those around `HEAL_LR`.
        trials: how many learning rates a method tries; none where nothing is healed.

    Raises:
        InputError: an unknown method; a named one that does not fit; none that does.
    """
    from eckart.catalog import methods as known
    from eckart.compression import COMPRESSORS
    from eckart.tasks.smaller import HEAL_LR

    given = methods.split(",") if isinstance(methods, str) else methods
    words = [word.strip() for word in given if word.strip()]
    if not words:
        raise InputError("methods is empty: name some, such as 'modegpt,whitened-svd', or give 'all'")
    everyone = [*COMPRESSORS, MAESTRO]
    if LORAM in words:
        raise InputError(
            f"{LORAM} cannot take part: the model it gives is as large as before: `eckart compare --methods "
            f"{LORAM}:0.5` sets it beside other adapters"
        )
    if unknown := [word for word in words if word not in (*everyone, "all")]:
        raise InputError(f"methods names {unknown[0]!r}: choose from {', '.join(everyone)}, or give 'all'")
    named = set(words) - {"all"}
    names = everyone if "all" in words else list(dict.fromkeys(words))
    if isinstance(learning_rates, Mapping) and (unknown := sorted(set(learning_rates) - {*names, DENSE})):
        raise InputError(
            f"learning_rates names {unknown[0]!r}, which does not take part: {', '.join(names)} do"
        )
    titles = {method.slug: method.name for family in ("compression", "layers") for method in known(family)}
    rates = partial(rates_of, given=learning_rates, trials=trials) if trials else lambda name, default: ()
    centre = spaced(HEAL_LR, max(trials, 1))
    found: list[Contender] = [Dense(DENSE, "dense model", rates(DENSE, spaced(HEAL_LR / 3, max(trials, 1))))]
    model = task.fresh_model(0)
    failures = []
    for name in names:
        kind = Maestro if name == MAESTRO else Compressed
        contender = kind(name, titles[name], rates(name, centre), **sizes)
        try:
            contender.check(model, task)
        except InputError as error:
            if name in named:
                raise InputError(f"{name} cannot take part: {error}") from None
            failures.append(error)
            contender = replace(contender, learning_rates=(), reason=str(error))
        found.append(contender)
    if len(failures) == len(names):
        raise failures[0]
    check_counts(found)
    return found
