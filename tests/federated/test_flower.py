"""Flower's strategy: it is the pure rounds, whatever the order, and it stands what clients do to it."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from federated_cases import STRATEGY_SLUGS
from flwr.app import Array, ArrayRecord, Message, MetricRecord, RecordDict
from local_grid import LocalGrid
from test_rounds import HEAD, SHAPES, begin, client_update, play

from eckart.errors import InputError
from eckart.federated import make_strategy
from eckart.federated.flower import LoRAStrategy, RoundReport, StreamingGrid, array_record, tensors_of
from eckart.federated.rounds import Update
from eckart.federated.state import ServerState, complete


def content(update: Update, **metrics: float) -> RecordDict:
    said = {"num-examples": update.examples, **metrics}
    return RecordDict({"arrays": array_record(dict(update.tensors)), "metrics": MetricRecord(said)})


class Federation:
    """A strategy on a local grid; ``spoil`` may change what a client sends in a round."""

    def __init__(
        self, slug: str, clients: int = 4, spoil=None, shuffled: bool = False, state=None, **options
    ) -> None:
        self.slug, self.spoil, self.reports = slug, spoil, []
        self.grid = LocalGrid(clients, self.answer, shuffled=shuffled)
        given = {"population": clients, "ranks": [3], "min_clients": 2, "timeout": 0.3} | options
        self.strategy = LoRAStrategy(
            make_strategy(slug), state or begin(), on_round=self.reports.append, **given
        )

    def answer(self, client: int, message: Message) -> RecordDict | None:
        config = message.content["config"]
        sent = tensors_of(message.content["arrays"])
        start, _ = complete(sent, SHAPES, config["rank"], config["fresh-seed"])
        state = self.strategy.state
        assert config["round"] == state.round + 1
        for key, value in state.start(config["rank"]).items():
            assert torch.equal(start[key], value)
        update = client_update(state, self.slug, client, config["rank"])
        if self.spoil is not None:
            return self.spoil(client, update, config["round"])
        return content(update, loss=float(client))

    def run(self, rounds: int) -> ServerState:
        self.strategy.start(StreamingGrid(self.grid), self.strategy.arrays(), rounds, timeout=0.3)
        return self.strategy.state


def same(one: ServerState, two: ServerState) -> None:
    assert one.round == two.round
    for key, value in one.start(3).items():
        assert torch.equal(value, two.start(3)[key]), key


@pytest.mark.parametrize("slug", STRATEGY_SLUGS)
@pytest.mark.parametrize("shuffled", [False, True])
def test_over_flower_it_is_the_same_as_without(slug: str, shuffled: bool) -> None:
    federation = Federation(slug, shuffled=shuffled)
    same(federation.run(2), play(play(begin(), slug).state, slug).state)
    first, second = federation.reports
    assert (first.round, second.round) == (1, 2)
    assert first.metrics[2]["loss"] == 2.0
    assert first.bytes_up == second.bytes_up > 0
    down = sum(v.numel() * 4 for v in begin().message(make_strategy(slug), 3).values())
    assert first.bytes_down == 4 * down


def test_a_run_goes_on_from_a_saved_state(tmp_path) -> None:
    whole = Federation("lora-fair", clients=6, fraction=0.5).run(4)
    part = Federation("lora-fair", clients=6, fraction=0.5).run(2)
    part.save(tmp_path / "state.safetensors")
    again = Federation(
        "lora-fair", clients=6, fraction=0.5, state=ServerState.load(tmp_path / "state.safetensors")[0]
    )
    same(again.run(2), whole)


def test_partial_participation_asks_others_each_round() -> None:
    federation = Federation("fedit", clients=10, fraction=0.3)
    federation.run(6)
    asked = [tuple(report.asked) for report in federation.reports]
    assert all(len(clients) == 3 for clients in asked)
    assert len(set(asked)) > 3
    assert len({client for clients in asked for client in clients}) > 6


def test_clients_have_their_own_rank() -> None:
    ranks = {}

    def spoil(client, update, _):
        ranks[client] = update.r
        return content(update)

    Federation("flexlora", spoil=spoil, ranks=[1, 4], state=begin(4)).run(2)
    assert ranks == {0: 1, 1: 4, 2: 1, 3: 4}


def faults(client: int, update: Update, number: int) -> RecordDict | None:
    match client:
        case 0:
            raise RuntimeError("Traceback …\nclient blew up")
        case 1:
            return None
        case 2:
            return content(Update(2, {k: v * float("nan") for k, v in update.tensors.items()}, 3, 1.0))
        case 3:
            return content(Update(3, {k: v[:1] for k, v in update.tensors.items()}, 3, 1.0))
        case 4:
            return content(Update(4, {k: 1e3 * (v + 1) for k, v in update.tensors.items()}, 3, 1.0))
        case 5:
            arrays = {k: Array(v.numpy()) for k, v in update.tensors.items()}
            arrays[HEAD] = Array("float32", (2, 4), "numpy.ndarray", b"cos\nsystem\n(S'true'\ntR.")
            return RecordDict({"arrays": ArrayRecord(arrays), "metrics": MetricRecord({"num-examples": 1.0})})
        case 6:
            return RecordDict({"metrics": MetricRecord({"num-examples": 1.0})})
    return content(update)


def test_every_fault_is_left_out_and_named() -> None:
    federation = Federation("lora-fair", clients=10, spoil=faults)
    state = federation.run(1)
    outcome = federation.reports[0].outcome
    assert outcome.clients == [7, 8, 9]
    said = " | ".join(f"{client} {why}" for client, why in sorted(outcome.refused.items()))
    for words in (
        "0 failed: Traceback",
        "1 no answer in time",
        "2 base",
        "NaN",
        "3 base",
        "shape",
        "4 norm",
        "5 unread",
        "6 unread",
    ):
        assert words in said
    clean = Federation("lora-fair", clients=10, spoil=lambda c, u, n: content(u) if c > 6 else None)
    same(clean.run(1), state)


def test_too_few_answers_end_the_run_and_keep_the_state() -> None:
    federation = Federation("fedit", spoil=lambda c, u, n: content(u) if n == 1 or c == 0 else None)
    with pytest.raises(InputError, match="round 2 has 1 usable updates, it needs 2"):
        federation.run(3)
    assert federation.strategy.state.round == 1
    assert len(federation.reports) == 1


def test_too_few_clients_end_the_run() -> None:
    federation = Federation("fedit", clients=4)
    federation.grid.nodes = {1000: 0}
    with pytest.raises(InputError, match=r"1 of 4 clients are there after 0\.3 s, round 1 needs 2"):
        federation.run(1)


def test_it_goes_on_with_enough_clients_and_asks_a_new_node_who_it_is() -> None:
    federation = Federation("fedit", clients=4)
    federation.grid.nodes = {1000: 0, 1001: 1, 1002: 2}
    federation.run(1)
    assert federation.reports[0].asked == [0, 1, 2]
    federation.grid.nodes = {1000: 0, 1001: 1, 2000: 2, 2001: 3}
    federation.run(1)
    assert federation.reports[1].asked == [0, 1, 2, 3]
    questions = [client for client, m in federation.grid.asked if m.metadata.message_type == "query"]
    assert questions == [0, 1, 2, 2, 3]


@pytest.mark.parametrize(
    "said",
    [
        RecordDict(),
        RecordDict({"m": MetricRecord({"client": [1, 2]})}),
        RecordDict({"m": MetricRecord({"client": 77})}),
    ],
)
def test_a_node_that_does_not_say_who_it_is_is_not_asked(said: RecordDict) -> None:
    federation = Federation("fedit", clients=4)
    federation.grid.names[2] = said
    federation.run(1)
    assert federation.reports[0].asked == [0, 1, 3]


def test_no_client_is_sent_what_another_trained() -> None:
    seen: dict[int, list[bytes]] = {}

    def spoil(client, update, _):
        seen.setdefault(client, []).extend(value.numpy().tobytes() for value in update.tensors.values())
        return content(update)

    federation = Federation("lora-fair", spoil=spoil)
    federation.run(2)
    for client, message in federation.grid.asked:
        if message.metadata.message_type == "train":
            sent = {v.numpy().tobytes() for v in tensors_of(message.content["arrays"]).values()}
            others = {data for other, held in seen.items() if other != client for data in held}
            assert not sent & others


@pytest.mark.parametrize(
    ("slug", "options", "match"),
    [
        ("fedit", {"ranks": [3, 4]}, r"ranks are \[3, 4\]: fedit needs equal ranks"),
        ("fedit", {"ranks": [0]}, "ranks are"),
        ("fedit", {"ranks": []}, "ranks are"),
        ("fedit", {"fraction": 0.0}, "fraction is 0"),
        ("fedit", {"fraction": 1.1}, "fraction is 1.1"),
        ("fedit", {"min_clients": 5}, "min_clients is 5: give 1 to 4"),
        ("fedit", {"population": 0}, "clients is 0"),
    ],
)
def test_bad_input(slug: str, options, match: str) -> None:
    with pytest.raises(InputError, match=match):
        Federation(slug, **options)


def test_reports_count_what_was_sent() -> None:
    federation = Federation("ffa-lora")
    federation.run(1)
    report: RoundReport = federation.reports[0]
    b_and_head = (9 * 3 + 12 * 3 + 8) * 4
    assert report.bytes_up == report.bytes_down == 4 * b_and_head
    assert 0 <= report.server_seconds <= report.seconds
    assert np.isfinite(report.outcome.bias)
