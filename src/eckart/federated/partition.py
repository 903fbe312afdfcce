"""Which client holds which example.

    iid            equal shares at random
    dirichlet:α    label skew: each label is dealt by shares drawn from Dirichlet(α, …, α); small α, few labels each.
                   A draw that leaves a client empty is drawn again, `DRAWS` times at most
    groups         feature skew: whole groups (modules, domains) are dealt, the largest first, to whoever has least
    contiguous     runs of neighbours, for plain text

Source of the label skew: Hsu, Qi & Brown, 2019, arXiv:1909.06335.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from eckart.errors import InputError

DRAWS = 1000
KINDS = "iid, dirichlet:ALPHA, groups or contiguous"


def check_numbers(population: int, ranks: Sequence[int], fraction: float, min_clients: int) -> None:
    """Refuse numbers that make no federation.

    Args:
        population: all clients.
        ranks: of the clients, in turn.
        fraction: share of them asked in a round.
        min_clients: fewest updates that make a round.

    Raises:
        InputError: naming the number.
    """
    if population < 1:
        raise InputError(f"clients is {population}: give at least 1")
    if not 0 < fraction <= 1:
        raise InputError(f"fraction is {fraction}: give a share of the clients in (0, 1]")
    if not 1 <= min_clients <= population:
        raise InputError(f"min_clients is {min_clients}: give 1 to {population}, the number of clients")
    if not ranks or min(ranks) < 1:
        raise InputError(f"ranks are {list(ranks)}: give ranks of at least 1")


def parse_partition(text: str) -> tuple[str, float]:
    """The kind of a partition and its α (0 where it has none).

    Raises:
        InputError: no such kind, or an α that is not positive.
    """
    kind, colon, value = text.strip().lower().partition(":")
    if kind in ("iid", "groups", "contiguous") and not colon:
        return kind, 0.0
    if kind == "dirichlet":
        try:
            alpha = float(value)
        except ValueError:
            alpha = -1.0
        if 0 < alpha < np.inf:
            return kind, alpha
    raise InputError(f"partition is {text!r}: choose {KINDS}, such as dirichlet:0.3")


def split_examples(
    partition: str,
    size: int,
    clients: int,
    *,
    labels: Sequence[int] | None = None,
    groups: Sequence[str] | None = None,
    seed: int = 0,
) -> list[list[int]]:
    """The examples of each client, in rising order; every example has one client.

    Args:
        partition: see the top of this module.
        size: number of examples.
        clients: how many share them.
        labels: class of each example, for "dirichlet".
        groups: group of each example, for "groups".
        seed: of the draw.

    Raises:
        InputError: more clients than examples, labels or groups that are not there, a client that is left empty.
    """
    kind, alpha = parse_partition(partition)
    if not 1 <= clients <= size:
        raise InputError(f"clients is {clients}: give 1 to {size}, the number of training examples")
    generator = np.random.default_rng([seed, clients])
    if kind == "contiguous":
        parts = np.array_split(np.arange(size), clients)
    elif kind == "iid":
        parts = np.array_split(generator.permutation(size), clients)
    elif kind == "dirichlet":
        if labels is None:
            raise InputError(
                f"partition is {partition!r}: these data have no labels, choose iid or contiguous"
            )
        parts = _by_label(np.asarray(labels), clients, alpha, generator)
    else:
        if groups is None:
            raise InputError(
                f"partition is {partition!r}: these data have no groups, choose iid or dirichlet:0.3"
            )
        parts = _by_group(np.asarray(groups), clients)
    empty = [client for client, part in enumerate(parts) if not len(part)]
    if empty:
        raise InputError(
            f"partition {partition!r} leaves {len(empty)} of {clients} clients without examples: "
            + (f"{DRAWS} draws did, raise alpha or lower clients" if kind == "dirichlet" else "lower clients")
        )
    return [sorted(int(i) for i in part) for part in parts]


def _by_label(
    labels: np.ndarray, clients: int, alpha: float, generator: np.random.Generator
) -> list[np.ndarray]:
    places = [np.flatnonzero(labels == label) for label in np.unique(labels)]
    for _ in range(DRAWS):
        held: list[list[np.ndarray]] = [[] for _ in range(clients)]
        for where in places:
            where = generator.permutation(where)
            cuts = np.round(generator.dirichlet(np.full(clients, alpha)).cumsum()[:-1] * len(where)).astype(
                int
            )
            for client, part in enumerate(np.split(where, cuts)):
                held[client].append(part)
        if all(any(len(part) for part in parts) for parts in held):
            break
    return [np.concatenate(parts) for parts in held]


def _by_group(groups: np.ndarray, clients: int) -> list[np.ndarray]:
    names, sizes = np.unique(groups, return_counts=True)
    held: list[list[np.ndarray]] = [[] for _ in range(clients)]
    load = np.zeros(clients, dtype=int)
    for place in np.argsort(-sizes, kind="stable"):
        client = int(load.argmin())
        held[client].append(np.flatnonzero(groups == names[place]))
        load[client] += sizes[place]
    return [np.concatenate(parts) if parts else np.zeros(0, dtype=int) for parts in held]
