"""`eckart recover …`: matrices from files of ratings and streams of rows."""

from __future__ import annotations

import dataclasses
import sys
from pathlib import Path
from typing import Annotated, Literal

import typer

from eckart.arguments import check_least, check_seed, check_share
from eckart.cli.checks import check_file
from eckart.cli.command import Answer
from eckart.cli.console import progress, table
from eckart.cli.options import OUTPUT, Columns, Encoding, Output, Overwrite, Sep, flag, option
from eckart.cli.words import fields, options
from eckart.files import check_output, check_output_file

Option = Annotated[
    list[str] | None,
    option(
        "NAME=VALUE", "A further option of the estimator, such as reg=10; may be repeated.", None, "--option"
    ),
]


def complete(
    ratings: Annotated[
        Path,
        typer.Argument(metavar="RATINGS", help="CSV or Parquet file: user, item, rating (or value, score)."),
    ],
    output: Output,
    sep: Sep = None,
    columns: Columns = None,
    encoding: Encoding = "utf-8",
    rank: Annotated[int, option("N", "Factors of each user and item.")] = 20,
    test_share: Annotated[float, option("SHARE", "Share of the ratings held out for the error.")] = 0.1,
    implicit: Annotated[
        bool, flag("--implicit", help="Ratings are counts of clicks or purchases; user and item are enough.")
    ] = False,
    option_: Option = None,
    seed: Annotated[int, option("N", "Of the hold-out and of the start.")] = 0,
    overwrite: Overwrite = False,
) -> Answer:
    """Fit factors and biases to ratings by alternating least squares; write the model, its tables, error and ranking.

    Example: `eckart recover complete ratings.csv --rank 10 --output completed`
    """
    given = options(option_)
    check_least(1, rank=rank)
    check_seed(seed)
    check_share("--test-share", test_share, zero=True)
    check_output(output, overwrite=overwrite, inputs={"RATINGS": ratings})
    check_file(ratings, "ratings")
    form = fields(sep, columns, encoding)

    from eckart.jobs.recover.recovering import complete as run

    with progress("completing") as on_iteration:
        report = run(
            ratings,
            output=output,
            **form,
            rank=rank,
            test_share=test_share,
            implicit=implicit,
            seed=seed,
            overwrite=overwrite,
            on_iteration=on_iteration,
            **given,
        )
    ranking = report.ranking or {}
    rows = table("model", *(["RMSE"] if not implicit else []), "nDCG@10", "recall@10", "MAP@10")
    found = (report.test_rmse, *(ranking.get(name) for name in ("ndcg", "recall", "map")))
    lines = [(f"rank {report.rank}", found[implicit:])]
    if not implicit:
        lines.insert(0, ("biases alone", (report.bias_rmse, None, None, None)))
    for name, values in lines:
        rows.add_row(name, *("-" if value is None else f"{value:.4f}" for value in values))
    told = [
        f"Measured on {report.test_ratings:,} of {report.ratings:,} ratings that were held out.",
        f"{report.users:,} users, {report.items:,} items, ridge {report.reg:.4g}. Written: {output}",
    ]
    return Answer(dataclasses.asdict(report), (rows, *told))


def eigenvector(
    rows: Annotated[
        str, typer.Argument(metavar="ROWS", help=".npy file of shape (rows, d), or - for standard input.")
    ],
    components: Annotated[int, option("N", "How many singular vectors.")] = 1,
    center: Annotated[bool, flag("--center", help="Subtract the running mean.")] = False,
    width: Annotated[
        int | None,
        option("N", "Numbers in a row, where standard input has no header of a .npy file."),
    ] = None,
    dtype: Annotated[Literal["float32", "float64"], typer.Option(help="Type of such numbers.")] = "float32",
    option_: Option = None,
    seed: Annotated[int, option("N", "Of the start.")] = 0,
    output: Annotated[Path | None, option("FILE", ".npy file to write the vectors to.", OUTPUT)] = None,
) -> Answer:
    """Find the top right singular vectors of rows that are read once, in memory that does not grow with them.

    Example: `eckart recover eigenvector rows.npy --components 2 --output vectors.npy`
    """
    given = options(option_)
    check_least(1, components=components, width=width)
    check_seed(seed)
    if output is not None:
        check_output_file(output, inputs={"ROWS": None if rows == "-" else rows})
    if rows != "-":
        check_file(rows, "rows")

    from eckart.jobs.recover.recovering import eigenvector as run

    with progress("reading rows") as on_rows:
        pca = run(
            sys.stdin.buffer if rows == "-" else rows,
            components=components,
            center=center,
            width=width,
            dtype=dtype,
            seed=seed,
            output=output,
            on_rows=lambda done, total: on_rows(done, total or done),
            **given,
        )
    values = pca.singular_values_
    found = {
        "components": pca.components_.tolist(),
        "singular_values": values.tolist(),
        "rows": pca.n_samples_seen_,
        "heavy_rows": pca.n_heavy_,
    }
    shown = table("component", "singular value", "largest entry at")
    for i, (value, vector) in enumerate(zip(values, pca.components_, strict=True)):
        shown.add_row(str(i), f"{value:.6g}", str(abs(vector).argmax()))
    told = [
        f"{pca.n_samples_seen_:,} rows of {pca.n_features_in_:,} numbers, {pca.n_heavy_} of them kept apart."
    ]
    if output is not None:
        told.append(f"Written: {output}")
    return Answer(found, (shown, *told))
