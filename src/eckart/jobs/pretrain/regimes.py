"""What of a method acts while the model trains, beside its layers."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from torch import nn

from eckart.errors import InputError
from eckart.layers import OrderedDropout, prune

REGIMES = {"maestro": OrderedDropout}


def regime_of(
    method: str, options: Mapping[str, Any], seed: int
) -> tuple[OrderedDropout | None, dict[str, Any]]:
    """The regime of a method, or None, and those of the options that are its layers'.

    Raises:
        InputError: an option that neither has, or a value out of its range.
    """
    if method not in REGIMES:
        return None, dict(options)
    regime = REGIMES[method]
    own = {field.name for field in dataclasses.fields(regime)} - {"seed"}
    layers = {"r"}
    if unknown := set(options) - own - layers:
        raise InputError(
            f"--option {min(unknown)}: {method} has the options {', '.join(sorted(own | layers))}"
        )
    made = regime(seed=seed, **{name: value for name, value in options.items() if name in own})
    return made, {name: value for name, value in options.items() if name in layers}


def finish(regime: OrderedDropout | None, model: nn.Module) -> None:
    """Leave out of the trained model what the regime has dropped."""
    if regime is not None:
        prune(model)
