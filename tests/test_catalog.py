"""The table of all methods: every room's own list, in one order, with nothing left empty."""

from __future__ import annotations

from dataclasses import astuple

import pytest

import eckart

FAMILIES = ("adapters", "layers", "metrics", "recovery")


def test_every_method_of_every_room_is_listed_once_by_family_and_slug() -> None:
    rows = eckart.methods()
    rooms = (eckart.layers, eckart.metrics, eckart.recovery)
    others = [slug for room in rooms for slug in sorted(method["slug"] for method in room.METHODS)]
    assert [row.slug for row in rows] == [*sorted(eckart.adapters.ADAPTERS), *others]
    assert all(all(astuple(row)) for row in rows)
    assert [row for family in FAMILIES for row in eckart.methods(family)] == rows


def test_recovery_rows_name_an_estimator_and_a_hyper_parameter_of_it() -> None:
    for row in eckart.methods("recovery"):
        assert row.knob in getattr(eckart.recovery, row.name)().get_params()


def test_unknown_family_is_refused() -> None:
    with pytest.raises(
        eckart.InputError, match="unknown family 'pets': known are adapters, layers, metrics, recovery"
    ):
        eckart.methods("pets")
