"""`eckart compress`: reads its options and calls one function of `eckart.jobs.compress.compressing`."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from eckart.cli.console import progress, show, show_json, table
from eckart.cli.options import Config, Debug, Json, Overwrite, limits
from eckart.cli.options import options as parse_options


def compress(
    output: Annotated[Path, typer.Option(metavar="DIR", help="Directory to write.")],
    model: Annotated[
        str | None,
        typer.Option(metavar="MODEL", help="Model directory or hub name; the built-in MiniLM when left out."),
    ] = None,
    data: Annotated[
        str | None,
        typer.Option(
            metavar="DATA",
            help="Text for calibration, healing and scores; Python's own docstrings when left out.",
        ),
    ] = None,
    method: Annotated[
        str, typer.Option(help="Slug of a method: see `eckart methods --family compression`.")
    ] = "lord",
    ratio: Annotated[
        float | None, typer.Option(help="Share of the linear layers' parameters to remove, such as 0.2.")
    ] = None,
    budget: Annotated[
        str | None, typer.Option(help="Instead, the size of the whole model: 70%, 95M numbers, 180MB.")
    ] = None,
    option: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME=VALUE", help="A further option of the method; may be repeated."),
    ] = None,
    calibration: Annotated[
        int, typer.Option(help="Training examples, or blocks of text, that the statistics see.")
    ] = 128,
    sequential: Annotated[
        bool, typer.Option("--sequential", help="Statistics from the compressed blocks before each block.")
    ] = False,
    heal: Annotated[int, typer.Option(help="Training steps afterwards.")] = 0,
    heal_method: Annotated[
        str, typer.Option(help="factors, or the slug of an adapter that is trained and merged.")
    ] = "factors",
    heal_lr: Annotated[
        float | None, typer.Option(help="Learning rate of healing; what suits the method when left out.")
    ] = None,
    batch_size: Annotated[int, typer.Option(help="Examples a step.")] = 8,
    seed: Annotated[int, typer.Option(help="Of the data order, the head and the adapters.")] = 0,
    max_length: Annotated[int, typer.Option(help="Tokens of an example at most.")] = 128,
    kind: Annotated[
        str,
        typer.Option(help="text-classification, causal-lm, image-classification, or auto: as the data says."),
    ] = "auto",
    text_column: Annotated[
        str | None, typer.Option(metavar="NAME", help="Column of the text, where the data has columns.")
    ] = None,
    label_column: Annotated[str | None, typer.Option(metavar="NAME", help="Column of the label.")] = None,
    limit: Annotated[
        list[str] | None,
        typer.Option(metavar="SPLIT=N", help="Use at most N examples of a split; may be repeated."),
    ] = None,
    merge: Annotated[
        bool,
        typer.Option("--merge", help="Write an ordinary dense model, for tools that know nothing of us."),
    ] = False,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on after the last finished block of the same command.")
    ] = False,
    overwrite: Overwrite = False,
    json_: Json = False,
    config: Config = None,
    debug: Debug = False,
) -> None:
    """Make a model smaller: factorised or sliced layers that `from_pretrained` loads after `import eckart`.

    Example: `eckart compress --model path/to/model --data texts.txt --method modegpt --ratio 0.2 --output small`
    """
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
                options=parse_options(option),
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
                on_block=on_block,
                on_step=on_step,
                kind=kind,
                text_column=text_column,
                label_column=label_column,
                max_length=max_length,
                limits=limits(limit),
            )
    except KeyboardInterrupt:
        if partial.is_dir():
            print("eckart: go on with the same command and --resume", file=sys.stderr)
        raise
    if json_:
        show_json(metrics)
        return
    rows = table("model", metrics["metric"].replace("_", " "), "95% interval")
    for state, scored in metrics["test"].items():
        rows.add_row(state, f"{scored['score']:.4f}", f"{scored['ci_low']:.4f} to {scored['ci_high']:.4f}")
    show(rows)
    print(
        f"{metrics['method']}: {metrics['removed']:.1%} of the compressed layers removed, "
        f"{metrics['parameters_before']:,} → {metrics['parameters_after']:,} numbers. Written: {output}"
    )
