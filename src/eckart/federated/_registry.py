"""The strategies by slug, and what every one of them has: a rule that turns a layer's sums into what is sent next."""

from __future__ import annotations

import dataclasses
import difflib
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, TypeVar

from jaxtyping import Float
from torch import Tensor

from eckart.errors import InputError
from eckart.federated._sums import Aggregate, LayerSum

STRATEGIES: dict[str, type[FederatedStrategy]] = {}
C = TypeVar("C", bound="type[FederatedStrategy]")


@dataclass(frozen=True)
class FederatedStrategy(ABC):
    """How a server makes one update of many.

    Attributes:
        freezes_a: clients train B alone; A is drawn once and shared.
        any_rank: clients may have different ranks.
        stacks: its result is every client's factors, not a sum of them.
        linear: its result is a plain weighted mean of what clients send, as the accounting of differential privacy and
            coordinate-wise robust rules need.
    """

    slug: ClassVar[str]
    title: ClassVar[str]
    paper: ClassVar[str]
    arxiv: ClassVar[str]
    knob: ClassVar[str]
    trains: ClassVar[str]
    saves: ClassVar[str]
    freezes_a: ClassVar[bool] = False
    any_rank: ClassVar[bool] = False
    stacks: ClassVar[bool] = False
    linear: ClassVar[bool] = False

    @abstractmethod
    def finish(self, sums: LayerSum) -> Aggregate:
        """What the round makes of one layer.

        Args:
            sums: of the clients that took part.

        Raises:
            InputError: no client, or ranks or scalings that this strategy cannot combine.
        """


def register_strategy(
    slug: str, *, title: str, paper: str, arxiv: str, trains: str, saves: str, knob: str = "r"
) -> Callable[[C], C]:
    """Class decorator that enters a strategy in the registry.

    Args:
        slug: its name on the command line.
        title: its name as its authors write it.
        paper: authors and year.
        arxiv: the arXiv id.
        trains: what clients train, in a few words.
        saves: what the final checkpoint holds.
        knob: the option that sets its size.
    """

    def decorate(strategy: C) -> C:
        if slug in STRATEGIES:
            raise ValueError(f"strategy {slug!r} is registered twice")
        strategy.slug, strategy.title, strategy.paper, strategy.arxiv = slug, title, paper, arxiv
        strategy.trains, strategy.saves, strategy.knob = trains, saves, knob
        STRATEGIES[slug] = strategy
        return strategy

    return decorate


def make_strategy(strategy: str, **options: Any) -> FederatedStrategy:
    """A strategy by name.

    Args:
        strategy: its slug, such as ``"lora-fair"``.
        options: its own options.

    Raises:
        InputError: an unknown strategy or option (names the nearest), or a value out of range.
    """
    slug = strategy.strip().lower().replace("_", "-")
    if slug not in STRATEGIES:
        near = difflib.get_close_matches(slug, STRATEGIES, n=1)
        hint = f"did you mean {near[0]!r}?" if near else f"known are {', '.join(sorted(STRATEGIES))}"
        raise InputError(f"unknown strategy {strategy!r}: {hint}")
    kind = STRATEGIES[slug]
    known = [field.name for field in dataclasses.fields(kind)]
    for name in options:
        if name not in known:
            raise InputError(f"{slug} has no option {name!r}: it has {', '.join(known) or 'none'}")
    return kind(**options)


def aggregate(
    strategy: str | FederatedStrategy,
    factors: Sequence[tuple[Float[Tensor, "r in"], Float[Tensor, "out r"]]],
    weights: Sequence[float],
    scalings: float | Sequence[float] = 1.0,
) -> Aggregate:
    """Aggregate one layer's factors: s B A + residual ≈ ΔW = Σ p_k s_k B_k A_k, p_k = n_k/Σn.

    Args:
        strategy: a strategy, or the slug of one with its default options.
        factors: lora_A (r_k, in) and lora_B (out, r_k) of each client.
        weights: n_k, examples of each client.
        scalings: s_k = α_k/r_k of each client, or one for all.

    Raises:
        InputError: unequal numbers of factors, weights and scalings; bad factors (see `LayerSum.add`); clients that
            the strategy cannot combine.
    """
    if isinstance(strategy, str):
        strategy = make_strategy(strategy)
    if isinstance(scalings, int | float):
        scalings = [float(scalings)] * len(factors)
    if not len(factors) == len(weights) == len(scalings):
        raise InputError(
            f"{len(factors)} factors, {len(weights)} weights and {len(scalings)} scalings: give one of each a client"
        )
    sums = LayerSum(strategy.stacks)
    for (a, b), weight, scaling in zip(factors, weights, scalings, strict=True):
        sums.add(a, b, float(weight), float(scaling))
    return strategy.finish(sums)


def summary(strategy: type[FederatedStrategy]) -> dict[str, str]:
    """What `eckart.methods()` says of a strategy."""
    names = ("slug", "paper", "arxiv", "knob", "trains", "saves")
    first = (strategy.__doc__ or "").strip().splitlines()[0]
    return {
        "name": strategy.title,
        "family": "federated",
        "summary": first,
        **{name: getattr(strategy, name) for name in names},
    }
