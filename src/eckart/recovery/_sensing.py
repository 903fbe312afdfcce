"""What the two estimators of linear measurements share: reading measurements, predicting, scoring."""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np
from sklearn.base import RegressorMixin
from sklearn.utils.validation import _check_sample_weight, check_is_fitted
from torch import Tensor

from eckart.errors import InputError
from eckart.linalg.operators import DenseOperator, Operator, RankOneOperator, as_tensor
from eckart.recovery._base import (
    FLOATS,
    RecoveryEstimator,
    check_array,
    check_consistent_length,
    column_or_1d,
    of,
    real,
    to_numpy,
    validate_data,
    whole,
)

OPERATOR = ("forward", "adjoint", "subset", "to", "energy", "shape_in", "m")


class SensingEstimator(RegressorMixin, RecoveryEstimator):
    """A regressor whose samples are measurements ⟨A_i, X⟩ and whose coefficients are a matrix of low rank.

    A is an operator of `eckart.recovery`, an array (m, d1, d2) of measurement matrices, or a matrix (m, d), dense or
    scipy sparse, of vectors a_i that stand for A_i = a_i a_iᵀ.
    """

    _pair: ClassVar[tuple[str, str]]  # the fitted attributes that hold the factors
    _parameter_constraints: ClassVar[dict[str, Any]] = {
        "alpha": [real(0, closed="neither")],
        "max_iter": [whole(0)],
        "tol": [of("tol")],
    }

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.regressor_tags.poor_score = True  # y is quadratic in a row of A
        tags.input_tags.sparse = tags.input_tags.three_d_array = True
        return tags

    def _read(
        self, A: Any, y: Any, sample_weight: Any, rectangular: str | None
    ) -> tuple[Operator, Tensor, Tensor | None]:
        """Measurements, what was measured and how often each counts, checked and in the precision of the fit.

        ``rectangular`` says what recovers a matrix that is not square, where this fit does not.
        """
        if is_operator(A):
            operator, dtype = A, np.asarray(y).dtype
        elif getattr(A, "ndim", np.ndim(A) if isinstance(A, list) else 2) == 3:
            A = check_array(A, allow_nd=True, dtype=FLOATS)
            operator, dtype = DenseOperator(A), A.dtype
        else:
            if y is None:
                raise ValueError(
                    f"This {type(self).__name__} estimator requires y to be passed, but the target y is None."
                )
            A, y = validate_data(self, A, y, accept_sparse="csr", dtype=FLOATS, y_numeric=True)
            operator, dtype = RankOneOperator(A), A.dtype
        y = column_or_1d(check_array(y, ensure_2d=False, dtype="numeric", input_name="y"), warn=True)
        check_consistent_length(y, range(operator.m))
        if not operator.m:
            raise ValueError("Found array with 0 sample(s) while a minimum of 1 is required.")
        self.n_features_in_ = operator.shape_in[0]
        precision, device = self._place(dtype)
        weights = None
        if sample_weight is not None:
            checked = _check_sample_weight(sample_weight, y, dtype=np.float64, ensure_non_negative=True)
            weights = as_tensor(checked).to(device, precision)
        target = as_tensor(np.asarray(y, dtype=np.float64)).to(device, precision)
        if rectangular and operator.shape_in[0] != operator.shape_in[1]:
            raise InputError(f"A measures matrices of shape {operator.shape_in}: {rectangular}")
        return operator.to(precision, device), target, weights

    def _given(self, shape: tuple[int, int], symmetric: bool, like: Tensor) -> list[Tensor]:
        """The factors of the start that the user gave, checked: one of a symmetric matrix, else two."""
        given = [self.init] if symmetric else list(self.init)
        if len(given) != 2 - symmetric:
            raise InputError(f"init holds {len(given)} factors: give the left and the right one")
        factors = []
        for factor, rows in zip(given, shape, strict=False):
            checked = check_array(factor, dtype=FLOATS, input_name="init")
            if checked.shape[0] != rows or checked.shape[1] > min(shape):
                raise InputError(
                    f"init has shape {checked.shape}: this factor asks for ({rows}, k) with k ≤ {min(shape)}"
                )
            factors.append(as_tensor(checked).to(like).clone())
        if factors[0].shape[1] != factors[-1].shape[1]:
            raise InputError(
                f"init has {factors[0].shape[1]} and {factors[1].shape[1]} columns: give as many in both"
            )
        return factors

    def _factors(self) -> tuple[Tensor, Tensor]:
        left, right = (as_tensor(getattr(self, name)) for name in self._pair)
        return left, right

    @property
    def matrix_(self) -> np.ndarray:
        """The recovered matrix (d1, d2), formed when it is asked for."""
        check_is_fitted(self)
        left, right = self._factors()
        return to_numpy(left @ right.mT)

    def predict(self, A: Any) -> np.ndarray:
        """⟨A_i, X⟩ for other measurements of the recovered matrix.

        Args:
            A: measurements of a matrix of the same shape, in any form that `fit` takes.

        Raises:
            NotFittedError: before `fit`.
            ValueError: measurements of a matrix of another shape.
        """
        check_is_fitted(self)
        left, right = self._factors()
        if is_operator(A):
            operator = A
        elif getattr(A, "ndim", np.ndim(A) if isinstance(A, list) else 2) == 3:
            operator = DenseOperator(check_array(A, allow_nd=True, dtype=FLOATS))
        else:
            operator = RankOneOperator(validate_data(self, A, reset=False, accept_sparse="csr", dtype=FLOATS))
        shape = (left.shape[0], right.shape[0])
        if operator.shape_in != shape:
            raise ValueError(
                f"A measures matrices of shape {operator.shape_in}, but {type(self).__name__} was fitted on {shape}."
            )
        return to_numpy(operator.to(left.dtype, left.device).forward(left, right))


def is_operator(A: Any) -> bool:
    """Whether A is what `eckart.linalg.operators` describes."""
    return all(hasattr(A, name) for name in OPERATOR)
