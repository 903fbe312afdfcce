"""MatrixSensingGD: gradient descent on more columns than the rank, made fast by an unequal start and one re-factoring.

    E = (1/m) Σ (⟨A_i, F Gᵀ⟩ − y_i) A_i        F ← F − η E G,  G ← G − η Eᵀ F
    once the loss is small:  F = P S Qᵀ  →  F̃ = β P,  G̃ = G Q S/β        (F̃ G̃ᵀ = F Gᵀ)

    F (d1, k) ~ α N(0, 1)   G (d2, k) ~ (α/3) N(0, 1)   or one X (d, k) with F = G = X

Source: Xiong, Ding & Du, ICLR 2024, arXiv:2310.01769.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from sklearn.utils import check_random_state
from sklearn.utils._param_validation import StrOptions
from torch import Tensor

from eckart.errors import InputError
from eckart.linalg.factored_descent import Switch, factored_descent, imbalance
from eckart.linalg.operators import IdentityOperator, Operator, spectral_norm
from eckart.recovery._base import fitting, of, real, to_numpy, whole
from eckart.recovery._sensing import SensingEstimator

STEP = 0.2
"""η in units of 1/σ_1: stable up to about 0.5, and 0.3 was seen to be at a condition number of 10."""


class MatrixSensingGD(SensingEstimator):
    """Gradient descent on ½ mean (⟨A_i, F Gᵀ⟩ − y_i)² with k at least the rank of the matrix.

    Args:
        n_components: k, columns of the factors.
        parametrization: "asymmetric" F Gᵀ, or "symmetric" X Xᵀ, which with k above the rank converges only as 1/T.
        alpha: standard deviation of the entries of F at the start, in units of √σ_1 (without unit if ``eta`` is given).
        g_scale: the same of G, in units of that of F. An equal start would not be faster than the symmetric form.
        rebalance: re-factor "once" (asymmetric form only) or "none". Without it the rate is proportional to alpha².
        beta: β of the re-factoring; "auto" takes √σ_r̂ of F Gᵀ, r̂ counting the singular values above 1 % of the largest
            and above the error that the loss tells.
        switch_tol: re-factor when the loss is below this share of the loss of the zero matrix.
        switch_iter: re-factor at this step instead.
        eta: η; "auto" takes 0.2/σ_1 of (1/m) Σ y_i A_i and halves it whenever the loss would rise.
        momentum: share of the last move added to the next.
        init: the factors themselves: (F, G), or X (d, k).
        max_iter: steps at most.
        tol: end when a step is shorter than this share of the factors.
        random_state: seed of the start.

    ``dtype``, ``device``, ``verbose`` and ``callback`` are those of `RecoveryEstimator`; the callback gets
    ``(t, {"loss", "left", "right"})``.

    Attributes:
        left_, right_: F (d1, k) and G (d2, k); the same array in the symmetric form.
        matrix_: F Gᵀ (d1, d2), formed when asked for.
        imbalance_: FᵀF − GᵀG (k, k) at the end.
        switch_iter_: the step of the re-factoring, or None.
        loss_history_: the loss at t = 0 … n_iter_.
        n_iter_, converged_, n_features_in_: steps; whether ``tol`` was met; d1.

    Source: Xiong, Ding & Du, ICLR 2024, arXiv:2310.01769; the re-factoring is reconstructed from what the paper claims.
    """

    _pair = ("left_", "right_")
    _parameter_constraints: ClassVar[dict[str, Any]] = {
        "n_components": [whole(1)],
        "parametrization": [StrOptions({"asymmetric", "symmetric"})],
        "g_scale": [of("g_scale")],
        "rebalance": [StrOptions({"once", "none"})],
        "beta": [StrOptions({"auto"}), real(0, closed="neither")],
        "switch_tol": [of("switch_tol")],
        "switch_iter": [None, of("switch_iter")],
        "eta": [StrOptions({"auto"}), real(0, closed="neither")],
        "momentum": [real(0, 1)],
        "init": [None, "array-like"],
    }

    def __init__(
        self,
        n_components: int = 1,
        *,
        parametrization: Literal["asymmetric", "symmetric"] = "asymmetric",
        alpha: float = 0.05,
        g_scale: float = 1 / 3,
        rebalance: Literal["once", "none"] = "once",
        beta: float | Literal["auto"] = "auto",
        switch_tol: float = 1e-3,
        switch_iter: int | None = None,
        eta: float | Literal["auto"] = "auto",
        momentum: float = 0.0,
        init: Any = None,
        max_iter: int = 5000,
        tol: float = 1e-7,
        random_state: int | None = None,
        dtype: str | None = None,
        device: str | None = None,
        verbose: bool | int = False,
        callback: Callable[[int, dict[str, Any]], None] | None = None,
    ) -> None:
        self._keep(locals())

    @fitting
    def fit(self, A: Any, y: Any, sample_weight: Any = None) -> MatrixSensingGD:
        """Recover the matrix from y_i = ⟨A_i, M⟩.

        Args:
            A: measurements, see `SensingEstimator`.
            y: what was measured (m).
            sample_weight: how often each measurement counts (m).

        Raises:
            ValueError: y does not fit A, NaN or infinity, more components than the matrix has rows or columns.
            FloatingPointError: the descent diverged under a given ``eta``; nothing is fitted.
        """
        symmetric = self.parametrization == "symmetric"
        rectangular = "parametrization must be 'asymmetric'" if symmetric else None
        operator, target, weights = self._read(A, y, sample_weight, rectangular)
        shares = torch.ones_like(target) if weights is None else weights
        shares = shares / shares.sum() * (operator.m if isinstance(operator, IdentityOperator) else 1)
        even = math.frexp(float(target.abs().max()))[1] // 2
        scale, root = (
            4.0**even,
            2.0**even,
        )  # powers of two round nothing, and squares of y/scale stay in range
        target = target / scale
        top = float(spectral_norm(operator.adjoint(shares * target), symmetric)) or 1.0
        left, right = self._initial(operator, target, top, root)
        report = self._reporter()
        end = factored_descent(
            operator,
            target,
            left,
            right,
            weights=shares,
            eta=STEP / top if self.eta == "auto" else self.eta * scale,
            careful=self.eta == "auto",
            switch=Switch(
                self.switch_tol, None if self.beta == "auto" else self.beta / root, self.switch_iter
            )
            if self.rebalance == "once"
            else None,
            momentum=self.momentum,
            max_iter=self.max_iter,
            tol=self.tol,
            watch=lambda t, loss, F, G: report(
                t, {"loss": loss * scale * scale, "left": F * root, "right": G * root}
            ),
        )
        if not math.isfinite(end.losses[-1]):
            raise FloatingPointError(
                f"the descent diverged: eta={self.eta} is too large, eta='auto' finds one"
            )
        self.left_, self.right_ = to_numpy(end.F * root), to_numpy(end.G * root)
        self.imbalance_ = to_numpy(imbalance(end.F, end.G) * scale)
        self.switch_iter_ = end.switch
        self.loss_history_ = np.array(end.losses) * scale * scale
        self.n_iter_, self.converged_ = len(end.losses) - 1, end.converged
        if not end.converged:
            self._warn(f"steps are still above tol={self.tol} after max_iter={self.max_iter}")
        return self

    def _initial(
        self, operator: Operator, like: Tensor, top: float, root: float
    ) -> tuple[Tensor, Tensor | None]:
        """F and G at the start, divided by ``root``; no G in the symmetric form."""
        shape, symmetric = operator.shape_in, self.parametrization == "symmetric"
        if self.init is not None:
            start = self._given(shape, symmetric, like)
            return start[0] / root, None if symmetric else start[1] / root
        if self.n_components > min(shape):
            raise InputError(
                f"n_components is {self.n_components}: at most {min(shape)} for matrices of shape {shape}"
            )
        random, unit = (
            check_random_state(self.random_state),
            math.sqrt(top) if self.eta == "auto" else 1 / root,
        )
        sizes = (self.alpha * unit, self.alpha * unit * self.g_scale)
        F, G = (
            torch.as_tensor(size * random.normal(size=(rows, self.n_components))).to(like)
            for size, rows in zip(sizes, shape, strict=True)
        )
        return F, None if symmetric else G
