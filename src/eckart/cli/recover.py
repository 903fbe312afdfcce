"""`eckart recover …`: each command reads its options and calls one function of `eckart.jobs.recover.recovering`."""

from __future__ import annotations

import dataclasses
import sys
from pathlib import Path
from typing import Annotated

import typer

from eckart.cli.console import progress, show, show_json, table
from eckart.cli.options import Config, Debug, Json, Overwrite
from eckart.cli.options import options as parse_options

recover = typer.Typer(
    name="recover",
    help="Complete a matrix of ratings; find the top singular vectors of a stream of rows.",
    no_args_is_help=True,
)

Option = Annotated[
    list[str] | None,
    typer.Option(
        metavar="NAME=VALUE", help="A further option of the estimator, such as reg=10; may be repeated."
    ),
]


@recover.command()
def complete(
    ratings: Annotated[
        Path,
        typer.Argument(metavar="RATINGS", help="CSV or Parquet file with columns user, item and rating."),
    ],
    output: Annotated[Path, typer.Option(metavar="DIR", help="Directory to write.")],
    rank: Annotated[int, typer.Option(help="Factors of each user and item.")] = 20,
    test_share: Annotated[float, typer.Option(help="Share of the ratings held out for the error.")] = 0.1,
    option: Option = None,
    seed: Annotated[int, typer.Option(help="Of the hold-out and of the start.")] = 0,
    overwrite: Overwrite = False,
    json_: Json = False,
    config: Config = None,
    debug: Debug = False,
) -> None:
    """Fit factors and biases to ratings by alternating least squares; write the model, its tables and its error.

    Example: `eckart recover complete ratings.csv --rank 10 --output completed`
    """
    from eckart.jobs.recover.recovering import complete as run

    with progress("completing") as on_iteration:
        report = run(
            ratings,
            output=output,
            rank=rank,
            test_share=test_share,
            seed=seed,
            overwrite=overwrite,
            on_iteration=on_iteration,
            **parse_options(option),
        )
    if json_:
        show_json(dataclasses.asdict(report))
        return
    rows = table("model", "RMSE on the ratings held out")
    for name, rmse in (("biases alone", report.bias_rmse), (f"rank {report.rank}", report.test_rmse)):
        rows.add_row(name, "-" if rmse is None else f"{rmse:.4f}")
    show(rows)
    print(f"{report.ratings:,} ratings, {report.users:,} users, {report.items:,} items. Written: {output}")


@recover.command()
def eigenvector(
    rows: Annotated[
        str, typer.Argument(metavar="ROWS", help=".npy file of shape (rows, d), or - for standard input.")
    ],
    components: Annotated[int, typer.Option(help="How many singular vectors.")] = 1,
    center: Annotated[bool, typer.Option("--center", help="Subtract the running mean.")] = False,
    width: Annotated[
        int | None, typer.Option(help="Numbers in a row, where standard input has no header of a .npy file.")
    ] = None,
    dtype: Annotated[str, typer.Option(help="Type of such numbers: float32 or float64.")] = "float32",
    option: Option = None,
    seed: Annotated[int, typer.Option(help="Of the start.")] = 0,
    output: Annotated[
        Path | None, typer.Option(metavar="FILE", help=".npy file to write the vectors to.")
    ] = None,
    json_: Json = False,
    config: Config = None,
    debug: Debug = False,
) -> None:
    """Find the top right singular vectors of rows that are read once, in memory that does not grow with them.

    Example: `eckart recover eigenvector rows.npy --components 2 --output vectors.npy`
    """
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
            **parse_options(option),
        )
    values = pca.singular_values_
    if json_:
        found = {"components": pca.components_.tolist(), "singular_values": values.tolist()}
        show_json(found | {"rows": pca.n_samples_seen_, "heavy_rows": pca.n_heavy_})
        return
    shown = table("component", "singular value", "largest entry at")
    for i, (value, vector) in enumerate(zip(values, pca.components_, strict=True)):
        shown.add_row(str(i), f"{value:.6g}", str(abs(vector).argmax()))
    show(shown)
    print(
        f"{pca.n_samples_seen_:,} rows of {pca.n_features_in_:,} numbers, {pca.n_heavy_} of them kept apart."
    )
    if output is not None:
        print(f"Written: {output}")
