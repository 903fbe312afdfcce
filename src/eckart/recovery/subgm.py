"""RobustLowRank: a low-rank matrix of which many measurements, or many entries, are grossly wrong, its rank unknown.

    y_i = ⟨A_i, X⟩ + s_i        X = U Vᵀ, or U Uᵀ        f(U, V) = (1/m) Σ |y_i − ⟨A_i, U Vᵀ⟩|
    U ← U − 2 η_t D V,  V ← V − 2 η_t Dᵀ U               D = (1/m) Σ sign(⟨A_i, U Vᵀ⟩ − y_i) A_i

    A (m, d1, d2), an operator, or the entries of a table   y (m)   U (d1, r′)   V (d2, r′), r′ ≥ rank X

Source: Ma & Fattahi, JMLR 2023, arXiv:2202.08788.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any, ClassVar, Literal, cast

import numpy as np
import torch
from sklearn.utils import check_random_state
from sklearn.utils._param_validation import StrOptions
from torch.nn.functional import pad

from eckart.errors import InputError
from eckart.linalg.factored_descent import core_svd
from eckart.linalg.operators import EntryOperator, Operator
from eckart.linalg.subgradient import (
    Descent,
    Loss,
    Norm,
    StepRule,
    StepSize,
    loss_and_slope,
    signed_mean,
    spectral_factors,
    subgradient_descent,
    weighted_quantile,
)
from eckart.recovery._base import column_or_1d, fitting, of, to_numpy
from eckart.recovery._measured import NORMAL_MEDIAN, RESOLVED, SMALL, Factors, HoldOut, Measured
from eckart.recovery._table import TableEstimator, polished

OUTLIER = 5.0
"""A residual beyond so many standard deviations, as the MAD estimates them, is an outlier."""
AGAIN = 0.1
"""The step at which the descent on the columns that were kept begins, in units of ``eta0``."""
HELD_OUT = 0.1
"""Share held out by the descent that finds the rank."""


class RobustLowRank(TableEstimator):
    """Sub-gradient descent on the ℓ1 loss of a low-rank X from a small start: robust PCA of a table, or sensing.

    ``fit(X)`` takes a table (n, d) with outliers and missing entries apart into `matrix_`, of low rank, and `sparse_`,
    the outliers; it is not centred. ``fit(A, y)`` recovers X from linear measurements of it.

    Args:
        rank: columns r′ of U, at least the rank of X; those that are not found are zero. None starts with as many as X
            can have; a tenth of the data tells where to stop; the columns whose singular value is above 1 % of the
            largest and above what the noise alone would give are kept, and descended again on all data.
        loss: "l1" (the paper's), "l2" (what it is compared with) or "huber".
        step: η_t: "normalized_geometric" η0 ρᵗ/‖D‖, "geometric" η0 ρᵗ, "residual" η0 mean|ρ_i| (without outliers
            only), "quantile" η0 Q_q(|ρ_i|) (fewer than half outliers) or "constant" η0.
        eta0: η0. The steps must add up to more than (‖X‖/σ_r) ln(1/alpha)/2, or the small start never grows.
        decay: ρ.
        alpha: size of the start. With r′ above the rank of X it sets the floor of the error.
        init: "spectral", "random" α N(0, 1/d), "identity", or U itself (d, r′) (a pair (U, V) for ``symmetric=False``).
        symmetric: X = U Uᵀ (the paper's), otherwise X = U Vᵀ of any shape; "auto": U Uᵀ for measurements only.
        max_iter: steps at most, of each of the two descents where ``rank`` is None.
        tol: end when a step is shorter than this share of U.
        quantile: q of the "quantile" rule.
        norm: the norm of D in "normalized_geometric": "spectral" (never forms a (d, d) matrix) or "fro".
        delta: width within which the "huber" loss is quadratic, in units of ``scale``.
        scale: the unit of X; "auto" takes median|y| / 0.6745 · √(d1 d2 / mean ‖A_i‖_F²), about ‖X‖_F, and measures
            ``eta0`` in the unit of the A_i. A number divides y and leaves ``eta0`` as it is.
        validation_fraction: share held out; the best of them ends the run early (noisy data). "auto": 0.1 where
            ``rank`` is None, else 0.
        patience: steps without a better ℓ1 loss on what is held out before the end.
        random_state: seed of a random start and of the hold-out.

    ``dtype``, ``device``, ``verbose`` and ``callback`` are those of `RecoveryEstimator`; the callback gets
    ``(t, {"loss", "factor", "right_factor"})``.

    Attributes:
        factor_, right_factor_: U (d1, r′) and V (d2, r′); the same array where X is symmetric.
        matrix_: X (d1, d2), formed when asked for; of a table its low-rank part.
        components_: right singular vectors of X (r′, d2), the entry of largest size positive.
        eigenvalues_: of X (r′), falling; singular values where it is not symmetric.
        effective_rank_: how many of them exceed 1 % of the largest.
        outlier_mask_: measurements (m), or entries (n, d), whose residual exceeds five standard deviations as the MAD
            estimates them and a thousandth of a typical measurement.
        sparse_: of a table, the residuals of the outliers (n, d), scipy CSR.
        loss_history_, step_sizes_: f at t = 0 … n_iter_, and η_t.
        scale_, n_iter_, converged_, n_features_in_: unit; steps; whether ``tol`` was met; d1 of measurements, else d.

    Source: Ma & Fattahi, JMLR 2023, arXiv:2202.08788; ``rank=None``, tables, ``loss="huber"``, ``symmetric=False`` and
    the hold-out are ours.
    """

    _pair = ("factor_", "right_factor_")
    _parameter_constraints: ClassVar[dict[str, Any]] = {
        "rank": [None, of("rank")],
        "loss": [StrOptions({"l1", "l2", "huber"})],
        "step": [StrOptions({"normalized_geometric", "geometric", "residual", "quantile", "constant"})],
        "eta0": [of("eta0")],
        "decay": [of("decay")],
        "init": [StrOptions({"spectral", "random", "identity"}), "array-like"],
        "symmetric": [StrOptions({"auto"}), "boolean"],
        "quantile": [of("quantile")],
        "norm": [StrOptions({"fro", "spectral"})],
        "delta": [of("delta")],
        "scale": [StrOptions({"auto"}), of("scale")],
        "validation_fraction": [StrOptions({"auto"}), of("validation_fraction")],
        "patience": [of("patience")],
    }

    def __init__(
        self,
        rank: int | None = None,
        *,
        loss: Loss = "l1",
        step: StepRule = "normalized_geometric",
        eta0: float = 0.3,
        decay: float = 0.98,
        alpha: float = 1e-5,
        init: Literal["spectral", "random", "identity"] | Any = "spectral",
        symmetric: bool | Literal["auto"] = "auto",
        max_iter: int = 600,
        tol: float = 3e-6,
        quantile: float = 0.5,
        norm: Norm = "spectral",
        delta: float = 0.1,
        scale: float | Literal["auto"] = "auto",
        validation_fraction: float | Literal["auto"] = "auto",
        patience: int = 100,
        random_state: int | None = None,
        dtype: str | None = None,
        device: str | None = None,
        verbose: bool | int = False,
        callback: Callable[[int, dict[str, Any]], None] | None = None,
    ) -> None:
        self._keep(locals())

    @fitting
    def fit(self, A: Any, y: Any = None, sample_weight: Any = None) -> RobustLowRank:
        """Recover X from y_i = ⟨A_i, X⟩ + s_i, or from the entries of a table.

        Args:
            A: a table (n, d) where ``y`` is None: dense with NaN for what is missing, or sparse, whose stored entries
                are the observed; else measurements, see `SensingEstimator`.
            y: what was measured (m).
            sample_weight: how often each measurement counts (m); of a table one for each row, or in its shape.

        Raises:
            ValueError: y does not fit A, NaN among measurements, infinity, a rank above the dimension.
            FloatingPointError: the descent diverged; nothing is fitted.
        """
        symmetric = y is not None if self.symmetric == "auto" else self.symmetric
        rectangular = "symmetric=False recovers those" if symmetric else None
        operator: Operator
        if y is None:
            operator, target, weights = self._read_table(A, sample_weight, rectangular)
        else:
            operator, target, weights = self._read(A, y, sample_weight, rectangular)
        random = check_random_state(self.random_state)
        raw = Measured(operator, target, weights, symmetric)
        used = raw if weights is None or bool(weights.all()) else raw.part(weights.nonzero().squeeze(1))
        scale = used.size() if self.scale == "auto" else float(self.scale)
        task = replace(used, y=used.y / scale)
        course: list[tuple[float, Descent]] = []
        factors = self._find(task, scale, course, random)
        if y is None:
            factors = polished(task, factors)
        self._set_results(raw, factors, scale, course)
        if y is None:
            self._lay_out(cast(EntryOperator, operator), target)
        return self

    def _split(self, task: Measured, share: float, random: Any) -> tuple[Measured, Measured]:
        train, held = task.split(share, random)
        if share and self.validation_fraction != "auto" and not (train.operator.m and held.operator.m):
            raise InputError(
                f"validation_fraction is {share} of {task.operator.m} measurements: one part is empty"
            )
        return train, held

    def _find(
        self, task: Measured, scale: float, course: list[tuple[float, Descent]], random: Any
    ) -> Factors:
        """Descents from a small start, each on what the columns so far leave, until one adds none that is clear.

        After each, all columns descend again on all measurements, from a smaller step. Where the rank is given, or can
        only be one, the first is the last if it leaves nothing clear; columns that were not found are zero.
        """
        limit, nothing = self.rank or min(task.operator.shape_in), task.part(torch.zeros(0, dtype=torch.long))
        told = bool(self.rank) or limit == 1 or not isinstance(self.init, str)
        found = self._grow(task, scale, limit, 0.0 if told else HELD_OUT, course, random)
        alone = not isinstance(self.init, str) or self.validation_fraction != "auto"
        if told and (alone or not course[-1][1].converged):
            return found
        kept = task.clear(found)
        if not told:
            found = kept = self._descend(task, kept, nothing, scale, course, AGAIN)
        while kept[0].shape[1] < limit and task.median(task.rest(found)) > RESOLVED * task.median():
            rest = replace(task, y=task.rest(kept))
            unit = rest.size()
            rest, free = replace(rest, y=rest.y / unit), limit - kept[0].shape[1]
            new = self._grow(rest, scale * unit, free, HELD_OUT, course, random)
            left, right = (torch.hstack([a, math.sqrt(unit) * b]) for a, b in zip(kept, new, strict=True))
            start = task.clear((left, right))
            if start[0].shape[1] <= kept[0].shape[1]:
                break
            found = kept = self._descend(task, start, nothing, scale, course, AGAIN)
        spare = max((self.rank or 0) - found[0].shape[1], 0)
        return pad(found[0], (0, spare)), pad(found[1], (0, spare))

    def _grow(
        self,
        task: Measured,
        scale: float,
        columns: int,
        share: float,
        course: list[tuple[float, Descent]],
        random: Any,
    ) -> Factors:
        """The descent from a small start, watched by what is held out: ``share``, unless the user says how much."""
        share = share if self.validation_fraction == "auto" else self.validation_fraction
        train, held = self._split(task, share, random)
        return self._descend(train, self._initial(train, scale, columns, random), held, scale, course)

    def _descend(
        self,
        task: Measured,
        start: Factors,
        held: Measured,
        scale: float,
        course: list[tuple[float, Descent]],
        share: float = 1.0,
    ) -> Factors:
        """One descent, entered into the course; the best factors by what is held out, or the last.

        Args:
            task: measurements divided by ``scale``.
            start: the factors at the start.
            held: what is held out.
            scale: the unit of X in this descent.
            course: all descents so far.
            share: of ``eta0``.

        Raises:
            FloatingPointError: it ended far above the loss of the zero matrix.
        """
        gauge = task.gauge() if self.scale == "auto" else 1.0
        power = 0 if self.step == "normalized_geometric" else 2 if self.loss == "l2" else 1
        power += self.step in ("residual", "quantile")
        eta0, delta = share * self.eta0 * gauge**power, self.delta / gauge
        watch = HoldOut(self, scale, held, sum(len(end.losses) for _, end in course))
        end = subgradient_descent(
            task.operator,
            task.y,
            start[0],
            None if task.symmetric else start[1],
            weights=task.weights,
            loss=self.loss,
            delta=delta,
            step=StepSize(self.step, eta0, self.decay, self.quantile, self.norm),
            max_iter=self.max_iter,
            tol=self.tol,
            watch=watch,
        )
        of_zero = float(task.shares() @ loss_and_slope(task.y, self.loss, delta)[0])
        if not end.losses[-1] <= 2 * max(of_zero, end.losses[0]):
            raise FloatingPointError(f"the descent diverged: eta0={self.eta0} is too large, give less")
        course.append((scale, end))
        return watch.best or (end.left, end.right)

    def _set_results(
        self, raw: Measured, factors: Factors, scale: float, course: list[tuple[float, Descent]]
    ) -> None:
        left, right = (math.sqrt(scale) * factor for factor in factors)
        sigma, Qh = core_svd(left, right)[1:]
        rest, typical = raw.rest((left, right)), raw.median()
        deviation = raw.median(rest) / NORMAL_MEDIAN
        self.scale_ = scale
        self.factor_, self.right_factor_ = to_numpy(left), to_numpy(right)
        power = 2 if self.loss == "l2" else 1
        losses = [unit**power * loss for unit, end in course for loss in end.losses[: len(end.steps)]]
        self.loss_history_ = np.array([*losses, course[-1][0] ** power * course[-1][1].losses[-1]])
        self.step_sizes_ = np.array([step for _, end in course for step in end.steps])
        self.n_iter_, self.converged_ = len(self.step_sizes_), course[-1][1].converged
        self.eigenvalues_ = to_numpy(sigma)
        self.effective_rank_ = int((sigma > SMALL * sigma[0]).sum())
        largest = Qh.gather(1, Qh.abs().argmax(1, keepdim=True))
        self.components_ = to_numpy(Qh * torch.where(largest < 0, -1.0, 1.0).to(Qh))
        self.outlier_mask_ = to_numpy(rest.abs() > max(OUTLIER * deviation, RESOLVED * typical))
        self.__dict__.pop("sparse_", None)
        self._warn_of_failure(NORMAL_MEDIAN * deviation / (typical or 1.0), len(course[0][1].steps))

    def _initial(self, task: Measured, scale: float, rank: int, random: Any) -> Factors:
        """U and V at the start, for measurements divided by ``scale``."""
        shape = task.operator.shape_in
        if rank > min(shape):
            raise InputError(f"rank is {rank}: at most {min(shape)} for matrices of shape {shape}")
        if not isinstance(self.init, str):
            start = [factor / math.sqrt(scale) for factor in self._given(shape, task.symmetric, task.y)]
        elif self.init == "spectral":
            C = signed_mean(task.operator, task.y.sign(), task.shares(), task.symmetric)
            start = [self.alpha * factor for factor in spectral_factors(C, rank, task.symmetric)]
        elif self.init == "random":
            start = [
                self.alpha * torch.as_tensor(random.normal(size=(d, rank)) / math.sqrt(d)) for d in shape
            ]
        else:
            start = [self.alpha * torch.eye(d, rank) for d in shape]
        left, right = start[0].to(task.y), start[-1].to(task.y)
        return left, left if task.symmetric else right

    def _warn_of_failure(self, noise: float, steps: int) -> None:
        """Say what to change where the fit is visibly not what was asked for."""
        kept = self.eigenvalues_[: self.effective_rank_]
        if noise > 0.5 and self.loss == "l1":
            cause = "too many outliers or too few measurements"
            if self.step == "normalized_geometric" and len(kept):
                taken = self.eta0 * (self.decay ** np.arange(steps)).sum()
                needed = kept[0] / kept[-1] * -math.log(self.alpha) / 2
                if taken < needed:
                    cause = (
                        f"a start that never grew: the steps add up to {taken:.3g} and should to {needed:.3g}, "
                        "raise eta0 (below 1), decay or alpha"
                    )
            self._warn(f"the median residual is {noise:.2g} of the median measurement: {cause}")
        elif not self.converged_:
            self._warn(f"steps are still above tol={self.tol} after max_iter={self.max_iter}")

    def score(self, A: Any, y: Any = None, sample_weight: Any = None) -> float:
        """−median |y_i − ⟨A_i, X⟩|, or of a table −median |x − its low-rank part|: greater is better.

        Outliers do not move it.
        """
        if y is None:
            return self._score_table(A, sample_weight)
        residual = torch.as_tensor(np.abs(column_or_1d(y) - self.predict(A)))
        weights = None if sample_weight is None else torch.as_tensor(np.asarray(sample_weight)).to(residual)
        return -float(weighted_quantile(residual, 0.5, weights))
