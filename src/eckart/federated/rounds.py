"""One round at the server: updates are checked, folded in as they arrive, and made into the next state."""

from __future__ import annotations

import heapq
import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from eckart.errors import InputError
from eckart.federated._products import DTYPE
from eckart.federated._registry import FederatedStrategy
from eckart.federated._sums import LayerSum
from eckart.federated.state import KEY_A, KEY_B, ServerState

WINDOW = 16
"""Updates that may wait for an earlier client's, so that sums do not depend on the order of arrival."""
NORM_RATIO = 20.0
"""An update is refused when its norm is above this multiple of the (lower) median of the round's."""


@dataclass(frozen=True)
class Update:
    """What one client sent: tensors by PEFT's keys, its rank, and its number of examples."""

    client: int
    tensors: Mapping[str, Tensor]
    r: int
    examples: float


@dataclass(frozen=True)
class Outcome:
    """What a round made.

    Attributes:
        state: the model of the next round.
        bias: ‖mean(sBA) − s mean(B) mean(A)‖ / ‖mean(sBA)‖ over all layers, what averaging factors would miss.
        error: ‖mean(sBA) − the strategy's update‖ / ‖mean(sBA)‖, what the strategy misses.
        clients: who was folded in.
        refused: client -> why its update was not used.
    """

    state: ServerState
    bias: float
    error: float
    clients: list[int]
    refused: dict[int, str]


Combine = Callable[[list[Update], Mapping[str, Tensor]], list[Update]]
"""Updates of a round, and what they started from -> what is summed instead of them."""


def check_update(update: Update, start: Mapping[str, Tensor], expected: set[str]) -> float:
    """Refuse an update that cannot be aggregated; returns the norm of what the client changed.

    Args:
        update: as it came.
        start: what the client started from, by key.
        expected: the keys that it must send, no more and no fewer.

    Raises:
        InputError: keys, shapes or dtypes that differ, NaN or infinity, no examples.
    """
    if not (math.isfinite(update.examples) and update.examples > 0):
        raise InputError(f"num-examples is {update.examples}")
    if set(update.tensors) != expected:
        odd = min(set(update.tensors) ^ expected)
        raise InputError(f"{odd} is {'not expected' if odd in update.tensors else 'missing'}")
    total = 0.0
    for key, value in update.tensors.items():
        if value.shape != start[key].shape:
            raise InputError(f"{key} has shape {tuple(value.shape)}, expected {tuple(start[key].shape)}")
        if value.dtype != torch.float32:
            raise InputError(f"{key} is {value.dtype}, expected torch.float32")
        if not torch.isfinite(value).all():
            raise InputError(f"{key} holds NaN or infinity")
        total += float((value.double() - start[key].double()).square().sum())
    return math.sqrt(total)


class Round:
    """Takes in the updates of one round.

    Args:
        state: the model that clients were sent.
        strategy: what makes one update of many.
        clients: those that were asked; each may answer once.
        combine: what is made of the updates before they are summed, such as a choice among them. It needs them all
            at once: without it, each is folded in as it comes.
        norm_ratio: see `NORM_RATIO`.
    """

    def __init__(
        self,
        state: ServerState,
        strategy: FederatedStrategy,
        clients: Sequence[int],
        combine: Combine | None = None,
        norm_ratio: float = NORM_RATIO,
    ) -> None:
        self.state, self.strategy, self.combine, self.norm_ratio = state, strategy, combine, norm_ratio
        self.awaited = set(clients)
        self.folded: list[int] = []
        self.refused: dict[int, str] = {}
        self._norms: dict[int, float] = {}
        self._waiting: list[tuple[int, Update]] = []
        self._kept: list[Update] = []
        self._sums = {name: LayerSum(strategy.stacks) for name in state.shapes}
        self._head = {key: torch.zeros_like(value, dtype=DTYPE) for key, value in state.head.items()}
        self._starts: dict[int, dict[str, Tensor]] = {}

    def add(self, update: Update) -> None:
        """Take one update in, or refuse it and say why in ``refused``."""
        if update.client not in self.awaited:
            return
        self.awaited.discard(update.client)
        try:
            self._norms[update.client] = check_update(update, self._start(update.r), self.expected_keys())
        except InputError as error:
            self.refused[update.client] = str(error)
        else:
            heapq.heappush(self._waiting, (update.client, update))
        self._drain()

    def miss(self, client: int, reason: str) -> None:
        """A client that will not answer."""
        if client in self.awaited:
            self.awaited.discard(client)
            self.refused[client] = reason
            self._drain()

    def expected_keys(self) -> set[str]:
        """The keys of an update: all that a client trains."""
        keys = set(self.state.head) | {KEY_B.format(name) for name in self.state.shapes}
        return keys if self.strategy.freezes_a else keys | {KEY_A.format(name) for name in self.state.shapes}

    def _start(self, r: int) -> dict[str, Tensor]:
        if r not in self._starts:
            self._starts[r] = self.state.start(r)
        return self._starts[r]

    def _drain(self, last: bool = False) -> None:
        """Fold in, in the clients' order, what no earlier client can still come before."""
        while self._waiting:
            first = self._waiting[0][0]
            earlier = any(client < first for client in self.awaited)
            judged = len(self._norms) >= 3 or not self.awaited
            if not last and (len(self._waiting) <= WINDOW and (earlier or not judged)):
                return
            self._judge(heapq.heappop(self._waiting)[1])

    def _judge(self, update: Update) -> None:
        usual = statistics.median_low(self._norms.values())
        if (norm := self._norms[update.client]) > self.norm_ratio * usual:
            self.refused[update.client] = f"norm of the update is {norm:.3g}, the round's median {usual:.3g}"
        elif self.combine is None:
            self._fold(update)
        else:
            self._kept.append(update)

    def _fold(self, update: Update) -> None:
        start = self._start(update.r)
        for name, sums in self._sums.items():
            a, b = (update.tensors.get(key.format(name), start[key.format(name)]) for key in (KEY_A, KEY_B))
            sums.add(a, b, update.examples, self.state.scaling)
        for key, total in self._head.items():
            total.add_(update.tensors[key], alpha=update.examples)
        self.folded.append(update.client)

    def finish(self, least: int = 1) -> Outcome:
        """The next state, of all updates that were folded in.

        Args:
            least: fewest usable updates that make a round.

        Raises:
            InputError: there are fewer.
        """
        self._drain(last=True)
        usable = len(self._kept) + len(self.folded)
        if usable < max(least, 1):
            why = "; ".join(
                f"client {client}: {reason}" for client, reason in sorted(self.refused.items())[:3]
            )
            raise InputError(
                f"round {self.state.round + 1} has {usable} usable updates, it needs {max(least, 1)} "
                f"({why or 'none came'}): lower min_clients or wait longer"
            )
        if self.combine is not None:
            for update in self.combine(self._kept, self._start(self._kept[0].r)):
                self._fold(update)
        results, squares = {}, [0.0, 0.0, 0.0]
        for name, sums in self._sums.items():
            results[name] = self.strategy.finish(sums)
            exact = sums.update()
            out, inner = self.state.shapes[name]
            naive = sums.update()
            naive.add(sums.mean_b(), sums.mean_a(), -self.state.scaling)
            miss = sums.update()
            miss.merge(results[name].update(out, inner), -1.0)
            for place, part in enumerate((exact, naive, miss)):
                squares[place] += part.norm() ** 2
        weight = next(iter(self._sums.values())).weight
        head = {key: (total / weight).float() for key, total in self._head.items()}
        whole, bias, error = (math.sqrt(square) for square in squares)
        return Outcome(
            self.state.advance(results, head),
            bias / whole if whole else 0.0,
            error / whole if whole else 0.0,
            sorted(self.folded),
            self.refused,
        )
