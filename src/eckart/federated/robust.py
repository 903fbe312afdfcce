"""What Flower ships against bad or curious parties, put before a strategy: choices among updates, robust means, and
differential privacy by clipping and noise.

    krum, multi-krum       the updates nearest to their neighbours are chosen, then any strategy aggregates them
    median, trimmed-mean, bulyan, clipping with noise      make one mean of factors: for strategies that are such a mean

Sources: Blanchard et al., 2017, arXiv:1703.02757; Yin et al., 2018, arXiv:1803.01498; El Mhamdi et al., 2018,
arXiv:1802.07927; McMahan et al., 2018, arXiv:1710.06963.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

from flwr.app import ArrayRecord, ConfigRecord, Message, MessageType, MetricRecord, RecordDict
from flwr.serverapp import strategy as flower
from flwr.serverapp.strategy.multikrum import select_multikrum
from torch import Tensor

from eckart.errors import InputError
from eckart.federated._registry import FederatedStrategy
from eckart.federated.flower import array_record, tensors_of
from eckart.federated.rounds import Combine, Update

CHOICES = ("krum", "multi-krum")
MEANS = ("median", "trimmed-mean", "bulyan")


def check_robust(robust: str, malicious: int, strategy: FederatedStrategy, clients: int) -> None:
    """Refuse a rule that this strategy or this number of clients cannot carry.

    Raises:
        InputError: an unknown rule, a mean of factors under a strategy that is none, too few clients for the bad ones.
    """
    if robust not in CHOICES + MEANS:
        raise InputError(f"robust is {robust!r}: choose {', '.join(CHOICES + MEANS)}")
    if robust in MEANS and not strategy.linear:
        raise InputError(
            f"robust is {robust!r}: it averages factors, {strategy.slug} does not; use krum or multi-krum"
        )
    needed = {"krum": 2 * malicious + 3, "multi-krum": 2 * malicious + 3, "bulyan": 4 * malicious + 3}.get(
        robust, 2 * malicious + 1
    )
    if malicious < 0 or clients < needed:
        raise InputError(
            f"malicious is {malicious}: {robust} needs {needed} clients in a round, there are {clients}"
        )


def _content(update: Update, weight: float) -> RecordDict:
    metrics = MetricRecord({"num-examples": weight})
    return RecordDict({"arrays": array_record(dict(update.tensors)), "metrics": metrics})


def choose(robust: str, malicious: int) -> Combine:
    """Krum or Multi-Krum: the one update, or all but the bad ones, that lie nearest to their neighbours."""

    def chosen(updates: list[Update], _: Mapping[str, Tensor]) -> list[Update]:
        count = 1 if robust == "krum" else max(len(updates) - malicious, 1)
        contents = [_content(update, update.examples) for update in updates]
        kept = select_multikrum(contents, malicious, count)
        return [
            update
            for update, content in zip(updates, contents, strict=True)
            if any(content is k for k in kept)
        ]

    return chosen


def _one(
    updates: list[Update], aggregate: Callable[[list[Message]], ArrayRecord | None], weights: list[float]
) -> list[Update]:
    messages = [
        Message(_content(update, weight), 1, MessageType.TRAIN)
        for update, weight in zip(updates, weights, strict=True)
    ]
    arrays = aggregate(messages)
    if arrays is None:
        raise InputError(f"{len(updates)} updates are too few for the robust rule: ask more clients")
    tensors = {key: value.float() for key, value in tensors_of(arrays).items()}
    return [Update(updates[0].client, tensors, updates[0].r, math.fsum(weights))]


def mean(robust: str, malicious: int) -> Combine:
    """One mean of all updates, coordinate by coordinate: the median, the trimmed mean, or Bulyan's."""

    def averaged(updates: list[Update], _: Mapping[str, Tensor]) -> list[Update]:
        rule: Any
        if robust == "median":
            rule = flower.FedMedian()
        elif robust == "trimmed-mean":
            rule = flower.FedTrimmedAvg(beta=(malicious + 0.5) / len(updates))
        else:
            rule = flower.Bulyan(num_malicious_nodes=malicious)
        return _one(updates, lambda m: rule.aggregate_train(0, m)[0], [u.examples for u in updates])

    return averaged


def combination(robust: str, malicious: int) -> Combine:
    """The rule of that name."""
    return choose(robust, malicious) if robust in CHOICES else mean(robust, malicious)


class _Given(flower.FedAvg):
    """Flower's own mean, for messages that are already configured."""

    def __init__(self, count: int) -> None:
        super().__init__()
        self.count = count

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Any
    ) -> list[Message]:
        """As many messages as clients were asked."""
        return [Message(RecordDict(), 1, MessageType.TRAIN) for _ in range(self.count)]


class Private:
    """Clip every update to a norm, take their plain mean and add Gaussian noise to it (client-level privacy).

    Noise has the standard deviation noise · clip / clients. It protects what a client's update says, not the numbers
    of the table.

    Args:
        clip: largest norm of an update.
        noise: noise multiplier.
        clients: updates in a round.
        population: all clients.
        delta: δ of the accounting; None does without, as Google's dp-accounting is then not needed.

    Raises:
        InputError: numbers out of range, a strategy that is no plain mean, no dp-accounting.
    """

    def __init__(
        self,
        strategy: FederatedStrategy,
        *,
        clip: float,
        noise: float,
        clients: int,
        population: int,
        delta: float | None = None,
    ) -> None:
        if not strategy.linear:
            raise InputError(
                f"clip is {clip}: {strategy.slug} is no plain mean of factors, use fedit or ffa-lora"
            )
        if not 0 < clip < math.inf:
            raise InputError(f"clip is {clip}: give a positive norm")
        if not 0 <= noise < math.inf:
            raise InputError(f"noise is {noise}: give 0 or more, 1 or more for strong privacy")
        accountant = None if delta is None else _accountant(delta, population)
        self.clients, self.round = clients, 0
        self.wrapped = flower.DifferentialPrivacyServerSideFixedClipping(
            _Given(clients), noise, clip, clients, accountant=accountant
        )

    def __call__(self, updates: list[Update], start: Mapping[str, Tensor]) -> list[Update]:
        """One update instead of all.

        Raises:
            InputError: other than the announced number of updates: the noise would be too small.
        """
        if len(updates) != self.clients:
            raise InputError(
                f"{len(updates)} of {self.clients} updates came: the noise is made for all, the round is not released"
            )
        trained = {key: start[key] for key in updates[0].tensors}
        grid: Any = None
        list(self.wrapped.configure_train(self.round, array_record(trained), ConfigRecord(), grid))
        current, self.round = self.round, self.round + 1
        return _one(updates, lambda m: self.wrapped.aggregate_train(current, m)[0], [1.0] * len(updates))

    def spent(self) -> dict[str, object] | None:
        """The accountant's record, to keep with a checkpoint; None without accounting."""
        return None if self.wrapped.accountant is None else self.wrapped.accountant.state_dict()

    def restore(self, spent: dict[str, object] | None) -> None:
        """Go on from what a checkpoint says was spent."""
        if spent is not None and self.wrapped.accountant is not None:
            self.wrapped.accountant.load_state_dict(spent)

    @property
    def epsilon(self) -> float | None:
        """ε spent so far; None without accounting."""
        spent = self.wrapped.privacy_spent()
        return None if spent is None else float(spent.epsilon)


def _accountant(delta: float, population: int) -> Any:
    from flwr.supercore.privacy_accounting import NeighboringRelation, PrivacyConfig, SamplingMethod
    from flwr.supercore.privacy_accounting.rdp_accountant import RdpAccountant

    try:
        return RdpAccountant(
            PrivacyConfig(
                delta, population, NeighboringRelation.ADD_OR_REMOVE_ONE, SamplingMethod.NO_AMPLIFICATION
            )
        )
    except ImportError:
        raise InputError(
            f"delta is {delta}: its accounting needs dp-accounting, install it with: pip install 'flwr[dp]'"
        ) from None
    except ValueError as error:
        raise InputError(f"delta is {delta}: {error}") from None
