"""`eckart export`: any adapter as an ordinary LoRA."""

from __future__ import annotations

from typing import Annotated, Literal

from eckart.adapter_files import base_model, read_adapter_config
from eckart.arguments import check_least
from eckart.cli.command import Answer
from eckart.cli.console import progress, table
from eckart.cli.options import Base, Checkpoint, Output, Overwrite, option
from eckart.files import check_apart, check_output
from eckart.tasks.pretrained import find_model


def export(
    adapter: Checkpoint,
    output: Output,
    model: Base = None,
    r: Annotated[
        int | None,
        option("N", "Rank of every layer; the smallest exact one of each when left out.", None, "--r"),
    ] = None,
    server: Annotated[
        Literal["vllm", "sglang", "llama.cpp"] | None,
        option("SERVER", "Write what this program loads: vllm, sglang or llama.cpp.", None, "--for"),
    ] = None,
    overwrite: Overwrite = False,
) -> Answer:
    """Write any adapter as a PEFT LoRA checkpoint that needs nothing of eckart, and say what the rank loses.

    Example: `eckart export --model path/to/base path/to/adapter --r 16 --output lora`
    """
    check_least(1, r=r)
    check_output(output, overwrite=overwrite)
    base = base_model(model, adapter, read_adapter_config(adapter)[1])
    check_apart(output, {"ADAPTER": adapter, "the base model": base})
    find_model(base)

    from eckart.adapters import export_lora, load_adapted

    with progress("exporting") as on_layer:
        adapted = load_adapted(model, adapter, ours=True)
        report = export_lora(adapted, output, r, server=server, overwrite=overwrite, on_layer=on_layer)
    rows = table("layer", "kind", "rank of ΔW", "rank written", "relative error")
    for layer in report.layers:
        rows.add_row(layer.name, layer.kind, str(layer.rank), str(layer.r), f"{layer.error:.2e}")
    verdict = "exact to rounding" if report.exact else f"truncated: largest relative error {report.error:.3g}"
    told = f"{report.method} as LoRA of rank {report.r}, {verdict}. Written: {output}"
    return Answer(report.to_dict(), (rows, told))
