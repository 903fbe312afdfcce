"""`eckart merge`: an adapter added to the weights of its base model."""

from __future__ import annotations

from eckart.adapter_files import base_model, read_adapter_config
from eckart.cli.command import Answer
from eckart.cli.options import Base, Checkpoint, Output, Overwrite
from eckart.files import check_apart, check_output
from eckart.tasks.pretrained import find_model


def merge(adapter: Checkpoint, output: Output, model: Base = None, overwrite: Overwrite = False) -> Answer:
    """Add an adapter to the weights of its base model and save an ordinary model: W + ΔW, with its tokenizer.

    Example: `eckart merge --model path/to/base path/to/adapter --output merged`
    """
    check_output(output, overwrite=overwrite)
    base = base_model(model, adapter, read_adapter_config(adapter)[1])
    check_apart(output, {"ADAPTER": adapter, "the base model": base})
    find_model(base)

    from eckart.adapters import merge_checkpoint

    report = merge_checkpoint(model, adapter, output, overwrite=overwrite)
    return Answer(report.to_dict(), (f"{report.layers} layers merged in {report.dtype}. Written: {output}",))
