"""How good a ranking is: the share of what was held out that stands at its top, and how far up.

For a user with the relevant items R and the recommended i_1 … i_k, with rel_j = 1 where i_j ∈ R:

    ndcg@k    Σ_j rel_j / log₂(j + 1)  /  Σ_{j ≤ min(k, |R|)} 1 / log₂(j + 1)
    recall@k  Σ_j rel_j / |R|
    map@k     Σ_j rel_j · (Σ_{l≤j} rel_l / j) / min(k, |R|)

Source: Järvelin & Kekäläinen, ACM TOIS 20 (2002), for nDCG; Manning, Raghavan & Schütze, "Introduction to Information
Retrieval" (2008), ch. 8, for the others.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import scipy.sparse as sp

from eckart.errors import InputError


def ranking_scores(recommended: Any, relevant: Any) -> dict[str, float]:
    """Mean nDCG, recall and average precision at k over the users for whom something is relevant.

    Args:
        recommended: item indices (users, k), best first; −1 where there are fewer.
        relevant: sparse or dense (users, items), other than zero where an item is relevant.

    Returns:
        "ndcg", "recall", "map" and "users", how many were counted; NaN where there is none.

    Raises:
        InputError: another number of users, an index outside the items.
    """
    recommended, relevant = np.asarray(recommended), sp.csr_array(relevant).astype(bool)
    if recommended.ndim != 2 or len(recommended) != relevant.shape[0]:
        raise InputError(
            f"recommended has shape {recommended.shape}: give (users, k) for the {relevant.shape[0]} of relevant"
        )
    if recommended.size and not -1 <= recommended.min() <= recommended.max() < relevant.shape[1]:
        raise InputError(f"recommended holds indices outside [0, {relevant.shape[1]}), which are the items")
    relevant.eliminate_zeros()
    count = np.diff(relevant.indptr)
    users = np.flatnonzero(count)
    if not len(users):
        return dict.fromkeys(("ndcg", "recall", "map"), float("nan")) | {"users": 0}
    recommended, count, k = recommended[users], count[users], recommended.shape[1]
    flat = relevant[np.repeat(users, k), np.maximum(recommended, 0).ravel()]
    hits = np.asarray(flat).reshape(recommended.shape) & (recommended >= 0)
    place = np.arange(1, k + 1)
    gain = 1 / np.log2(place + 1)
    most = np.minimum(k, count)
    precision = hits.cumsum(1) / place
    scores = {
        "ndcg": hits @ gain / gain.cumsum()[most - 1],
        "recall": hits.sum(1) / count,
        "map": (hits * precision).sum(1) / most,
    }
    return {name: float(value.mean()) for name, value in scores.items()} | {"users": len(users)}
