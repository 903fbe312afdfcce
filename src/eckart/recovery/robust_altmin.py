"""MatrixCompletion: a matrix of low rank from some of its entries, by alternating least squares solved inexactly.

    M_ij ≈ μ + b_i + b′_j + u_i · v_j for (i, j) ∈ Ω
    v_j = argmin Σ_{i∈Ω_j} w_ij (u_i · v − M_ij)² + c′_j ‖v‖²        u_i likewise
    implicit: v_j = argmin Σ_i (1 + α M_ij) (u_i · v − [M_ij > 0])² + c′_j ‖v‖², over all i

    rows u_i (m, k)   columns v_j (n, k)   one iteration costs O(|Ω| k) inexactly, O(|Ω| k²) exactly

Source: Gu, Song, Yin & Zhang, ICLR 2024, arXiv:2302.11068; implicit feedback: Hu, Koren & Volinsky, ICDM 2008.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from numbers import Integral
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from sklearn.utils import check_random_state
from sklearn.utils._param_validation import Interval, StrOptions

from eckart.errors import InputError
from eckart.linalg.completion import Solver
from eckart.recovery import _forms
from eckart.recovery._base import fitting, of, real, to_numpy, whole, whole_or_nothing
from eckart.recovery._biases import Biases, fit_biases
from eckart.recovery._fit import Alternation, choose_reg
from eckart.recovery._ranked import RankedMatrix
from eckart.recovery._ratings import Ids, Observations, relabel

IMPLICIT_REG = 8.0
"""λ of implicit feedback in mean extra confidences α r, chosen for nDCG on MovieLens: there is nothing to predict."""


class MatrixCompletion(RankedMatrix):
    """Alternating least squares on the observed entries, each regression solved only as well as it need be.

    Args:
        n_components: k, the rank.
        solver: "cholesky", exact; "cg", ``cg_steps`` conjugate-gradient steps from the last iterate; "sketch", as many
            steps preconditioned by a CountSketch of ``sketch_factor`` · k rows; "sketch-unit", the plain iteration of
            the theory, which needs sketch_factor > 12; "auto", exact up to rank 64 and for short rows, else "cg".
        cg_steps: steps of an inexact solver.
        sketch_factor: rows of a sketch, in units of k.
        reg: λ, in units of M. "auto" takes the one that predicts a tenth of the observations best, on a path of
            falling λ with two iterations each; 0, exact without noise, where it finds none. With
            ``implicit`` it is 8 mean confidences alpha r.
        reg_scaling: c_i = λ ("none") or λ times the observations of the row ("count").
        fit_bias: fit a mean, and row and column biases with the factors, as ratings need; a bias has a ridge of 3
            observations, with "count" of 3 % of its row's. With λ = 0 they are damped means that stay. "auto": unless
            ``implicit``.
        implicit: the entries are counts of what was seen, clicked or bought, all others are zeros of weight one: counts
            r are fitted as 1 with the weight 1 + alpha r. Entries are ranked, not predicted.
        alpha: confidence of a count, with ``implicit``.
        init: "spectral", "random", or the left factor (m, k) itself.
        incoherence: μ; entries of the start above 2 μ √(k/m) are set to zero. None clips nothing.
        sample_reuse: False splits the observations into 2 max_iter parts, one for each half-step; the start sees all.
        orthonormal: orthonormalise the known factor before each half-step, which needs λ = 0; "auto" does there.
        all_observed: a dense matrix without NaN is meant, not a mistake.
        max_iter: iterations at most.
        tol: end when the RMSE changes by less than this share of it.
        clip: lowest and highest prediction.
        random_state: seed of a random start, of the splitting and of the sketches.
        n_jobs: workers of a half-step, through joblib: rows are independent.

    ``dtype``, ``device``, ``verbose`` and ``callback`` are those of `RecoveryEstimator`; the callback gets
    ``(iteration, {"rmse", "row_factors", "col_factors"})``.

    Attributes:
        row_factors_, components_: U (m, k) and Vᵀ (k, n).
        mean_, row_bias_, col_bias_: a number, (m) and (n); zero without ``fit_bias``.
        reg_: λ.
        singular_values_: of U Vᵀ (k).
        loss_history_, train_rmse_: RMSE on the observed entries after each iteration, and at the end; with ``implicit``
            on all entries, by their weights.
        inner_residual_: size of the gradient of the last half-step's regressions, relative to that of zero factors.
        row_ids_, col_ids_: names, where the data had them; else None.
        n_iter_, converged_, n_features_in_: iterations; whether ``tol`` was met; n.
        feature_names_in_: names of the columns, where X was a frame with a column for each.

    Source: Gu, Song, Yin & Zhang, ICLR 2024, arXiv:2302.11068; biases, ``solver="cg"``, ``implicit`` and fold-in are
    not theirs.
    """

    _states = (Observations, Ids)
    _parameter_constraints: ClassVar[dict[str, Any]] = {
        "n_components": [whole(1)],
        "solver": [StrOptions({"auto", "cholesky", "cg", "sketch", "sketch-unit"})],
        "cg_steps": [of("cg_steps")],
        "sketch_factor": [whole(2)],
        "reg": [StrOptions({"auto"}), of("reg")],
        "reg_scaling": [StrOptions({"none", "count"})],
        "fit_bias": [StrOptions({"auto"}), "boolean"],
        "implicit": ["boolean"],
        "alpha": [real(0, closed="neither")],
        "init": [StrOptions({"spectral", "random"}), "array-like"],
        "incoherence": [None, of("incoherence")],
        "sample_reuse": ["boolean"],
        "orthonormal": [StrOptions({"auto"}), "boolean"],
        "all_observed": ["boolean"],
        "max_iter": [whole(1)],
        "tol": [of("tol")],
        "clip": [None, "array-like"],
        "n_jobs": [None, whole(1), Interval(Integral, None, -1, closed="right")],
    }

    def __init__(
        self,
        n_components: int = 20,
        *,
        solver: Solver = "auto",
        cg_steps: int = 3,
        sketch_factor: int = 4,
        reg: float | Literal["auto"] = "auto",
        reg_scaling: Literal["none", "count"] = "none",
        fit_bias: bool | Literal["auto"] = "auto",
        implicit: bool = False,
        alpha: float = 1.0,
        init: Any = "spectral",
        incoherence: float | None = None,
        sample_reuse: bool = True,
        orthonormal: bool | Literal["auto"] = "auto",
        all_observed: bool = False,
        max_iter: int = 15,
        tol: float = 1e-4,
        clip: tuple[float, float] | None = None,
        random_state: int | None = None,
        n_jobs: int | None = None,
        dtype: str | None = None,
        device: str | None = None,
        verbose: bool | int = False,
        callback: Callable[[int, dict[str, Any]], None] | None = None,
    ) -> None:
        self._keep(locals())

    @fitting
    def fit(
        self, X: Any, y: Any = None, *, sample_weight: Any = None, shape: tuple[int, int] | None = None
    ) -> MatrixCompletion:
        """Fit factors and biases to the observed entries.

        Args:
            X: scipy or torch sparse, dense with NaN, masked, triplets (rows, cols, values), or a pandas frame with
                columns user, item and rating.
            y: ignored.
            sample_weight: one weight for each row, an array in the shape of X, or one for each observation of triplets
                and frames.
            shape: of the matrix, for triplets.

        Raises:
            ValueError: nothing observed, NaN or infinity, indices out of range, n_components above a dimension.
            FloatingPointError: the solver diverged; nothing is fitted.
        """
        if self.implicit and self.fit_bias is True:
            raise InputError("fit_bias=True with implicit=True: counts have no biases, leave it out")
        if self.orthonormal is True and self.reg != 0:
            raise InputError(
                f"orthonormal=True with reg={self.reg!r}: beside a ridge it changes the answer, give reg=0"
            )
        data, ids = _forms.read(
            X, shape=shape, sample_weight=sample_weight, all_observed=self.all_observed, clicks=self.implicit
        )
        self._clip_range()
        random = check_random_state(self.random_state)
        dtype, device = self._place(data.values.dtype)
        like = torch.empty(0, dtype=dtype, device=device)
        used = data.confident(self.alpha) if self.implicit else data
        biases = fit_biases(used, self._biased)
        if self.reg != "auto":
            reg = float(self.reg)
        elif self.implicit:
            reg = IMPLICIT_REG * float(used.mass().mean())
        else:
            reg = choose_reg(self, used, biases, random, like)
        report = self._reporter()
        alternation = Alternation(self, used, biases, random, like)
        end = alternation.run(
            reg,
            self.max_iter,
            self.tol,
            lambda t, rmse, U, V: report(t, {"rmse": rmse, "row_factors": U, "col_factors": V}),
        )
        if not np.isfinite(end.rmse[-1]):
            raise FloatingPointError(f"solver={self.solver!r} diverged: 'cholesky' or 'cg' do not")
        self._data, self._ids, self.reg_ = data, ids, reg
        self.__dict__.pop("feature_names_in_", None)
        if _forms.is_wide(X) and all(isinstance(name, str) for name in X.columns):
            self.feature_names_in_ = np.asarray(X.columns, dtype=object)
        self._set_model(end.U, end.V, end.biases)
        self.loss_history_ = np.array(end.rmse)
        self.n_iter_, self.converged_ = len(end.rmse), end.converged
        self.inner_residual_ = alternation.residual(end, reg)
        if not end.converged:
            self._warn(f"the RMSE still changes by more than tol={self.tol} after max_iter={self.max_iter}")
        return self

    @whole_or_nothing
    def partial_fit(
        self, X: Any, y: Any = None, *, rows: Any = None, cols: Any = None, sample_weight: Any = None
    ) -> MatrixCompletion:
        """Add observations: the rows they touch are solved again, then the columns they touch; nothing else moves.

        Args:
            X: new observations, in any form that `fit` takes. New rows and columns make the matrix larger.
            y: ignored.
            rows: which row of the matrix each row of X is; 0, 1, … where None. Frames name theirs.
            cols: likewise for columns.
            sample_weight: as in `fit`.

        Raises:
            ValueError: another width than that of the fit while ``cols`` is None; otherwise as `fit`.
        """
        if not self.__sklearn_is_fitted__():
            fitted: MatrixCompletion = self.fit(X, sample_weight=sample_weight)
            return fitted
        named = _forms.is_frame(X) and self._ids is not None
        shape = self._shape if isinstance(X, tuple) and len(X) == 3 else None
        new, ids = _forms.read(
            X,
            sample_weight=sample_weight,
            all_observed=True,
            ids=self._ids,
            shape=shape,
            clicks=self.implicit,
        )
        if not named:
            ids = self._ids
            if cols is None:
                self._check_width(new)
            if ids is not None:
                raise InputError("X must be a frame with user, item and rating: the fit was of one")
        at = relabel(new, 0, rows), relabel(new, 1, cols)
        m, n = (max(known, int(index.max()) + 1) for known, index in zip(self._shape, at, strict=True))
        size = (m, n)
        moved = replace(new, rows=at[0], cols=at[1], shape=size)
        data = self._data.joined(moved, size)
        factors = [_grown(f, s) for f, s in zip((self.row_factors_, self.components_.T), size, strict=True)]
        bias = [_grown(b, s) for b, s in zip((self.row_bias_, self.col_bias_), size, strict=True)]
        for axis in (0, 1):
            touched = np.unique(at[axis])
            kept = np.isin((data.rows, data.cols)[axis], touched)
            solved, biases = self._solve_side(data.only(kept), axis, factors[1 - axis], bias[1 - axis])
            factors[axis][touched], bias[axis][touched] = to_numpy(solved)[touched], biases[touched]
        self._data, self._ids = data, ids
        U, V = (torch.as_tensor(factor) for factor in factors)
        self._set_model(U, V, Biases(self.mean_, *bias))
        return self


def _grown(array: np.ndarray, size: int) -> np.ndarray:
    """A copy with zeros below, ``size`` long."""
    return np.concatenate([array, np.zeros((size - len(array), *array.shape[1:]), array.dtype)])
