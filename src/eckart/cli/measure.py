"""`eckart measure`: the hidden states of models over texts."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

from eckart.arguments import check_least, hint
from eckart.cli.command import Answer
from eckart.cli.console import progress, table
from eckart.cli.options import (
    MODEL_AND_DATA,
    OUTPUT,
    Columns,
    Data,
    Encoding,
    Overwrite,
    Sep,
    TextColumn,
    choices,
    flag,
    option,
)
from eckart.cli.words import fields, layers
from eckart.errors import InputError

USUAL = ("matrix_nuclear_norm", "matrix_entropy", "effective_rank", "energy_rank", "stable_rank")
FURTHER = (
    "nuclear_norm",
    "renyi_entropy",
    "participation_ratio",
    "alpha_req",
    "rankme",
    "anisotropy",
    "two_nn",
)


def _splits() -> tuple[str, ...]:
    from eckart.data.splits import PARTS

    return (*PARTS, "all")


def measure(
    model: Annotated[
        list[str] | None,
        option(
            "MODEL",
            "Model directory or hub name; may be repeated. The built-in MiniLM when left out.",
            MODEL_AND_DATA,
        ),
    ] = None,
    data: Data = None,
    metrics: Annotated[
        str | None,
        option(
            "NAMES",
            f"With commas, out of {', '.join(USUAL[:-1])} and {USUAL[-1]} (these when left out), "
            f"{', '.join(FURTHER[:-1])} and {FURTHER[-1]}.",
            autocompletion=choices(lambda: (*USUAL, *FURTHER)),
        ),
    ] = None,
    layers_: Annotated[
        str, option("WHICH", "all, last, or numbers: 0 the embeddings, -1 the last.", None, "--layers")
    ] = "all",
    split: Annotated[
        str,
        option(
            "NAME",
            "train, validation, test, or all of them.",
            MODEL_AND_DATA,
            autocompletion=choices(_splits),
        ),
    ] = "test",
    text_column: TextColumn = None,
    sep: Sep = None,
    columns: Columns = None,
    encoding: Encoding = "utf-8",
    limit: Annotated[int, option("N", "Texts (or windows) at most.", MODEL_AND_DATA)] = 200,
    max_length: Annotated[int, option("N", "Tokens of a text at most; the length of a window.")] = 256,
    window: Annotated[
        bool, flag("--window", help="Join the texts and cut them into windows of exactly that length.")
    ] = False,
    skip_first: Annotated[
        int,
        option("N", "Tokens at the start of each text that do not count, such as attention sinks."),
    ] = 0,
    cka: Annotated[
        bool,
        flag(
            "--cka",
            help="Also compare all layers, of each model and of each two, by linear CKA: cka.csv, cka.svg.",
        ),
    ] = False,
    batch_size: Annotated[int, option("N", "Texts in memory at a time.")] = 16,
    output: Annotated[
        Path | None,
        option("DIR", "Write measure.csv, texts.csv, measure.svg and measure.json here.", OUTPUT),
    ] = None,
    overwrite: Overwrite = False,
) -> Answer:
    """Measure nuclear norm, entropy and ranks of models' hidden states over texts. Resumes when repeated.

    Example: `eckart measure --model path/to/small --model path/to/large --data texts.csv --window --output measured`
    """
    from eckart.data.read import check_source
    from eckart.jobs.measure.settings import Settings, check_directory, inputs_of
    from eckart.tasks.pretrained import find_model

    names = list(USUAL) if metrics is None else [name.strip() for name in metrics.split(",")]
    numbers, form = layers(layers_), fields(sep, columns, encoding)
    check_least(1, batch_size=batch_size)
    for name in names:
        if name not in (*USUAL, *FURTHER):
            raise InputError(f"unknown metric {name!r}: {hint(name, (*USUAL, *FURTHER))}")
    Settings(names, numbers, split, max_length, limit, skip_first, window, cka)
    if output is not None:
        check_directory(output, overwrite, inputs_of(model or (), data))
    for directory in model or (None,):
        find_model(directory)
    check_source(data, form)

    from eckart.jobs.measure.measuring import measure as run

    try:
        with progress("measuring") as on_text:
            measurement = run(
                model or None,
                data,
                metrics=names,
                layers=numbers,
                text_column=text_column,
                **form,
                split=split,
                max_length=max_length,
                limit=limit,
                batch_size=batch_size,
                skip_first=skip_first,
                window=window,
                cka=cka,
                output=output,
                overwrite=overwrite,
                on_text=on_text,
            )
    except KeyboardInterrupt:
        if output is not None:
            print("eckart: go on with the same command", file=sys.stderr)
        raise
    models = measurement.models
    scored = models[0].at()
    rows = table("model", "layer", "width", "tokens", *(name.replace("_", " ") for name in scored))
    short = [Path(scores.model).name for scores in models]
    titles = short if len(set(short)) == len(models) else [scores.model for scores in models]
    for title, scores in zip(titles, models, strict=True):
        for number in scores.layers if len(models) == 1 else [scores.depth]:
            shown = (f"{score.mean:.4g} ± {score.ci:.2g}" for score in scores.at(number).values())
            layer = {0: "0 (embeddings)", scores.depth: f"{number} (last)"}.get(number, str(number))
            rows.add_row(title, layer, str(scores.width), f"{scores.tokens:.1f}", *shown)
    what = f"windows of {max_length:,} tokens" if window else "texts"
    told = [f"Means over {models[0].texts:,} {what} of {measurement.data} with their 95 % intervals."]
    told += [f"Note: {note}." for note in measurement.notes]
    for pair in measurement.likeness:
        two = f"layers {pair.layers[0]} and {pair.layers[-1]} of {pair.model}", pair.cka[0][-1]
        if pair.model != pair.other:
            two = f"the last layers of {pair.model} and {pair.other}", pair.cka[-1][-1]
        told.append("CKA of {}: {:.3f}".format(*two))
    if output is not None:
        told.append(f"Written: {output}")
    return Answer(measurement.to_dict(), (rows, *told))
