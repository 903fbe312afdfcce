"""`eckart compress`: a pretrained model, made smaller."""

from __future__ import annotations

import sys
from typing import Annotated

from eckart.cli.command import Answer
from eckart.cli.console import progress, scores, tell_task
from eckart.cli.options import (
    METHOD,
    OUTPUT,
    TRAINING,
    Columns,
    Data,
    Encoding,
    Kind,
    LabelColumn,
    Limit,
    Model,
    Output,
    Overwrite,
    Sep,
    TextColumn,
    flag,
    option,
)
from eckart.cli.words import fields, limits, options


def compress(
    output: Output,
    model: Model = None,
    data: Data = None,
    method: Annotated[
        str, option("NAME", "Slug of a method: see `eckart methods --family compression`.", METHOD)
    ] = "lord",
    ratio: Annotated[
        float | None,
        option("SHARE", "Share of the linear layers' parameters to remove, such as 0.2.", METHOD),
    ] = None,
    budget: Annotated[
        str | None, option("SIZE", "Instead, the size of the whole model: 70%, 95M numbers, 180MB.", METHOD)
    ] = None,
    option_: Annotated[
        list[str] | None,
        option("NAME=VALUE", "A further option of the method; may be repeated.", METHOD, "--option"),
    ] = None,
    calibration: Annotated[
        int, option("N", "Training examples, or blocks of text, that the statistics see.", METHOD)
    ] = 128,
    sequential: Annotated[
        bool,
        flag("--sequential", help="Statistics from the compressed blocks before each block.", panel=METHOD),
    ] = False,
    heal: Annotated[int, option("N", "Training steps afterwards.", TRAINING)] = 0,
    heal_method: Annotated[
        str, option("NAME", "factors, or the slug of an adapter that is trained and merged.", TRAINING)
    ] = "factors",
    heal_lr: Annotated[
        float | None,
        option("RATE", "Learning rate of healing; what suits the method when left out.", TRAINING),
    ] = None,
    batch_size: Annotated[int, option("N", "Examples a step.", TRAINING)] = 8,
    seed: Annotated[int, option("N", "Of the data order, the head and the adapters.", TRAINING)] = 0,
    max_length: Annotated[int, option("N", "Tokens of an example at most.", TRAINING)] = 128,
    kind: Kind = "auto",
    text_column: TextColumn = None,
    label_column: LabelColumn = None,
    sep: Sep = None,
    columns: Columns = None,
    encoding: Encoding = "utf-8",
    limit: Limit = None,
    merge: Annotated[
        bool,
        flag(
            "--merge", help="Write an ordinary dense model, for tools that know nothing of us.", panel=OUTPUT
        ),
    ] = False,
    resume: Annotated[
        bool,
        flag("--resume", help="Go on after the last finished block of the same command.", panel=OUTPUT),
    ] = False,
    overwrite: Overwrite = False,
) -> Answer:
    """Make a model smaller: factorised or sliced layers that `from_pretrained` loads after `import eckart`.

    Example: `eckart compress --model path/to/model --data texts.txt --method modegpt --ratio 0.2 --output small`
    """
    given, most, form = options(option_), limits(limit), fields(sep, columns, encoding)

    from eckart.jobs.compress.compressing import compress_model

    partial = output.with_name(f"{output.name}.partial")
    try:
        with progress("compressing") as on_block, progress("healing") as on_step:
            metrics = compress_model(
                model,
                data,
                method,
                output=output,
                ratio=ratio,
                budget=budget,
                options=given,
                calibration=calibration,
                sequential=sequential,
                heal=heal,
                heal_method=heal_method,
                heal_lr=heal_lr,
                batch_size=batch_size,
                seed=seed,
                merge=merge,
                resume=resume,
                overwrite=overwrite,
                on_task=tell_task,
                on_block=on_block,
                on_step=on_step,
                kind=kind,
                text_column=text_column,
                label_column=label_column,
                **form,
                max_length=max_length,
                limits=most,
            )
    except KeyboardInterrupt:
        if partial.is_dir():
            print("eckart: go on with the same command and --resume", file=sys.stderr)
        raise
    rows = scores("model", metrics["metric"], metrics["test"])
    told = (
        f"{metrics['method']}: {metrics['removed']:.1%} of the compressed layers removed, "
        f"{metrics['parameters_before']:,} → {metrics['parameters_after']:,} numbers. Written: {output}"
    )
    return Answer(metrics, (rows, told))
