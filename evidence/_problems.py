"""Matrices whose rank is known."""

from __future__ import annotations

import numpy as np


def low_rank(m: int, n: int, sigma: np.ndarray, seed: int = 0, symmetric: bool = False) -> np.ndarray:
    """An (m, n) matrix with these singular values and random singular vectors."""
    rng = np.random.default_rng(seed)
    u, v = (np.linalg.qr(rng.normal(size=(size, len(sigma))))[0] for size in (m, n))
    return (u * sigma) @ (u if symmetric else v).T
