"""What Flower ships against bad updates, with the strategies behind it."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from test_flower import Federation, content, same
from test_rounds import SHAPES, begin, client_update

from eckart.errors import InputError
from eckart.federated import make_strategy
from eckart.federated.robust import Private, check_robust, combination
from eckart.federated.rounds import Round, Update
from eckart.federated.state import ServerState


def bad(client: int, update: Update, _: int):
    """Client 6 is against us: a finite update of ordinary size in a direction of its own."""
    if client == 6:
        generator = torch.Generator().manual_seed(5)
        update = Update(
            6,
            {k: v + 0.5 * torch.randn(v.shape, generator=generator) for k, v in update.tensors.items()},
            3,
            500.0,
        )
    return content(update)


def honest(client: int, update: Update, _: int):
    return content(update) if client < 6 else None


def run(slug: str, robust: str | None, spoil, malicious: int = 1) -> ServerState:
    combine = None if robust is None else combination(robust, malicious)
    return Federation(slug, clients=7, spoil=spoil, combine=combine).run(1)


def distance(one: ServerState, two: ServerState) -> float:
    return math.sqrt(
        sum(float((one.update(n).dense() - two.update(n).dense()).square().sum()) for n in SHAPES)
    )


@pytest.mark.parametrize("slug", ["lora-fair", "fedit", "flexlora", "flora-stacking"])
def test_multi_krum_leaves_the_bad_one_out_and_the_strategy_does_the_rest(slug: str) -> None:
    same(run(slug, "multi-krum", bad), run(slug, None, honest))


def test_krum_takes_one_of_the_honest() -> None:
    federation = Federation("lora-fair", clients=7, spoil=bad, combine=combination("krum", 1))
    state = federation.run(1)
    [chosen] = federation.reports[0].outcome.clients
    assert chosen != 6
    sent = client_update(begin(), "lora-fair", chosen).tensors
    for key, value in state.start(3).items():
        torch.testing.assert_close(value, sent[key], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("robust", ["median", "trimmed-mean", "bulyan"])
@pytest.mark.parametrize("slug", ["fedit", "ffa-lora"])
def test_robust_means_stay_near_the_honest_mean(robust: str, slug: str) -> None:
    clean = run(slug, None, honest)
    assert distance(run(slug, robust, bad), clean) < 0.5 * distance(run(slug, None, bad), clean)


def test_the_median_is_the_median() -> None:
    state = run("fedit", "median", bad)
    updates = [client_update(begin(), "fedit", client).tensors for client in range(6)]
    key = min(updates[0])
    last = bad(6, client_update(begin(), "fedit", 6), 1)["arrays"][key].numpy()
    expected = np.median(np.stack([*(u[key].numpy() for u in updates), last]), axis=0)
    np.testing.assert_allclose(state.start(3)[key].numpy(), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("robust", "malicious", "slug", "clients", "match"),
    [
        ("best", 1, "fedit", 9, "robust is 'best': choose krum"),
        ("median", 1, "lora-fair", 9, "averages factors, lora-fair does not"),
        ("krum", 1, "lora-fair", 4, "krum needs 5 clients in a round, there are 4"),
        ("bulyan", 2, "fedit", 10, "bulyan needs 11"),
        ("trimmed-mean", 2, "fedit", 4, "trimmed-mean needs 5"),
        ("krum", -1, "fedit", 9, "malicious is -1"),
    ],
)
def test_what_cannot_be(robust: str, malicious: int, slug: str, clients: int, match: str) -> None:
    with pytest.raises(InputError, match=match):
        check_robust(robust, malicious, make_strategy(slug), clients)


@pytest.mark.parametrize("malicious", [0, 1, 2])
@pytest.mark.parametrize(
    ("robust", "slope", "least"),
    [
        ("krum", 2, 3),
        ("multi-krum", 2, 3),
        ("bulyan", 4, 3),
        ("median", 2, 1),
        ("trimmed-mean", 2, 1),
    ],
)
def test_how_many_clients_a_rule_needs(robust: str, slope: int, least: int, malicious: int) -> None:
    """Bad ones may be none; just as many as are needed will do, and one fewer will not."""
    needed, strategy = slope * malicious + least, make_strategy("fedit")
    check_robust(robust, malicious, strategy, needed)
    with pytest.raises(InputError, match=f"needs {needed} clients in a round, there are {needed - 1}"):
        check_robust(robust, malicious, strategy, needed - 1)


def private_round(clip: float, noise: float, clients: int = 4) -> ServerState:
    state, strategy = begin(), make_strategy("fedit")
    private = Private(strategy, clip=clip, noise=noise, clients=clients, population=10)
    round_ = Round(state, strategy, list(range(clients)), private)
    for client in range(clients):
        round_.add(client_update(state, "fedit", client))
    return round_.finish().state


def moved(state: ServerState) -> torch.Tensor:
    start = begin().start(3)
    return torch.cat([(value - start[key]).flatten() for key, value in sorted(state.start(3).items())])


def test_clipping_bounds_every_update_and_weighs_them_alike() -> None:
    clip, start, total = 0.2, begin().start(3), 0.0
    for client in range(4):
        tensors = client_update(begin(), "fedit", client).tensors
        flat = torch.cat([(tensors[key] - start[key]).flatten() for key in sorted(start)])
        assert flat.norm() > clip
        total = total + flat * (clip / flat.norm()) / 4
    torch.testing.assert_close(moved(private_round(clip, 0.0)), total, rtol=1e-4, atol=1e-6)
    assert moved(private_round(1e6, 0.0)).norm() > 2 * total.norm()


def test_noise_has_the_announced_size() -> None:
    quiet, clip, noise = moved(private_round(0.5, 0.0)), 0.5, 3.0
    np.random.seed(0)
    drawn = torch.cat([moved(private_round(clip, noise)) - quiet for _ in range(10)])
    assert float(drawn.std()) == pytest.approx(noise * clip / 4, rel=0.06)


def test_a_missing_client_means_no_release() -> None:
    state, strategy = begin(), make_strategy("fedit")
    private = Private(strategy, clip=1.0, noise=1.0, clients=3, population=10)
    round_ = Round(state, strategy, [0, 1, 2], private)
    for client in (0, 1):
        round_.add(client_update(state, "fedit", client))
    round_.miss(2, "gone")
    with pytest.raises(InputError, match="2 of 3 updates came"):
        round_.finish()


@pytest.mark.parametrize(
    ("slug", "options", "match"),
    [
        ("lora-fair", {}, "lora-fair is no plain mean of factors, use fedit or ffa-lora"),
        ("fedit", {"clip": 0.0}, "clip is 0"),
        ("fedit", {"clip": math.nan}, "clip is nan"),
        ("fedit", {"noise": -1.0}, "noise is -1"),
    ],
)
def test_bad_input(slug: str, options, match: str) -> None:
    given = {"clip": 1.0, "noise": 1.0, "clients": 2, "population": 4} | options
    with pytest.raises(InputError, match=match):
        Private(make_strategy(slug), **given)


def test_accounting_says_what_it_needs_or_what_was_spent() -> None:
    strategy = make_strategy("ffa-lora")
    given = {"clip": 1.0, "noise": 1.0, "clients": 4, "population": 10, "delta": 1e-3}
    try:
        import dp_accounting  # noqa: F401
    except ImportError:
        with pytest.raises(
            InputError, match=r"needs dp-accounting, install it with: pip install 'flwr\[dp\]'"
        ):
            Private(strategy, **given)
        return
    private, state, spent = Private(strategy, **given), begin(), []
    for _ in range(2):
        round_ = Round(state, strategy, [0, 1, 2, 3], private)
        for client in range(4):
            round_.add(client_update(state, "ffa-lora", client))
        state = round_.finish().state
        spent.append(private.epsilon)
    assert 0 < spent[0] < spent[1] < 2 * spent[0]
    again = Private(strategy, **given)
    again.restore(private.spent())
    assert again.epsilon == spent[1]


def test_a_private_round_of_one_client_is_its_clipped_update() -> None:
    assert float(moved(private_round(0.2, 0.0, clients=1)).norm()) == pytest.approx(0.2, rel=1e-4)
