"""One model over batches of token ids: running moments of the metrics of every layer, one batch in memory at a time."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from eckart.errors import InputError
from eckart.jobs.measure.hidden_states import hidden_states
from eckart.jobs.measure.scores import ModelScores, Score
from eckart.metrics import measure_states
from eckart.metrics.measured import check_metrics
from eckart.tasks.statistics import Z95

METRICS = ("matrix_nuclear_norm", "matrix_entropy", "effective_rank", "energy_rank", "stable_rank")
BOUNDED = ("matrix_nuclear_norm", "nuclear_norm")
"""Metrics of at most √(D/n), D = min(n, width): each is also given as a share of that bound, as NAME_relative."""
Layers = str | Sequence[int]


def measure_model(
    model: nn.Module,
    batches: Iterable[tuple[Int[Tensor, "b n"], Bool[Tensor, "b n"]]],
    *,
    name: str = "model",
    metrics: Sequence[str] = METRICS,
    layers: Layers = "all",
    skip_first: int = 0,
    on_batch: Callable[[Int[Tensor, " b"], Mapping[str, Float[Tensor, " b"]]], None] | None = None,
    on_means: Callable[[list[Float[Tensor, "b _"]]], None] | None = None,
) -> ModelScores:
    """Measure the hidden states of one model over batches of token ids, one batch in memory at a time.

    For every text and layer the metric is taken over the states of its tokens; x̄ ± 1.96 s/√n is over the texts. The
    model is put in eval mode meanwhile.

    Args:
        model: a model of transformers that reads token ids, with or without a head, on any device.
        batches: token ids and masks, True for tokens that are no padding; read once.
        name: what the scores say the model is.
        metrics: names out of `eckart.metrics.METRICS` and `eckart.metrics.RAW_METRICS`.
        layers: "all", "last", or numbers: 0 the embeddings, −1 the last. The last is always among them: its states are
            those after the model's final norm.
        skip_first: tokens at the start of each text that do not count, such as attention sinks.
        on_batch: called after every batch with the tokens that count of each text, and its metrics in the last layer.
        on_means: called after every batch with the mean state of each text in every layer, 0 without a token.

    Raises:
        InputError: no batches, an unknown metric, a layer that is not there, a mask of another shape, a model that
            gives no hidden states or NaN or Inf in them.

    Source: Li, Xia, Chang & Wu, arXiv:2410.10672 (the matrix nuclear norm, and the entropy as its baseline).
    """
    metrics = known_metrics(metrics)
    moments, tokens, texts = Moments(), 0, 0
    training = model.training
    model.eval()
    try:
        for ids, mask in batches:
            numbers, width, counts, values, means = _measure_batch(
                model, ids, mask, metrics, layers, skip_first, on_means is not None
            )
            if on_means is not None:
                on_means(means)
            moments.add(values)
            tokens, texts = tokens + int(counts.sum()), texts + len(counts)
            if on_batch is not None:
                on_batch(counts, dict(zip(columns(metrics), values[-1], strict=True)))
    finally:
        model.train(training)
    if not texts:
        raise InputError("batches holds no text: give pairs of token ids and mask")
    scores = moments.scores(numbers, columns(metrics))
    return ModelScores(name, numbers[-1], width, texts, tokens / texts, scores)


@torch.no_grad()
def _measure_batch(
    model: nn.Module,
    ids: Tensor,
    mask: Tensor,
    metrics: Sequence[str],
    layers: Layers,
    skip_first: int,
    averaged: bool,
) -> tuple[list[int], int, Int[Tensor, " b"], Float[Tensor, "layers metrics b"], list[Float[Tensor, "b _"]]]:
    """Layers, width, tokens that count, values and mean states of one batch; its hidden states go when this returns."""
    if ids.dim() != 2 or mask.shape != ids.shape:
        raise InputError(
            f"a batch has ids {tuple(ids.shape)} and a mask {tuple(mask.shape)}: give both as (texts, tokens)"
        )
    device = next(model.parameters(), ids).device
    ids, mask = ids.to(device), mask.to(device).bool()
    states = hidden_states(model, ids, mask)
    numbers = _numbers(layers, len(states) - 1)
    counted = mask & (mask.cumsum(1) > skip_first)
    counts = counted.sum(1)
    found, means = [], []
    for number in numbers:
        state = states[number]
        values = measure_states(state, counted, metrics)
        if not state[counted].isfinite().all():
            raise InputError(
                f"layer {number} of {type(model).__name__} holds NaN or Inf: its weights or a precision below float32 "
                "do not carry this text"
            )
        bound = (counts.clamp(max=state.shape[-1]) / counts).sqrt()
        values |= {f"{metric}_relative": values[metric] / bound for metric in metrics if metric in BOUNDED}
        found.append(torch.stack([values[column] for column in columns(metrics)]))
        if averaged:
            real = torch.where(counted.unsqueeze(-1), state, 0.0)
            means.append((real.sum(1) / counts.clamp(min=1).unsqueeze(1)).float().cpu())
    return numbers, states[-1].shape[-1], counts.cpu(), torch.stack(found).cpu(), means


def known_metrics(metrics: Sequence[str]) -> list[str]:
    """The metrics, each once.

    Raises:
        InputError: none, or an unknown one.
    """
    if not metrics or isinstance(metrics, str):
        raise InputError(f"metrics is {metrics!r}: give names such as {', '.join(METRICS)}")
    check_metrics(metrics)
    return list(dict.fromkeys(metrics))


def columns(metrics: Sequence[str]) -> list[str]:
    """What is reported of some metrics: each, and the share of its bound where it has one."""
    return [x for name in metrics for x in ((name, f"{name}_relative") if name in BOUNDED else (name,))]


def _numbers(layers: Layers, depth: int) -> list[int]:
    if layers == "all":
        return list(range(depth + 1))
    wanted = [] if isinstance(layers, str) else layers
    for layer in wanted:
        if not -depth - 1 <= layer <= depth:
            raise InputError(
                f"layers: there is no layer {layer}: this model has 0 (embeddings) to {depth} (last)"
            )
    return sorted({layer % (depth + 1) for layer in wanted} | {depth})


class Moments:
    """Mean and squared deviations of values that come in batches; NaN is left out and counted."""

    def __init__(self) -> None:
        self.n: Tensor = torch.zeros((), dtype=torch.float64)
        self.mean = self.squares = self.skipped = self.n

    def add(self, values: Float[Tensor, "*each batch"]) -> None:
        """Take a batch in, by the update of Chan, Golub & LeVeque."""
        values = values.double()
        known = ~values.isnan()
        n = known.sum(-1).double()
        mean = torch.where(known, values, 0.0).sum(-1) / n.clamp(min=1)
        squares = torch.where(known, values - mean.unsqueeze(-1), 0.0).square().sum(-1)
        total, step = self.n + n, mean - self.mean
        share = n / total.clamp(min=1)
        self.squares = self.squares + squares + step.square() * self.n * share
        self.mean = self.mean + step * share
        self.n, self.skipped = total, self.skipped + (~known).sum(-1)

    def scores(self, layers: list[int], metrics: list[str]) -> list[Score]:
        """One score for each layer and metric, the two axes of what was added."""
        mean = torch.where(self.n > 0, self.mean, torch.nan)
        std = torch.where(self.n > 1, self.squares / (self.n - 1), torch.nan).sqrt()
        ci = Z95 * std / self.n.sqrt()
        rows = torch.stack([mean, std, ci, self.n, self.skipped], dim=-1).tolist()
        return [
            Score(layer, metric, mean, std, ci, int(n), int(skipped))
            for layer, row in zip(layers, rows, strict=True)
            for metric, (mean, std, ci, n, skipped) in zip(metrics, row, strict=True)
        ]
