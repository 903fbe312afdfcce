"""What calibration data says of a model, block by block: peak memory is the model, one block's statistics and the
hidden states that enter that block.

Lifecycle: `Trace(...)` runs the model over the data once, so that what cannot be used is refused before anything is
changed, and keeps what enters the first block; `observe(block)` runs one block over that and gathers its statistics;
`advance(block)`, or `observe` itself if told so, puts the block's outputs in place of its inputs.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from eckart.compression._batches import Batch, call, checked_batches, token_mask
from eckart.compression._census import Outline, matrix_shape
from eckart.errors import InputError
from eckart.linalg.moments import Moments, add_rows, no_moments

Observed = Moments | Tensor
Call = tuple[tuple[Any, ...], dict[str, Any]]


class _Stop(Exception):
    """Raised after the last block: the head's outputs are of no use."""


class Trace:
    """The calibration data as it enters a block.

    Args:
        outline: the model and its blocks.
        batches: mappings of model inputs, tensors, or tuples whose first item is the input.
        influence: also measure how much each block changes the hidden states.

    Attributes:
        influence: 1 − E cos(x_in, x_out) of each block, if it was asked for.

    Raises:
        InputError: no batch, one that the model does not take, tokens outside the vocabulary, NaN.
    """

    def __init__(self, outline: Outline, batches: Iterable[Batch], influence: bool = False) -> None:
        self.outline = outline
        self.calls: list[list[Call]] = []
        self.hidden: list[Tensor] = []
        self.masks: list[Tensor | None] = []
        self.batches: list[Batch] = []
        self.called: set[str] = set()
        self.influenced = influence
        self._angles = [[0.0, 0.0] for _ in outline.blocks]
        with self._noting_calls():
            for batch in checked_batches(outline.model, batches):
                self.masks.append(token_mask(batch))
                if outline.chained:
                    self._follow(batch)
                else:
                    self.batches.append(batch)
        self.influence = [1 - total / max(count, 1.0) for total, count in self._angles]

    @contextlib.contextmanager
    def _noting_calls(self) -> Iterator[None]:
        """While the model runs: which of its layers are called."""
        handles = [
            layer.register_forward_pre_hook(lambda *_, name=name: self.called.add(name))
            for name, layer in self.outline.layers.items()
        ]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    @property
    def marks(self) -> list[float]:
        """What tells these data from others, for a run that resumes."""
        seen: list[Any] = self.hidden or [
            list(b.values()) if isinstance(b, Mapping) else b for b in self.batches
        ]
        rows = [[hidden] if isinstance(hidden, Tensor) else hidden for hidden in seen]
        masks = [mask for mask in self.masks if mask is not None]
        return [float(x.double().sum()) for row in (*rows, masks) for x in row if isinstance(x, Tensor)]

    def check_called(self, names: Iterable[str]) -> None:
        """Refuse layers that the calibration data never reach; of a model that is one block, `observe` does.

        Raises:
            InputError: naming the first.
        """
        for name in names:
            if self.outline.chained and name not in self.called:
                raise _not_called(name)

    def _follow(self, batch: Batch) -> None:
        """One pass: what each block is called with, and what enters the first."""
        blocks = list(self.outline.blocks.values())
        calls: list[Call] = []
        last: list[Any] = [None]
        forwards = [block.forward for block in blocks]

        def step(index: int) -> Callable[..., Any]:
            def forward(hidden: Any = None, *rest: Any, **named: Any) -> Any:
                hidden, named = _split(hidden, named)
                if index == 0:
                    self.hidden.append(hidden)
                elif hidden is not last[0]:
                    raise InputError(
                        f"{type(self.outline.model).__name__} changes the hidden states between its blocks: this "
                        "architecture would need a calibration of its own; nothing was changed"
                    )
                calls.append((rest, named))
                out = forwards[index](hidden, *rest, **named)
                last[0] = out[0] if isinstance(out, tuple) else out
                if self.influenced:
                    self._turn(index, hidden, last[0])
                if index == len(blocks) - 1:
                    raise _Stop
                return out

            return forward

        try:
            for index, block in enumerate(blocks):
                block.forward = step(index)
            with contextlib.suppress(_Stop):
                call(self.outline.model, batch, len(self.calls))
        finally:
            for block in blocks:
                del block.forward
        if len(calls) != len(blocks):
            raise InputError(
                f"{len(calls)} of {len(blocks)} blocks of {type(self.outline.model).__name__} ran on the calibration "
                "data: this architecture would need a calibration of its own; nothing was changed"
            )
        if not bool(torch.isfinite(_rows(self.masks[-1], last[0])).all()):
            raise InputError("calibration gives NaN or Inf in the last block: check the data and the weights")
        self.calls.append(calls)

    def _turn(self, index: int, before: Tensor, after: Tensor) -> None:
        if before.shape != after.shape:
            return
        cosine = torch.nn.functional.cosine_similarity(before.float(), after.float(), dim=-1)
        cosine = _rows(self.masks[-1], cosine, 0)
        self._angles[index][0] += float(cosine.double().sum())
        self._angles[index][1] += cosine.numel()

    def observe(
        self, index: int, layers: Mapping[str, nn.Module], advance: bool = False
    ) -> dict[str, Observed]:
        """The moments of what enters these layers of a block, and how often each row of an embedding was looked up;
        layers with the same input share their moments.

        Args:
            index: of the block.
            layers: of it, by full name.
            advance: also put what comes out of the block in place of what goes in.

        Raises:
            InputError: NaN or Inf, or a layer that was never called.
        """
        gathered: dict[str, Moments] = {}
        counts: dict[str, Tensor] = {}
        leaders: dict[str, str] = {}
        current: dict[str, Tensor] = {}
        mask: list[Tensor | None] = [None]

        def hook(name: str) -> Callable[[nn.Module, tuple[Tensor, ...]], None]:
            def see(layer: nn.Module, inputs: tuple[Tensor, ...]) -> None:
                x = inputs[0]
                if isinstance(layer, nn.Embedding):
                    lookups = _rows(mask[0], x, 0)
                    counts[name] = counts.get(name, 0) + torch.bincount(
                        lookups, minlength=layer.num_embeddings
                    )
                    return
                leader = leaders.setdefault(name, next((n for n, t in current.items() if t is x), name))
                if leader != name and current.get(leader) is x:
                    return
                current[name] = x
                gathered.setdefault(name, no_moments(matrix_shape(layer)[1], x.device))
                gathered[name] = add_rows(gathered[name], _rows(mask[0], x))

            return see

        handles = [layer.register_forward_pre_hook(hook(name)) for name, layer in layers.items()]
        try:
            for number, out in enumerate(self._run(index, mask)):
                current.clear()
                if advance and self.outline.chained:
                    self.hidden[number] = out
        finally:
            for handle in handles:
                handle.remove()
        found: dict[str, Observed] = {}
        for name in layers:
            moments = gathered.get(leaders.get(name, name))
            if (moments is None and name not in counts) or (moments is not None and moments.rows == 0):
                raise _not_called(name)
            if moments is not None and not bool(
                torch.isfinite(moments.mean).all() & torch.isfinite(moments.scatter).all()
            ):
                raise InputError(
                    f"calibration gives NaN or Inf at layer {name}: check the data and the weights"
                )
            found[name] = counts[name] if moments is None else moments
        return found

    def advance(self, index: int) -> None:
        """Put what comes out of a block in place of what went in."""
        if self.outline.chained:
            self.hidden = list(self._run(index, [None]))

    def _run(self, index: int, mask: list[Tensor | None]) -> Iterator[Any]:
        if not self.outline.chained:
            for number, batch in enumerate(self.batches):
                mask[0] = self.masks[number]
                yield call(self.outline.model, batch, number)
            return
        block = list(self.outline.blocks.values())[index]
        for number, hidden in enumerate(self.hidden):
            mask[0] = self.masks[number]
            rest, named = self.calls[number][index]
            out = block(hidden, *rest, **named)
            yield out[0] if isinstance(out, tuple) else out


def _not_called(name: str) -> InputError:
    return InputError(f"layer {name} was not called on the calibration data: exclude it, or give other data")


def _split(hidden: Any, named: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
    """The hidden states, given by place or by name, and the other names; nothing is cached."""
    named = {k: v for k, v in named.items() if k not in ("past_key_values", "past_key_value", "layer_past")}
    if hidden is None:
        hidden = named.pop("hidden_states")
    return hidden, named


def _rows(mask: Tensor | None, x: Tensor, features: int = 1) -> Tensor:
    """All real tokens as rows; ``features`` is the number of trailing dimensions that are no places."""
    places, rest = x.shape[: x.dim() - features], x.shape[x.dim() - features :]
    rows = x.reshape(places.numel(), *rest)
    return rows[mask.reshape(-1)] if mask is not None and places.numel() == mask.numel() else rows
