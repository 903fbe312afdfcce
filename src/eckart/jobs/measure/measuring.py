"""How strongly models compress texts: nuclear norm, entropy and ranks of their hidden states, layer by layer."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from eckart.arguments import check_least
from eckart.data.read import Data, read_data
from eckart.data.splits import PARTS, Split, sample
from eckart.errors import InputError
from eckart.extras import require
from eckart.files import atomic_write, locked, remove_owned
from eckart.jobs.earlier import check_same, read_earlier
from eckart.jobs.measure.compared import likenesses
from eckart.jobs.measure.hidden_states import load_backbone, text_batches
from eckart.jobs.measure.layer_scores import METRICS, Layers, columns, known_metrics, measure_model
from eckart.jobs.measure.scores import (
    MODELS,
    OWNED,
    Measurement,
    ModelScores,
    keep,
    kept,
)
from eckart.jobs.measure.settings import ABOUT, Settings, check_directory, inputs_of
from eckart.quiet import quiet
from eckart.tasks.encode import check_length, load_tokenizer, token_blocks
from eckart.tasks.pretrained import Checkpoint, check_weights, find_model

NEEDS = {"alpha_req": 3, "two_nn": 4}
"""Tokens that differ which a text needs for a metric, where two do not suffice."""

__all__ = ["METRICS", "Measurement", "ModelScores", "measure", "measure_model"]


def measure(
    models: str | Path | Sequence[str | Path | None] | None = None,
    data: str | Path | None = None,
    *,
    metrics: Sequence[str] = METRICS,
    layers: Layers = "all",
    text_column: str | None = None,
    sep: str | None = None,
    columns: str | None = None,
    encoding: str = "utf-8",
    split: str = "test",
    max_length: int = 256,
    limit: int = 200,
    batch_size: int = 16,
    skip_first: int = 0,
    window: bool = False,
    cka: bool = False,
    output: str | Path | None = None,
    overwrite: bool = False,
    on_text: Callable[[int, int], None] | None = None,
) -> Measurement:
    """Measure the hidden states of one or several models over the same texts.

    With ``output`` each model that is finished is kept there, and a repeated call, also one with further models, goes
    on from it; other texts or settings are refused.

    Args:
        models: model directories or hub names; None, alone or among them, is the built-in MiniLM.
        data: file, directory or hub name; None is Python's own docstrings. Labels are ignored.
        metrics: names out of `eckart.metrics.METRICS` and `eckart.metrics.RAW_METRICS`.
        layers: "all", "last", or numbers, as in `measure_model`.
        text_column: column of the text, or two joined by a comma; found by its name when None.
        sep: between the fields of a text file; as its ending says when None.
        columns: names of its columns, with commas, where it has no header.
        encoding: of its text.
        split: "train", "validation", "test", or "all" of them.
        max_length: tokens of a text at most, the tokenizer's special tokens included; the length of a window.
        limit: texts (or windows) at most, drawn alike for every model.
        batch_size: texts in memory at a time; changes nothing beyond rounding.
        skip_first: tokens at the start of each text that do not count.
        window: join the texts and cut them into windows of exactly ``max_length`` tokens, so that all have one length;
            no special tokens then but the one that ends a text.
        cka: also compare every layer with every other, of the same model and of the others, by linear CKA of the
            mean states of the texts, which stay in memory: texts × layers × width numbers.
        output: directory for measure.csv, texts.csv, measure.svg and measure.json; cka.csv and cka.svg with ``cka``.
        overwrite: begin anew where ``output`` holds something.
        on_text: called with how many texts are done and how many there are, those of all models together.

    Raises:
        InputError: anything wrong with the models, the data or the options.
    """
    paths = [models] if models is None or isinstance(models, str | Path) else list(models)
    if not paths:
        raise InputError("models is empty: give at least one, or None for the built-in MiniLM")
    check_least(1, batch_size=batch_size)
    settings = Settings(
        known_metrics(metrics),
        layers if isinstance(layers, str) else list(layers),
        split,
        max_length,
        limit,
        skip_first,
        window,
        cka,
    )
    directory = None if output is None else Path(output)
    if directory is not None:
        require("vl_convert", extra="compare")  # draws the picture at the end
        check_directory(directory, overwrite, inputs_of(paths, data))
    read = read_data(
        data, labelled=False, text_column=text_column, sep=sep, columns=columns, encoding=encoding
    )
    texts, notes = _texts(read, settings)
    checkpoints = _distinct([find_model(path) for path in paths])
    about = asdict(settings) | {"texts": hashlib.sha256(json.dumps(texts).encode()).hexdigest()}
    with nullcontext() if directory is None else locked(directory):
        if directory is not None and not overwrite and (directory / ABOUT).is_file():
            there = read_earlier(directory / ABOUT, "measurement", lambda found: dict(found["settings"]))
            check_same(directory, "measurement", there, about, {"texts": "the texts have changed"})
        done = _measure_all(checkpoints, texts, settings, batch_size, directory, about, overwrite, on_text)
        likeness = likenesses(done) if cka else []
        measurement = Measurement(read.name, done, [*notes, *_notes(done)], about, likeness)
        if directory is not None:
            measurement.write(directory)
    return measurement


def _measure_all(
    checkpoints: Mapping[str, Checkpoint],
    texts: list[str],
    settings: Settings,
    batch_size: int,
    directory: Path | None,
    about: Mapping[str, Any],
    overwrite: bool,
    on_text: Callable[[int, int], None] | None,
) -> list[ModelScores]:
    """The scores of every model, those that the directory holds read from it, the others kept there."""
    done: list[ModelScores] = []

    def tell(texts_done: int, texts_there: int) -> None:
        if on_text is not None:
            before = sum(scores.texts for scores in done)
            on_text(before + texts_done, before + texts_there * (len(checkpoints) - len(done)))

    for sha, checkpoint in checkpoints.items():
        file = None if directory is None else directory / MODELS / f"{sha}.safetensors"
        scores = None if file is None or overwrite else kept(file)
        if scores is None:
            scores = _measure_checkpoint(checkpoint, texts, settings, batch_size, tell)
            if directory is not None and file is not None:
                if overwrite and not done:
                    remove_owned(directory, OWNED)
                if not (directory / ABOUT).is_file():
                    with atomic_write(directory / ABOUT) as path:
                        path.write_text(json.dumps({"settings": about}, indent=2) + "\n", encoding="utf-8")
                keep(file, scores)
        done.append(replace(scores, model=checkpoint.name))
    return done


def _texts(read: Data, settings: Settings) -> tuple[list[str], list[str]]:
    """The texts of the split, and notes on how they were split."""
    if read.kind != "text":
        raise InputError(f"--data {read.name} holds images: give texts")
    parts = PARTS if settings.split == "all" else (settings.split,)
    texts = [text for part in parts for text in read.splits[part].inputs]
    if not texts:
        raise InputError(
            f"--data {read.name}: the {settings.split} split has no texts: choose another --split"
        )
    if len(texts) == 1 and not settings.window:
        raise InputError(
            f"--data {read.name}: the {settings.split} split is one text, which has no spread: cut it with --window, "
            "give more texts, or choose another --split"
        )
    notes = [] if settings.split == "all" else list(read.notes)
    if settings.limit < len(texts) and not settings.window:
        notes.append(f"{settings.split}: {settings.limit:,} of {len(texts):,} texts")
    return texts, notes


def _distinct(checkpoints: Sequence[Checkpoint]) -> dict[str, Checkpoint]:
    """The checkpoints by the SHA-256 of their files."""
    found: dict[str, Checkpoint] = {}
    for checkpoint in checkpoints:
        sha = check_weights(checkpoint)
        if sha in found:
            raise InputError(
                f"--model {checkpoint.name} holds the same files as --model {found[sha].name}: give each model once"
            )
        found[sha] = checkpoint
    return found


def _measure_checkpoint(
    checkpoint: Checkpoint,
    texts: list[str],
    settings: Settings,
    batch_size: int,
    on_text: Callable[[int, int], None],
) -> ModelScores:
    """One model over the texts, or over windows of them, with the values of each."""
    from eckart.tasks.instruments import device

    with quiet():
        model = load_backbone(checkpoint)
        tokenizer = load_tokenizer(checkpoint, model)
    with _naming(checkpoint):
        check_length(settings.max_length, tokenizer, model.config)
    items, encode = _items(texts, tokenizer, settings)
    names = columns(settings.metrics)
    tokens = torch.zeros(len(items), dtype=torch.int32)
    values = torch.zeros(len(names), len(items))
    order: list[int] = []
    states: list[Tensor] = []
    pads = (getattr(model.config, "pad_token_id", None), tokenizer.pad_token_id, 0)
    pad = next(token for token in pads if token is not None and token >= 0)

    def batches() -> Iterator[tuple[Tensor, Tensor]]:
        for rows, ids, mask in text_batches(items, encode, batch_size, pad):
            order.extend(rows)
            yield ids, mask

    def on_batch(counts: Tensor, found: Mapping[str, Tensor]) -> None:
        rows = order[-len(counts) :]
        tokens[rows] = counts.to(tokens.dtype)
        values[:, rows] = torch.stack(list(found.values())).float()
        on_text(len(order), len(items))

    def on_means(means: list[Tensor]) -> None:
        if not states:
            states.extend(mean.new_zeros(len(items), mean.shape[1]) for mean in means)
        for state, mean in zip(states, means, strict=True):
            state[order[-len(mean) :]] = mean

    with _naming(checkpoint):
        scores = measure_model(
            model.to(device()),
            batches(),
            name=checkpoint.name,
            metrics=settings.metrics,
            layers=settings.layers,
            skip_first=settings.skip_first,
            on_batch=on_batch,
            on_means=on_means if settings.cka else None,
        )
    if not any(score.n for score in scores.at().values()):
        raise InputError(
            f"--data: none of {len(items)} texts has a score with --model {checkpoint.name}: fewer than two tokens of "
            "each count, or they are all the same"
        )
    vocabulary = hashlib.sha256(json.dumps(sorted(tokenizer.get_vocab().items())).encode()).hexdigest()
    held = {"tokens": tokens} | dict(zip(names, values, strict=True))
    return replace(scores, values=held, vocabulary=vocabulary, states=states)


@contextmanager
def _naming(checkpoint: Checkpoint) -> Iterator[None]:
    """Say in an error which of the models it is about."""
    try:
        yield
    except InputError as error:
        raise InputError(f"--model {checkpoint.name}: {error}") from None


def _items(
    texts: list[str], tokenizer: Any, settings: Settings
) -> tuple[list[Any], Callable[[list[Any]], list[list[int]]]]:
    """What is measured, texts or windows of token ids, and how token ids are made of some of them."""

    def encode(part: list[str]) -> list[list[int]]:
        ids: list[list[int]] = tokenizer(part, truncation=True, max_length=settings.max_length)["input_ids"]
        return ids

    items: list[Any] = texts
    if settings.window:
        items = token_blocks(
            Split(texts), tokenizer, settings.max_length, f"--data: the {settings.split} split"
        ).tolist()
        if len(items) < 2:
            raise InputError(
                f"--data: the {settings.split} split is one window of {settings.max_length} tokens, which has no "
                "spread: give more text or a smaller --max-length"
            )
    chosen = [items[i] for i in sample(None, len(items), settings.limit, seed=0)]
    return chosen, list if settings.window else encode


def _notes(models: Sequence[ModelScores]) -> Iterator[str]:
    """What to know before the scores are compared."""
    if len({scores.vocabulary for scores in models}) > 1:
        yield (
            "the tokenizers differ, so that a text is other tokens in each model and, without --window, of another "
            "length: do not rank the models by these scores"
        )
    if len(widths := sorted({scores.width for scores in models})) > 1:
        yield (
            f"the widths differ ({', '.join(map(str, widths))}): the entropy is a share of ln(width), and the bounds "
            "of the other scores grow with the width where texts are longer than it"
        )
    for scores in models:
        last = list(scores.at().values())
        for name, least in {"score": 2, **NEEDS}.items():
            skipped = [s.skipped for s in last if name == (s.metric if s.metric in NEEDS else "score")]
            if any(skipped):
                yield (
                    f"{scores.model}: {max(skipped):,} of {scores.texts:,} texts have no {name}, with fewer than "
                    f"{least} tokens that differ, and are left out"
                )
