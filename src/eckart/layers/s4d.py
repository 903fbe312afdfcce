"""S4D: the layer, the block to stack, and the parameter groups to train them with."""

from __future__ import annotations

from typing import Any

from jaxtyping import Float, Shaped
from torch import Tensor, nn

from eckart.arguments import checked
from eckart.errors import InputError
from eckart.layers._layer import S4D, Sequences, States
from eckart.layers._recurrence import S4DRecurrence
from eckart.layers._state_space import S4DKernel

__all__ = ["S4D", "S4DBlock", "S4DKernel", "S4DRecurrence", "param_groups"]

SSM_LR = 1e-3
"""The highest learning rate of A, B and Δ."""
_NORMS = {"layer": nn.LayerNorm, "rms": nn.RMSNorm}


class S4DBlock(nn.Module):
    """Norm, `S4D`, dropout and a residual: x + drop(S4D(norm(x))), or norm(x + drop(S4D(x))) without ``prenorm``.

    It has the methods of `S4D`.

    Args:
        d_model: H.
        d_state: N.
        norm: "layer" or "rms", over the channels of one time step.
        prenorm: norm before the layer instead of after the sum.
        dropout: share of channels of a sequence left out, in the layer and after it.
        options: of `S4D` and `S4DKernel`.

    Raises:
        InputError: an option out of its range.
    """

    @checked
    def __init__(
        self,
        d_model: int,
        d_state: int = 64,
        *,
        norm: str = "layer",
        prenorm: bool = True,
        dropout: float = 0.0,
        **options: Any,
    ) -> None:
        super().__init__()
        if norm not in _NORMS:
            raise InputError(f"norm={norm!r}: choose one of {', '.join(_NORMS)}")
        self.prenorm = prenorm
        self.layer = S4D(d_model, d_state, dropout=dropout, **options)
        self.norm = _NORMS[norm](d_model)
        self.dropout = nn.Dropout1d(dropout)

    def forward(
        self,
        x: Sequences,
        state: States | None = None,
        *,
        rate: float = 1.0,
        mask: Shaped[Tensor, "batch length"] | None = None,
    ) -> Sequences:
        """As `S4D.forward`."""
        self.layer.check_input(x, "batch", "length")
        return self._add(x, self.layer(self._before(x), state, rate=rate, mask=mask))

    def forward_with_state(
        self, x: Sequences, state: States | None = None, rate: float = 1.0
    ) -> tuple[Sequences, States]:
        """As `S4D.forward_with_state`."""
        self.layer.check_input(x, "batch", "length")
        y, state = self.layer.forward_with_state(self._before(x), state, rate)
        return self._add(x, y), state

    def step(
        self, x: Float[Tensor, "batch h"], state: States, rate: float = 1.0
    ) -> tuple[Float[Tensor, "batch h"], States]:
        """As `S4D.step`."""
        self.layer.check_input(x, "batch")
        y, state = self.layer.step(self._before(x), state, rate)
        return self._add(x.unsqueeze(1), y.unsqueeze(1)).squeeze(1), state

    def initial_state(self, batch: int) -> States:
        """As `S4D.initial_state`."""
        return self.layer.initial_state(batch)

    def _before(self, x: Tensor) -> Tensor:
        return self.norm(x) if self.prenorm else x

    def _add(self, x: Sequences, y: Sequences) -> Sequences:
        x = x + self.dropout(y.mT).mT
        return x if self.prenorm else self.norm(x)


def dynamics(model: nn.Module) -> list[nn.Parameter]:
    """A, B and Δ of all S4D layers."""
    kernels = [module for module in model.modules() if isinstance(module, S4DKernel)]
    return [p for kernel in kernels for name, p in kernel.named_parameters() if name != "C"]


def param_groups(
    model: nn.Module, lr: float, weight_decay: float = 0.01, ssm_lr: float = SSM_LR
) -> list[dict[str, Any]]:
    """Parameter groups for a torch optimizer: A, B and Δ of all S4D layers slower and without weight decay.

    `eckart.layers.S4DTrainer` makes them for `transformers.Trainer`.

    Args:
        model: has any number of S4D layers.
        lr: learning rate of all other parameters.
        weight_decay: of all other parameters.
        ssm_lr: A, B and Δ learn at the smaller of this and ``lr``. 0 freezes them; to freeze some of them, or the rest
            too, set their ``requires_grad`` to False: what needs no gradient is in no group.
    """
    slow = {id(p) for p in dynamics(model)}
    trained = [p for p in model.parameters() if p.requires_grad]
    groups = [
        {"params": [p for p in trained if id(p) not in slow], "lr": lr, "weight_decay": weight_decay},
        {"params": [p for p in trained if id(p) in slow], "lr": min(lr, ssm_lr), "weight_decay": 0.0},
    ]
    return [group for group in groups if group["params"]]
