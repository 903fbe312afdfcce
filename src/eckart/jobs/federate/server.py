"""The server: Flower's app, and the run that it drives round by round."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

from flwr.app import ConfigRecord, Context
from flwr.serverapp import Grid, ServerApp

from eckart.errors import InputError
from eckart.federated.flower import LoRAStrategy, RoundReport, StreamingGrid
from eckart.federated.robust import Private, check_robust, combination
from eckart.federated.rounds import Combine
from eckart.federated.state import ServerState
from eckart.jobs.federate import lora, results
from eckart.jobs.federate.plan import Plan
from eckart.tasks.instruments import device
from eckart.tasks.scoring import evaluate
from eckart.tasks.task import Task, load_task

app = ServerApp()


@app.main()
def main(grid: Grid, context: Context) -> None:
    """Drive the run whose directory the run config names; leaves word there if it fails."""
    directory = Path(str(context.run_config["output"]))
    try:
        serve(grid, directory, deadline=float(context.run_config["deadline"]))
    except BaseException as error:
        results.fail(directory, error)
        raise


def serve(
    grid: Grid,
    directory: Path,
    *,
    deadline: float,
    task: Task | None = None,
    on_round: Callable[[dict[str, Any], int], None] | None = None,
) -> dict[str, Any]:
    """Run or go on with a federation and finish it.

    Args:
        grid: Flower's.
        directory: of the run; holds run.json.
        deadline: seconds that a round waits for replies, and for clients to be there.
        task: the plan's, where it is loaded already.
        on_round: called with the row of each round and the number of rounds.

    Returns:
        what metrics.json holds.

    Raises:
        InputError: too few clients; a checkpoint of another strategy.
    """
    plan = Plan.from_json((directory / results.RUN).read_text(encoding="utf-8"))
    task = task or load_task(plan.model, plan.data, seed=plan.seed, **plan.task)
    if task.fingerprint != plan.fingerprint:
        raise InputError("the model or data changed since the run began: begin again with --overwrite")
    kept = results.last_kept(directory, plan)
    state, tables, spent = kept or (begin(task, plan), results.Tables(), None)
    combine = combination_of(plan)
    if isinstance(combine, Private):
        combine.restore(spent)
    title = f"{plan.rule().title}: {plan.clients} clients, {task.data_name}"
    strategy = LoRAStrategy(
        plan.rule(),
        state,
        population=plan.clients,
        ranks=plan.ranks,
        fraction=plan.fraction,
        min_clients=plan.min_clients,
        seed=plan.seed,
        timeout=deadline,
        combine=combine,
        norm_ratio=plan.norm_ratio,
    )

    def after(report: RoundReport) -> None:
        epsilon, spent = (combine.epsilon, combine.spent()) if isinstance(combine, Private) else (None, None)
        model = lora.server_model(task, strategy.state, plan.seed).to(device())
        tables.add(report, evaluate(model, task, task.validation, 64), epsilon)
        results.keep(directory, strategy.state, plan, tables, spent)
        tables.write(directory, title, task.metric)
        if on_round is not None:
            on_round(tables.rounds[-1], plan.rounds)

    strategy.on_round = after
    tables.write(directory, title, task.metric)
    if (left := plan.rounds - state.round) > 0:
        logging.getLogger("flwr").setLevel(logging.WARNING)
        config = ConfigRecord({"plan": plan.to_json()})
        strategy.start(StreamingGrid(grid), strategy.arrays(), left, deadline, config)
    return results.finish(directory, task, strategy.state, plan, tables)


def begin(task: Task, plan: Plan) -> ServerState:
    """The model before the first round."""
    model = lora.with_lora(task, plan.target_modules, max(plan.ranks), plan.scaling, plan.seed)
    shapes, head = lora.shapes_and_head(model)
    return ServerState.begin(shapes, head, max(plan.ranks), plan.scaling, plan.seed)


def combination_of(plan: Plan) -> Combine | None:
    """What is put before the strategy; None for nothing.

    Raises:
        InputError: a rule that the strategy or the number of clients cannot carry.
    """
    if plan.clip is not None:
        return Private(
            plan.rule(),
            clip=plan.clip,
            noise=plan.noise,
            clients=plan.asked,
            population=plan.clients,
            delta=plan.delta,
        )
    if plan.robust is not None:
        if len(set(plan.ranks)) > 1:
            raise InputError(
                f"robust is {plan.robust!r}: it compares updates, which ranks {plan.ranks} make unequal"
            )
        check_robust(plan.robust, plan.malicious, plan.rule(), plan.asked)
        return combination(plan.robust, plan.malicious)
    return None
