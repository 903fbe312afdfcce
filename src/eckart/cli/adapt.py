"""`eckart adapt`: one method, fine-tuned."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import Annotated, Any, Literal

import typer

from eckart.arguments import check_least, check_pattern, check_positive, check_seed
from eckart.cli.checks import check_method
from eckart.cli.command import Answer
from eckart.cli.console import progress, scores, tell_task
from eckart.cli.options import (
    BATCH,
    METHOD,
    OUTPUT,
    TRAINING,
    Data,
    Model,
    Optimizer,
    OptimizerOption,
    Output,
    Overwrite,
    Targets,
    adapters,
    choices,
    flag,
    option,
)
from eckart.cli.task import TaskArguments
from eckart.cli.words import count_or_auto, fields, options, targets
from eckart.compression._criteria import CRITERIA
from eckart.jobs.adapt.checks import RUN, check_outcome, earlier_run, refuse_taken
from eckart.jobs.adapt.loram_options import pruning
from eckart.jobs.adapt.reports import REPORTS
from eckart.tasks.optimizers import check_optimizer
from eckart.tasks.options import check_alone


def adapt(
    output: Output,
    task: TaskArguments,
    model: Model = None,
    data: Data = None,
    method: Annotated[
        str,
        option(
            "NAME",
            "Slug or alias of a method: see `eckart methods --family adapters`.",
            METHOD,
            autocompletion=choices(adapters),
        ),
    ] = "lora",
    budget: Annotated[
        str | None,
        option(
            "SIZE",
            "0.5% of the model, 200k or 1.5M numbers, 1MB saved; 0.5% when nothing else sets the size.",
            METHOD,
        ),
    ] = None,
    option_: Annotated[
        list[str] | None,
        option(
            "NAME=VALUE", "A further option of the method, such as r=8; may be repeated.", METHOD, "--option"
        ),
    ] = None,
    target_modules: Targets = None,
    steps: Annotated[int, option("N", "Optimiser steps.", TRAINING)] = 400,
    batch_size: Annotated[str, BATCH] = "16",
    lr: Annotated[
        float | None,
        option("RATE", "Learning rate of the adapters; what suits the method when left out.", TRAINING),
    ] = None,
    head_lr: Annotated[float | None, option("RATE", "Learning rate of the task's head.", TRAINING)] = None,
    optimizer: Optimizer = "adamw",
    optimizer_option: OptimizerOption = None,
    seed: Annotated[int, option("N", "Of the data order, the head, the adapters and dropout.", TRAINING)] = 0,
    max_length: Annotated[int, option("N", "Tokens of an example at most.", TRAINING)] = 128,
    save_every: Annotated[
        int | None, option("N", "Steps between checkpoints; a tenth of all when left out.", OUTPUT)
    ] = None,
    validate_every: Annotated[
        int | None, option("N", "Steps between scores on the validation split; likewise.", OUTPUT)
    ] = None,
    keep: Annotated[
        Literal["last", "best"],
        typer.Option(
            help="The weights as they are at the end, or at the best score on the validation split.",
            rich_help_panel=OUTPUT,
        ),
    ] = "last",
    patience: Annotated[
        int | None,
        option("N", "End the run after so many scores without a better one; never when left out.", TRAINING),
    ] = None,
    loram: Annotated[
        float | None,
        option("RATIO", "Train on a base with this share pruned, write the adapter of the whole.", METHOD),
    ] = None,
    loram_criterion: Annotated[
        str, option("NAME", f"Pruned by {', '.join(CRITERIA)}.", METHOD)
    ] = "magnitude",
    loram_align: Annotated[
        int, option("N", "Steps in which all of the pruned base is trained first.", METHOD)
    ] = 0,
    loram_int8: Annotated[
        bool, flag("--loram-int8", help="Keep the pruned base in eight bits.", panel=METHOD)
    ] = False,
    report_to: Annotated[
        str | None, option("NAMES", f"Show the curves in {', '.join(REPORTS)}, with commas.", OUTPUT)
    ] = None,
    push_to_hub: Annotated[
        str | None, option("NAME", "Upload the finished adapter to this repository of the hub.", OUTPUT)
    ] = None,
    resume: Annotated[
        bool,
        flag("--resume", help="Go on with the run that the output directory holds.", panel=OUTPUT),
    ] = False,
    overwrite: Overwrite = False,
) -> Answer:
    """Fine-tune one method: checkpoints on the way, and at the end an adapter with its numbers and a model card.

    Example: `eckart adapt --model path/to/model --data reviews.csv --method svfit --budget 0.5% --output adapter`
    """
    from eckart.data.read import check_source
    from eckart.tasks.pretrained import find_model

    given, of_optimizer, said = options(option_), options(optimizer_option), task.given()
    form = fields(task.sep, task.columns, task.encoding)
    size = count_or_auto("--batch-size", batch_size)
    check_least(1, steps=steps, save_every=save_every, validate_every=validate_every)
    check_positive(lr=lr, head_lr=head_lr)
    check_least(1, max_length=max_length)
    check_seed(seed)
    check_pattern("--target-modules", target_modules)
    check_optimizer(optimizer)
    refuse_taken(given)
    check_method(method, given, budget)
    pruned = pruning(loram, loram_criterion, loram_align, loram_int8, method)
    reports = check_outcome(keep, patience, report_to, push_to_hub)
    earlier_run(output, resume=resume, overwrite=overwrite, inputs={"--model": model, "--data": data})
    if task.task is not None:
        check_alone(task.task, model=model, data=data)
    elif model is not None or data is None:  # else the data tell which one is meant
        find_model(model, task.kind)
    check_source(data, form)

    from eckart.jobs.adapt.finetuning import finetune

    try:
        with progress("training", off_terminal=True) as on_step:
            metrics = finetune(
                model,
                data,
                method,
                output=output,
                budget=budget,
                options=given,
                target_modules=targets(target_modules),
                steps=steps,
                batch_size=size or 16,
                lr=lr,
                head_lr=head_lr,
                optimizer=optimizer,
                optimizer_options=of_optimizer,
                seed=seed,
                save_every=save_every,
                validate_every=validate_every,
                keep=keep,
                patience=patience,
                loram=pruned,
                report_to=reports,
                push_to_hub=push_to_hub,
                resume=resume,
                overwrite=overwrite,
                on_task=tell_task,
                on_step=on_step,
                **said,
                max_length=max_length,
            )
    except KeyboardInterrupt:
        if (output / RUN).is_file():
            print("eckart: go on with the same command and --resume", file=sys.stderr)
        raise
    rows = scores("split", metrics["metric"], {split: metrics[split] for split in ("validation", "test")})
    pushed = f" Uploaded to {push_to_hub}." if push_to_hub else ""
    told = (
        f"{_ended(metrics)}{metrics['method']}: {metrics['trainable_parameters']:,} numbers trained in adapters, "
        f"{metrics['head_parameters']:,} in the head. Written: {output}{pushed}"
    )
    if forgetting := metrics.get("forgetting"):
        told += (
            f"\nForgetting: {forgetting['bits_per_token']:+.4f} bits a token of {forgetting['text']} "
            f"({forgetting['before']:.4f} before, {forgetting['after']:.4f} after)"
        )
    return Answer(metrics, (rows, told))


def _ended(metrics: Mapping[str, Any]) -> str:
    """What is said of a run that was ended early, or whose last weights are not those that are kept."""
    last = metrics.get("last_step", metrics["steps"])
    kept = metrics.get("kept_step", last)
    told = f"Ended at step {last:,} of {metrics['steps']:,}. " if last < metrics["steps"] else ""
    return told + (f"Kept: the weights of step {kept:,}. " if kept != last else "")
