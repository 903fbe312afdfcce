"""How an alternation starts, what it sees, and who does the work."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import scipy.sparse as sp
import torch
from joblib import Parallel, delayed, effective_n_jobs
from sklearn.utils.extmath import randomized_svd
from torch import Tensor

from eckart.errors import InputError
from eckart.linalg.completion import Compressed, RowSolver, Solve, clip_incoherent
from eckart.linalg.operators import as_tensor
from eckart.recovery._base import check_array
from eckart.recovery._ratings import Observations

DENSE_ENTRIES = 2**20
"""A matrix of at most this many entries is decomposed exactly for the spectral start."""


def initial_factor(
    data: Observations,
    rest: np.ndarray,
    k: int,
    init: Any,
    incoherence: float | None,
    random: np.random.RandomState,
    like: Tensor,
) -> Tensor:
    """The left factor (m, k) at the start, as long as in a balanced pair.

    Raises:
        InputError: k above a dimension, a factor of another shape, a clipping that leaves a column of zeros.
    """
    m, n = data.shape
    if k > min(m, n):
        raise InputError(f"n_components is {k}: at most {min(m, n)} for a matrix of shape {data.shape}")
    scale = torch.ones(k)
    if not isinstance(init, str):
        U = as_tensor(check_array(init, input_name="init"))
        if U.shape != (m, k):
            raise InputError(f"init has shape {tuple(U.shape)}: give the left factor, ({m}, {k})")
    elif init == "random":
        size = math.sqrt(np.square(rest).mean() / k) or 1.0  # k products of such numbers are like the data
        U = math.sqrt(size) * torch.as_tensor(random.normal(size=(m, k)))
    else:
        U, scale = spectral_basis(sp.csr_array((rest, (data.rows, data.cols)), shape=data.shape), k, random)
    U = U.to(like)
    if incoherence is not None:
        U = clip_incoherent(U, incoherence)
        if not bool((U != 0).any(0).all()):
            raise InputError(f"incoherence is {incoherence}: clipping leaves a column of zeros, raise it")
    return U * scale.to(like).sqrt()


def spectral_basis(observed: sp.csr_array, k: int, random: Any) -> tuple[Tensor, Tensor]:
    """The k leading left singular vectors and values of P_Ω(M)/p, p the observed share."""
    share = observed.nnz / (observed.shape[0] * observed.shape[1])
    if observed.shape[0] * observed.shape[1] <= DENSE_ENTRIES:
        u, s, _ = torch.linalg.svd(torch.as_tensor(observed.toarray()) / share, full_matrices=False)
        return u[:, :k], s[:k]
    u, s, _ = randomized_svd(observed, k, n_iter=4, random_state=random)
    return torch.as_tensor(u), torch.as_tensor(s / share)


def halves_of(
    data: Observations, rest: np.ndarray, parts: int | None, random: np.random.RandomState, like: Tensor
) -> Callable[[int], tuple[Compressed, Compressed]]:
    """Iteration -> the observations by column and by row: all, or fresh parts for each of ``parts`` iterations."""
    if parts is None:
        both = data.compress(rest, 1, None, like), data.compress(rest, 0, None, like)
        return lambda t: both
    part = random.randint(2 * parts, size=len(rest))

    def fresh(t: int) -> tuple[Compressed, Compressed]:
        return data.compress(rest, 1, part == 2 * t, like), data.compress(rest, 0, part == 2 * t + 1, like)

    return fresh


def spread(solver: RowSolver, n_jobs: int | None) -> Solve:
    """The solver, with the rows of each half-step shared out among joblib's workers by their observations."""
    if effective_n_jobs(n_jobs) == 1:
        return solver

    def solve(data: Compressed, other: Tensor, ridge: Tensor, start: Tensor | None) -> Tensor:
        share = torch.linspace(0, int(data.pointer[-1]), effective_n_jobs(n_jobs) + 1)[1:-1].long()
        cuts = torch.searchsorted(data.pointer, share.to(data.pointer.device)).clamp_max(len(ridge)).tolist()

        def task(a: int, b: int) -> Any:
            warm = None if start is None else start[a:b].clone()
            return delayed(solver)(data.part(a, b), other, ridge[a:b].clone(), warm)

        spans = itertools.pairwise([0, *cuts, len(ridge)])
        return torch.cat(Parallel(n_jobs=n_jobs)(task(a, b) for a, b in spans if a < b))

    return solve
