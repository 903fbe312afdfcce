"""What of a method acts while the model trains, beside its layers."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from eckart.errors import InputError
from eckart.files import atomic_directory
from eckart.layers import OrderedDropout, ReLoRA, cut, prune, to_dense

Regime = OrderedDropout | ReLoRA


@dataclass(frozen=True)
class Kind:
    """What a method does while the model trains.

    Attributes:
        regime: its class.
        layers: those of the method's options that are of its layers.
        finish: makes the trained model the one that is written, in place.
    """

    regime: type[OrderedDropout] | type[ReLoRA]
    layers: frozenset[str]
    finish: Callable[[nn.Module], object]


REGIMES = {
    "maestro": Kind(OrderedDropout, frozenset({"r"}), prune),
    "relora": Kind(ReLoRA, frozenset({"r", "lora_alpha"}), to_dense),
}


def regime_of(method: str, options: Mapping[str, Any], seed: int) -> tuple[Regime | None, dict[str, Any]]:
    """The regime of a method, or None, and those of the options that are its layers'.

    Raises:
        InputError: an option that neither has, or a value out of its range.
    """
    if method not in REGIMES:
        return None, dict(options)
    kind = REGIMES[method]
    names = {field.name for field in dataclasses.fields(kind.regime)}
    own = names - {"seed"}
    if unknown := set(options) - own - kind.layers:
        raise InputError(
            f"--option {min(unknown)}: {method} has the options {', '.join(sorted(own | kind.layers))}"
        )
    given = {name: value for name, value in options.items() if name in own}
    given |= {"seed": seed} if "seed" in names else {}
    return kind.regime(**given), {name: value for name, value in options.items() if name in kind.layers}


def check_cuts(method: str, ratios: Sequence[float]) -> None:
    """Refuse sizes that no network of the method has.

    Raises:
        InputError: a method without ordered ranks, a ratio out of range or twice.
    """
    for ratio in ratios:
        if method != OrderedDropout.slug:
            raise InputError(f"--cut {ratio} with --method {method}: only maestro's networks can be cut")
        if not 0 < ratio < 1:
            raise InputError(f"--cut {ratio}: give the share to remove, above 0 and below 1")
    if len(set(ratios)) < len(ratios):
        raise InputError(f"--cut {max(ratios, key=list(ratios).count)} is given twice: give each size once")


def write_cuts(
    trainer: Any, prepared: Any, ratios: Sequence[float], directory: Path
) -> dict[str, dict[str, float]]:
    """Write the trained network at each size, and say how many numbers it has and its loss on the test split.

    Args:
        trainer: with the network, whose dropped ranks are out.
        prepared: with the tokenizer and the test split.
        ratios: shares of the replaced layers' numbers to remove.
        directory: of the run; a size lies in ``model-<ratio>``.
    """
    found: dict[str, dict[str, float]] = {}
    whole = trainer.model
    for ratio in ratios:
        try:
            trainer.model = cut(whole, ratio)
            loss = float(trainer.evaluate(prepared.splits["test"], metric_key_prefix="cut")["cut_loss"])
            numbers = sum(p.numel() for p in trainer.model.parameters())
            found[f"{ratio:g}"] = {"parameters": numbers, "loss": loss}
            if trainer.is_world_process_zero():
                with atomic_directory(directory / f"model-{ratio:g}", overwrite=True) as temporary:
                    trainer.model.save_pretrained(temporary)
                    prepared.tokenizer.save_pretrained(temporary)
        finally:
            trainer.model = whole
    return found


def finish(method: str, model: nn.Module) -> None:
    """Make the trained model the one that is written: without dropped ranks, with merged factors."""
    if method in REGIMES:
        REGIMES[method].finish(model)
