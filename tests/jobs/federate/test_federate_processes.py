"""A SuperLink and SuperNodes as real processes on loopback: faults, a kill of the server, encryption, and Ray."""

from __future__ import annotations

import csv
import json
import os
import signal
import socket
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from federate_cases import small
from light_client import moved

from eckart.errors import InputError
from eckart.federated.rounds import Round, Update
from eckart.jobs.federate import processes, results
from eckart.jobs.federate.federating import federate
from eckart.jobs.federate.plan import Plan
from eckart.jobs.federate.processes import Federation, check_port, end_leftovers, free_port, processes_of
from eckart.jobs.federate.server import begin
from eckart.tasks.task import load_task

FAULTS = {3: "nan", 4: "shapes", 5: "rank", 6: "huge", 7: "slow", 8: "dies"}
WORDS = {3: "NaN", 4: "shape", 5: "shape", 6: "norm", 7: "no answer in time", 8: ""}


class Prepared(Exception):
    """The plan is written; the test starts the processes itself."""


def prepare(files, directory: Path, monkeypatch: pytest.MonkeyPatch, **options: Any) -> Plan:
    """Let `federate` check everything and write run.json, and stop before it starts processes."""

    def stop(*args: Any, **kwargs: Any) -> None:
        raise Prepared

    from eckart.jobs.federate import federating

    with monkeypatch.context() as patch:
        patch.setattr(federating, "run_processes", stop)
        with pytest.raises(Prepared):
            federate(**small(files, directory, backend="processes", port=free_port(), **options))
    return Plan.from_json((directory / results.RUN).read_text())


def expected(plan: Plan, rounds: int, honest: list[int]) -> dict[str, torch.Tensor]:
    """What the light clients' numbers make of the model, without processes."""
    state = begin(load_task(plan.model, plan.data, seed=plan.seed, **plan.task), plan)
    for number in range(1, rounds + 1):
        message = state.message(plan.rule(), plan.ranks[0])
        taken = Round(state, plan.rule(), honest)
        for client in honest:
            tensors = {k: torch.from_numpy(moved(k, v.numpy(), client, number)) for k, v in message.items()}
            taken.add(Update(client, tensors, plan.ranks[0], float(client + 1)))
        state = taken.finish().state
    return state.start(plan.ranks[0])


def started(
    directory: Path, clients: range, deadline: float, faults: dict[int, str], tls: bool = False
) -> Federation:
    made = Federation(directory, port=free_port(), deadline=deadline, tls=tls, client="light_client")
    made.start_server()
    for client in clients:
        made.start_client(client, **({"fault": faults[client]} if client in faults else {}))
    made.submit()
    return made


def rows_of(directory: Path, name: str) -> list[dict[str, str]]:
    if not (directory / name).is_file():
        return []
    with open(directory / name) as file:
        return list(csv.DictReader(file))


@pytest.fixture
def light(monkeypatch: pytest.MonkeyPatch) -> None:
    """Client processes find the light client."""
    monkeypatch.setenv(
        "PYTHONPATH", os.pathsep.join([str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")])
    )


def test_faults_of_real_clients_and_a_killed_server(files, tmp_path: Path, monkeypatch, light) -> None:
    """Nine clients, six of them at fault. The SuperLink is killed after the first round and started anew."""
    options = {
        "clients": 9,
        "fraction": 1.0,
        "rounds": 2,
        "min_clients": 3,
        "partition": "iid",
        "strategy": "lora-fair",
    }
    directory = tmp_path / "run"
    plan = prepare(files, directory, monkeypatch, **options)
    made = started(directory, range(9), 45.0, FAULTS)
    try:
        end = time.monotonic() + 400
        while not rows_of(directory, "rounds.csv") and time.monotonic() < end:
            assert made.processes["superlink"].poll() is None
            time.sleep(0.2)
        made.kill("superlink")
        assert not processes_of(made.home / "superlink")
    finally:
        made.stop()
    assert processes_of(made.home) == []
    refused = {
        int(row["client"]): row["refused"] for row in rows_of(directory, "clients.csv") if row["refused"]
    }
    assert sorted(refused) == sorted(FAULTS)
    for client, word in WORDS.items():
        assert word in refused[client]
    assert not (directory / results.METRICS).exists()
    made = started(directory, range(3), 45.0, {})
    try:
        metrics = made.wait(None, 2)
    finally:
        made.stop()
    assert metrics["rounds"] == 2
    assert [row["round"] for row in rows_of(directory, "rounds.csv")] == ["1", "2"]
    from safetensors.torch import load_file

    saved = load_file(directory / "adapter_model.safetensors")
    for key, value in expected(plan, 2, [0, 1, 2]).items():
        torch.testing.assert_close(saved[key], value, rtol=0, atol=0)
    assert processes_of(made.home) == []


def test_encrypted_and_too_few(files, tmp_path: Path, monkeypatch, light) -> None:
    """Over TLS; a round that too few clients answer ends the run with one line and keeps what there was."""
    directory = tmp_path / "run"
    prepare(files, directory, monkeypatch, clients=3, fraction=1.0, rounds=1, min_clients=3, partition="iid")
    made = started(directory, range(3), 25.0, {2: "nan"}, tls=True)
    try:
        with pytest.raises(InputError, match=r"round 1 has 2 usable updates, it needs 3 \(client 2: .*NaN"):
            made.wait(None, 1)
        (directory / results.FAILURE).unlink()
        assert (made.home / "server.key").stat().st_mode & 0o077 == 0
    finally:
        made.stop()


def test_real_clients_in_processes_and_in_ray_end_in_the_same_numbers(files, tmp_path: Path) -> None:
    """Two rounds: in the second, the processes' clients find their examples in the context."""
    given = {"clients": 2, "fraction": 1.0, "rounds": 2, "partition": "iid", "deadline": 300.0}
    one = federate(**small(files, tmp_path / "ray", **given, workers=1))
    two = federate(**small(files, tmp_path / "processes", **given, backend="processes", port=free_port()))
    for name in ("validation", "test", "bytes_up", "bytes_down"):
        assert one[name] == two[name]
    assert json.loads((tmp_path / "ray" / results.METRICS).read_text())["test"] == two["test"]
    assert processes_of(tmp_path / "processes" / processes.HOME) == []


def test_a_ray_worker_that_dies_is_replaced(files, tmp_path: Path, monkeypatch, light) -> None:
    """Its client is asked again, and the numbers are those of a run in which none died."""
    import dying_client

    from eckart.jobs.federate import client

    monkeypatch.setattr(client, "app", dying_client.app)
    monkeypatch.setenv("DYING_CLIENT", str(tmp_path / "died"))
    given = {"clients": 3, "fraction": 1.0, "partition": "iid", "deadline": 120.0}
    metrics = federate(**small(files, tmp_path / "run", **given, workers=2))
    assert (tmp_path / "died").exists()
    assert [row["clients"] for row in rows_of(tmp_path / "run", "rounds.csv")] == ["3", "3"]
    assert federate(**small(files, tmp_path / "again", **given, workers=1))["test"] == metrics["test"]


def test_a_port_in_use_is_refused(files, tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(InputError, match=f"port is {port}: Address already in use; choose another"):
            federate(**small(files, tmp_path / "run", backend="processes", port=port))
        assert not (tmp_path / "run").exists()
    with pytest.raises(InputError, match="port is 99999"):
        check_port(99999)


def test_leftovers_of_a_killed_run_are_ended(tmp_path: Path) -> None:
    """Processes of this directory's run are ended, in whatever session, and no others."""
    import subprocess

    home = tmp_path / processes.HOME
    places = (str(home), f"{home}/superlink", f"{home}2/superlink", "/elsewhere/superlink")
    made = [
        subprocess.Popen(["sleep", "60"], env=os.environ | {"FLWR_HOME": where}, start_new_session=True)
        for where in places
    ]
    try:
        assert sorted(processes_of(home)) == sorted(process.pid for process in made[:2])
        end_leftovers(home)
        assert [process.wait(10) for process in made[:2]] == [-signal.SIGKILL] * 2
        assert [process.poll() for process in made[2:]] == [None, None]
    finally:
        for process in made:
            process.kill()
            process.wait()
