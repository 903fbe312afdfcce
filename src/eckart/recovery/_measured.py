"""Measurements in the unit of a descent: split, what factors leave of them, and which columns are more than noise."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from eckart.linalg.factored_descent import core_svd
from eckart.linalg.operators import Operator
from eckart.linalg.subgradient import weighted_quantile

NORMAL_MEDIAN = 0.6745
"""Median of |N(0, 1)|: turns a median of |y| into a norm of X, and a median residual into a deviation."""
SMALL = 1e-2
"""Singular values above this share of the largest count for the rank."""
RESOLVED = 1e-3
"""Share of a typical measurement below which a residual is the descent's own, not an outlier."""
Factors = tuple[Tensor, Tensor]
"""U and V; the same tensor twice where X is symmetric."""


@dataclass(frozen=True)
class Measured:
    """y_i = ⟨A_i, X⟩ with weights, X = U Uᵀ where ``symmetric``; √``spread`` is the size of X for a unit of y."""

    operator: Operator
    y: Tensor
    weights: Tensor | None
    symmetric: bool

    def part(self, index: Tensor) -> Measured:
        """These measurements alone."""
        weights = None if self.weights is None else self.weights[index]
        return replace(self, operator=self.operator.subset(index), y=self.y[index], weights=weights)

    def split(self, share: float, random: Any) -> tuple[Measured, Measured]:
        """All but a share of the measurements, in their order, and that share."""
        order = torch.as_tensor(random.permutation(self.operator.m))
        held, kept = order.tensor_split([round(share * self.operator.m)])
        return self if not len(held) else self.part(kept.sort().values), self.part(held)

    def shares(self) -> Tensor:
        """The weights, adding up to one."""
        return (
            torch.full_like(self.y, 1 / len(self.y))
            if self.weights is None
            else self.weights / self.weights.sum()
        )

    def median(self, y: Tensor | None = None) -> float:
        """median|y|."""
        return float(weighted_quantile((self.y if y is None else y).abs(), 0.5, self.weights))

    def gauge(self) -> float:
        """√(d1 d2 / mean‖A_i‖_F²): one for Gaussian A_i of unit variance, √(d1 d2) for entries."""
        energy = self.operator.energy(self.shares())
        return math.sqrt(math.prod(self.operator.shape_in) / energy) if energy else 1.0

    def size(self) -> float:
        """About ‖X‖_F, from the median of y; from its mean where more than half of y is zero."""
        return (self.median() / NORMAL_MEDIAN or float(self.y.abs().mean()) or 1.0) * self.gauge()

    def rest(self, factors: Factors) -> Tensor:
        """What the factors leave of y."""
        return self.y - self.operator.forward(*factors)

    def clear(self, factors: Factors) -> Factors:
        """The columns that are more than noise, balanced; one at least.

        Noise of deviation ν on each measurement moves X by ν (√d1 + √d2) √(d1 d2/(m mean‖A_i‖_F²)) in spectral norm.
        """
        count = len(self.y) if self.weights is None else float(self.weights.sum())
        noise = self.median(self.rest(factors)) / NORMAL_MEDIAN * self.gauge() / math.sqrt(count)
        P, sigma, Qh = core_svd(*factors)
        edge = noise * sum(math.sqrt(d) for d in self.operator.shape_in)
        k = max(int((sigma > max(edge, SMALL * float(sigma[0]))).sum()), 1)
        left = P[:, :k] * sigma[:k].sqrt()
        return left, left if self.symmetric else Qh[:k].mT * sigma[:k].sqrt()


class HoldOut:
    """Reports each iteration from ``begun`` on, and keeps the best factors by the ℓ1 loss on what was held out."""

    def __init__(self, estimator: Any, scale: float, held: Measured, begun: int) -> None:
        self.report, self.patience, self.scale = estimator._reporter(), estimator.patience, scale
        self.loss_unit = scale ** (2 if estimator.loss == "l2" else 1)
        self.held, self.begun = held, begun
        self.best: Factors | None = None
        self.lowest, self.since = math.inf, 0

    def __call__(self, t: int, loss: float, left: Tensor, right: Tensor) -> bool:
        root = math.sqrt(self.scale)
        info = {"loss": self.loss_unit * loss, "factor": root * left, "right_factor": root * right}
        self.report(self.begun + t, info)
        if not self.held.operator.m:
            return False
        mean = float(self.held.shares() @ self.held.rest((left, right)).abs())
        self.since += 1
        if mean < self.lowest:
            self.lowest, self.best, self.since = mean, (left, right), 0
        return bool(self.since > self.patience)
