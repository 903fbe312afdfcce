"""What counts of tokens predict: a unigram model, and a trigram model by interpolated Kneser–Ney smoothing.

    p₃(w | u v) = max(c(u v w) − d₃, 0)/c(u v) + d₃ N(u v ·)/c(u v) p₂(w | v)
    p₂(w | v)   = max(N(· v w) − d₂, 0)/N(· v ·) + d₂ M(v ·)/N(· v ·) p₁(w)
    p₁(w)       = max(N(· w) − d₁, 0)/N(· ·) + d₁ M/N(· ·) / V

c: counts; N(· w): different tokens before w; N(u v ·), M: different continuations; d = n₁/(n₁ + 2 n₂) of each order.

Source: Kneser & Ney, 1995; the estimate of d is that of Ney, Essen & Kneser, 1994.
"""

from __future__ import annotations

import numpy as np

Ids = np.ndarray


def unigram_bits(train: Ids, test: Ids, vocabulary: int) -> float:
    """Bits of all test tokens, each by its count in training plus one."""
    counts = np.bincount(train, minlength=vocabulary) + 1.0
    return float(-np.log2(counts / counts.sum())[test].sum())


def trigram_bits(train: Ids, test: Ids, vocabulary: int) -> float:
    """Bits of all test tokens but the first two, which have no context."""
    v = vocabulary
    u, w, x = (ids.astype(np.int64) for ids in (test[:-2], test[1:-1], test[2:]))
    tokens = train.astype(np.int64)
    triples, counts = np.unique((tokens[:-2] * v + tokens[1:-1]) * v + tokens[2:], return_counts=True)
    pairs, before = np.unique(triples % (v * v), return_counts=True)  # N(· v w): what stands before a pair
    ones = np.bincount(pairs % v, minlength=v)  # N(· w)
    p1 = _smoothed(ones[x], ones.sum(), (ones > 0).sum(), _discount(ones[ones > 0]), np.full(len(x), 1 / v))
    total, kinds = np.zeros(v), np.zeros(v)
    np.add.at(total, pairs // v, before)
    np.add.at(kinds, pairs // v, 1)
    p2 = _smoothed(_at(pairs, before, w * v + x), total[w], kinds[w], _discount(before), p1)
    contexts, place = np.unique(triples // v, return_inverse=True)
    total3, kinds3 = np.bincount(place, counts), np.bincount(place)
    context = u * v + w
    p3 = _smoothed(
        _at(triples, counts, context * v + x),
        _at(contexts, total3, context),
        _at(contexts, kinds3, context),
        _discount(counts),
        p2,
    )
    return float(-np.log2(p3).sum())


def _discount(counts: np.ndarray) -> float:
    once, twice = (int((counts == k).sum()) for k in (1, 2))
    return once / (once + 2 * twice) if once else 0.5


def _smoothed(count: Ids, total: Ids, kinds: Ids, d: float, lower: np.ndarray) -> np.ndarray:
    """max(c − d, 0)/total + d kinds/total · lower; the lower order alone where nothing was seen."""
    seen = np.maximum(total, 1)
    found: np.ndarray = np.maximum(count - d, 0) / seen + d * kinds / seen * lower
    return np.where(total > 0, found, lower)


def _at(keys: Ids, values: np.ndarray, wanted: Ids) -> np.ndarray:
    """The values of these keys, 0 where there is none."""
    place = np.minimum(np.searchsorted(keys, wanted), len(keys) - 1)
    return np.where(keys[place] == wanted, values[place], 0)
