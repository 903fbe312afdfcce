"""What a stream has come to: the fitted attributes of `StreamingPCA`, and the projections made with them."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from sklearn.utils.extmath import row_norms, safe_sparse_dot
from sklearn.utils.validation import check_is_fitted
from torch import Tensor

from eckart.errors import InputError
from eckart.linalg import streaming
from eckart.linalg.streaming import HeavyRows
from eckart.recovery._base import FLOATS, RecoveryTransformer, check_array, to_numpy, validate_data

MOST = 128
"""Components that are looked for where a share of the variance is asked for."""


class StreamResults(RecoveryTransformer):
    """Everything is read off the state when it is asked for, so that taking rows in costs nothing more."""

    _state: Any  # BlockState or OjaState, as ``method`` says
    _buffer: Any  # rows held back, dense or sparse; None where there are none
    _random: np.random.RandomState
    _n: int | None
    _whole: bool

    def _estimate(self) -> tuple[Tensor, Tensor]:
        """Components as rows, and their eigenvalues of AᵀA."""
        check_is_fitted(self)
        state = self._state
        if self.method == "oja":
            order = state.log_growth.argsort(descending=True, stable=True)
            rows, values = state.V[order], (state.log_growth[order] / state.rates).to(state.V)
        elif self.method == "oja-grid":
            pick = self.chosen_
            vector = state.V[pick] if pick >= 0 else state.largest / state.largest.norm().clamp_min(1e-300)
            value = state.log_growth[pick] / state.rates[pick] if pick >= 0 else state.largest.square().sum()
            rows, values = vector[None], value.reshape(1).to(vector)
        else:
            state = self._closed()
            u, s, _ = torch.linalg.svd(state.image, full_matrices=False)
            k = self._enough(s) if isinstance(self.n_components, float) else self.n_components
            rows, values = u.mT[:k], s[:k]
        largest = rows.gather(1, rows.abs().argmax(1, keepdim=True))
        return rows * torch.where(largest < 0, -1.0, 1.0).to(rows), values.clamp_min(0)

    @property
    def components_(self) -> np.ndarray:
        return to_numpy(self._estimate()[0])

    @property
    def singular_values_(self) -> np.ndarray:
        return to_numpy(self._estimate()[1].sqrt())

    @property
    def explained_variance_(self) -> np.ndarray:
        return to_numpy(self._estimate()[1] / (self._n or self._state.seen))

    @property
    def explained_variance_ratio_(self) -> np.ndarray:
        return to_numpy(self._ratio(self._estimate()[1]))

    @property
    def n_components_(self) -> int:
        return len(self._estimate()[0])

    def _closed(self) -> Any:
        """The state as if its last block ended here, if it is long enough."""
        state = self._state
        provisional = state.in_block and (not state.block or state.in_block >= len(state.Z))
        return streaming.close_block(state, self._rule(self._n)) if provisional else state

    def _ratio(self, values: Tensor) -> Tensor:
        """Shares of the energy that these eigenvalues are of: that of the last block and the heavy rows, or of all."""
        whole = self._closed().trace if self.method == "block" else self._state.energy
        return values / whole if whole > 0 else torch.zeros_like(values)

    def _enough(self, values: Tensor) -> int:
        """How many components hold the share ``n_components``: all of them where they do not."""
        return min(int((self._ratio(values).cumsum(0) < self.n_components).sum()) + 1, len(values))

    def _columns(self, d: int) -> int:
        """Components to look for among d features."""
        return min(MOST, d) if isinstance(self.n_components, float) else self.n_components

    @property
    def mean_(self) -> np.ndarray:
        check_is_fitted(self)
        zero = np.zeros(self.n_features_in_, dtype=to_numpy(self._like()).dtype)
        return to_numpy(self._state.total / self._state.seen) if self.center and self._state.seen else zero

    @property
    def n_samples_seen_(self) -> int:
        check_is_fitted(self)
        return int(self._state.seen) + (0 if self._buffer is None else int(self._buffer.shape[0]))

    @property
    def n_heavy_(self) -> int:
        return len(self.heavy_indices_)

    @property
    def heavy_indices_(self) -> np.ndarray:
        check_is_fitted(self)
        return np.sort(to_numpy(self._of("heavy_row"))) if self.method == "block" else np.zeros(0, np.int64)

    @property
    def basis_(self) -> np.ndarray:
        return to_numpy(self._of("Z"))

    @property
    def block_rayleigh_(self) -> np.ndarray:
        return to_numpy(self._of("rayleigh"))

    @property
    def block_starts_(self) -> np.ndarray:
        blocks, d = self._of("block"), self.n_features_in_
        sizes = [d * 2**j for j in range(blocks)] if self._n is None else self._block_sizes(self._n, d)
        return np.cumsum([0, *sizes])[:blocks]

    @property
    def rates_(self) -> np.ndarray:
        return to_numpy(self._of("rates"))

    @property
    def log_growth_(self) -> np.ndarray:
        return to_numpy(self._of("log_growth"))

    @property
    def candidates_(self) -> np.ndarray:
        return to_numpy(self._of("V"))

    @property
    def chosen_(self) -> int:
        self._of("rates")
        return 0 if self.method == "oja" else streaming.grown_enough(self._state, self.growth_constant)

    def _drift(self) -> float:
        """The largest Rayleigh quotient of a block over the smallest of the second half, as if all were as long."""
        ends = np.append(self.block_starts_[1:], self._state.seen - self._state.in_block)
        tops = self.block_rayleigh_.max(1, initial=0) / (ends[: self._state.block] if self._n is None else 1)
        if self.center and not self._whole:
            tops = tops[1:]  # the first block had no mean to subtract
        late = tops[len(tops) // 2 :]
        return tops.max(initial=0) / max(late.min(initial=np.inf), 1e-300) if len(late) > 1 else 1.0

    def _rates(self, row_energy: float, n: int | None, d: int) -> np.ndarray:
        """Oja's rates, for rows of this mean squared norm."""
        if self.eta is not None:
            if not np.size(self.eta):
                raise InputError("eta is empty: give None, a number or several")
            rates: np.ndarray = check_array(
                np.atleast_1d(self.eta), ensure_2d=False, input_name="eta"
            ).reshape(-1)
            if not (rates > 0).all() or (self.method == "oja" and len(rates) > 1):
                raise InputError(f"eta is {self.eta}: positive, and one number for method='oja'")
            return rates
        if n is None:
            raise InputError(
                f"method={self.method!r} derives its rates from the length of the stream: give n_samples or eta"
            )
        grid = (
            2.0 ** np.arange(math.ceil(math.log2(max(d, 2))) + 3)
            * math.log(max(d, 2))
            / (n * (row_energy or 1.0))
        )
        return grid[len(grid) // 2 : len(grid) // 2 + 1] if self.method == "oja" else grid

    def _block_sizes(self, n: int, d: int) -> list[int]:
        auto = min(math.ceil(math.log(d)) if d > 1 else 1, n // max(math.ceil(d / 4), 1))
        blocks = max(1, min(n, auto if self.n_blocks == "auto" else self.n_blocks))
        return [n // blocks + (j < n % blocks) for j in range(blocks)]

    def _rule(self, n: int | None) -> HeavyRows:
        return HeavyRows(self.heavy_factor, self.heavy_threshold, self.max_heavy, n)

    def _of(self, name: str) -> Any:
        check_is_fitted(self)
        return getattr(self._state, name)  # AttributeError: the other method has this

    def _like(self) -> Tensor:
        like: Tensor = self._state.Z if self.method == "block" else self._state.V
        return like

    def __sklearn_is_fitted__(self) -> bool:
        return "_state" in vars(self)

    @property
    def _n_features_out(self) -> int:
        return self.n_components_ if isinstance(self.n_components, float) else self.n_components

    def _scale(self) -> np.ndarray:
        """What ``whiten`` divides by: the standard deviations, one for a component without variance."""
        deviation = np.sqrt(self.explained_variance_)
        return np.where(deviation > 0, deviation, 1) if self.whiten else np.ones_like(deviation)

    def transform(self, X: Any) -> np.ndarray:
        """(X − mean_) components_ᵀ, (rows, k); with ``whiten`` divided by the root of `explained_variance_`.

        Raises:
            NotFittedError: before any row.
            ValueError: another width than that of the stream.
        """
        check_is_fitted(self)
        X = validate_data(self, X, reset=False, accept_sparse="csr", dtype=FLOATS)
        components = (self.components_ / self._scale()[:, None]).astype(X.dtype, copy=False)
        centre = self.mean_.astype(X.dtype) @ components.T
        projected: np.ndarray = safe_sparse_dot(X, components.T, dense_output=True) - centre
        return projected

    def inverse_transform(self, Z: Any) -> np.ndarray:
        """Z components_ + mean_, (rows, d), Z scaled back where it was whitened."""
        rows: np.ndarray = (np.asarray(Z) * self._scale()) @ self.components_ + self.mean_
        return rows

    def score(self, X: Any, y: Any = None) -> float:
        """Share of ‖X − mean_‖_F² that the components hold, in [0, 1]."""
        held = float(np.square(self.transform(X) * self._scale(), dtype=np.float64).sum())
        X = validate_data(self, X, reset=False, accept_sparse="csr", dtype=FLOATS)
        mean = self.mean_.astype(np.float64)
        crossed = safe_sparse_dot(X, mean[:, None], dense_output=True).sum()
        whole = row_norms(X, squared=True).sum(dtype=np.float64) - 2 * crossed + X.shape[0] * mean @ mean
        return held / whole if whole > 0 and math.isfinite(whole) else 1.0
