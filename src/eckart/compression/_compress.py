"""`eckart.compress`: one block after another, each replaced as soon as its statistics are there."""

from __future__ import annotations

import dataclasses
import importlib
from collections.abc import Callable, Iterable, Mapping
from os import PathLike
from pathlib import Path
from typing import Any

import torch
from torch import nn

from eckart.arguments import BYTE_UNITS, PARAMETER_UNITS, hint, plain, read_budget
from eckart.compression._asked import check_size, find_compressor
from eckart.compression._batches import checked_batches
from eckart.compression._calibration import Trace
from eckart.compression._census import Outline, census, in_mode
from eckart.compression._layers import Spec
from eckart.compression._method import Compressor, LayerRow
from eckart.compression._report import Report
from eckart.compression._resume import Finished
from eckart.compression._statistics import Statistics, weight_sum
from eckart.errors import InputError
from eckart.layers._replacing import install, kept_random_state
from eckart.linalg.moments import Moments


def compressor(method: str) -> type[Compressor]:
    """The class of a method.

    Raises:
        InputError: no method of this name.
    """
    module, name = find_compressor(method)
    found: type[Compressor] = getattr(importlib.import_module(f"eckart.compression.{module}"), name)
    return found


def compress(
    model: nn.Module,
    method: str,
    *,
    ratio: float | None = None,
    budget: str | int | None = None,
    calibration: Iterable[Any] | Statistics | None = None,
    sequential: bool = False,
    resume: str | PathLike[str] | None = None,
    progress: Callable[[int, int], None] | None = None,
    **options: Any,
) -> nn.Module:
    """Make a model smaller, in place.

    Args:
        model: a dense model, of transformers or a plain module. Its linear layers inside its blocks are compressed
            (its convolutions, for "trp"); embeddings, heads and norms stay.
        method: slug, as `eckart.methods("compression")` lists them.
        ratio: share of the parameters of these layers to remove, in (0, 1).
        budget: instead, the size of the whole model afterwards: "70%", "95M" (parameters) or "180MB".
        calibration: batches: mappings of model inputs, tensors, or tuples whose first item is the input. Padding is
            told by ``attention_mask``. Or what `eckart.compression.gather` has made of them.
        sequential: statistics of a block from the compressed blocks before it, instead of the dense ones.
        resume: a directory for finished blocks; the same call with the same directory goes on after the last one.
        progress: called with the number of finished blocks and of all.
        options: of the method.

    Returns:
        The same model, with `eckart.compression.report` telling what was done.

    Raises:
        InputError: unknown method or option, a ratio out of range or that no rank meets, calibration data that are
            missing, empty, of another vocabulary or not finite, a model that is compressed already or that the method
            does not fit. Nothing was changed.
        FloatingPointError: the method's own training lost its loss; the model is half trained.
    """
    chosen, outline, ratio = suited(model, method, ratio, budget, options)
    if chosen.calibrated and calibration is None:
        raise InputError(
            f"{method} needs calibration: give batches of model inputs, a few hundred sequences are usual"
        )
    if isinstance(calibration, Statistics) and sequential:
        raise InputError("sequential=True needs the batches themselves: statistics are of the dense model")
    lessons = _lessons(model, chosen, calibration)
    with in_mode(model, False), torch.no_grad(), kept_random_state(model):
        found = _run(outline, chosen, ratio, calibration, sequential, resume, progress or (lambda *_: None))
    if lessons:
        losses = chosen.train(model, lessons, progress or (lambda *_: None))
        found = dataclasses.replace(found, losses=tuple(losses))
    model.eckart_report = found  # type: ignore[assignment]
    return model


def asked(
    method: str, ratio: float | None, budget: str | int | None, options: Mapping[str, Any]
) -> Compressor:
    """The method with its options, and how much it is to remove, looked at without a model or data.

    Raises:
        InputError: as `compress`.
    """
    maker = compressor(method)
    known = [field.name for field in dataclasses.fields(maker) if field.init]
    for name in options:
        if name not in known:
            raise InputError(f"{method} has no option {name!r}: {hint(name, known)}")
    chosen = maker(**options)
    check_size(ratio, budget)
    chosen.check_size(ratio, budget)
    return chosen


def suited(
    model: nn.Module,
    method: str,
    ratio: float | None,
    budget: str | int | None,
    options: Mapping[str, Any],
) -> tuple[Compressor, Outline, float | None]:
    """The method, what it may change of a model, and the share to remove; nothing is changed yet.

    Raises:
        InputError: as `compress`, but for what the calibration data bring.
    """
    chosen = asked(method, ratio, budget, options)
    ratio = None if ratio is None else float(plain(ratio))
    outline = census(model, chosen.kinds, chosen.exclude)
    if budget is not None:
        ratio = ratio_for_budget(outline, budget)
    chosen.check(outline)
    return chosen, outline, ratio


def _run(
    outline: Outline,
    method: Compressor,
    ratio: float | None,
    calibration: Iterable[Any] | Statistics | None,
    sequential: bool,
    resume: str | PathLike[str] | None,
    progress: Callable[[int, int], None],
) -> Report:
    model = outline.model
    before = _count(model)
    trace: Trace | Statistics | None = None
    if method.calibrated:
        assert calibration is not None
        if isinstance(calibration, Statistics):
            calibration.check(outline)
            trace = calibration
        else:
            trace = Trace(outline, calibration, method.influenced)
            trace.check_called(name for b in outline.blocks for name in method.watched(b, outline))
    method.plan(outline, ratio, trace.influence if trace else [])
    finished = None
    if resume is not None:
        finished = Finished(Path(resume), _plan(outline, method, ratio, sequential, trace))
    rows: list[LayerRow] = []
    specs: dict[str, Spec] = {}
    tokens = 0
    for index, block in enumerate(outline.blocks):
        done = finished.load(index, method, model) if finished else None
        if done is None:
            watched = method.watched(block, outline)
            observed = trace.observe(index, watched, advance=not sequential) if trace else {}
            tokens = tokens or next((m.rows for m in observed.values() if isinstance(m, Moments)), 0)
            done = method.compress(block, outline, observed)
            if finished:
                finished.save(index, *done)
        elif trace and not sequential:
            trace.advance(index)
        changes, block_rows = done
        for name, change in changes.items():
            old = [parameter.requires_grad for parameter in model.get_submodule(name).parameters()]
            install(model, name, change.module.train(model.training).requires_grad_(any(old)))
            specs[name] = change.spec
        if trace and sequential:
            trace.advance(index)
        rows += block_rows
        progress(index + 1, len(outline.blocks))
    method.finish(model, specs)
    name = type(outline.model).__name__
    return Report(method.slug, method.options(), ratio, tuple(rows), before, _count(model), tokens, (), name)


def _lessons(
    model: nn.Module, method: Compressor, calibration: Iterable[Any] | Statistics | None
) -> list[Any]:
    """The batches of the training that belongs to the method, if it has some; looked at before anything is changed."""
    if not method.steps:
        return []
    if calibration is None or isinstance(calibration, Statistics):
        raise InputError(
            f"steps is {method.steps}: {method.slug} trains on calibration, give batches of model inputs"
        )
    return list(checked_batches(model, calibration))


def _plan(
    outline: Outline,
    method: Compressor,
    ratio: float | None,
    sequential: bool,
    trace: Trace | Statistics | None,
) -> dict[str, Any]:
    """What a run is, for telling whether finished blocks are its own."""
    weights = [weight_sum(layer) for layer in outline.layers.values()]
    return {
        "method": method.slug,
        "options": method.options(),
        "ratio": ratio,
        "sequential": sequential,
        "layers": list(outline.layers),
        "weights": weights,
        "data": trace.marks if trace else [],
    }


def ratio_for_budget(outline: Outline, budget: str | int) -> float:
    """The share to remove from the layers so that the whole model meets a budget.

    Args:
        outline: the model and its layers.
        budget: "70%" of the parameters, "95M" parameters, "180MB" or "180MiB".

    Raises:
        InputError: not a budget, no smaller than the model, or out of reach.
    """
    model = outline.model
    total = _count(model)
    size = next(iter(outline.layers.values())).weight.element_size()  # type: ignore[operator]
    value, unit = read_budget(budget)
    target = value / 100 * total if unit == "%" else value * PARAMETER_UNITS.get(unit, 0)
    if unit in BYTE_UNITS:
        target = value * BYTE_UNITS[unit] / size
    ratio = (total - target) / outline.parameters
    if not 0 < ratio < 1:
        least = total - outline.parameters
        raise InputError(
            f"budget {budget!r} is {target:,.0f} of {total:,} parameters: give one between {least:,} and {total:,}"
        )
    return ratio


def _count(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())
