"""Small problems with a known answer."""

from __future__ import annotations

import numpy as np


def psd(d: int, r: int, seed: int = 0) -> np.ndarray:
    """A projector of rank r."""
    q = np.linalg.qr(np.random.default_rng(seed).normal(size=(d, r)))[0]
    return q @ q.T


def low_rank(m: int, n: int, k: int, seed: int = 0, low: float = 1.0) -> np.ndarray:
    """A matrix of rank k with singular values from 2 down to ``low``."""
    rng = np.random.default_rng(seed)
    u, v = (np.linalg.qr(rng.normal(size=(size, k)))[0] for size in (m, n))
    return (u * np.linspace(2, low, k)) @ v.T


def gaussian(X: np.ndarray, m: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Gaussian measurements of X."""
    A = np.random.default_rng(seed).normal(size=(m, *X.shape))
    return A, np.einsum("mij,ij->m", A, X)


def outliers(m: int, share: float, size: float = 10.0, seed: int = 1) -> np.ndarray:
    """Gross errors of a share of the measurements."""
    rng = np.random.default_rng(seed)
    return np.where(rng.random(m) < share, rng.normal(0, size, m), 0.0)


def masked(M: np.ndarray, share: float, seed: int = 0) -> np.ndarray:
    """M with all but a share of its entries missing."""
    return np.where(np.random.default_rng(seed).random(M.shape) < share, M, np.nan)


def light_rows(n: int, d: int, gap: float, seed: int = 0) -> np.ndarray:
    """Gaussian rows whose first singular value squared is ``gap`` times the others."""
    return np.random.default_rng(seed).normal(size=(n, d)) * np.r_[np.sqrt(gap), np.ones(d - 1)]


def hard_rows(n: int, d: int, gap: float, heavy: int, seed: int = 0) -> np.ndarray:
    """Light rows along the first axis, and heavy ones that each pull in a direction of their own, shuffled."""
    rng = np.random.default_rng(seed)
    rows = np.zeros((n + heavy, d))
    rows[:n, 0] = np.sqrt(gap / n)
    rows[:n] += 1e-4 * rng.normal(size=(n, d))
    rows[n:, 0] = np.sqrt(gap / heavy)
    rows[np.arange(n, n + heavy), 1 + np.arange(heavy)] += 1
    return rng.permutation(rows)


def cos2(v: np.ndarray, A: np.ndarray) -> float:
    """Squared correlation of v with the top right singular vector of A."""
    top = np.linalg.eigh(A.T @ A)[1][:, -1]
    return float((v @ top) ** 2)
