"""All clients on this machine, by Flower's simulation engine (Ray): one process a core, clients taking turns."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from eckart.extras import require
from eckart.jobs.federate.plan import Plan

if TYPE_CHECKING:
    from eckart.tasks.task import Task

OFFLINE = {"FLWR_TELEMETRY_ENABLED": "0", "RAY_USAGE_STATS_ENABLED": "0", "RAY_DEDUP_LOGS": "0"}
"""Nothing is reported to anybody."""
RESTARTS: dict[str, Any] = {"max_restarts": -1, "max_task_retries": 1}
"""Of Ray's workers: one that dies is started anew and its client asked once more. Flower leaves a dead one in its pool,
where it is the first to be free, so that every client after it would fail."""


def simulate(
    plan: Plan,
    task: Task,
    directory: Path,
    *,
    deadline: float,
    workers: int | None = None,
    on_round: Callable[[dict[str, Any], int], None] | None = None,
) -> dict[str, Any]:
    """Run the plan of a directory to its end.

    Args:
        plan: the run.
        task: loaded.
        directory: of the run.
        deadline: seconds that a round waits for replies.
        workers: processes that clients take turns in; one a core when None.
        on_round: see `serve`.

    Returns:
        what metrics.json holds.
    """
    os.environ.update(OFFLINE)
    require("ray", extra="federated")
    from flwr.app import Context
    from flwr.serverapp import Grid, ServerApp
    from flwr.simulation import run_simulation

    from eckart.jobs.federate.client import app as client
    from eckart.jobs.federate.server import serve

    logging.getLogger("flwr").setLevel(logging.ERROR)
    server, made = ServerApp(), []

    @server.main()
    def main(grid: Grid, context: Context) -> None:
        made.append(serve(grid, directory, deadline=deadline, task=task, on_round=on_round))

    cores = min(workers or os.cpu_count() or 1, plan.clients)
    path = os.environ.get("PYTHONPATH")
    try:
        run_simulation(
            server,
            client,
            plan.clients,
            backend_config={
                "client_resources": {"num_cpus": 1, "num_gpus": 0.0, **RESTARTS},
                "init_args": {"num_cpus": cores, "log_to_driver": False, "logging_level": logging.ERROR},
            },
        )
    finally:
        if path is None:  # Flower leaves its own there
            os.environ.pop("PYTHONPATH", None)
        else:
            os.environ["PYTHONPATH"] = path
    return made[0]
