"""RobustLowRank: a low-rank matrix from linear measurements of which many are grossly wrong, its rank unknown.

    y_i = ⟨A_i, X⟩ + s_i        X = U Uᵀ        f(U) = (1/m) Σ |y_i − ⟨A_i, U Uᵀ⟩|
    U ← U − 2 η_t D U           D = sym((1/m) Σ sign(⟨A_i, U Uᵀ⟩ − y_i) A_i)

    A (m, d, d) or an operator   y (m)   U (d, r′), r′ ≥ rank X

Source: Ma & Fattahi, JMLR 2023, arXiv:2202.08788.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from sklearn.utils import check_random_state, column_or_1d
from sklearn.utils._param_validation import StrOptions
from torch import Tensor

from eckart.errors import InputError
from eckart.linalg.operators import Operator
from eckart.linalg.subgradient import (
    Loss,
    Norm,
    StepRule,
    StepSize,
    signed_mean,
    spectral_factors,
    subgradient_descent,
    weighted_quantile,
)
from eckart.recovery._base import fitting, real, to_numpy, whole
from eckart.recovery._sensing import HoldOut, SensingEstimator

NORMAL_MEDIAN = 0.6745
"""Median of |N(0, 1)|: turns a median of |y| into a norm of X, and a median residual into a deviation."""
OUTLIER = 5 * NORMAL_MEDIAN
"""A residual beyond 5 MAD is an outlier, in standard deviations."""


class RobustLowRank(SensingEstimator):
    """Sub-gradient descent on the ℓ1 loss of X = U Uᵀ: U ← U − 2 η_t D U, from a small start.

    Args:
        rank: columns r′ of U, at least the rank of X; None takes d.
        loss: "l1" (the paper's), "l2" (what it is compared with) or "huber".
        step: η_t: "normalized_geometric" η0 ρᵗ/‖D‖, "geometric" η0 ρᵗ, "residual" η0 mean|ρ_i| (without outliers
            only), "quantile" η0 Q_q(|ρ_i|) (fewer than half outliers) or "constant" η0.
        eta0: η0. The steps must add up to more than (‖X‖/σ_r) ln(1/alpha), or the small start never grows.
        decay: ρ.
        alpha: size of the start. With r′ above the rank of X it sets the floor of the error.
        init: "spectral", "random" α N(0, 1/d), "identity", or U itself (d, r′) (a pair (U, V) for ``symmetric=False``).
        symmetric: X = U Uᵀ (the paper's); otherwise X = U Vᵀ of any shape.
        max_iter: steps at most.
        tol: end when a step is shorter than this share of U.
        quantile: q of the "quantile" rule.
        norm: the norm of D in "normalized_geometric": "fro" or "spectral" (never forms a (d, d) matrix).
        delta: width within which the "huber" loss is quadratic, in units of ``scale``.
        scale: y is divided by it; "auto" takes median|y| / 0.6745, about ‖X‖_F for Gaussian A_i.
        validation_fraction: share of the measurements held out; the best of them ends the run early (noisy data).
        patience: steps without a better ℓ1 loss on the held-out measurements before the end.
        random_state: seed of a random start and of the hold-out.

    ``dtype``, ``device``, ``verbose`` and ``callback`` are those of `RecoveryEstimator`; the callback gets
    ``(t, {"loss", "factor", "right_factor"})``.

    Attributes:
        factor_, right_factor_: U (d1, r′) and V (d2, r′); the same array where X is symmetric.
        matrix_: X (d1, d2), formed when asked for.
        eigenvalues_: of X (r′), falling; singular values where it is not symmetric.
        effective_rank_: how many of them exceed 1 % of the largest.
        outlier_mask_: measurements (m) whose residual exceeds five standard deviations as the MAD estimates them.
        loss_history_, step_sizes_: f at t = 0 … n_iter_, and η_t.
        scale_, n_iter_, converged_, n_features_in_: of y; steps; whether ``tol`` was met; d1.

    Source: Ma & Fattahi, JMLR 2023, arXiv:2202.08788; ``loss="huber"``, ``symmetric=False`` and the hold-out are ours.
    """

    _pair = ("factor_", "right_factor_")
    _parameter_constraints: ClassVar[dict[str, Any]] = {
        "rank": [None, whole(1)],
        "loss": [StrOptions({"l1", "l2", "huber"})],
        "step": [StrOptions({"normalized_geometric", "geometric", "residual", "quantile", "constant"})],
        "eta0": [real(0, closed="neither")],
        "decay": [real(0, 1, closed="right")],
        "init": [StrOptions({"spectral", "random", "identity"}), "array-like"],
        "symmetric": ["boolean"],
        "quantile": [real(0, 1, closed="both")],
        "norm": [StrOptions({"fro", "spectral"})],
        "delta": [real(0, closed="neither")],
        "scale": [StrOptions({"auto"}), real(0, closed="neither")],
        "validation_fraction": [real(0, 1)],
        "patience": [whole(1)],
    }

    def __init__(
        self,
        rank: int | None = None,
        *,
        loss: Loss = "l1",
        step: StepRule = "normalized_geometric",
        eta0: float = 0.3,
        decay: float = 0.98,
        alpha: float = 1e-3,
        init: Literal["spectral", "random", "identity"] | Any = "spectral",
        symmetric: bool = True,
        max_iter: int = 600,
        tol: float = 3e-6,
        quantile: float = 0.5,
        norm: Norm = "fro",
        delta: float = 0.1,
        scale: float | Literal["auto"] = "auto",
        validation_fraction: float = 0.0,
        patience: int = 100,
        random_state: int | None = None,
        dtype: str | None = None,
        device: str | None = None,
        verbose: bool | int = False,
        callback: Callable[[int, dict[str, Any]], None] | None = None,
    ) -> None:
        self._keep(locals())

    @fitting
    def fit(self, A: Any, y: Any, sample_weight: Any = None) -> RobustLowRank:
        """Recover X from y_i = ⟨A_i, X⟩ + s_i.

        Args:
            A: measurements, see `SensingEstimator`.
            y: what was measured (m).
            sample_weight: how often each measurement counts (m).

        Raises:
            ValueError: y does not fit A, NaN or infinity, a rank above the dimension.
            FloatingPointError: the descent left the numbers; nothing is fitted.
        """
        rectangular = "symmetric=False recovers those" if self.symmetric else None
        operator, target, weights = self._read(A, y, sample_weight, rectangular)
        scale = self._scale_of(target, weights)
        random = check_random_state(self.random_state)
        order = torch.as_tensor(random.permutation(operator.m))
        held, kept = order.tensor_split([round(self.validation_fraction * operator.m)])
        if self.validation_fraction and not (len(held) and len(kept)):
            raise InputError(
                f"validation_fraction is {self.validation_fraction} of {operator.m} measurements: one part is empty"
            )
        kept = kept.sort().values
        train, shares = (operator, weights) if not len(held) else (operator.subset(kept), _at(weights, kept))
        left, right = self._initial(train, target[kept], shares, scale, random)
        watch = HoldOut(self, scale, operator.subset(held), target[held] / scale, _at(weights, held))
        end = subgradient_descent(
            train,
            target[kept] / scale,
            left,
            right,
            weights=shares,
            loss=self.loss,
            delta=self.delta,
            step=StepSize(self.step, self.eta0, self.decay, self.quantile, self.norm),
            max_iter=self.max_iter,
            tol=self.tol,
            watch=watch,
        )
        left, right = (math.sqrt(scale) * factor for factor in watch.best or (end.left, end.right))
        if not math.isfinite(float(left.sum() + right.sum())):
            raise FloatingPointError(
                f"the descent diverged: eta0={self.eta0} is too large, or the data too large for it"
            )
        spectrum = torch.linalg.svdvals(torch.linalg.qr(left).R @ torch.linalg.qr(right).R.mT)
        size = (operator.forward(left, right) - target).abs()
        median = float(weighted_quantile(size, 0.5, weights))
        self.scale_ = scale
        self.factor_, self.right_factor_ = to_numpy(left), to_numpy(right)
        self.loss_history_ = scale ** (2 if self.loss == "l2" else 1) * np.array(end.losses)
        self.step_sizes_ = np.array(end.steps)
        self.n_iter_, self.converged_ = len(end.steps), end.converged
        self.eigenvalues_ = to_numpy(spectrum)
        self.effective_rank_ = int((spectrum > 1e-2 * spectrum[0]).sum())
        self.outlier_mask_ = to_numpy(size > OUTLIER * median / NORMAL_MEDIAN)
        self._warn_of_failure(median / (NORMAL_MEDIAN * scale))
        return self

    def _scale_of(self, target: Tensor, weights: Tensor | None) -> float:
        if self.scale != "auto":
            return float(self.scale)
        median = float(weighted_quantile(target.abs(), 0.5, weights))
        return median / NORMAL_MEDIAN or float(target.abs().mean()) or 1.0

    def _initial(
        self, operator: Operator, target: Tensor, weights: Tensor | None, scale: float, random: Any
    ) -> tuple[Tensor, Tensor | None]:
        """U (and V) at the start, for measurements divided by ``scale``."""
        shape, rank = operator.shape_in, self.rank or min(operator.shape_in)
        if rank > min(shape):
            raise InputError(f"rank is {rank}: at most {min(shape)} for matrices of shape {shape}")
        if not isinstance(self.init, str):
            start = [factor / math.sqrt(scale) for factor in self._given(shape, self.symmetric, target)]
        elif self.init == "spectral":
            shares = torch.full_like(target, 1 / operator.m) if weights is None else weights / weights.sum()
            C = signed_mean(operator, target.sign(), shares, self.symmetric)
            start = [self.alpha * factor for factor in spectral_factors(C, rank, self.symmetric)]
        elif self.init == "random":
            start = [
                self.alpha * torch.as_tensor(random.normal(size=(d, rank)) / math.sqrt(d)) for d in shape
            ]
        else:
            start = [self.alpha * torch.eye(d, rank) for d in shape]
        start = [factor.to(target) for factor in start]
        return start[0], None if self.symmetric else start[1]

    def _warn_of_failure(self, noise: float) -> None:
        """Say what to change where the fit is visibly not what was asked for."""
        if noise > 0.5 and self.loss == "l1":
            kept, rates = self.eigenvalues_[: self.effective_rank_], self.decay ** np.arange(self.max_iter)
            self._warn(
                f"the median residual is {noise:.2g} of the median measurement: too many outliers or too few "
                f"measurements, or a start that never grew, which takes steps (here {self.eta0 * rates.sum():.3g} in "
                f"all) of at least {np.linalg.norm(kept) / max(kept[-1], 1e-300) * -math.log(self.alpha):.3g}: "
                "raise eta0, decay or alpha"
            )
        elif not self.converged_:
            self._warn(f"steps are still above tol={self.tol} after max_iter={self.max_iter}")

    def score(self, A: Any, y: Any, sample_weight: Any = None) -> float:
        """−median |y_i − ⟨A_i, X⟩|: greater is better, and outliers do not move it."""
        residual = torch.as_tensor(np.abs(column_or_1d(y) - self.predict(A)))
        weights = None if sample_weight is None else torch.as_tensor(np.asarray(sample_weight)).to(residual)
        return -float(weighted_quantile(residual, 0.5, weights))


def _at(weights: Tensor | None, index: Tensor) -> Tensor | None:
    return None if weights is None else weights[index]
