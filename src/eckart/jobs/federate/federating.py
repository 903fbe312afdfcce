"""`eckart federate`: fine-tune one LoRA over many clients, on this machine or over a network; a killed run goes on."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

from eckart.errors import InputError
from eckart.extras import require
from eckart.files import atomic_write, check_output
from eckart.jobs.federate import PEFT_LORA, results
from eckart.jobs.federate.plan import Plan
from eckart.jobs.federate.processes import HOME, check_port, end_leftovers, run_processes
from eckart.jobs.federate.results import RUN

Backend = Literal["simulation", "processes"]


def federate(
    model: str | None = None,
    data: str | None = None,
    strategy: str = "lora-fair",
    *,
    output: str | Path,
    options: Mapping[str, Any] | None = None,
    method: str = PEFT_LORA,
    method_options: Mapping[str, Any] | None = None,
    clients: int = 20,
    fraction: float = 0.3,
    min_clients: int = 2,
    rounds: int = 10,
    partition: str = "dirichlet:0.3",
    ranks: Sequence[int] = (8,),
    lora_alpha: float = 16.0,
    target_modules: str | list[str] | None = None,
    local_epochs: int = 1,
    batch_size: int = 16,
    lr: float = 1e-3,
    head_lr: float = 5e-3,
    robust: str | None = None,
    malicious: int = 0,
    clip: float | None = None,
    noise: float = 0.0,
    delta: float | None = None,
    norm_ratio: float = 20.0,
    seed: int = 0,
    backend: Backend = "simulation",
    workers: int | None = None,
    deadline: float = 600.0,
    port: int = 8000,
    tls: bool = False,
    overwrite: bool = False,
    on_round: Callable[[dict[str, Any], int], None] | None = None,
    **task_options: Any,
) -> dict[str, Any]:
    """Fine-tune LoRA over clients and write the adapter, its numbers and a table of the rounds.

    Each round a share of the clients get the server's factors, train them on their own examples and send them back;
    the strategy makes one update of them. Started again with the same ``output``, a run that was killed goes on from
    its last finished round and ends in the same numbers; a finished one can be made longer by more ``rounds``.

    Args:
        model: model directory or hub name; None for the built-in MiniLM.
        data: file, directory or hub name; None for Python's own docstrings.
        strategy: slug, see `eckart.methods("federated")`.
        output: directory of the run.
        options: the strategy's own options.
        method: the adapter that clients train: PEFT's own LoRA, or one of eckart's that is a product of two factors.
        method_options: its own options, such as ``use_rslora``.
        clients: how many there are.
        fraction: share of them that trains in a round.
        min_clients: fewest updates that make a round.
        rounds: how many in all.
        partition: who holds what: iid, dirichlet:ALPHA, groups or contiguous (see `eckart.federated.partition`).
        ranks: of client k it is ``ranks[k % len(ranks)]``.
        lora_alpha: α at the highest rank; the scaling α/r is the same everywhere.
        target_modules: layers to adapt; every linear layer when None.
        local_epochs: passes of a client over its examples in a round.
        batch_size: examples a step.
        lr: learning rate of the factors, constant.
        head_lr: learning rate of the head.
        robust: "krum", "multi-krum", "median", "trimmed-mean" or "bulyan".
        malicious: how many bad updates a round that must stand.
        clip: differential privacy: largest norm of an update.
        noise: its noise multiplier.
        delta: its δ, to account for ε.
        norm_ratio: refuse updates above this multiple of the round's median norm.
        seed: of everything that is drawn.
        backend: "simulation" on this machine, or "processes": a SuperLink and SuperNodes on loopback.
        workers: processes of the simulation; one a core when None.
        deadline: seconds that a round waits for replies, and for clients to be there.
        port: of the SuperLink, with "processes".
        tls: encrypt with a certificate made for the run, with "processes".
        overwrite: begin anew in a directory that holds a run.
        on_round: called with each round's row and the number of rounds.
        task_options: passed to `load_task`, such as ``kind``, ``text_column``, ``max_length``, ``limits``.

    Returns:
        What metrics.json holds.

    Raises:
        InputError: anything wrong with what was given, no flwr, too few clients.
    """
    if backend not in ("simulation", "processes"):
        raise InputError(f"backend is {backend!r}: choose simulation or processes")
    if not deadline > 0:
        raise InputError(f"deadline is {deadline}: give seconds above 0")
    directory = Path(output)
    plan = Plan(
        model=model,
        data=data,
        task={name: value for name, value in task_options.items() if value is not None},
        fingerprint="",
        strategy=strategy.strip().lower().replace("_", "-"),
        options=dict(options or {}),
        clients=clients,
        fraction=fraction,
        min_clients=min_clients,
        rounds=rounds,
        partition=partition,
        ranks=list(ranks),
        lora_alpha=lora_alpha,
        target_modules=target_modules or [],
        local_epochs=local_epochs,
        batch_size=batch_size,
        lr=lr,
        head_lr=head_lr,
        robust=robust,
        malicious=malicious,
        clip=clip,
        noise=noise,
        delta=delta,
        norm_ratio=norm_ratio,
        seed=seed,
        method=method.strip().lower().replace("_", "-"),
        method_options=dict(method_options or {}),
    )
    plan.check()
    if not (directory / RUN).is_file() or overwrite:
        check_output(directory, overwrite=overwrite)
    if backend == "processes":
        end_leftovers(directory.absolute() / HOME)
        check_port(port)
    require("flwr", extra="federated")
    return _run(plan, directory, backend, workers, deadline, port, tls, overwrite, on_round)


def _run(
    plan: Plan,
    directory: Path,
    backend: Backend,
    workers: int | None,
    deadline: float,
    port: int,
    tls: bool,
    overwrite: bool,
    on_round: Callable[[dict[str, Any], int], None] | None,
) -> dict[str, Any]:
    from eckart.federated.flower import check_ranks
    from eckart.jobs.federate import lora
    from eckart.jobs.federate.local import check_method
    from eckart.jobs.federate.server import begin, combination_of
    from eckart.tasks.task import load_task

    check_ranks(plan.rule(), plan.ranks)
    combination_of(plan)
    task = load_task(plan.model, plan.data, seed=plan.seed, **plan.task)
    plan = replace(
        plan,
        fingerprint=task.fingerprint,
        target_modules=plan.target_modules or lora.linear_layers(task),
    )
    plan.split(task)
    check_method(task, plan, begin(task, plan).shapes)
    run = directory / RUN
    if run.is_file() and not overwrite:
        plan.check_same(Plan.from_json(run.read_text(encoding="utf-8")))
        if (done := results.check_length(directory, plan)) is not None:
            return done
    else:
        results.clear(directory)
    (directory / results.FAILURE).unlink(missing_ok=True)
    with atomic_write(run) as file:
        file.write_text(plan.to_json() + "\n", encoding="utf-8")
    if backend == "simulation":
        from eckart.jobs.federate.simulation import simulate

        return simulate(plan, task, directory, deadline=deadline, workers=workers, on_round=on_round)
    return run_processes(plan, directory, deadline=deadline, port=port, tls=tls, on_round=on_round)
