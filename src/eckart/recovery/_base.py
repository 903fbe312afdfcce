"""What the estimators share: checked hyper-parameters, precision and place, progress, and files."""

from __future__ import annotations

import functools
import os
import re
import warnings
from collections.abc import Callable
from typing import Any, ClassVar, TypeVar, cast

import numpy as np
import torch
from sklearn.base import BaseEstimator, ClassNamePrefixFeaturesOutMixin, TransformerMixin, _fit_context
from sklearn.exceptions import ConvergenceWarning
from sklearn.utils import validation as _validation
from sklearn.utils._param_validation import Interval, StrOptions

from eckart.arguments import LARGEST, RANGES
from eckart.errors import InputError, first_line
from eckart.recovery import _files

FLOATS = [np.float64, np.float32]
_PARAMETER = re.compile(r"The '(\w+)' parameter of \w+ must be (.*)\. Got (.*) instead\.")
REMEDIES = {
    "contains NaN": "drop or fill what is missing",
    "contains infinity": "give finite numbers",
    "Expected 2D array": "Reshape your data to a table (rows, columns)",
    "Expected a 2-dimensional container": "give a table (rows, columns)",
    "could not convert": "give numbers",
    "inconsistent numbers": "give as many of both",
}
"""What to do where scikit-learn's checks say only what is wrong."""
F = TypeVar("F", bound=Callable[..., Any])
E = TypeVar("E", bound="RecoveryEstimator")


def of(name: str) -> Interval:
    """The constraint of the hyper-parameter for whose name `RANGES` has a range."""
    from numbers import Integral, Real

    found = RANGES[name]
    low, high = (None if abs(bound) == np.inf else bound for bound in (found.low, found.high))
    whole = high == LARGEST
    closed = {(False, False): "both", (True, False): "right", (False, True): "left", (True, True): "neither"}[
        found.open_low or low is None, found.open_high or high is None
    ]
    return Interval(Integral if whole else Real, low, high, closed=closed)


def real(low: float, high: float | None = None, closed: str = "left") -> Interval:
    """The constraint of a real hyper-parameter."""
    from numbers import Real

    return Interval(Real, low, high, closed=closed)


def whole(low: int, high: int | None = None) -> Interval:
    """The constraint of a whole-number hyper-parameter."""
    from numbers import Integral

    return Interval(Integral, low, high, closed="left")


def in_one_line(check: F) -> F:
    """A check of scikit-learn's whose refusal is one line, and says what to do."""

    @functools.wraps(check)
    def checked(*args: Any, **options: Any) -> Any:
        try:
            return check(*args, **options)
        except ValueError as error:
            line = first_line(error)
            remedy = next((f" {words}" for part, words in REMEDIES.items() if part in line), "")
            raise InputError(f"{line.rstrip(' .:')}:{remedy}" if remedy else line) from None

    return cast(F, checked)


check_array, check_consistent_length, column_or_1d, validate_data = map(
    in_one_line,
    (
        _validation.check_array,
        _validation.check_consistent_length,
        _validation.column_or_1d,
        _validation.validate_data,
    ),
)


def whole_or_nothing(method: Callable[..., Any]) -> Callable[..., Any]:
    """A method that leaves the estimator exactly as it was when it raises."""

    @functools.wraps(method)
    def guarded(self: RecoveryEstimator, *args: Any, **options: Any) -> Any:
        before = dict(vars(self))
        try:
            return method(self, *args, **options)
        except BaseException:
            self.__dict__.clear()
            self.__dict__.update(before)
            raise

    return guarded


def fitting(method: Callable[..., Any]) -> Callable[..., Any]:
    """A method that checks the hyper-parameters first and is whole or nothing."""
    return whole_or_nothing(_fit_context(prefer_skip_nested_validation=True)(method))


class RecoveryEstimator(BaseEstimator):
    """Hyper-parameters of every estimator here: ``dtype``, ``device``, ``verbose`` and ``callback``.

    ``dtype=None`` computes in the precision of the data: float32 in float32, everything else in float64. A class states
    the constraints of its own hyper-parameters; those of its bases are added.
    """

    _parameter_constraints: ClassVar[dict[str, Any]] = {
        "random_state": ["random_state"],
        "dtype": [None, StrOptions({"float32", "float64"})],
        "device": [None, str, torch.device],
        "verbose": ["verbose"],
        "callback": [None, callable],
    }

    def __init_subclass__(cls, **options: Any) -> None:
        own = vars(cls).get("_parameter_constraints", {})
        cls._parameter_constraints = super(cls, cls)._parameter_constraints | own
        super().__init_subclass__(**options)

    def _validate_params(self) -> None:
        """Hold the hyper-parameters to their constraints; a boolean is no number.

        Raises:
            InputError: naming one, its value and what it may be.
        """
        for name, allowed in self._parameter_constraints.items():
            numeric = any(isinstance(constraint, Interval) for constraint in allowed)
            value = getattr(self, name, None)
            if numeric and "boolean" not in allowed and isinstance(value, bool | np.bool_):
                raise InputError(f"{name} is {value!r}: give a number")
        try:
            super()._validate_params()
        except ValueError as error:
            told = _PARAMETER.fullmatch(first_line(error))
            words = f"{told[1]} is {told[3]}: give {told[2]}" if told else first_line(error)
            raise InputError(words) from None

    def _keep(self, arguments: dict[str, Any]) -> None:
        """Store the constructor's arguments unchanged, as scikit-learn asks."""
        self.__dict__.update({name: value for name, value in arguments.items() if name != "self"})

    def _place(self, data_dtype: Any) -> tuple[torch.dtype, torch.device]:
        """Precision and device of a fit."""
        name = self.dtype or ("float32" if str(data_dtype) in ("float32", "torch.float32") else "float64")
        try:
            device = torch.device(self.device or "cpu")
            torch.empty(0, device=device)
        except (RuntimeError, AssertionError) as error:  # torch without CUDA asserts
            raise InputError(f"device is {self.device!r}: {str(error).splitlines()[0]}") from None
        return getattr(torch, name), device

    def _reporter(self) -> Callable[[int, dict[str, Any]], None]:
        """What tells the user and the callback of one iteration."""

        def report(iteration: int, info: dict[str, Any]) -> None:
            if self.verbose:
                numbers = ", ".join(f"{k} {v:.6g}" for k, v in info.items() if isinstance(v, float))
                print(f"[{type(self).__name__}] iteration {iteration}: {numbers}")
            if self.callback is not None:
                self.callback(iteration, info)

        return report

    def _warn(self, message: str) -> None:
        warnings.warn(f"{type(self).__name__}: {message}", ConvergenceWarning, stacklevel=3)

    def save(self, path: str | os.PathLike[str], *, overwrite: bool = False) -> None:
        """Write the estimator, fitted or not, as ``estimator.json`` and ``arrays.safetensors``.

        Args:
            path: the directory to make.
            overwrite: replace what is there.

        Raises:
            InputError: the directory is not empty, or a hyper-parameter that no file can hold.
        """
        _files.save(self, path, overwrite=overwrite)

    @classmethod
    def load(cls: type[E], path: str | os.PathLike[str]) -> E:
        """Read an estimator that `save` wrote.

        Raises:
            InputError: no such files, files that do not fit, or another estimator's.
        """
        return _files.load(cls, path)


class RecoveryTransformer(ClassNamePrefixFeaturesOutMixin, TransformerMixin, RecoveryEstimator):
    """An estimator that turns rows, dense or sparse, into their factors."""

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.input_tags.sparse = True
        tags.transformer_tags.preserves_dtype = ["float64", "float32"]
        return tags


def to_numpy(tensor: torch.Tensor) -> np.ndarray:
    """A fitted attribute: NumPy, on the CPU."""
    return tensor.detach().cpu().numpy()
