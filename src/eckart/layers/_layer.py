"""S4D, a sequence layer of diagonal state spaces: trained as long convolutions, used step by step as a recurrence."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Inexact, Shaped
from torch import Tensor, nn

from eckart.arguments import checked
from eckart.errors import InputError
from eckart.layers._recurrence import S4DRecurrence
from eckart.layers._state_space import S4DKernel
from eckart.linalg.convolution import causal_convolution, fixed, tracing, two_sided_convolution
from eckart.linalg.state_space import recurrent_step

Sequences = Float[Tensor, "batch length h"]
States = Inexact[Tensor, "batch h n"]


class S4D(nn.Module):
    """A linear system for each channel, GELU, dropout, and a gated mix of the channels: (B, L, H) → (B, L, H).

    y_t = Σ_{s≤t} K_{t−s} u_s + D u_t, and out = a ⊙ σ(g) with (a, g) = W gelu(y) + b. With ``bidirectional`` a second
    kernel adds Σ_{s>t} K'_{s−t−1} u_s. Dropout leaves out whole channels of a sequence.

    What is not float32 or float64 is computed in float32; the output has the type of the input.
    `torch.jit.trace` gives a module for sequences of the traced length. While the module is in evaluation mode and no
    gradient is asked for, its kernel is kept until a parameter or the length changes.

    Args:
        d_model: H.
        d_state: N, as in `S4DKernel`.
        dropout: share of channels left out after the GELU.
        bidirectional: look at the whole sequence; there is no step and no state then.
        max_length: the longest sequence that is accepted; None for any.
        options: of `S4DKernel`.

    Raises:
        InputError: an option out of its range.

    Source: Gu, Gupta, Goel & Ré, 2022, arXiv:2206.11893.
    """

    @checked
    def __init__(
        self,
        d_model: int,
        d_state: int = 64,
        *,
        dropout: float = 0.0,
        bidirectional: bool = False,
        max_length: int | None = None,
        **options: Any,
    ) -> None:
        super().__init__()
        if not 0 <= dropout < 1:
            raise InputError(f"dropout={dropout}: give a number in [0, 1)")
        if max_length is not None and max_length < 1:
            raise InputError(f"max_length={max_length}: give a positive length, or None for any")
        self.bidirectional, self.max_length = bidirectional, max_length
        self.kernel = S4DKernel(d_model, d_state, channels=2 if bidirectional else 1, **options)
        self.D = nn.Parameter(torch.randn(1, d_model))
        self.dropout = nn.Dropout1d(dropout)
        self.output_linear = nn.Linear(d_model, 2 * d_model)

    def forward(
        self,
        x: Sequences,
        state: States | None = None,
        *,
        rate: float = 1.0,
        mask: Shaped[Tensor, "batch length"] | None = None,
    ) -> Sequences:
        """The output for a whole sequence, or for the next part of one.

        Args:
            x: the input.
            state: where an earlier part ended.
            rate: how much longer a time step is than in training: 2 for a signal sampled half as often.
            mask: True (1) where x is real, False (0) at the padding on the right. Outputs at real positions do not
                depend on the padding; outputs at the padding mean nothing.

        Raises:
            InputError: input of another shape or type, an empty sequence or one above ``max_length``, padding on the
                left, a state of another shape, or any state where the layer is bidirectional.
        """
        return self._mix(self.convolve(self._signal(x, mask), state, rate)).to(x.dtype)

    def forward_with_state(
        self, x: Sequences, state: States | None = None, rate: float = 1.0
    ) -> tuple[Sequences, States]:
        """The output of `forward`, and the state to go on from."""
        self._check_causal()
        u = self._signal(x)
        return self._mix(self.convolve(u, state, rate)).to(x.dtype), self.kernel.advance(u, state, rate)

    def step(
        self, x: Float[Tensor, "batch h"], state: States, rate: float = 1.0
    ) -> tuple[Float[Tensor, "batch h"], States]:
        """The output of `forward` at one more time step, and the state after it, at a cost that no length enters."""
        self._check_causal()
        self.check_input(x, "batch")
        u = x.to(self.kernel.dtype)
        self._check_state(state, len(x))
        y, state = recurrent_step(u, state, *self.kernel.discretized(rate), self.D[0])
        return self._mix(y.unsqueeze(-1)).squeeze(1).to(x.dtype), state

    def initial_state(self, batch: int) -> States:
        """The state before the first time step: zeros."""
        return self.recurrence().initial_state(batch)

    def recurrence(self, rate: float = 1.0) -> S4DRecurrence:
        """The linear part on its own, with numbers that no longer follow the parameters."""
        self._check_causal()
        return S4DRecurrence(*self.kernel.discretized(rate), self.D[0])

    def convolve(
        self, u: Float[Tensor, "batch h length"], state: States | None = None, rate: float = 1.0
    ) -> Float[Tensor, "batch h length"]:
        """The linear part for a whole sequence, time last: y_t = Σ_s K_{t−s} u_s + D u_t + what the state adds."""
        kernel = self.kernel(fixed(u.shape[-1]), rate)
        past = torch.cat([kernel[0, :, :1] + self.D.mT, kernel[0, :, 1:]], dim=-1)
        if state is None:
            return (
                two_sided_convolution(u, past, kernel[1])
                if self.bidirectional
                else causal_convolution(u, past)
            )
        self._check_causal()
        self._check_state(state, len(u))
        return causal_convolution(u, past) + self.kernel.response(state, u.shape[-1], rate)

    def check_input(self, x: Tensor, *axes: str) -> None:
        """Refuse what is not real numbers of these axes and H channels.

        Raises:
            InputError: it is something else.
        """
        width = self.kernel.d_model
        shaped = isinstance(x, Tensor) and x.dim() == len(axes) + 1 and fixed(x.shape[-1]) == width
        if not shaped or not x.is_floating_point():
            raise InputError(f"x is {_kind(x)}: give real numbers ({', '.join(axes)}, {width})")

    def _signal(self, x: Tensor, mask: Tensor | None = None) -> Float[Tensor, "batch h length"]:
        self.check_input(x, "batch", "length")
        length, most = fixed(x.shape[1]), self.max_length
        if length == 0:
            raise InputError("x has no time step: give a sequence of at least one")
        if most is not None and length > most:
            raise InputError(
                f"x has length {length}, max_length={most}: cut it, or pass parts of it with a state"
            )
        if mask is not None:
            mask = as_mask("mask", mask, tuple(map(fixed, x.shape[:2])))
            if not _traced() and bool((mask[:, 1:] > mask[:, :-1]).any()):
                raise InputError("mask has padding before a real position: pad on the right")
            x = x.masked_fill(~mask.unsqueeze(-1), 0)
        return x.to(self.kernel.dtype).mT

    def _check_causal(self) -> None:
        if self.bidirectional:
            raise InputError(
                "bidirectional=True sees the whole sequence: states and steps need a layer without it"
            )

    def _check_state(self, state: Tensor, batch: int) -> None:
        shape = batch, self.kernel.d_model, self.kernel.size
        fits = isinstance(state, Tensor) and state.shape == shape
        if not fits or state.is_complex() == self.kernel.is_real:
            kind = "real" if self.kernel.is_real else "complex"
            raise InputError(f"state is {_kind(state)}: give {kind} numbers {shape}")

    def _mix(self, y: Float[Tensor, "batch h length"]) -> Sequences:
        y = self.dropout(F.gelu(y)).mT
        return F.glu(self.output_linear(y.to(self.output_linear.weight.dtype)), dim=-1)


def as_mask(name: str, mask: object, shape: tuple[int, ...]) -> Bool[Tensor, ...]:
    """A mask of booleans, or of whole numbers 0 and 1, as booleans.

    Raises:
        InputError: it is something else, or of another shape.
    """
    whole = isinstance(mask, Tensor) and not mask.is_floating_point() and not mask.is_complex()
    if not isinstance(mask, Tensor) or not whole or tuple(map(fixed, mask.shape)) != shape:
        raise InputError(f"{name} is {_kind(mask)}: give booleans, or 0 and 1, of shape {shape}")
    if mask.dtype != torch.bool and not _traced() and bool(((mask != 0) & (mask != 1)).any()):
        raise InputError(
            f"{name} holds other numbers than 0 and 1: give 1 at real positions, 0 at the padding"
        )
    return mask.bool()


def _traced() -> bool:
    """Whether the values of tensors cannot be looked at."""
    return torch.compiler.is_compiling() or tracing()


def _kind(x: object) -> str:
    return f"{x.dtype} of shape {tuple(x.shape)}" if isinstance(x, Tensor) else f"a {type(x).__name__}"
