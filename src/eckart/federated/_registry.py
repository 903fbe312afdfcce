"""The strategies by slug, and what every one of them has: a rule that turns a layer's sums into what is sent next."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar, TypeVar

from eckart.federated._sums import Aggregate, LayerSum
from eckart.registry import entry

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

    Raises:
        InputError: the slug is taken.
    """

    facts = {"title": title, "paper": paper, "arxiv": arxiv, "trains": trains, "saves": saves, "knob": knob}
    return entry(STRATEGIES, "strategy", slug, **facts)
