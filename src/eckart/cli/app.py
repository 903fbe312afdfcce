"""The command line: every command reads its options and calls one public function."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, cast

import typer

from eckart import __version__
from eckart.cli.console import fail, progress, quiet, show, show_json, table
from eckart.cli.options import Config, Debug, Json, Overwrite, layers, limits, options, rates, targets
from eckart.cli.recover import recover
from eckart.errors import InputError

OK, FAILED, BAD_INPUT, INTERRUPTED = 0, 1, 2, 130
UsageError = cast(type[typer.BadParameter], typer.BadParameter.__mro__[1])

app = typer.Typer(
    name="eckart",
    help="Every way of using low-rank and structured weights, and the evidence which one is best for you.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode="markdown",
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.add_typer(recover)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code: 0, 2 for bad usage or input, 1 for a failure, 130 for an interrupt.

    Args:
        arguments: the words after ``eckart``; those of this process when None.
    """
    words = sys.argv[1:] if arguments is None else list(arguments)
    debug = "--debug" in words
    try:
        with quiet(debug):
            code = app(words, prog_name="eckart", standalone_mode=False)
    except (KeyboardInterrupt, typer.Abort):
        code = INTERRUPTED
    except InputError as error:
        fail(error, str(error), debug=debug)
        return BAD_INPUT
    except UsageError as error:
        if message := error.format_message().strip():  # without a command the help was printed instead
            fail(error, message, debug=debug)
        return BAD_INPUT
    except Exception as error:
        fail(error, f"{type(error).__name__}: {error}", debug=debug)
        return FAILED
    if code == INTERRUPTED:
        print("eckart: interrupted", file=sys.stderr)
    return code if isinstance(code, int) else OK


def _print_version(wanted: bool) -> None:
    if wanted:
        print(f"eckart {__version__}")
        raise typer.Exit()


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", help="Print the version.", callback=_print_version, is_eager=True)
    ] = False,
) -> None:
    pass


Output = Annotated[Path, typer.Option(metavar="DIR", help="Directory to write.")]
Model = Annotated[
    str | None,
    typer.Option(metavar="MODEL", help="Model directory or hub name; the built-in MiniLM when left out."),
]
Data = Annotated[
    str | None,
    typer.Option(
        metavar="DATA",
        help="File, directory or hub name; Python's own docstrings, by package, when left out.",
    ),
]
Kind = Annotated[
    str, typer.Option(help="text-classification, causal-lm, image-classification, or auto: as the data says.")
]
TextColumn = Annotated[
    str | None, typer.Option(metavar="NAME", help="Column of the text, where the data has columns.")
]
LabelColumn = Annotated[str | None, typer.Option(metavar="NAME", help="Column of the label.")]
Limit = Annotated[
    list[str] | None,
    typer.Option(metavar="SPLIT=N", help="Use at most N examples of a split; may be repeated."),
]
Targets = Annotated[
    str | None,
    typer.Option(
        metavar="NAMES", help="Layers to adapt: names with commas, a regular expression, or all-linear."
    ),
]
Base = Annotated[
    str | None,
    typer.Option(
        "--model", metavar="BASE", help="The base model; the one that the adapter names when left out."
    ),
]
Checkpoint = Annotated[str, typer.Argument(metavar="ADAPTER", help="Directory of the adapter.")]


@app.command()
def compare(
    model: Model = None,
    data: Data = None,
    methods: Annotated[
        str,
        typer.Option(
            help="all, or names with commas. Head only, full fine-tuning and LoRA are always there."
        ),
    ] = "all",
    budget: Annotated[
        str, typer.Option(help="For every method: 0.5% of the model, 200k or 1.5M numbers, 1MB saved.")
    ] = "0.5%",
    steps: Annotated[
        int | None, typer.Option(help="Steps of a final run; a tuning run has half as many.")
    ] = None,
    seeds: Annotated[int | None, typer.Option(help="Final runs of each method.")] = None,
    lr: Annotated[
        list[str] | None,
        typer.Option(
            metavar="RATES",
            help="Learning rates to try, 1e-4,3e-4,1e-3 for every adapter or NAME=1e-4,… for one method (repeated).",
        ),
    ] = None,
    batch_size: Annotated[int | None, typer.Option(help="Examples a step.")] = None,
    max_length: Annotated[int | None, typer.Option(help="Tokens of an example at most.")] = None,
    target_modules: Targets = None,
    kind: Kind = "auto",
    text_column: TextColumn = None,
    label_column: LabelColumn = None,
    limit: Limit = None,
    output: Annotated[Path, typer.Option(metavar="DIR", help="Directory of the results.")] = Path(
        "eckart-compare"
    ),
    storage: Annotated[
        str | None,
        typer.Option(metavar="URL", help="Database that machines share; start the same command on each."),
    ] = None,
    timeout: Annotated[
        float | None, typer.Option(help="Seconds after which no further run is begun.")
    ] = None,
    quick: Annotated[
        bool, typer.Option("--quick", help="A first impression: few steps, one learning rate, one seed.")
    ] = False,
    overwrite: Overwrite = False,
    json_: Json = False,
    config: Config = None,
    debug: Debug = False,
) -> None:
    """Train every method at one budget on the same data, tuned alike, and report which is best. Resumes when repeated.

    Example: `eckart compare --model path/to/model --data reviews.csv --methods lora,svfit,bone --budget 0.5%`
    """
    import eckart
    from eckart.jobs.compare.advice import QUANTITIES, advice, leaderboard, metric_of

    results = eckart.compare(
        model,
        data,
        methods=methods,
        budget=budget,
        steps=steps,
        seeds=seeds,
        learning_rates=rates(lr),
        batch_size=batch_size,
        max_length=max_length,
        target_modules=targets(target_modules),
        kind=kind,
        text_column=text_column,
        label_column=label_column,
        limits=limits(limit),
        output=output,
        storage=storage,
        timeout=timeout,
        quick=quick,
        overwrite=overwrite,
    )
    board = leaderboard(results)
    if json_:
        rows = json.loads(board.to_json(orient="records"))
        show_json({"leaderboard": rows, "advice": advice(results), "output": str(output)})
        return
    metric = metric_of(board)
    costs = [
        QUANTITIES[name]
        for name in ("trained_parameters", "saved_bytes", "peak_memory_mb", "step_time_ratio")
    ]
    rows = table(
        "method", metric.name, "95% interval", *(cost.title for cost in costs), "learning rate", "state"
    )
    for row in board.to_dict("records"):
        rows.add_row(
            row["label"],
            metric.show(row["score"]) if row["seeds"] else "-",
            metric.interval(row["ci_low"], row["ci_high"]),
            *(cost.show(row[cost.column]) for cost in costs),
            f"{row['lr']:g}" if row["lr"] == row["lr"] else "-",
            "" if row["state"] == "complete" else row["state"],
        )
    show(rows)
    print(advice(results))
    print(f"Report: {output / 'report.html'}")


@app.command()
def adapt(
    output: Output,
    model: Model = None,
    data: Data = None,
    method: Annotated[
        str, typer.Option(help="Slug or alias of a method: see `eckart methods --family adapters`.")
    ] = "lora",
    budget: Annotated[
        str | None,
        typer.Option(
            help="0.5% of the model, 200k or 1.5M numbers, 1MB saved; 0.5% when nothing else sets the size."
        ),
    ] = None,
    option: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME=VALUE", help="A further option of the method, such as r=8; may be repeated."
        ),
    ] = None,
    target_modules: Targets = None,
    steps: Annotated[int, typer.Option(help="Optimiser steps.")] = 400,
    batch_size: Annotated[int, typer.Option(help="Examples a step.")] = 16,
    lr: Annotated[
        float | None, typer.Option(help="Learning rate of the adapters; what suits the method when left out.")
    ] = None,
    head_lr: Annotated[float | None, typer.Option(help="Learning rate of the task's head.")] = None,
    seed: Annotated[int, typer.Option(help="Of the data order, the head, the adapters and dropout.")] = 0,
    max_length: Annotated[int, typer.Option(help="Tokens of an example at most.")] = 128,
    kind: Kind = "auto",
    text_column: TextColumn = None,
    label_column: LabelColumn = None,
    limit: Limit = None,
    save_every: Annotated[
        int | None, typer.Option(help="Steps between checkpoints; a tenth of all when left out.")
    ] = None,
    validate_every: Annotated[
        int | None, typer.Option(help="Steps between scores on the validation split; likewise.")
    ] = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on with the run that the output directory holds.")
    ] = False,
    overwrite: Overwrite = False,
    json_: Json = False,
    config: Config = None,
    debug: Debug = False,
) -> None:
    """Fine-tune one method: checkpoints on the way, and at the end an adapter with its numbers and a model card.

    Example: `eckart adapt --model path/to/model --data reviews.csv --method svfit --budget 0.5% --output adapter`
    """
    from eckart.jobs.adapt.finetuning import RUN, finetune

    try:
        with progress("training") as on_step:
            metrics = finetune(
                model,
                data,
                method,
                output=output,
                budget=budget,
                options=options(option),
                target_modules=targets(target_modules),
                steps=steps,
                batch_size=batch_size,
                lr=lr,
                head_lr=head_lr,
                seed=seed,
                save_every=save_every,
                validate_every=validate_every,
                resume=resume,
                overwrite=overwrite,
                on_step=on_step,
                kind=kind,
                text_column=text_column,
                label_column=label_column,
                max_length=max_length,
                limits=limits(limit),
            )
    except KeyboardInterrupt:
        if (output / RUN).is_file():
            print("eckart: go on with the same command and --resume", file=sys.stderr)
        raise
    if json_:
        show_json(metrics)
        return
    rows = table("split", metrics["metric"].replace("_", " "), "95% interval")
    for split in ("validation", "test"):
        scored = metrics[split]
        rows.add_row(split, f"{scored['score']:.4f}", f"{scored['ci_low']:.4f} to {scored['ci_high']:.4f}")
    show(rows)
    print(
        f"{metrics['method']}: {metrics['trainable_parameters']:,} numbers trained in adapters, "
        f"{metrics['head_parameters']:,} in the head. Written: {output}"
    )


@app.command()
def methods(
    family: Annotated[
        str | None, typer.Option(help="Only methods of this family: adapters, layers, metrics or recovery.")
    ] = None,
    json_: Json = False,
    config: Config = None,
    debug: Debug = False,
) -> None:
    """List the methods: slug, name, family, source, the option that sets the size, and what a checkpoint holds.

    Example: `eckart methods --family adapters`
    """
    import dataclasses

    import eckart

    known = eckart.methods(family)
    if json_:
        show_json([dataclasses.asdict(method) for method in known])
        return
    rows = table("method", "name", "family", "source", "knob", "saves")
    for m in known:
        rows.add_row(m.slug, m.name, m.family, f"{m.paper} arXiv:{m.arxiv}", m.knob, m.saves)
    show(rows)


@app.command()
def inspect(
    model: Annotated[
        str | None,
        typer.Argument(
            metavar="MODEL", help="Model directory, .safetensors file or hub name; the built-in MiniLM."
        ),
    ] = None,
    energy: Annotated[
        float, typer.Option(help="Share of a weight's squared Frobenius norm that counts as the weight.")
    ] = 0.9,
    output: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="Write spectra.csv, spectra.svg and the singular values here."),
    ] = None,
    overwrite: Overwrite = False,
    json_: Json = False,
    config: Config = None,
    debug: Debug = False,
) -> None:
    """Measure the spectrum of every weight: effective and stable rank, energy, heavy tail, nearly low rank.

    Example: `eckart inspect path/to/model --energy 0.95 --output spectra`
    """
    from eckart.files import check_output
    from eckart.jobs.inspect.inspection import inspect_model

    if output is not None:
        check_output(output, overwrite=overwrite)
    with progress("inspecting") as on_layer:
        inspection = inspect_model(model, energy=energy, on_layer=on_layer)
    if output is not None:
        inspection.save(output, overwrite=overwrite)
    if json_:
        show_json(inspection.to_dict())
        return
    shares = [f"rank {100 * share:g} %" for share in inspection.layers[0].ranks]
    rows = table(
        "weight", "shape", "effective rank", "stable rank", *shares, "tail exponent", "nearly low-rank"
    )
    for layer in inspection.layers:
        row = layer.row()
        rows.add_row(
            layer.name,
            "x".join(map(str, layer.shape)),
            f"{layer.effective_rank:.1f}",
            f"{layer.stable_rank:.1f}",
            *map(str, layer.ranks.values()),
            "-" if row["alpha"] is None else f"{row['alpha']:.2f} ± {row['alpha_error']:.2f}",
            "yes" if layer.nearly_low_rank else "",
        )
    show(rows)
    low = sum(layer.nearly_low_rank for layer in inspection.layers)
    print(
        f"{low} of {len(inspection.layers)} weights are nearly low-rank at {100 * energy:g} % of the energy."
    )
    if inspection.skipped:
        print(f"{len(inspection.skipped)} quantised weights were not read.")
    if output is not None:
        print(f"Written: {output}")


@app.command()
def measure(
    model: Annotated[
        list[str] | None,
        typer.Option(
            metavar="MODEL",
            help="Model directory or hub name; may be repeated. The built-in MiniLM when left out.",
        ),
    ] = None,
    data: Data = None,
    metrics: Annotated[
        str | None,
        typer.Option(
            metavar="NAMES",
            help="With commas, out of matrix_nuclear_norm, matrix_entropy, effective_rank, energy_rank and stable_rank "
            "(these when left out), nuclear_norm and renyi_entropy.",
        ),
    ] = None,
    layers_: Annotated[
        str, typer.Option("--layers", help="all, last, or numbers: 0 the embeddings, -1 the last.")
    ] = "all",
    split: Annotated[str, typer.Option(help="train, validation, test, or all of them.")] = "test",
    text_column: TextColumn = None,
    limit: Annotated[int, typer.Option(help="Texts (or windows) at most.")] = 200,
    max_length: Annotated[int, typer.Option(help="Tokens of a text at most; the length of a window.")] = 256,
    window: Annotated[
        bool,
        typer.Option("--window", help="Join the texts and cut them into windows of exactly that length."),
    ] = False,
    skip_first: Annotated[
        int, typer.Option(help="Tokens at the start of each text that do not count, such as attention sinks.")
    ] = 0,
    batch_size: Annotated[int, typer.Option(help="Texts in memory at a time.")] = 16,
    output: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="Write measure.csv, texts.csv, measure.svg and measure.json here."),
    ] = None,
    overwrite: Overwrite = False,
    json_: Json = False,
    config: Config = None,
    debug: Debug = False,
) -> None:
    """Measure nuclear norm, entropy and ranks of models' hidden states over texts. Resumes when repeated.

    Example: `eckart measure --model path/to/small --model path/to/large --data texts.csv --window --output measured`
    """
    from eckart.jobs.measure.measuring import METRICS, measure

    names = METRICS if metrics is None else [name.strip() for name in metrics.split(",")]
    try:
        with progress("measuring") as on_text:
            measurement = measure(
                model or None,
                data,
                metrics=names,
                layers=layers(layers_),
                text_column=text_column,
                split=split,
                max_length=max_length,
                limit=limit,
                batch_size=batch_size,
                skip_first=skip_first,
                window=window,
                output=output,
                overwrite=overwrite,
                on_text=on_text,
            )
    except KeyboardInterrupt:
        if output is not None:
            print("eckart: go on with the same command", file=sys.stderr)
        raise
    if json_:
        show_json(measurement.to_dict())
        return
    models = measurement.models
    columns = models[0].at()
    rows = table("model", "layer", "width", "tokens", *(name.replace("_", " ") for name in columns))
    short = [Path(scores.model).name for scores in models]
    titles = short if len(set(short)) == len(models) else [scores.model for scores in models]
    for title, scores in zip(titles, models, strict=True):
        for number in scores.layers if len(models) == 1 else [scores.depth]:
            shown = (f"{score.mean:.4g} ± {score.ci:.2g}" for score in scores.at(number).values())
            layer = {0: "0 (embeddings)", scores.depth: f"{number} (last)"}.get(number, str(number))
            rows.add_row(title, layer, str(scores.width), f"{scores.tokens:.1f}", *shown)
    show(rows)
    what = f"windows of {max_length:,} tokens" if window else "texts"
    print(f"Means over {models[0].texts:,} {what} of {measurement.data} with their 95 % intervals.")
    for note in measurement.notes:
        print(f"Note: {note}.")
    if output is not None:
        print(f"Written: {output}")


@app.command()
def merge(
    adapter: Checkpoint,
    output: Output,
    model: Base = None,
    overwrite: Overwrite = False,
    json_: Json = False,
    config: Config = None,
    debug: Debug = False,
) -> None:
    """Add an adapter to the weights of its base model and save an ordinary model: W + ΔW, with its tokenizer.

    Example: `eckart merge --model path/to/base path/to/adapter --output merged`
    """
    from eckart.adapters._merging import merge_checkpoint

    report = merge_checkpoint(model, adapter, output, overwrite=overwrite)
    if json_:
        show_json(report.to_dict())
        return
    print(f"{report.layers} layers merged in {report.dtype}. Written: {output}")


@app.command()
def export(
    adapter: Checkpoint,
    output: Output,
    model: Base = None,
    r: Annotated[
        int | None,
        typer.Option("--r", help="Rank of every layer; the smallest exact one of each when left out."),
    ] = None,
    overwrite: Overwrite = False,
    json_: Json = False,
    config: Config = None,
    debug: Debug = False,
) -> None:
    """Write any adapter as a PEFT LoRA checkpoint that needs nothing of eckart, and say what the rank loses.

    Example: `eckart export --model path/to/base path/to/adapter --r 16 --output lora`
    """
    from eckart.adapters._export import export_lora
    from eckart.adapters._merging import load_adapted
    from eckart.files import check_output

    check_output(output, overwrite=overwrite)
    with progress("exporting") as on_layer:
        adapted = load_adapted(model, adapter)
        report = export_lora(adapted, output, r, overwrite=overwrite, on_layer=on_layer)
    if json_:
        show_json(report.to_dict())
        return
    rows = table("layer", "kind", "rank of ΔW", "rank written", "relative error")
    for layer in report.layers:
        rows.add_row(layer.name, layer.kind, str(layer.rank), str(layer.r), f"{layer.error:.2e}")
    show(rows)
    verdict = "exact to rounding" if report.exact else f"truncated: largest relative error {report.error:.3g}"
    print(f"{report.method} as LoRA of rank {report.r}, {verdict}. Written: {output}")
