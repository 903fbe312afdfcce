"""Matrices recovered from measurements, ratings and streams, as scikit-learn estimators.

`METHODS` lists them without importing scikit-learn; the rest is imported when it is first asked for.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from eckart.face import lazy
from eckart.linalg.operators import DenseOperator, EntryOperator, IdentityOperator, RankOneOperator

if TYPE_CHECKING:
    from eckart.recovery.hidden import HiddenEntries
    from eckart.recovery.matrix_sensing_gd import MatrixSensingGD
    from eckart.recovery.ranking import ranking_scores
    from eckart.recovery.robust_altmin import MatrixCompletion
    from eckart.recovery.streaming import StreamingPCA
    from eckart.recovery.subgm import RobustLowRank


__all__ = [
    "METHODS",
    "DenseOperator",
    "EntryOperator",
    "HiddenEntries",
    "IdentityOperator",
    "MatrixCompletion",
    "MatrixSensingGD",
    "RankOneOperator",
    "RobustLowRank",
    "StreamingPCA",
    "ranking_scores",
]

METHODS: tuple[dict[str, str], ...] = (
    {
        "slug": "matrix-sensing-gd",
        "name": "MatrixSensingGD",
        "family": "recovery",
        "paper": "Xiong, Ding & Du, 2024",
        "arxiv": "2310.01769",
        "knob": "n_components",
        "trains": "two factors of unequal start, F (d1, k) and G (d2, k)",
        "saves": "both factors",
        "summary": "Gradient descent on F Gᵀ from measurements; re-factored once, its rate is free of the start.",
    },
    {
        "slug": "robust-altmin",
        "name": "MatrixCompletion",
        "family": "recovery",
        "paper": "Gu, Song, Yin & Zhang, 2024",
        "arxiv": "2302.11068",
        "knob": "n_components",
        "trains": "row and column factors, and their biases",
        "saves": "factors, biases and the observations",
        "summary": "Alternating least squares on the observed entries, each regression solved no better than needed.",
    },
    {
        "slug": "streaming-top-eigenvector",
        "name": "StreamingPCA",
        "family": "recovery",
        "paper": "Kacham & Woodruff, 2024",
        "arxiv": "2412.11963",
        "knob": "n_components",
        "trains": "the top right singular vectors, in one pass over the rows",
        "saves": "the vectors, the heavy rows and the state of the stream",
        "summary": "Block power method on a stream of rows in random order, with the rows of large norm kept apart.",
    },
    {
        "slug": "subgm",
        "name": "RobustLowRank",
        "family": "recovery",
        "paper": "Ma & Fattahi, 2023",
        "arxiv": "2202.08788",
        "knob": "rank",
        "trains": "factors of X = U Vᵀ or U Uᵀ, as many columns as the rank",
        "saves": "the factors",
        "summary": "Robust PCA of tables, and sensing, by sub-gradients of the ℓ1 loss: gross outliers, unknown rank.",
    },
)
"""What `eckart.methods()` says of each method."""


if not TYPE_CHECKING:  # a checker reads the imports above, and knows that there is nothing else
    __getattr__, __dir__ = lazy(__name__, {"sklearn": "recovery"})
