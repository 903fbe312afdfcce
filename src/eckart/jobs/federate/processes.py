"""The same server and clients as real processes on loopback: a SuperLink, a SuperNode for each client.

Everything Flower writes goes to ``.flower`` in the run's directory, and every process started here is ended here.
On several machines the same two commands run by hand, see docs/commands/federate.md.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from eckart.errors import InputError
from eckart.jobs.federate import results
from eckart.jobs.federate.certificates import make_certificates
from eckart.jobs.federate.plan import Plan

ENVIRONMENT = {
    "FLWR_TELEMETRY_ENABLED": "0",
    "FLWR_DISABLE_UPDATE_CHECK": "1",
    "RAY_USAGE_STATS_ENABLED": "0",
    "TOKENIZERS_PARALLELISM": "false",
}
PROJECT = """\
[project]
name = "federation"
version = "1.0.0"
dependencies = []

[tool.hatch.build.targets.wheel]
packages = ["."]

[tool.flwr.app]
publisher = "eckart"

[tool.flwr.app.components]
serverapp = "federation.server:app"
clientapp = "federation.client:app"

[tool.flwr.app.config]
output = {output}
deadline = {deadline}
"""
POLL_SECONDS = 0.2
HOME = ".flower"
"""Where Flower writes, inside the run's directory."""


class Federation:
    """The processes of one run.

    Args:
        directory: of the run.
        port: of the SuperLink; each SuperNode takes one of the ports after it.
        deadline: seconds that a round waits for replies.
        tls: encrypt, with certificates made for this run.
        client: module whose ``app`` the clients run.

    Raises:
        InputError: a port that is in use.
    """

    def __init__(
        self,
        directory: Path,
        *,
        port: int,
        deadline: float,
        tls: bool = False,
        client: str = "eckart.jobs.federate.client",
    ) -> None:
        self.directory, self.port = directory.absolute(), port
        self.home = self.directory / HOME
        self.processes: dict[str, subprocess.Popen[bytes]] = {}
        end_leftovers(self.home)
        check_port(port)
        shutil.rmtree(self.home, ignore_errors=True)
        package = self.home / "app" / "federation"
        package.mkdir(parents=True)
        (self.home / "logs").mkdir()
        for name, module in (("server", "eckart.jobs.federate.server"), ("client", client)):
            (package / f"{name}.py").write_text(f"import {module}\n\napp = {module}.app\n", encoding="utf-8")
        (package / "__init__.py").touch()
        project = PROJECT.format(output=json.dumps(str(self.directory)), deadline=float(deadline))
        (self.home / "app" / "pyproject.toml").write_text(project, encoding="utf-8")
        self.certificates = make_certificates(self.home) if tls else None
        trust = (
            "insecure = true"
            if self.certificates is None
            else f"root-certificates = {json.dumps(str(self.certificates.authority))}"
        )
        connection = (
            f'[superlink]\ndefault = "here"\n\n[superlink.here]\naddress = "127.0.0.1:{port}"\n{trust}\n'
        )
        (self.home / "config.toml").write_text(connection, encoding="utf-8")

    def start_server(self) -> None:
        """Start the SuperLink and wait until it answers."""
        words = ["flower-superlink", "--port", str(self.port), "--disable-runtime-dependency-installation"]
        if self.certificates is None:
            words.append("--insecure")
        else:
            words += ["--ssl-certfile", str(self.certificates.certificate)]
            words += ["--ssl-keyfile", str(self.certificates.key)]
            words += ["--ssl-ca-certfile", str(self.certificates.authority)]
        self._start("superlink", words)
        self._wait_for_port("superlink", self.port)

    def start_client(self, client: int, **node_config: str) -> None:
        """Start the SuperNode of a client.

        Args:
            client: its number.
            node_config: further entries, such as ``data``.
        """
        entries = {"partition-id": str(client)} | {
            key: json.dumps(value) for key, value in node_config.items()
        }
        words = ["flower-supernode", "--superlink", f"127.0.0.1:{self.port}"]
        words += ["--port", str(free_port()), "--max-retries", "5"]
        words += ["--node-config", " ".join(f"{key}={value}" for key, value in entries.items())]
        if self.certificates is None:
            words.append("--insecure")
        else:
            words += ["--root-certificates", str(self.certificates.authority)]
        self._start(f"client-{client}", words)

    def submit(self) -> None:
        """Hand the run to the SuperLink.

        Raises:
            RuntimeError: it was not taken.
        """
        words = [self._tool("flwr"), "run", str(self.home / "app"), "here", "--format", "json"]
        done = subprocess.run(words, env=self._environment(), cwd=self.home, capture_output=True, text=True)
        try:
            taken = json.loads(done.stdout)["success"]
        except (ValueError, KeyError):
            taken = False
        if not taken:
            raise RuntimeError(f"flwr run failed: {' '.join((done.stdout + done.stderr).split())[-300:]}")

    def wait(self, on_round: Callable[[dict[str, Any], int], None] | None, rounds: int) -> dict[str, Any]:
        """Follow the run to its end; returns what metrics.json holds.

        Raises:
            InputError: the server found something wrong.
            RuntimeError: it failed, or the SuperLink died.
        """
        seen = len(_rows(self.directory))
        while True:
            rows = _rows(self.directory)
            for row in rows[seen:] if on_round is not None else ():
                on_round(row, rounds)  # type: ignore[misc]
            seen = max(seen, len(rows))
            if (self.directory / results.FAILURE).is_file():
                failure = json.loads((self.directory / results.FAILURE).read_text(encoding="utf-8"))
                raise (InputError if failure["kind"] == "input" else RuntimeError)(failure["message"])
            if (self.directory / results.METRICS).is_file():
                found: dict[str, Any] = json.loads(
                    (self.directory / results.METRICS).read_text(encoding="utf-8")
                )
                return found
            if self.processes["superlink"].poll() is not None:
                raise RuntimeError(f"the SuperLink ended: see {self.home / 'logs' / 'superlink.log'}")
            time.sleep(POLL_SECONDS)

    def kill(self, name: str) -> None:
        """End one process and its children at once."""
        process = self.processes.pop(name)
        _signal_group(process, signal.SIGKILL)
        process.wait()
        end_leftovers(self.home / name)

    def stop(self) -> None:
        """End all processes: asked first, then killed."""
        for process in self.processes.values():
            _signal_group(process, signal.SIGTERM)
        deadline = time.monotonic() + 10
        for process in self.processes.values():
            with suppress(subprocess.TimeoutExpired):
                process.wait(max(deadline - time.monotonic(), 0.1))
            _signal_group(process, signal.SIGKILL)
            process.wait()
        self.processes.clear()
        end_leftovers(self.home)

    def _start(self, name: str, words: list[str]) -> None:
        with open(self.home / "logs" / f"{name}.log", "ab") as log:
            self.processes[name] = subprocess.Popen(
                [self._tool(words[0]), *words[1:]],
                env=self._environment() | {"FLWR_HOME": str(self.home / name)},
                cwd=self.home,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def _environment(self) -> dict[str, str]:
        bin_directory = str(Path(sys.executable).parent)
        path = os.pathsep.join([bin_directory, os.environ.get("PATH", "")])
        return os.environ | ENVIRONMENT | {"FLWR_HOME": str(self.home), "PATH": path}

    @staticmethod
    def _tool(name: str) -> str:
        beside = Path(sys.executable).parent / name
        found = str(beside) if beside.is_file() else shutil.which(name)
        if found is None:
            raise InputError(f"{name} is not on the path: install it with: pip install 'eckart[federated]'")
        return found

    def _wait_for_port(self, name: str, port: int, seconds: float = 120.0) -> None:
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline and self.processes[name].poll() is None:
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", port)) == 0:
                    return
            time.sleep(POLL_SECONDS)
        raise RuntimeError(f"{name} did not start: see {self.home / 'logs' / f'{name}.log'}")


def _signal_group(process: subprocess.Popen[bytes], sign: int) -> None:
    with suppress(ProcessLookupError):
        os.killpg(process.pid, sign)


def processes_of(home: Path) -> list[int]:
    """Processes that run for a directory of Flower's, whoever started them: its own start others in sessions of their
    own, which outlive it when it is killed. Known by their environment (Linux)."""
    mark, found = f"FLWR_HOME={home}".encode(), []
    for place in Path("/proc").glob("[0-9]*/environ"):
        try:
            entries = place.read_bytes().split(b"\0")
            state = (place.parent / "stat").read_text().rpartition(")")[2].split()[0]
        except OSError:
            continue
        inside = any(entry == mark or entry.startswith(mark + b"/") for entry in entries)
        if inside and state not in "ZX" and int(place.parent.name) != os.getpid():
            found.append(int(place.parent.name))
    return found


def end_leftovers(home: Path) -> None:
    """End all processes of a directory of Flower's, such as those of a run that was killed."""
    deadline = time.monotonic() + 30
    while (pids := processes_of(home)) and time.monotonic() < deadline:
        for pid in pids:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        time.sleep(POLL_SECONDS)


def check_port(port: int) -> None:
    """Refuse a port that something listens on.

    Raises:
        InputError: it is in use or may not be used.
    """
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except (OSError, OverflowError) as error:
            raise InputError(
                f"port is {port}: {getattr(error, 'strerror', None) or error}; choose another"
            ) from None


def free_port() -> int:
    """A port that nothing listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _rows(directory: Path) -> list[dict[str, Any]]:
    import csv

    path = directory / "rounds.csv"
    if not path.is_file():
        return []
    with open(path, encoding="utf-8", newline="") as file:
        return [
            {key: float(value) if value else None for key, value in row.items()}
            for row in csv.DictReader(file)
        ]


@contextmanager
def federation(directory: Path, **options: Any) -> Iterator[Federation]:
    """A `Federation` whose processes end with the block."""
    made = Federation(directory, **options)
    try:
        yield made
    finally:
        made.stop()


def run_processes(
    plan: Plan,
    directory: Path,
    *,
    deadline: float,
    port: int,
    tls: bool,
    on_round: Callable[[dict[str, Any], int], None] | None = None,
) -> dict[str, Any]:
    """Run the plan of a directory to its end; see `Federation`.

    Returns:
        what metrics.json holds.
    """
    (directory / results.METRICS).unlink(missing_ok=True)
    with federation(directory, port=port, deadline=deadline, tls=tls) as made:
        made.start_server()
        for client in range(plan.clients):
            made.start_client(client)
        made.submit()
        return made.wait(on_round, plan.rounds)
