"""The metrics as torchmetrics classes: a mean over texts, batch by batch and over processes."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torchmetrics import Metric

from eckart.arguments import checked
from eckart.metrics._states import Mask
from eckart.metrics.alpha_req import alpha_req
from eckart.metrics.entropy import matrix_entropy, renyi_entropy
from eckart.metrics.geometry import anisotropy, two_nn
from eckart.metrics.matrix_nuclear_norm import matrix_nuclear_norm
from eckart.metrics.norms import nuclear_norm, schatten_norm
from eckart.metrics.ranks import effective_rank, energy_rank, participation_ratio, rankme, stable_rank


class TextMean(Metric):
    """Mean of a metric over the texts that gave a number.

    Args:
        function: (hidden, mask, **options) -> one value for each text.
        options: of the function.
        kwargs: those of `torchmetrics.Metric`.

    Raises:
        InputError: an option that the function refuses.

    Attributes:
        total: sum of the values, in float64.
        counted: texts that gave a number.
        skipped: texts that gave NaN.
    """

    full_state_update = False
    is_differentiable = False
    higher_is_better: bool | None = None
    total: Tensor
    counted: Tensor
    skipped: Tensor

    def __init__(self, function: Callable[..., Tensor], options: dict[str, Any], **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self._function = partial(function, **options)
        self._function(torch.zeros(1, 1))  # options out of range are refused here, not at the first batch
        self.add_state("total", torch.zeros((), dtype=torch.float64), dist_reduce_fx="sum")
        for name in ("counted", "skipped"):
            self.add_state(name, torch.zeros((), dtype=torch.int64), dist_reduce_fx="sum")

    def update(
        self,
        hidden: Float[Tensor, "*batch n d"],
        mask: Mask | None = None,
    ) -> None:
        """Measure these texts and add them.

        Args:
            hidden: hidden states, of one text or of a batch.
            mask: True where a row is a token.

        Raises:
            InputError: hidden states or a mask of the wrong type or shape.
        """
        values = self._function(hidden, mask)
        known = ~values.isnan()
        self.total = self.total + torch.where(known, values, 0.0).to(self.total).sum()
        self.counted = self.counted + known.sum().to(self.counted)
        self.skipped = self.skipped + (~known).sum().to(self.skipped)

    def compute(self) -> Float[Tensor, ""]:
        """Mean over the counted texts; NaN where there is none."""
        mean: Tensor = self.total / self.counted
        return mean


class MatrixNuclearNorm(TextMean):
    """Mean of `matrix_nuclear_norm` over texts, with its options; lower is read as better."""

    higher_is_better = False
    is_differentiable = True

    @checked
    def __init__(
        self, *, D: int | None = None, per_token: bool = True, normalise: bool = True, **kwargs: Any
    ) -> None:
        options = {"D": D, "per_token": per_token, "normalise": normalise}
        super().__init__(matrix_nuclear_norm, options, **kwargs)


class MatrixEntropy(TextMean):
    """Mean of `matrix_entropy` over texts, with its options; lower is read as better."""

    higher_is_better = False
    is_differentiable = True

    @checked
    def __init__(self, *, relative: bool = True, normalise: bool = True, **kwargs: Any) -> None:
        super().__init__(matrix_entropy, {"relative": relative, "normalise": normalise}, **kwargs)


class RenyiEntropy(TextMean):
    """Mean of `renyi_entropy` over texts, with its options; lower is read as better."""

    higher_is_better = False
    is_differentiable = True

    @checked
    def __init__(self, *, normalise: bool = True, **kwargs: Any) -> None:
        super().__init__(renyi_entropy, {"normalise": normalise}, **kwargs)


class NuclearNorm(TextMean):
    """Mean of `nuclear_norm` over texts, with its options."""

    is_differentiable = True

    @checked
    def __init__(self, *, per_token: bool = True, normalise: bool = True, **kwargs: Any) -> None:
        super().__init__(nuclear_norm, {"per_token": per_token, "normalise": normalise}, **kwargs)


class SchattenNorm(TextMean):
    """Mean of `schatten_norm` over texts, with its options."""

    is_differentiable = True

    @checked
    def __init__(self, *, p: float, per_token: bool = True, normalise: bool = True, **kwargs: Any) -> None:
        super().__init__(schatten_norm, {"p": p, "per_token": per_token, "normalise": normalise}, **kwargs)


class EffectiveRank(TextMean):
    """Mean of `effective_rank` over texts, with its options."""

    @checked
    def __init__(self, *, power: float = 1.0, normalise: bool = True, **kwargs: Any) -> None:
        super().__init__(effective_rank, {"power": power, "normalise": normalise}, **kwargs)


class EnergyRank(TextMean):
    """Mean of `energy_rank` over texts, with its options."""

    @checked
    def __init__(self, *, energy: float = 0.9, normalise: bool = True, **kwargs: Any) -> None:
        super().__init__(energy_rank, {"energy": energy, "normalise": normalise}, **kwargs)


class StableRank(TextMean):
    """Mean of `stable_rank` over texts, with its options."""

    @checked
    def __init__(self, *, normalise: bool = True, **kwargs: Any) -> None:
        super().__init__(stable_rank, {"normalise": normalise}, **kwargs)


class ParticipationRatio(TextMean):
    """Mean of `participation_ratio` over texts, with its options."""

    is_differentiable = True

    @checked
    def __init__(self, *, normalise: bool = True, **kwargs: Any) -> None:
        super().__init__(participation_ratio, {"normalise": normalise}, **kwargs)


class AlphaReQ(TextMean):
    """Mean of `alpha_req` over texts, with its options."""

    is_differentiable = True

    @checked
    def __init__(
        self, *, first: int = 1, last: int | None = None, normalise: bool = True, **kwargs: Any
    ) -> None:
        super().__init__(alpha_req, {"first": first, "last": last, "normalise": normalise}, **kwargs)


class RankMe(TextMean):
    """Mean of `rankme` over sets of embeddings."""

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(rankme, {}, **kwargs)


class Anisotropy(TextMean):
    """Mean of `anisotropy` over texts."""

    is_differentiable = True

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(anisotropy, {}, **kwargs)


class TwoNN(TextMean):
    """Mean of `two_nn` over texts, with its options."""

    @checked
    def __init__(self, *, discard: float = 0.1, **kwargs: Any) -> None:
        super().__init__(two_nn, {"discard": discard}, **kwargs)
