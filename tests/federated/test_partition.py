"""Partitions: every example once, skewed as asked, nobody empty."""

from __future__ import annotations

import numpy as np
import pytest

from eckart.errors import InputError
from eckart.federated import partition
from eckart.federated.partition import check_numbers, parse_partition, split_examples

LABELS = [i % 5 for i in range(400)]
GROUPS = [f"m{i // 30}" for i in range(400)]


@pytest.mark.parametrize("rule", ["iid", "dirichlet:0.3", "dirichlet:100", "groups", "contiguous"])
def test_every_example_has_one_client(rule: str) -> None:
    parts = split_examples(rule, 400, 7, labels=LABELS, groups=GROUPS, seed=3)
    assert len(parts) == 7
    assert sorted(i for part in parts for i in part) == list(range(400))
    assert parts == split_examples(rule, 400, 7, labels=LABELS, groups=GROUPS, seed=3)
    assert all(part == sorted(part) and part for part in parts)


def _skew(partition: str) -> float:
    """Mean total variation between a client's labels and all labels."""
    parts = split_examples(partition, 400, 7, labels=LABELS, seed=0)
    shares = [np.bincount([LABELS[i] for i in part], minlength=5) / len(part) for part in parts]
    return float(np.mean([np.abs(share - 0.2).sum() / 2 for share in shares]))


def test_a_smaller_alpha_skews_the_labels_more() -> None:
    assert _skew("dirichlet:0.2") > 0.4 > _skew("dirichlet:5") > _skew("dirichlet:1000")
    assert _skew("dirichlet:1000") < 0.03


def test_a_draw_that_leaves_a_client_empty_is_drawn_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """The defaults of the command on two labels: most draws leave somebody empty."""
    labels = [i % 2 for i in range(400)]
    parts = split_examples("dirichlet:0.3", 400, 20, labels=labels)
    assert min(map(len, parts)) >= 1
    assert sorted(i for part in parts for i in part) == list(range(400))
    monkeypatch.setattr(partition, "DRAWS", 1)
    with pytest.raises(InputError, match="of 20 clients without examples"):
        split_examples("dirichlet:0.3", 400, 20, labels=labels)


def test_seeds_draw_other_partitions() -> None:
    one, two = (split_examples("iid", 40, 4, seed=seed) for seed in (0, 1))
    assert one != two


def test_groups_stay_whole_and_loads_are_even() -> None:
    parts = split_examples("groups", 400, 4, groups=GROUPS)
    homes = [{GROUPS[i] for i in part} for part in parts]
    assert sum(len(home) for home in homes) == len(set(GROUPS))
    assert max(map(len, parts)) - min(map(len, parts)) <= 30


def test_contiguous_parts_are_runs() -> None:
    parts = split_examples("contiguous", 10, 3)
    assert parts == [[0, 1, 2, 3], [4, 5, 6], [7, 8, 9]]


@pytest.mark.parametrize(
    ("partition", "options", "match"),
    [
        ("uniform", {}, "partition is 'uniform': choose iid"),
        ("dirichlet", {}, "partition is 'dirichlet'"),
        ("dirichlet:0", {}, "dirichlet:0'"),
        ("dirichlet:nan", {}, "dirichlet:nan'"),
        ("iid:3", {}, "iid:3'"),
        ("dirichlet:0.3", {"labels": None}, "no labels"),
        ("groups", {"groups": None}, "no groups"),
        ("groups", {"clients": 300}, "leaves 286 of 300 clients without examples"),
        (
            "dirichlet:0.01",
            {"clients": 200},
            "clients without examples: 1000 draws did, raise alpha or lower clients",
        ),
        ("iid", {"clients": 401}, "clients is 401: give 1 to 400"),
        ("iid", {"clients": 0}, "clients is 0"),
    ],
)
def test_bad_input(partition: str, options, match: str) -> None:
    given = {"clients": 4, "labels": LABELS, "groups": GROUPS} | options
    with pytest.raises(InputError, match=match):
        split_examples(partition, 400, **given)


def test_parsing() -> None:
    assert parse_partition(" Dirichlet:0.25 ") == ("dirichlet", 0.25)
    assert parse_partition("groups") == ("groups", 0.0)


def test_numbers_that_make_a_federation() -> None:
    for numbers in ((1, [1], 1.0, 1), (5, [2, 8], 0.01, 5), (5, [1], 1.0, 1)):
        check_numbers(*numbers)
    for numbers, message in (
        ((0, [1], 1.0, 1), "clients is 0: give at least 1"),
        ((5, [1], 0.0, 1), r"fraction is 0\.0"),
        ((5, [1], 1.01, 1), r"fraction is 1\.01"),
        ((5, [1], 1.0, 0), "min_clients is 0: give 1 to 5"),
        ((5, [1], 1.0, 6), "min_clients is 6: give 1 to 5"),
        ((5, [], 1.0, 1), r"ranks are \[\]"),
        ((5, [4, 0], 1.0, 1), r"ranks are \[4, 0\]"),
    ):
        with pytest.raises(InputError, match=message):
            check_numbers(*numbers)
