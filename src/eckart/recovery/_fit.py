"""One alternation on given observations at a given ridge, and the ridge that predicts best what is held out."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from eckart.linalg.completion import Compressed, RowSolver, alternate, entries, inner_residual
from eckart.recovery._alternation import halves_of, initial_factor, spread
from eckart.recovery._base import to_numpy
from eckart.recovery._biases import BIAS_RIDGE, Biases, fit_biases, solve_with_bias
from eckart.recovery._ratings import PIECE, Observations

HELD_OUT = 0.1
"""Share of the observations that choose the ridge."""
HIGHEST, HALVINGS, SWEEPS, RISES = 64.0, 20, 2, 2
"""Ridges tried: from this, in root mean squares of the data, halved so often, with so many iterations each, until the
error on what is held out has risen so often in a row."""
COLLAPSED = 1e-2
"""Factors below this share of the start are given up: too high a ridge ends at zero, which alternation cannot leave."""
NOISE_FREE = 1e-3
"""Where the error on what is held out falls to this share of the data, and still falls, the ridge is zero."""

ENOUGH = 2**18
"""Observations of whole rows, drawn at random, on which a ridge is chosen that does not go with their number."""

Watch = Callable[[int, float, Tensor, Tensor], None]


@dataclass(frozen=True)
class Completed:
    """M ≈ mean + rows_i + cols_j + U Vᵀ, and the course of the alternation."""

    U: Tensor
    V: Tensor
    biases: Biases
    rmse: list[float]
    converged: bool


class Alternation:
    """Alternating least squares for one estimator and one set of observations.

    Args:
        options: the estimator, for its hyper-parameters.
        data: the observations; with confidences where it is of implicit feedback.
        biases: mean and biases to start from.
        random: for the start, the splitting and the sketches.
        like: precision and place.
    """

    def __init__(
        self, options: Any, data: Observations, biases: Biases, random: np.random.RandomState, like: Tensor
    ) -> None:
        self.options, self.data, self.biases, self.like = options, data, biases, like
        self.solver = options.solver
        k, init, clip = options.n_components, options.init, options.incoherence
        started = data.values * data.mass() if options.implicit else self._rest()
        self.start = initial_factor(data, started, k, init, clip, random, like)
        self.random, self.seed = random, int(random.randint(2**31 - 1))
        self._seen: dict[bool, Callable[[int], tuple[Compressed, Compressed]]] = {}

    def _rest(self) -> np.ndarray:
        rest: np.ndarray = self.data.values - self.biases.of(self.data.rows, self.data.cols)
        return rest

    def _orthonormal(self, reg: float) -> bool:
        wanted = self.options.orthonormal
        return bool(reg == 0 and not self.options.implicit if wanted == "auto" else wanted)

    def alive(self, found: Completed) -> bool:
        """Whether the factors have not collapsed."""
        return float(found.U.norm() * found.V.norm()) > COLLAPSED * float(self.start.square().sum())

    def run(
        self,
        reg: float,
        max_iter: int,
        tol: float = 0.0,
        watch: Watch | None = None,
        after: Completed | None = None,
    ) -> Completed:
        """At this ridge, from the start or from where another run ended; without a RMSE where nobody watches."""
        options, data, like = self.options, self.data, self.like
        orthonormal = self._orthonormal(reg)
        kappa = (
            math.sqrt(reg / BIAS_RIDGE[options.reg_scaling]) if options._biased and not orthonormal else 0.0
        )
        values = data.values if kappa else self._rest()
        halves = self._halves(values, kappa > 0, max_iter)
        solver = RowSolver(self.solver, options.cg_steps, options.sketch_factor, self.seed, options.implicit)
        solve = spread(solver, options.n_jobs)
        U, biases = (self.start, self.biases) if after is None else (after.U, after.biases)
        if orthonormal:
            U = torch.linalg.qr(U).Q
        if kappa:
            rows, cols = (torch.as_tensor(bias).to(like) for bias in (biases.rows, biases.cols))
            solve = solve_with_bias(solve, kappa, biases.mean, cols)
            U = torch.cat([U, rows.unsqueeze(1) / kappa], 1)

        def unpack(U: Tensor, V: Tensor) -> tuple[Tensor, Tensor, Biases]:
            if not kappa:
                return U, V, self.biases
            rows, cols = (kappa * to_numpy(factor[:, -1]) for factor in (U, V))
            return U[:, :-1], V[:, :-1], Biases(self.biases.mean, rows, cols)

        ridge = [options._ridge(data.counts(axis), like, reg) for axis in (0, 1)]
        end = alternate(
            halves,
            U,
            solve,
            self._measure(values, kappa) if watch else lambda U, V: math.nan,
            *ridge,
            orthonormal=orthonormal,
            max_iter=max_iter,
            tol=tol,
            watch=lambda t, rmse, U, V: watch(t, rmse, *unpack(U, V)[:2]) if watch else None,
        )
        return Completed(*unpack(end.U, end.V), end.rmse, end.converged)

    def _halves(
        self, values: np.ndarray, biased: bool, max_iter: int
    ) -> Callable[[int], tuple[Compressed, Compressed]]:
        """What each iteration sees: the same in all runs with or without biases, unless it is to be fresh."""
        if not self.options.sample_reuse:
            return halves_of(self.data, values, max_iter, self.random, self.like)
        if biased not in self._seen:
            self._seen[biased] = halves_of(self.data, values, None, self.random, self.like)
        return self._seen[biased]

    def residual(self, found: Completed, reg: float) -> float:
        """How far the rows are from solving their regressions, at the end of all runs."""
        self._seen.clear()
        data, options = self.data, self.options
        rest = data.compress(data.values - found.biases.of(data.rows, data.cols), 0, None, self.like)
        ridge = options._ridge(data.counts(0), self.like, reg)
        return inner_residual(rest, found.U, found.V, ridge, options.implicit)

    def _measure(self, values: np.ndarray, kappa: float) -> Callable[[Tensor, Tensor], float]:
        """The RMSE of a pair of factors on the observations; of implicit feedback on all entries, by confidence."""
        data, like, implicit, mean = self.data, self.like, self.options.implicit, self.biases.mean
        rows, cols = (torch.as_tensor(index).to(like.device) for index in (data.rows, data.cols))
        target = torch.as_tensor(values).to(like)
        mass = data.mass() if implicit else data.repeats
        weight = None if mass is None else torch.as_tensor(mass.copy()).to(like)
        total = len(values) if weight is None else float(weight.sum(dtype=torch.float64))
        pieces = [slice(start, start + PIECE) for start in range(0, len(values), PIECE)]

        def measure(U: Tensor, V: Tensor) -> float:
            own, loss = kappa * U[:, -1] + mean, 0.0
            other = kappa * V[:, -1]
            if kappa:
                U, V = U[:, :-1], V[:, :-1]
            for part in pieces:
                i, j = rows[part], cols[part]
                found, each = entries(U, V, i, j), None if weight is None else weight[part]
                if kappa:
                    found.add_(own.index_select(0, i)).add_(other.index_select(0, j))
                if implicit and each is not None:
                    # c (1 − u·v)² + 0 elsewhere: the observations as they were before `Observations.confident`
                    squares = (1 + each) * (1 - found).square() - found.square()
                else:
                    squares = found.sub_(target[part]).square_()
                    squares = squares if each is None else squares.mul_(each)
                loss += float(squares.sum())
            if not implicit:
                return math.sqrt(loss / total)
            whole = float(((U.mT @ U) * (V.mT @ V)).sum())
            return math.sqrt(max(loss + max(whole, 0.0), 0.0) / (U.shape[0] * V.shape[0] + total))

        return measure


def choose_reg(
    options: Any, data: Observations, biases: Biases, random: np.random.RandomState, like: Tensor
) -> float:
    """The ridge of the least error on a tenth of the observations, along a path of falling ridges, each from the last.

    In units of the root mean square of what the biases leave and of the mean weight, so that it follows both.
    """
    if options.reg_scaling == "none" and isinstance(options.init, str) and len(data.values) > ENOUGH:
        data = data.some_rows(ENOUGH, random)
        biases = fit_biases(data, options._biased)
    held = random.random_sample(len(data.values)) < HELD_OUT
    train, test = data.only(~held), data.only(held)
    rest = data.values - biases.of(data.rows, data.cols)
    size = float(np.sqrt(np.square(rest).mean()))
    unit = size * float(data.mass().mean())
    if options.reg_scaling == "count":
        unit *= max(data.shape) / len(data.values)
    if not size or not len(test.values) or not len(train.values):
        return HIGHEST * unit
    alternation = Alternation(options, train, biases, random, like)
    alternation.solver = "cholesky"  # a solver that stops early regularises too, and would hide the ridge
    best, least, rises, after = HIGHEST * unit, math.inf, 0, None
    reg = best
    for _ in range(HALVINGS):
        found = alternation.run(reg, SWEEPS, after=after)
        after = found if alternation.alive(found) else None
        error = _error(found, test)
        if error < least:
            best, least, rises = reg, error, 0
        elif error > least:
            rises += 1
        if rises == RISES:
            return best
        reg /= 2
    return 0.0 if rises == 0 and least < NOISE_FREE * size else best


def _error(found: Completed, test: Observations) -> float:
    rows, cols = (torch.as_tensor(index).to(found.U.device) for index in (test.rows, test.cols))
    guess = to_numpy(entries(found.U, found.V, rows, cols)) + found.biases.of(test.rows, test.cols)
    return float(np.sqrt(np.average((guess - test.values) ** 2.0, weights=test.mass())))
