"""The configuration of a transformers model of S4D blocks."""

from __future__ import annotations

from typing import Any

import torch
from transformers import PreTrainedConfig

from eckart.arguments import check_attributes, check_number
from eckart.errors import InputError
from eckart.layers.s4d import S4DBlock

POOLINGS = ("mean", "last")
PROBLEMS = ("regression", "single_label_classification", "multi_label_classification")
BLOCK = (
    *(
        "d_state",
        "init",
        "discretization",
        "real_transform",
        "dt_transform",
        "dt_min",
        "dt_max",
        "dt_tie",
        "n_ssm",
    ),
    *("is_real", "bandlimit", "real_random", "real_scale", "imag_scale"),
    *("bidirectional", "dropout", "norm", "prenorm"),
)


class S4DConfig(PreTrainedConfig):
    """What an S4D model is made of.

    Args:
        vocab_size: number of tokens, for ``input_ids``; None for ``input_values``, real numbers.
        num_channels: numbers at each step of ``input_values``.
        hidden_size: H.
        num_hidden_layers: blocks.
        max_position: the longest sequence that is accepted; None for any.
        pooling: what the classifier sees, the "mean" over the steps or the "last" step.
        kwargs: options of `transformers.PreTrainedConfig`, such as ``num_labels``.

    The others are those of each `S4DBlock`.

    Raises:
        InputError: an option out of its range.
    """

    model_type = "s4d"

    def __init__(
        self,
        *,
        vocab_size: int | None = None,
        num_channels: int = 1,
        hidden_size: int = 128,
        num_hidden_layers: int = 4,
        d_state: int = 64,
        init: str = "legs",
        discretization: str = "zoh",
        real_transform: str = "exp",
        dt_transform: str = "exp",
        dt_min: float = 1e-3,
        dt_max: float = 0.1,
        dt_tie: bool = True,
        n_ssm: int | None = None,
        is_real: bool | None = None,
        bandlimit: float | None = None,
        real_random: bool = False,
        real_scale: float = 1.0,
        imag_scale: float = 1.0,
        bidirectional: bool = False,
        dropout: float = 0.1,
        norm: str = "layer",
        prenorm: bool = True,
        max_position: int | None = None,
        pooling: str = "mean",
        **kwargs: Any,
    ) -> None:
        self.vocab_size, self.num_channels, self.max_position = vocab_size, num_channels, max_position
        self.hidden_size, self.num_hidden_layers, self.pooling = hidden_size, num_hidden_layers, pooling
        self.d_state, self.n_ssm, self.is_real, self.bandlimit = d_state, n_ssm, is_real, bandlimit
        self.init, self.discretization, self.real_transform = init, discretization, real_transform
        self.dt_transform, self.dt_min, self.dt_max, self.dt_tie = dt_transform, dt_min, dt_max, dt_tie
        self.real_random, self.real_scale, self.imag_scale = real_random, real_scale, imag_scale
        self.bidirectional, self.dropout, self.norm, self.prenorm = bidirectional, dropout, norm, prenorm
        _choose("problem_type", kwargs.get("problem_type") or PROBLEMS[0], PROBLEMS)
        super().__init__(**kwargs)
        self.check()

    def block(self) -> S4DBlock:
        """One block, freshly drawn."""
        return S4DBlock(self.hidden_size, **{name: getattr(self, name) for name in BLOCK})

    def check(self) -> None:
        """Refuse what no model can be made of.

        Raises:
            InputError: an option out of its range.
        """
        check_number("num_labels", self.num_labels, "int")
        check_attributes(self, S4DConfig.__init__)
        _choose("pooling", self.pooling, POOLINGS)
        with torch.device("meta"):
            self.block()


def _choose(name: str, value: str, choices: tuple[str, ...]) -> None:
    if value not in choices:
        raise InputError(f"{name}={value!r}: choose one of {', '.join(choices)}")
