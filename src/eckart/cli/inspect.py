"""`eckart inspect`: the spectra of a model's weights."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from eckart.arguments import check_share
from eckart.cli.command import Answer
from eckart.cli.console import progress, table
from eckart.cli.options import OUTPUT, Overwrite, option
from eckart.extras import require
from eckart.files import check_output
from eckart.hub import is_path
from eckart.tasks.pretrained import find_model


def inspect(
    model: Annotated[
        str | None,
        typer.Argument(
            metavar="MODEL", help="Model directory, .safetensors file or hub name; the built-in MiniLM."
        ),
    ] = None,
    energy: Annotated[
        float, option("SHARE", "Share of a weight's squared Frobenius norm that counts as the weight.")
    ] = 0.9,
    output: Annotated[
        Path | None, option("DIR", "Write spectra.csv, spectra.svg and the singular values here.", OUTPUT)
    ] = None,
    overwrite: Overwrite = False,
) -> Answer:
    """Measure the spectrum of every weight: effective and stable rank, energy, heavy tail, nearly low rank.

    Example: `eckart inspect path/to/model --energy 0.95 --output spectra`
    """
    check_share("energy", energy)
    if output is not None:
        check_output(output, overwrite=overwrite, inputs={"MODEL": model})
        require("vl_convert", extra="compare")
    if model is None or (is_path(model) and not Path(model).exists()):
        find_model(model)

    from eckart.jobs.inspect.inspection import inspect_model

    with progress("inspecting") as on_layer:
        inspection = inspect_model(model, energy=energy, on_layer=on_layer)
    if output is not None:
        inspection.save(output, overwrite=overwrite)
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
    low, count = sum(layer.nearly_low_rank for layer in inspection.layers), len(inspection.layers)
    told = [f"{low} of {count} weights are nearly low-rank at {100 * energy:g} % of the energy."]
    if inspection.skipped:
        told.append(f"{len(inspection.skipped)} quantised weights were not read.")
    if output is not None:
        told.append(f"Written: {output}")
    return Answer(inspection.to_dict(), (rows, *told))
