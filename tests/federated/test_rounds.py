"""The server's state and its rounds, without Flower: what is sent, checked, folded in, kept and gone on from."""

from __future__ import annotations

import math
import random
import re
from pathlib import Path

import pytest
import torch
from federated_cases import EXACT, STRATEGY_SLUGS

from eckart.errors import InputError
from eckart.federated import FlexLoRA, make_strategy
from eckart.federated.rounds import WINDOW, Round, Update
from eckart.federated.state import BASE_A, BASE_B, KEY_A, KEY_B, ServerState, complete, fresh_a

SHAPES = {"one.q": (9, 14), "two.v": (12, 7)}
HEAD = "base_model.model.classifier.weight"
A, B = (key.format("one.q") for key in (KEY_A, KEY_B))


def begin(r: int = 3, seed: int = 5) -> ServerState:
    return ServerState.begin(SHAPES, {HEAD: torch.ones(2, 4)}, r, 2.0, seed)


def client_update(state: ServerState, slug: str, client: int, r: int = 3, step: float = 0.1) -> Update:
    """What a client would send: its start, moved at random by about ``step``; FFA moves and sends no A."""
    strategy = make_strategy(slug)
    start, _ = complete(state.message(strategy, r), SHAPES, r, state.fresh_seed)
    generator = torch.Generator().manual_seed(97 * client + state.round)
    tensors = {
        key: value + step * torch.randn(value.shape, generator=generator)
        for key, value in sorted(start.items())
        if not (strategy.freezes_a and ".lora_A." in key)
    }
    return Update(client, tensors, r, float(client + 1))


def play(state: ServerState, slug: str, order=(0, 1, 2, 3), ranks=(3,)):
    round_ = Round(state, make_strategy(slug), [0, 1, 2, 3])
    for client in order:
        round_.add(client_update(state, slug, client, ranks[client % len(ranks)]))
    return round_.finish()


def effective(state: ServerState, slug: str, r: int = 3) -> dict[str, torch.Tensor]:
    """The change of each weight at a client that has been sent the state: base update + s B A."""
    start, base = complete(state.message(make_strategy(slug), r), SHAPES, r, state.fresh_seed)
    return {
        name: base.get(name, torch.zeros(shape))
        + state.scaling * start[KEY_B.format(name)] @ start[KEY_A.format(name)]
        for name, shape in SHAPES.items()
    }


@pytest.mark.parametrize("slug", STRATEGY_SLUGS)
def test_a_client_that_is_sent_the_state_has_the_servers_model(slug: str) -> None:
    state = begin()
    for _ in range(3):
        for name, change in effective(state, slug).items():
            torch.testing.assert_close(change, state.update(name).dense().float(), rtol=1e-4, atol=1e-5)
        state = play(state, slug).state
    assert state.round == 3


@pytest.mark.parametrize("slug", EXACT)
def test_exact_strategies_have_no_error_and_the_others_have_the_bias(slug: str) -> None:
    exact, fedit, fair = (play(begin(), s) for s in (slug, "fedit", "lora-fair"))
    assert exact.error < 1e-12
    assert fedit.error == pytest.approx(fedit.bias, rel=1e-9)
    assert exact.bias == pytest.approx(fedit.bias, rel=1e-9)
    assert 0 < fair.error < fair.bias


def test_exact_strategies_add_to_what_was_there() -> None:
    state = begin()
    for slug in ("flora-stacking",):
        first = play(state, slug).state
        second = play(first, slug)
        round_ = Round(first, make_strategy(slug), [0, 1, 2, 3])
        updates = [client_update(first, slug, client) for client in range(4)]
        weights = [u.examples for u in updates]
        for name in SHAPES:
            mean = sum(
                w * 2.0 * u.tensors[KEY_B.format(name)] @ u.tensors[KEY_A.format(name)]
                for w, u in zip(weights, updates, strict=True)
            ) / sum(weights)
            torch.testing.assert_close(
                second.state.update(name).dense().float(),
                first.update(name).dense().float() + mean,
                rtol=1e-4,
                atol=1e-5,
            )
        assert round_.finish  # the first state is as it was
        assert first.round == 1


@pytest.mark.parametrize("slug", STRATEGY_SLUGS)
def test_the_order_of_arrival_leaves_no_trace(slug: str) -> None:
    one, two = (play(begin(), slug, order).state for order in ((0, 1, 2, 3), (3, 1, 0, 2)))
    for key, value in one.start(3).items():
        assert torch.equal(value, two.start(3)[key])
    for name in SHAPES:
        assert torch.equal(one.update(name).dense(), two.update(name).dense())


def test_few_updates_wait_at_a_time() -> None:
    state, count = begin(), 60
    round_ = Round(state, make_strategy("fedit"), list(range(count)))
    most = 0
    order = list(range(count))
    random.Random(0).shuffle(order)
    for client in order:
        round_.add(client_update(state, "fedit", client))
        most = max(most, len(round_._waiting))
    assert most <= WINDOW
    assert round_.finish().clients == list(range(count))


@pytest.mark.parametrize("slug", STRATEGY_SLUGS)
def test_a_saved_state_goes_on_to_the_same_numbers(slug: str, tmp_path: Path) -> None:
    state = play(play(begin(), slug).state, slug).state
    state.save(tmp_path / "state.safetensors", note="kept")
    again, facts = ServerState.load(tmp_path / "state.safetensors")
    assert facts["note"] == "kept"
    assert again.round == 2
    one, two = play(state, slug).state, play(again, slug).state
    for key, value in one.start(3).items():
        assert torch.equal(value, two.start(3)[key])
    for name in SHAPES:
        assert torch.equal(one.update(name).dense(), two.update(name).dense())


def test_a_damaged_checkpoint_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "state.safetensors"
    begin().save(path)
    path.write_bytes(path.read_bytes()[:-7])
    with pytest.raises(InputError, match="damaged"):
        ServerState.load(path)


@pytest.mark.parametrize(
    ("slug", "left_out"),
    [
        ("fedit", set()),
        ("lora-fair", set()),
        ("ffa-lora", {"A"}),
        ("flora-stacking", {"A", "B"}),
        ("fedavg", {"A", "B"}),
    ],
)
def test_what_follows_from_the_seed_is_not_sent(slug: str, left_out: set[str]) -> None:
    state = play(begin(), slug).state
    message = state.message(make_strategy(slug), 3)
    for name in SHAPES:
        assert (KEY_A.format(name) in message) == ("A" not in left_out)
        assert (KEY_B.format(name) in message) == ("B" not in left_out)
    assert any(key.startswith("base_update") for key in message) == (slug in EXACT)
    assert message[HEAD].dtype == torch.float32


@pytest.mark.parametrize("slug", ["flora-stacking", "fedex-lora"])
def test_no_client_is_sent_anothers_factors(slug: str) -> None:
    """The base update that is sent has the product of all, and no row or column along one client's."""
    wide = {"one.q": (400, 300)}
    state = ServerState.begin(wide, {}, 2, 1.0, 0)
    round_, sent = Round(state, make_strategy(slug), [0, 1, 2]), []
    for client in range(3):
        generator = torch.Generator().manual_seed(client)
        tensors = {k: torch.randn(v.shape, generator=generator) for k, v in state.start(2).items()}
        sent.append(tensors)
        round_.add(Update(client, tensors, 2, 1.0))
    after = round_.finish().state
    message = after.message(make_strategy(slug), 2)
    b, a = (message[key.format("one.q")] for key in (BASE_B, BASE_A))
    torch.testing.assert_close(b @ a, after.base["one.q"].dense().float(), rtol=1e-3, atol=1e-4)
    key_a, key_b = KEY_A.format("one.q"), KEY_B.format("one.q")
    for tensors in sent:
        for mine, theirs in ((a, tensors[key_a]), (b.mT, tensors[key_b].mT)):
            cosines = torch.nn.functional.normalize(mine) @ torch.nn.functional.normalize(theirs).mT
            assert cosines.abs().max() < 0.95
    again = after.message(make_strategy(slug), 2)
    assert all(torch.equal(value, again[key]) for key, value in message.items())


def test_restarts_draw_another_a_each_round_and_ranks_share_rows() -> None:
    first = play(begin(), "flora-stacking").state
    second = play(first, "flora-stacking").state
    assert first.fresh_seed != second.fresh_seed
    assert not torch.equal(first.start(3)[A], second.start(3)[A])
    assert not first.start(3)[B].any()
    assert torch.equal(fresh_a("x", 5, 8, 1)[:3], fresh_a("x", 3, 8, 1))
    assert not torch.equal(fresh_a("x", 3, 8, 1), fresh_a("y", 3, 8, 1))
    assert 0.9 < fresh_a("x", 50, 16, 1).abs().max() * 4 <= 1


@pytest.mark.parametrize("slug", ["hetlora", "flexlora", "flora-stacking", "fedavg"])
def test_clients_of_different_ranks(slug: str) -> None:
    state = begin(r=4)
    for _ in range(2):
        state = play(state, slug, ranks=(1, 4)).state
    start = state.start(1)
    assert start[A].shape == (1, 14)
    assert start[B].shape == (9, 1)


def test_flexlora_sends_a_low_rank_client_the_best_of_its_rank() -> None:
    state = play(begin(), "flexlora").state
    u, s, vh = state.update("one.q").svd()
    sent = effective(state, "flexlora", r=2)["one.q"].double()
    torch.testing.assert_close(sent, u[:, :2] * s[:2] @ vh[:2], rtol=1e-4, atol=1e-5)


def test_threshold_sets_the_servers_rank() -> None:
    round_ = Round(begin(), FlexLoRA(threshold=1.0), [0, 1, 2])
    for client in range(3):
        round_.add(client_update(begin(), "flexlora", client))
    outcome = round_.finish()
    assert outcome.error < 1e-12
    assert len(outcome.state.layers["one.q"].a) > 3


def spoiled(key: str, make) -> Update:
    good = client_update(begin(), "fedit", 3)
    return Update(3, good.tensors | {key: make(good.tensors[key])}, 3, good.examples)


@pytest.mark.parametrize(
    ("bad", "match"),
    [
        (spoiled(A, lambda a: a * math.nan), "lora_A.weight holds NaN"),
        (spoiled(HEAD, lambda a: a / 0), "classifier.weight holds NaN or infinity"),
        (spoiled(B, lambda b: b[:, :2]), r"shape \(9, 2\), expected \(9, 3\)"),
        (spoiled(A, lambda a: a.double()), "float64, expected torch.float32"),
        (spoiled(B, lambda b: 1000 * (b + 1)), "norm of the update is"),
        (Update(3, {A: torch.zeros(3, 14)}, 3, 1.0), "missing"),
        (
            Update(3, client_update(begin(), "fedit", 3).tensors | {"evil": torch.ones(1)}, 3, 1.0),
            "evil is not expected",
        ),
        (Update(3, client_update(begin(), "fedit", 3, r=2).tensors, 3, 1.0), "expected"),
        (Update(3, client_update(begin(), "fedit", 3).tensors, 3, 0.0), "num-examples is 0"),
        (Update(3, client_update(begin(), "fedit", 3).tensors, 3, math.inf), "num-examples is inf"),
    ],
)
@pytest.mark.parametrize("place", [0, 3], ids=["first", "last"])
def test_a_bad_update_is_left_out(bad: Update, match: str, place: int) -> None:
    def run(with_bad: bool):
        state = begin()
        round_ = Round(state, make_strategy("fedit"), [0, 1, 2, 3] if with_bad else [0, 1, 2])
        updates = [client_update(state, "fedit", client) for client in range(3)]
        if with_bad:
            updates.insert(place, bad)
        for update in updates:
            round_.add(update)
        return round_.finish()

    outcome, clean = run(True), run(False)
    assert outcome.clients == [0, 1, 2]
    assert list(outcome.refused) == [3]
    assert re.search(match, outcome.refused[3])
    for key, value in clean.state.start(3).items():
        assert torch.equal(outcome.state.start(3)[key], value)


def test_norms_up_to_the_ratio_stay() -> None:
    state = begin()
    for ratio, kept in ((1000.0, [0, 1, 2]), (5.0, [0, 1])):
        round_ = Round(state, make_strategy("fedit"), [0, 1, 2], norm_ratio=ratio)
        for client, step in ((0, 0.1), (1, 0.1), (2, 1.0)):
            round_.add(client_update(state, "fedit", client, step=step))
        assert round_.finish().clients == kept


def test_a_stranger_and_a_second_answer_are_ignored() -> None:
    state = begin()
    round_ = Round(state, make_strategy("fedit"), [0, 1])
    for client in (0, 0, 7, 1):
        round_.add(client_update(state, "fedit", client))
    assert round_.finish().clients == [0, 1]


def test_too_few_updates_end_the_round_and_change_nothing() -> None:
    state = begin()
    round_ = Round(state, make_strategy("fedit"), [0, 1, 2])
    round_.add(client_update(state, "fedit", 0))
    round_.miss(1, "no answer in time")
    with pytest.raises(
        InputError, match=r"round 1 has 1 usable updates, it needs 2 \(client 1: no answer in time"
    ):
        round_.finish(2)
    assert state.round == 0


def test_a_missing_client_counts_for_nothing() -> None:
    state = begin()
    round_ = Round(state, make_strategy("fedit"), [0, 1, 2])
    for client in (2, 1):
        round_.add(client_update(state, "fedit", client))
    round_.miss(0, "gone")
    outcome = round_.finish(2)
    weights = torch.tensor([2.0, 3.0], dtype=torch.float64)
    expected = sum(
        w * client_update(state, "fedit", c).tensors[HEAD] for w, c in zip(weights / 5, (1, 2), strict=True)
    )
    torch.testing.assert_close(outcome.state.head[HEAD], expected.float())


@pytest.mark.parametrize(
    ("r", "match"), [(0, "r is 0: the layers can hold ranks from 1 to 7"), (8, "r is 8")]
)
def test_ranks_that_no_layer_can_hold(r: int, match: str) -> None:
    with pytest.raises(InputError, match=match):
        begin(r)


def test_no_layers() -> None:
    with pytest.raises(InputError, match="match no layer"):
        ServerState.begin({}, {}, 1, 1.0, 0)


@pytest.mark.parametrize("large", [0, 1, 3])
def test_the_first_update_that_comes_is_judged_by_those_after_it(large: int) -> None:
    """With one norm known it would be the usual one."""
    state = begin()
    round_ = Round(state, make_strategy("fedit"), [0, 1, 2, 3])
    for client in (large, *sorted({0, 1, 2, 3} - {large})):
        round_.add(client_update(state, "fedit", client, step=50.0 if client == large else 0.1))
    found = round_.finish()
    assert list(found.refused) == [large] and "the round's median" in found.refused[large]


def test_a_rule_for_all_updates_takes_a_single_one() -> None:
    state = begin()
    round_ = Round(state, make_strategy("fedit"), [0], combine=lambda updates, start: updates)
    round_.add(client_update(state, "fedit", 0))
    plain = Round(state, make_strategy("fedit"), [0])
    plain.add(client_update(state, "fedit", 0))
    found, wanted = round_.finish(), plain.finish()
    assert found.clients == [0]
    for key, value in wanted.state.start(3).items():
        assert torch.equal(found.state.start(3)[key], value)


def test_the_seed_of_fresh_factors_moves_by_a_step_a_round_where_clients_start_afresh() -> None:
    """A run that is resumed draws what it would have drawn."""
    first = play(begin(), "flora-stacking").state
    assert [first.fresh_seed, play(first, "flora-stacking").state.fresh_seed] == [1_000_008, 2_000_011]
    assert play(begin(), "fedit").state.fresh_seed == 5
