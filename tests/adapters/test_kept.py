"""Decompositions that are kept for the next adapter change no number and take no more than allowed."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from adapter_cases import MLP, adapted, layers, rows, seeded
from torch import Tensor

from eckart.adapters import _kept, loldu
from eckart.adapters._checkpoint import weight_check
from eckart.adapters._kept import Kept

METHODS: dict[str, dict[str, Any]] = {"svfit": {"r": 3}, "salt": {"r": 2, "r_lora": 2}, "loldu": {"r": 4}}
every_method = pytest.mark.parametrize("slug", METHODS)


@pytest.fixture
def made(monkeypatch: pytest.MonkeyPatch) -> list[Tensor]:
    """The matrices that were decomposed."""
    found: list[Tensor] = []

    def counted(original: Any) -> Any:
        def decompose(matrix: Tensor, *args: Any) -> Any:
            found.append(matrix)
            return original(matrix, *args)

        return decompose

    monkeypatch.setattr(_kept, "leading_svd", counted(_kept.leading_svd))
    monkeypatch.setattr(loldu, "ldu", counted(loldu.ldu))
    return found


def build(slug: str, base: Any = None, **options: Any) -> Any:
    return adapted(slug, base or seeded(MLP), init_weights=False, **{**METHODS[slug], **options}).train()


def buffers(model: Any) -> list[Tensor]:
    return [t for layer in layers(model) for t in layer.eckart_adapters["default"].buffers()]


@every_method
def test_a_second_adapter_takes_what_the_first_has_made(slug: str, made: list[Tensor]) -> None:
    store, x = Kept(), rows()
    with store.in_use():
        first = build(slug)
        count = len(made)
        second = build(slug)
    assert len(made) == count == 2
    assert torch.equal(first(x), second(x)) and torch.equal(build(slug)(x), first(x))
    assert len(made) == 2 * count
    shared = {t.data_ptr() for t in buffers(first)} & {t.data_ptr() for t in buffers(second)}
    assert len(shared) == 3 * count
    assert store.taken >= sum(t.numel() * 4 for t in buffers(first) if t.data_ptr() in shared)
    with store.in_use():
        build(slug, r=METHODS[slug]["r"] - 1)
    assert len(made) == (2 * count if slug == "salt" else 3 * count)


@every_method
def test_buffers_that_a_checkpoint_is_read_into_are_not_shared(slug: str, made: list[Tensor]) -> None:
    store = Kept()
    with store.in_use():
        first, second = (build(slug, save_basis=True) for _ in range(2))
    assert len(made) == 4 and store.taken == 0
    assert not {t.data_ptr() for t in buffers(first)} & {t.data_ptr() for t in buffers(second)}


def test_no_other_weight_is_mistaken_for_it(made: list[Tensor]) -> None:
    """Neither one of another dtype nor one with two numbers exchanged, for which a checkpoint's check is the same."""
    exchanged = seeded(MLP)
    weight = exchanged.up.weight
    check = weight_check(weight, 1e-7)
    with torch.no_grad():
        for i in range(1, weight.numel()):
            flat = weight.view(-1)
            flat[0], flat[i] = flat[i].clone(), flat[0].clone()
            if weight_check(weight, 1e-7) == pytest.approx(check, rel=1e-12):
                break
            flat[0], flat[i] = flat[i].clone(), flat[0].clone()
        else:
            pytest.fail("no such exchange")
    with Kept().in_use():
        first = build("svfit")
        other = build("svfit", exchanged)
        build("svfit", seeded(MLP).double())
    assert len(made) == 2 + 1 + 2
    assert not torch.equal(buffers(first)[0], buffers(other)[0])


def test_what_was_written_to_is_made_anew(made: list[Tensor]) -> None:
    with Kept().in_use():
        first = build("svfit")
        expected = buffers(first)[0].clone()
        buffers(first)[0].mul_(2)
        assert torch.equal(buffers(build("svfit"))[0], expected)
    assert len(made) == 3


def test_no_more_than_the_limit_is_kept(made: list[Tensor]) -> None:
    whole = Kept()
    with whole.in_use():
        first = build("svfit")
    for limit, again in ((whole.taken, 0), (whole.taken - 1, 1), (0, 2)):
        store, before = Kept(limit), len(made)
        with store.in_use():
            build("svfit")
            build("svfit")
        assert (len(made) - before, store.taken <= limit) == (2 + again, True)
    assert torch.equal(buffers(first)[0], buffers(build("svfit"))[0])
