"""The recurrence of an S4D layer, on its own."""

from __future__ import annotations

import torch
from jaxtyping import Float, Inexact
from torch import Tensor, nn

from eckart.linalg.state_space import recurrent_step


class S4DRecurrence(nn.Module):
    """The linear part of an `S4D` layer step by step: x ← ā x + b̄ u, then y = 2 Re Σ_n c_n x_n + D u.

    Args:
        dA: ā, (H, n); a buffer, like the others, in which complex numbers have (real, imaginary) as their last axis.
        dB: b̄, (H, n).
        C: c, (H, n).
        D: (H,).
    """

    D: Tensor

    def __init__(self, dA: Tensor, dB: Tensor, C: Tensor, D: Tensor) -> None:
        super().__init__()
        self.is_real = not dA.is_complex()
        for name, x in {"dA": dA, "dB": dB, "C": C, "D": D}.items():
            x = x.detach().clone()
            self.register_buffer(name, torch.view_as_real(x) if x.is_complex() else x)

    def initial_state(self, batch: int) -> Inexact[Tensor, "batch h n"]:
        """The state before the first time step: zeros."""
        return torch.zeros_like(self._numbers("dA")).repeat(batch, 1, 1)

    def step(
        self, u: Float[Tensor, "batch h"], state: Inexact[Tensor, "batch h n"]
    ) -> tuple[Float[Tensor, "batch h"], Inexact[Tensor, "batch h n"]]:
        """The output at one more time step, and the state after it."""
        dA, dB, C = map(self._numbers, ("dA", "dB", "C"))
        return recurrent_step(u, state, dA, dB, C, self.D)

    def _numbers(self, name: str) -> Inexact[Tensor, "h n"]:
        x = self.get_buffer(name)
        return x if self.is_real else torch.view_as_complex(x)
