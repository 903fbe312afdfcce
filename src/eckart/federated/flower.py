"""The strategies over Flower: who is asked, what is sent, and replies folded in as they arrive.

    query (who are you) ── train: factors, config ──> clients
    replies ── checked, folded in client order ──> the next state ── on_round ──> checkpoint, table

`LoRAStrategy.start(StreamingGrid(grid), …)` is Flower's own loop; made of a saved state, it goes on from there.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from flwr.app import ArrayRecord, ConfigRecord, Message, MessageType, MetricRecord, RecordDict
from flwr.serverapp import Grid
from flwr.serverapp.strategy import Strategy
from torch import Tensor

from eckart.errors import InputError
from eckart.federated._registry import FederatedStrategy
from eckart.federated.partition import check_numbers
from eckart.federated.rounds import NORM_RATIO, Combine, Outcome, Round, Update
from eckart.federated.state import ServerState

POLL_SECONDS = 0.1
"""Time between two looks at who is there, or at what has come."""


def array_record(tensors: dict[str, Tensor]) -> ArrayRecord:
    """Tensors as Flower sends them, in the order of their names."""
    return ArrayRecord({key: tensors[key].contiguous() for key in sorted(tensors)})


def tensors_of(record: ArrayRecord) -> dict[str, Tensor]:
    """The tensors of a record; nothing is unpickled.

    Raises:
        ValueError: an array that is no plain array of numbers.
    """
    return {key: torch.from_numpy(np.array(value.numpy())) for key, value in record.items()}


def first_line(text: str) -> str:
    """The first line of an error that says something."""
    return next((line.strip() for line in text.splitlines() if line.strip()), "no reason given")


def payload(tensors: dict[str, Tensor]) -> int:
    """Bytes of the numbers in a message."""
    return sum(value.numel() * value.element_size() for value in tensors.values())


class StreamingGrid(Grid):
    """A grid whose replies can be taken one by one as they arrive, so that a round holds few of them at once.

    Args:
        grid: Flower's own.
    """

    def __init__(self, grid: Grid) -> None:
        self.grid = grid

    def send_and_receive(
        self, messages: Iterable[Message], *, timeout: float | None = None
    ) -> Iterator[Message]:
        """Send now; replies come until all are there or the time is over."""
        waiting = set(self.grid.push_messages(messages))
        return self._replies(waiting, None if timeout is None else time.monotonic() + timeout)

    def _replies(self, waiting: set[str], deadline: float | None) -> Iterator[Message]:
        while waiting:
            arrived = False
            for message in self.grid.pull_messages(waiting):
                arrived = True
                waiting.discard(message.metadata.reply_to_message_id)
                yield message
            if arrived:
                continue
            if deadline is not None and time.monotonic() >= deadline:
                return
            time.sleep(POLL_SECONDS)

    def set_run(self, run: Any) -> None:
        """See Flower."""
        self.grid.set_run(run)

    @property
    def run(self) -> Any:
        """See Flower."""
        return self.grid.run

    def create_message(self, *args: Any, **kwargs: Any) -> Message:
        """See Flower."""
        return self.grid.create_message(*args, **kwargs)

    def get_node_ids(self) -> Iterable[int]:
        """See Flower."""
        return self.grid.get_node_ids()

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        """See Flower."""
        return self.grid.push_messages(messages)

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        """See Flower."""
        return self.grid.pull_messages(message_ids)


@dataclass(frozen=True)
class RoundReport:
    """A finished round: what it made, what clients said of themselves, and its costs.

    Attributes:
        round: its number, from 1.
        asked: clients that were sent the model.
        outcome: see `Outcome`.
        metrics: client -> the numbers it sent beside its update.
        bytes_down, bytes_up: payload of all messages.
        seconds, server_seconds: of the round, and of it in aggregation.
    """

    round: int
    asked: list[int]
    outcome: Outcome
    metrics: dict[int, dict[str, float]]
    bytes_down: int
    bytes_up: int
    seconds: float
    server_seconds: float


@dataclass
class _Open:
    """A round under way."""

    clients: dict[int, int]
    bytes_down: int
    began: float
    ranks: dict[int, int] = field(default_factory=dict)


class LoRAStrategy(Strategy):
    """Flower's strategy for every `FederatedStrategy`.

    Args:
        strategy: what makes one update of many.
        state: the model to begin or to go on with.
        population: clients are numbered 0 … population − 1 (``partition-id`` in their node config).
        ranks: of client k it is ``ranks[k % len(ranks)]``.
        fraction: share of the population asked in each round.
        min_clients: fewest updates that make a round.
        seed: of the choice of clients.
        timeout: seconds to wait for clients to be there.
        combine: see `Round`.
        norm_ratio: see `NORM_RATIO`.
        on_round: called with the report of each round.

    Raises:
        InputError: ranks that the strategy cannot combine; a fraction or number of clients that cannot be.
    """

    def __init__(
        self,
        strategy: FederatedStrategy,
        state: ServerState,
        *,
        population: int,
        ranks: Sequence[int],
        fraction: float = 1.0,
        min_clients: int = 2,
        seed: int = 0,
        timeout: float = 600.0,
        combine: Combine | None = None,
        norm_ratio: float = NORM_RATIO,
        on_round: Callable[[RoundReport], None] | None = None,
    ) -> None:
        check_numbers(population, ranks, fraction, min_clients)
        check_ranks(strategy, ranks)
        self.strategy, self.state = strategy, state
        self.population, self.ranks = population, list(ranks)
        self.asked_each_round = max(min_clients, round(fraction * population))
        self.min_clients, self.seed, self.timeout = min_clients, seed, timeout
        self.combine, self.norm_ratio, self.on_round = combine, norm_ratio, on_round
        self._nodes: dict[int, int] = {}
        self._open: _Open | None = None

    def rank(self, client: int) -> int:
        """Rank of a client."""
        return self.ranks[client % len(self.ranks)]

    def arrays(self) -> ArrayRecord:
        """The server's model at its highest rank, as `start` wants it."""
        return array_record(self.state.start(max(self.ranks)))

    def summary(self) -> None:
        """What Flower logs before the first round: nothing, the job says it."""

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Ask this round's clients.

        Raises:
            InputError: fewer clients are there than a round needs.
        """
        number = self.state.round + 1
        order = np.random.default_rng([self.seed, number]).permutation(self.population).tolist()
        there = self._wait(grid)
        chosen = sorted([client for client in order if client in there][: self.asked_each_round])
        messages, down = [], 0
        for client in chosen:
            tensors = self.state.message(self.strategy, self.rank(client))
            down += payload(tensors)
            told = ConfigRecord(
                dict(config)
                | {"round": number, "rank": self.rank(client), "fresh-seed": self.state.fresh_seed}
                | {"train-a": not self.strategy.freezes_a}
            )
            content = RecordDict({"arrays": array_record(tensors), "config": told})
            messages.append(Message(content, there[client], MessageType.TRAIN))
        self._open = _Open({there[client]: client for client in chosen}, down, time.monotonic())
        return messages

    def _wait(self, grid: Grid) -> dict[int, int]:
        """Client -> node of all that are there, once they are enough or the time is over."""
        deadline = time.monotonic() + self.timeout
        while True:
            online = set(grid.get_node_ids())
            self._ask_names(grid, online - self._nodes.keys(), deadline)
            there = {self._nodes[node]: node for node in sorted(online) if node in self._nodes}
            if len(there) >= self.asked_each_round:
                return there
            if time.monotonic() >= deadline:
                break
            time.sleep(POLL_SECONDS)
        if len(there) >= self.min_clients:
            return there
        raise InputError(
            f"{len(there)} of {self.population} clients are there after {self.timeout:g} s, round "
            f"{self.state.round + 1} needs {self.min_clients}: start more or lower min_clients"
        )

    def _ask_names(self, grid: Grid, nodes: set[int], deadline: float) -> None:
        """Learn which client each new node is."""
        questions = [Message(RecordDict(), node, MessageType.QUERY) for node in sorted(nodes)]
        left = max(deadline - time.monotonic(), POLL_SECONDS)
        for reply in grid.send_and_receive(questions, timeout=left) if questions else ():
            if reply.has_error():
                continue
            try:
                client = int(next(iter(reply.content.metric_records.values()))["client"])  # type: ignore[arg-type]
            except (StopIteration, KeyError, TypeError, ValueError):
                continue
            if 0 <= client < self.population:
                self._nodes[reply.metadata.src_node_id] = client

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """Fold the replies in as they come, and step to the next state."""
        if self._open is None:
            raise InputError("aggregate_train comes before configure_train: call them in turn")
        opened, self._open = self._open, None
        asked = sorted(opened.clients.values())
        taken = Round(self.state, self.strategy, asked, self.combine, self.norm_ratio)
        metrics: dict[int, dict[str, float]] = {}
        up, busy = 0, 0.0
        for reply in replies:
            began = time.monotonic()
            client = opened.clients.get(reply.metadata.src_node_id)
            if client is not None:
                up += self._take(reply, client, taken, metrics)
            busy += time.monotonic() - began
        began = time.monotonic()
        for client in asked:
            taken.miss(client, "no answer in time")
        outcome = taken.finish(self.min_clients)
        busy += time.monotonic() - began
        self.state = outcome.state
        if self.on_round is not None:
            seconds = time.monotonic() - opened.began
            self.on_round(
                RoundReport(self.state.round, asked, outcome, metrics, opened.bytes_down, up, seconds, busy)
            )
        numbers = MetricRecord(
            {"bias": outcome.bias, "error": outcome.error, "clients": len(outcome.clients)}
        )
        return self.arrays(), numbers

    def _take(self, reply: Message, client: int, taken: Round, metrics: dict[int, dict[str, float]]) -> int:
        """Hand one reply to the round; returns the bytes of its tensors."""
        if reply.has_error():
            taken.miss(client, f"failed: {first_line(reply.error.reason or '')}")
            return 0
        try:
            tensors = tensors_of(reply.content.array_records["arrays"])
            said = {key: float(value) for key, value in reply.content.metric_records["metrics"].items()}  # type: ignore[arg-type]
            update = Update(client, tensors, self.rank(client), said.get("num-examples", 0.0))
        except (KeyError, ValueError, TypeError, EOFError, OSError, MemoryError) as error:
            taken.miss(client, f"unreadable: {error}")
            return 0
        taken.add(update)
        if client not in taken.refused:
            metrics[client] = said
        return payload(tensors)

    def configure_evaluate(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Nobody: clients score the model they are sent before they train it."""
        return []

    def aggregate_evaluate(self, server_round: int, replies: Iterable[Message]) -> MetricRecord | None:
        """Nothing."""
        return None


def check_ranks(strategy: FederatedStrategy, ranks: Sequence[int]) -> None:
    """Refuse ranks that a strategy cannot combine.

    Raises:
        InputError: they differ and it needs equal ones.
    """
    if len(set(ranks)) > 1 and not strategy.any_rank:
        raise InputError(
            f"ranks are {list(ranks)}: {strategy.slug} needs equal ranks, use flexlora, hetlora or flora-stacking"
        )
