"""StreamingPCA: the top right singular vectors of a tall matrix in one pass over its rows, in bounded memory.

    W_j = (n/|B_j|) Σ_{i∈B_j} a_i a_iᵀ Z_{j−1} + (n/seen) Σ_{i heavy} a_i a_iᵀ Z_{j−1}        Z_j = qr(W_j)

    rows a_i (d), in random order   Z (d, n_components + oversample)   at most max_heavy rows are stored

Source: Kacham & Woodruff, NeurIPS 2024, arXiv:2412.11963.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import replace
from typing import Any, ClassVar, Literal

import numpy as np
import scipy.sparse as sp
import torch
from sklearn.utils import check_random_state
from sklearn.utils._param_validation import StrOptions
from sklearn.utils.validation import check_is_fitted

from eckart.errors import InputError
from eckart.linalg import streaming
from eckart.linalg.operators import as_tensor, row_squares
from eckart.linalg.streaming import BlockState, OjaState
from eckart.recovery._base import FLOATS, check_array, fitting, of, real, validate_data, whole
from eckart.recovery._stream import StreamResults

PIECE = 4096
"""Rows taken in at once, so that a large chunk needs no large temporary."""
DRIFT = 3.0
"""A Rayleigh quotient of the second half below a third of the largest tells of rows that are not in random order."""


class StreamingPCA(StreamResults):
    """Block power method on a stream of rows in random order, rows of large norm kept apart. AᵀA is *not* centred.

    Args:
        n_components: singular vectors to find; 1 for "oja-grid". For "block" also a share in (0, 1): as many as hold
            this share of the variance, of the 128 and ``oversample`` that are looked for.
        method: "block", "oja" (one rate) or "oja-grid" (many rates at once, the smallest that grew enough: Price–Xun).
        n_samples: rows of the whole stream. Without it blocks double in size, which is less robust to heavy rows.
        n_blocks: "auto" takes ⌈ln d⌉, fewer where a block would have less than d/4 rows.
        oversample: further columns of Z.
        heavy_factor: rows of norm² ≥ ‖A‖_F²/(heavy_factor d) are kept apart: larger keeps more.
        heavy_threshold: keep rows of at least this norm apart instead; infinity keeps none.
        max_heavy: rows kept apart at most.
        eta: rate of "oja", rates of "oja-grid"; None takes 2ⁱ ln d/‖A‖_F², i = 0 … ⌈log₂ d⌉ + 2, or their middle one.
        growth_constant: "oja-grid" accepts a rate whose log growth is at least this times ln d.
        center: subtract the mean: that of X in `fit`, in `partial_fit` that of the blocks before.
        whiten: `transform` divides by the root of ``explained_variance_``.
        shuffle_buffer: rows held back and released in random order, for streams that are not shuffled.
        init: the start (d, n_components + oversample), or (d, n_components) for Oja's rule.
        random_state: seed of the start and of the shuffling.

    ``dtype``, ``device``, ``verbose`` and ``callback`` are those of `RecoveryEstimator`; the callback gets
    ``(block, {"basis", "rayleigh", "top"})``.

    Attributes:
        components_: right singular vectors (k, d), the entry of largest size positive.
        singular_values_, explained_variance_: estimates of σ and σ²/n (k); Oja's from its growth, for one
            component a lower bound.
        explained_variance_ratio_: share of ‖A‖_F² that each holds, as the last block has it (k).
        n_components_: k.
        mean_: what `transform` subtracts (d).
        n_samples_seen_, n_heavy_, heavy_indices_: rows so far; how many are kept apart, and which.
        basis_, block_rayleigh_, block_starts_: Z (d, l); diag(ZᵀW) (p, l) and first row (p) of every block.
        rates_, log_growth_, candidates_: Oja's rates (g), and growth and vector (d) for each, or for each component.
        chosen_: which rate was taken, −1 if none.
        n_features_in_: d.

    Source: Kacham & Woodruff, NeurIPS 2024, arXiv:2412.11963; Price & Xun, FOCS 2024, arXiv:2408.10332. More than one
    component, block sizes and the handling of the store are ours.
    """

    _states = (BlockState, OjaState)
    _parameter_constraints: ClassVar[dict[str, Any]] = {
        "n_components": [whole(1), real(0, 1, closed="neither")],
        "method": [StrOptions({"block", "oja", "oja-grid"})],
        "n_samples": [None, of("n_samples")],
        "n_blocks": [StrOptions({"auto"}), whole(1)],
        "oversample": [of("oversample")],
        "heavy_factor": [of("heavy_factor")],
        "heavy_threshold": [None, real(0, closed="both")],
        "max_heavy": [of("max_heavy")],
        "eta": [None, real(0, closed="neither"), "array-like"],
        "growth_constant": [of("growth_constant")],
        "center": ["boolean"],
        "whiten": ["boolean"],
        "shuffle_buffer": [of("shuffle_buffer")],
        "init": [None, "array-like"],
    }

    def __init__(
        self,
        n_components: float = 1,
        *,
        method: Literal["block", "oja", "oja-grid"] = "block",
        n_samples: int | None = None,
        n_blocks: int | Literal["auto"] = "auto",
        oversample: int = 4,
        heavy_factor: float = 1.0,
        heavy_threshold: float | None = None,
        max_heavy: int = 256,
        eta: Any = None,
        growth_constant: float = 1.0,
        center: bool = False,
        whiten: bool = False,
        shuffle_buffer: int = 0,
        init: Any = None,
        random_state: int | None = None,
        dtype: str | None = None,
        device: str | None = None,
        verbose: bool | int = False,
        callback: Callable[[int, dict[str, Any]], None] | None = None,
    ) -> None:
        self._keep(locals())

    @fitting
    def fit(self, X: Any, y: Any = None) -> StreamingPCA:
        """One pass over all rows of X, in their order.

        Args:
            X: (n, d), dense or sparse.
            y: ignored.

        Raises:
            ValueError: NaN or infinity, more components than features, another number of rows than ``n_samples``.
        """
        X = self._validate(X, reset=True)
        if self.n_samples not in (None, X.shape[0]):
            raise InputError(
                f"n_samples is {self.n_samples}, but X has {X.shape[0]} rows: leave it out in fit"
            )
        return self._take(X, X.shape[0], fresh=True).finalize()

    @fitting
    def partial_fit(self, X: Any, y: Any = None) -> StreamingPCA:
        """Take in the next rows of the stream, as many as there are.

        Args:
            X: (rows, d), dense or sparse.
            y: ignored.

        Raises:
            ValueError: NaN or infinity, another width than before, more rows than ``n_samples``.
        """
        fresh = not hasattr(self, "_state")
        X = self._validate(X, reset=fresh)
        return self._take(X, self.n_samples, fresh=fresh)

    def finalize(self) -> StreamingPCA:
        """Release what the shuffle buffer holds and look at the course of the stream; may be repeated.

        Warns:
            UserWarning: the blocks differ so much that the rows cannot have come in random order.
            ConvergenceWarning: no rate of "oja-grid" grew enough; the largest row is taken.
        """
        check_is_fitted(self)
        if self._buffer is not None:
            order = self._random.permutation(self._buffer.shape[0])
            self._state = self._absorb(self._state, self._buffer[order], self._n, self._whole)
            self._buffer = None
        if self.method == "oja-grid" and self.chosen_ < 0:
            self._warn("no rate grew enough, the gap is too small: the row of the largest norm is taken")
        if isinstance(self.n_components, float):
            held = float(self.explained_variance_ratio_.sum())
            if held < self.n_components and self.n_components_ < self.n_features_in_:
                self._warn(
                    f"{self.n_components_} components hold {held:.3g}, n_components={self.n_components} asks more"
                )
        if self.method == "block" and (drift := self._drift()) > DRIFT:
            warnings.warn(
                f"StreamingPCA: blocks differ {drift:.3g}-fold in their Rayleigh quotients, so that the rows are "
                "not in random order; set shuffle_buffer",
                stacklevel=2,
            )
        return self

    def _validate(self, X: Any, reset: bool) -> Any:
        X = validate_data(self, X, reset=reset, accept_sparse="csr", dtype=FLOATS)
        if isinstance(self.n_components, float) and self.method != "block":
            raise InputError(
                f"n_components is {self.n_components}: method={self.method!r} needs a whole number"
            )
        if self.n_components > X.shape[1]:
            raise InputError(f"n_components is {self.n_components}: at most the {X.shape[1]} features")
        if self.method == "oja-grid" and self.n_components > 1:
            raise InputError(
                f"n_components is {self.n_components}: method='oja-grid' finds one vector, 'oja' and 'block' several"
            )
        if self.method != "block" and self.center:
            raise InputError(f"center is True: method={self.method!r} finds vectors of AᵀA, 'block' centres")
        return X

    def _take(self, X: Any, n: int | None, *, fresh: bool) -> StreamingPCA:
        """Take rows in; the estimator changes once all of them are."""
        buffer, random = (
            (None, check_random_state(self.random_state)) if fresh else (self._buffer, self._random)
        )
        state, whole = self._begin(X, n, random) if fresh else (self._state, self._whole)
        waiting = 0 if buffer is None else buffer.shape[0]
        if n is not None and state.seen + waiting + X.shape[0] > n:
            raise InputError(
                f"n_samples is {n}, and this is row {state.seen + waiting + X.shape[0]}: announce more"
            )
        if self.shuffle_buffer:
            stack = sp.vstack if sp.issparse(X) else np.vstack
            X = X if buffer is None else stack([buffer, X]).astype(X.dtype)
            X = X.tocsr() if sp.issparse(X) else X
            order = random.permutation(X.shape[0])
            ready = max(len(order) - self.shuffle_buffer, 0)
            X, buffer = X[order[:ready]], X[order[ready:]]
        self._whole = whole
        self._n, self._state, self._buffer, self._random = n, self._absorb(state, X, n, whole), buffer, random
        return self

    def _begin(self, X: Any, n: int | None, random: Any) -> tuple[BlockState | OjaState, bool]:
        """The state before the first row, and whether X is the whole matrix."""
        d, (dtype, device), whole = X.shape[1], self._place(X.dtype), n == X.shape[0]
        wanted = self._columns(d)
        columns = min(wanted + self.oversample, d) if self.method == "block" else wanted
        if self.init is None:
            start = random.normal(size=(d, columns))
        else:
            start = check_array(self.init, ensure_2d=False, input_name="init")
            start = start.reshape(len(start), -1)
            if start.shape[0] != d or not wanted <= start.shape[1] <= d:
                raise InputError(f"init has shape {start.shape}: it must be ({d}, l) with l ≥ n_components")
        Z = as_tensor(start).to(device, dtype)
        if self.method != "block":
            energy = float(row_squares(as_tensor(X)).double().sum()) / X.shape[0]
            rates = as_tensor(self._rates(energy, n, d))
            return streaming.start_oja(Z[:, :wanted], rates), whole
        state = streaming.start_blocks(Z if self.init is not None else torch.linalg.qr(Z).Q)
        if self.center and whole:
            mean = torch.as_tensor(np.asarray(X.mean(axis=0)).ravel()).to(device, dtype)
            state = replace(state, shift=mean)
        return state, whole

    def _absorb(self, state: Any, X: Any, n: int | None, whole: bool) -> Any:
        rule, report, start, d = self._rule(n), self._reporter(), 0, X.shape[1]
        sizes = None if n is None else self._block_sizes(n, d)
        like = state.Z if self.method == "block" else state.V
        while start < X.shape[0]:
            stop = min(start + PIECE, X.shape[0])
            if self.method == "block":
                size = d * 2**state.block if sizes is None else sizes[state.block]
                stop = min(stop, start + size - state.in_block)
            piece = as_tensor(X[start:stop]).to(like.device, like.dtype)
            start = stop
            if self.method != "block":
                state = streaming.absorb_oja(state, piece)
                continue
            state = streaming.absorb_rows(state, piece, rule)
            if state.in_block == size:
                state = streaming.close_block(state, rule, self.center and not whole)
                top = float(state.rayleigh[-1].max())
                report(state.block - 1, {"basis": state.Z, "rayleigh": state.rayleigh[-1], "top": top})
        return state
