"""Methods of PEFT's own as contenders, ``peft:dora``: on the same layers, at the same budget, trained alike."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from math import gcd
from typing import TYPE_CHECKING, Any

from eckart.errors import InputError

if TYPE_CHECKING:
    from peft import PeftConfig
    from torch import nn

    from eckart.adapters import Budget, LayerShape

PREFIX = "peft:"
SCALE = 16
"""lora_alpha of all that have one, as of our LoRA."""
Shapes = Sequence["LayerShape"]


@dataclass(frozen=True)
class PeftMethod:
    """A tuner of PEFT's as people use it.

    Args:
        title: its name as its authors write it.
        source: paper and arXiv id.
        learning_rates: what is tried, ascending.
        make: its config from its sizes.
        count: how many numbers a layer trains with a value of the knob; for a method that has LoRA's factors, beside
            these.
        knob: the option that a budget sets; None for a method that has LoRA's factors and takes LoRA's ranks.
        values: of the knob, ascending.
        lr_scale: factors on the learning rate, by a part of the parameter's name.
        rules: what acts on the training loop, with a ``callback()`` for the Trainer.
    """

    title: str
    source: str
    learning_rates: tuple[float, ...]
    make: Callable[..., PeftConfig]
    count: Callable[[LayerShape, int], int] = lambda shape, value: 0
    knob: str | None = None
    values: Callable[[Shapes], Sequence[int]] = lambda shapes: ()
    lr_scale: Mapping[str, float] = field(default_factory=dict)
    rules: tuple[Callable[[], Any], ...] = ()


def _lora(**fixed: Any) -> Callable[..., PeftConfig]:
    def make(**options: Any) -> PeftConfig:
        from peft import LoraConfig

        return LoraConfig(lora_alpha=SCALE, **fixed, **options)

    return make


def _vera(**options: Any) -> PeftConfig:
    from peft import VeraConfig

    return VeraConfig(save_projection=False, **options)


def _oft(**options: Any) -> PeftConfig:
    from peft import OFTConfig

    return OFTConfig(r=0, **options)


def _adalora(init_r: int, **options: Any) -> PeftConfig:
    from peft import AdaLoraConfig

    target = max(1, 2 * init_r // 3)
    return AdaLoraConfig(init_r=init_r, target_r=target, lora_alpha=SCALE, total_step=1, **options)


def _ranks(shapes: Shapes) -> range:
    return range(1, max(shape.max_rank for shape in shapes) + 1)


def _blocks(shapes: Shapes) -> list[int]:
    width = gcd(*(shape.in_features for shape in shapes))
    return [size for size in range(2, width + 1) if width % size == 0]


class AdaLoRASteps:
    """What AdaLoRA asks of the training loop: its schedule, a first tenth of the steps at full rank and a last fifth at
    the final ones, and a call after each step while the gradients are there."""

    def callback(self) -> Any:
        """For transformers' Trainer."""
        from transformers import TrainerCallback

        class Steps(TrainerCallback):
            def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
                config = kwargs["model"].peft_config["default"]
                config.total_step = state.max_steps
                config.tinit, config.tfinal = state.max_steps // 10, state.max_steps // 5

            def on_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
                kwargs["model"].base_model.update_and_allocate(state.global_step)

        return Steps()


METHODS = {
    "dora": PeftMethod(
        "DoRA",
        "Liu et al., 2024, 2402.09353",
        (3e-4, 1e-3, 3e-3),
        _lora(use_dora=True),
        count=lambda shape, _: shape.out_features,
    ),
    "pissa": PeftMethod(
        "PiSSA", "Meng et al., 2024, 2404.02948", (1e-4, 3e-4, 1e-3), _lora(init_lora_weights="pissa")
    ),
    "loraplus": PeftMethod(
        "LoRA+", "Hayou et al., 2024, 2402.12354", (1e-4, 3e-4, 1e-3), _lora(), lr_scale={"lora_B": 16.0}
    ),
    "vera": PeftMethod(
        "VeRA",
        "Kopiczko et al., 2023, 2310.11454",
        (3e-3, 1e-2, 3e-2),
        _vera,
        count=lambda shape, r: r + shape.out_features,
        knob="r",
        values=lambda shapes: range(1, 2**16),
    ),
    "oft": PeftMethod(
        "OFT",
        "Qiu et al., 2023, 2306.07280",
        (3e-4, 1e-3, 3e-3),
        _oft,
        count=lambda shape, size: shape.in_features * (size - 1) // 2,
        knob="oft_block_size",
        values=_blocks,
    ),
    "adalora": PeftMethod(
        "AdaLoRA",
        "Zhang et al., 2023, 2303.10512",
        (3e-4, 1e-3, 3e-3),
        _adalora,
        count=lambda shape, r: r * (shape.in_features + shape.out_features + 1),
        knob="init_r",
        values=_ranks,
        rules=(AdaLoRASteps,),
    ),
}


def peft_name(word: str) -> str | None:
    """The name of a method of PEFT's, where a word names one.

    Raises:
        InputError: none of that name, or a rule with it.
    """
    name = word.strip().lower()
    if not name.startswith(PREFIX):
        return None
    slug, *rules = name.removeprefix(PREFIX).replace("lora+", "loraplus").split("+")
    if slug not in METHODS:
        known = ", ".join(f"{PREFIX}{method}" for method in METHODS)
        raise InputError(f"unknown method {word!r}: of PEFT's own there are {known}")
    if rules:
        raise InputError(f"{word} cannot be combined: rules act on adapters of eckart's, not on PEFT's own")
    return PREFIX + slug


def peft_config(
    name: str, model: nn.Module, budget: str | int, targets: str | list[str], heads: list[str]
) -> tuple[PeftConfig, dict[str, Any]]:
    """The config of a method of PEFT's with its knob solved for the budget, and the options that were solved for.

    Args:
        name: as `peft_name` gives it.
        model: the base model.
        budget: as `eckart.adapters.parse_budget`.
        targets: the layers to adapt, those that our own methods would.
        heads: modules that train in full.

    Raises:
        InputError: a budget that the method cannot meet.
    """
    from eckart.adapters import LoRAConfig, parse_budget, target_shapes
    from eckart.adapters._budget import count_parameters

    method = METHODS[name.removeprefix(PREFIX)]
    ours = LoRAConfig(target_modules=targets, modules_to_save=heads or None)
    shapes = target_shapes(model, ours)
    sizes = _solve(name, method, model, ours, shapes, parse_budget(budget, count_parameters(model)))
    names = [shape.name for shape in shapes]
    return method.make(**sizes, target_modules=names, modules_to_save=ours.modules_to_save), sizes


def _solve(
    name: str, method: PeftMethod, model: nn.Module, ours: Any, shapes: Shapes, wanted: Budget
) -> dict[str, Any]:
    """The sizes with the largest count within a budget."""
    from eckart.adapters import solve_budget
    from eckart.adapters._budget import search_knob

    limit = wanted.limit if wanted.unit == "parameters" else wanted.limit // 4
    if method.knob is None:
        beside = sum(method.count(shape, 0) for shape in shapes)
        if limit <= beside:
            raise InputError(
                f"a budget of {limit:,} numbers cannot be met by {name}: it trains {beside:,} beside A and B"
            )
        solved = solve_budget(model, ours, limit - beside)
        return {"r": solved.r, "rank_pattern": solved.rank_pattern or {}}

    def cost(value: int) -> int:
        return sum(method.count(shape, value) for shape in shapes)

    least, best = search_knob(method.values(shapes), cost, limit, monotone=True)
    if best is None:
        raise InputError(
            f"a budget of {limit:,} numbers cannot be met by {name}: the smallest possible is "
            + (f"{least:,}" if least else "none, as the widths of the layers have no divisor in common")
        )
    return {method.knob: best}


def peft_names() -> Iterable[str]:
    """The names of all, for lists and completion."""
    return (PREFIX + slug for slug in METHODS)
