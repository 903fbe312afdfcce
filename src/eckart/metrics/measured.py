"""Several metrics of one batch of hidden states from one normalisation and one set of eigenvalues."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType

import torch
from jaxtyping import Float
from torch import Tensor

from eckart.errors import InputError
from eckart.linalg import spectrum
from eckart.metrics._states import Mask, States, read_states
from eckart.metrics.alpha_req import decay
from eckart.metrics.entropy import collision, von_neumann
from eckart.metrics.geometry import anisotropy, two_nn
from eckart.metrics.matrix_nuclear_norm import column_norms
from eckart.metrics.norms import schatten
from eckart.metrics.ranks import leading, rankme

METRICS: Mapping[str, Callable[[States], Tensor]] = MappingProxyType(
    {
        "matrix_nuclear_norm": column_norms,
        "matrix_entropy": von_neumann,
        "renyi_entropy": collision,
        "nuclear_norm": schatten,
        "effective_rank": lambda states: spectrum.effective_rank(states.singular_values),
        "energy_rank": leading,
        "stable_rank": lambda states: spectrum.stable_rank(states.singular_values),
        "participation_ratio": lambda states: collision(states).exp(),
        "alpha_req": decay,
    }
)
"""What `measure_states` knows of normalised states: each is the function of this name with its default options."""
RAW_METRICS: Mapping[str, Callable[..., Tensor]] = MappingProxyType(
    {"rankme": rankme, "anisotropy": anisotropy, "two_nn": two_nn}
)
"""What it knows of states as they are."""


def check_metrics(metrics: Sequence[str]) -> None:
    """Refuse names that are in neither `METRICS` nor `RAW_METRICS`.

    Raises:
        InputError: an unknown name.
    """
    for name in metrics:
        if name not in METRICS and name not in RAW_METRICS:
            known = [*METRICS, *RAW_METRICS]
            near = difflib.get_close_matches(name, known, n=1)
            hint = f"did you mean {near[0]!r}?" if near else f"known are {', '.join(known)}"
            raise InputError(f"unknown metric {name!r}: {hint}")


@torch.no_grad()
def measure_states(
    hidden: Float[Tensor, "*batch n d"],
    mask: Mask | None = None,
    metrics: Sequence[str] = tuple(METRICS),
) -> dict[str, Float[Tensor, "*batch"]]:
    """Several metrics at once: each value is that of the function of its name with its default options.

    Args:
        hidden: hidden states of each text, float16 to float64.
        mask: True where a row is a token.
        metrics: names out of `METRICS` and `RAW_METRICS`.

    Returns:
        by name, in the order asked for; NaN for texts that cannot be normalised. Without gradient.

    Raises:
        InputError: an unknown name, hidden states or a mask of the wrong type or shape.
    """
    check_metrics(metrics)
    states = read_states(hidden, mask)
    return {
        name: states.answer(METRICS[name](states)) if name in METRICS else RAW_METRICS[name](hidden, mask)
        for name in metrics
    }
