"""What the estimators share: precision and place, progress, and files."""

from __future__ import annotations

import functools
import os
import warnings
from collections.abc import Callable
from typing import Any, ClassVar, Self

import numpy as np
import torch
from sklearn.base import BaseEstimator
from sklearn.exceptions import ConvergenceWarning
from sklearn.utils._param_validation import Interval, StrOptions

from eckart.errors import InputError
from eckart.recovery import _files


def real(low: float, high: float | None = None, closed: str = "left") -> Interval:
    """The constraint of a real hyper-parameter."""
    from numbers import Real

    return Interval(Real, low, high, closed=closed)


def whole(low: int, high: int | None = None) -> Interval:
    """The constraint of a whole-number hyper-parameter."""
    from numbers import Integral

    return Interval(Integral, low, high, closed="left")


def whole_or_nothing(method: Callable[..., Any]) -> Callable[..., Any]:
    """A method that leaves the estimator exactly as it was when it raises."""

    @functools.wraps(method)
    def guarded(self: RecoveryEstimator, *args: Any, **options: Any) -> Any:
        before = dict(vars(self))
        try:
            return method(self, *args, **options)
        except BaseException:
            vars(self).clear()
            vars(self).update(before)
            raise

    return guarded


class RecoveryEstimator(BaseEstimator):
    """Hyper-parameters of every estimator here: ``dtype``, ``device``, ``verbose`` and ``callback``.

    ``dtype=None`` computes in the precision of the data: float32 in float32, everything else in float64.
    """

    _parameter_constraints: ClassVar[dict[str, Any]] = {
        "dtype": [None, StrOptions({"float32", "float64"})],
        "device": [None, str, torch.device],
        "verbose": ["verbose"],
        "callback": [None, callable],
    }

    def _keep(self, arguments: dict[str, Any]) -> None:
        """Store the constructor's arguments unchanged, as scikit-learn asks."""
        vars(self).update({name: value for name, value in arguments.items() if name != "self"})

    def _place(self, data_dtype: Any) -> tuple[torch.dtype, torch.device]:
        """Precision and device of a fit."""
        name = self.dtype or ("float32" if str(data_dtype) in ("float32", "torch.float32") else "float64")
        try:
            device = torch.device(self.device or "cpu")
            torch.empty(0, device=device)
        except RuntimeError as error:
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
    def load(cls, path: str | os.PathLike[str]) -> Self:
        """Read an estimator that `save` wrote.

        Raises:
            InputError: no such files, files that do not fit, or another estimator's.
        """
        return _files.load(cls, path)


def to_numpy(tensor: torch.Tensor) -> np.ndarray:
    """A fitted attribute: NumPy, on the CPU."""
    return tensor.detach().cpu().numpy()
