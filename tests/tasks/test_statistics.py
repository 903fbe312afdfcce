"""Intervals: of one score over the examples, and of a mean over seeds."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from eckart.errors import InputError
from eckart.tasks.statistics import Z95, combined_interval, interval


def test_wilson_interval():
    mean, low, high = interval(np.array([1.0] * 8 + [0.0] * 2))
    assert mean == pytest.approx(0.8)
    assert (low, high) == pytest.approx(
        (0.4901625, 0.9433178), abs=1e-6
    )  # R: prop.test(8, 10, correct=FALSE)
    assert interval(np.ones(20))[2] == 1.0
    assert interval(np.ones(20))[1] == pytest.approx(20 / (20 + 3.8414588), abs=1e-6)


def test_normal_interval():
    values = np.array([1.0, 2.0, 3.0, 4.0])
    mean, low, high = interval(values)
    assert mean == 2.5
    assert high - mean == pytest.approx(1.959964 * math.sqrt(5 / 3) / 2, abs=1e-5)
    assert low == pytest.approx(5 - high)
    assert interval(np.array([1.5]))[1:] == (-math.inf, math.inf)
    assert all(math.isnan(x) for x in interval(np.array([1.0, math.nan])))
    with pytest.raises(InputError, match="at least one"):
        interval(np.array([]))


@pytest.mark.parametrize(
    ("right", "examples", "low", "high"),
    [
        (0, 1, 0.0, 0.7934506856227626),
        (1, 3, 0.06149194472039621, 0.7923403991979522),
        (463, 600, 0.7364137727607301, 0.8034630363551591),
        (999, 1000, 0.9943574414020421, 0.9998234536293739),
    ],
)
def test_wilsons_interval_is_what_earlier_comparisons_hold(
    right: int, examples: int, low: float, high: float
) -> None:
    """Numbers of version 0.1.0, which had the formula written out."""
    scores = np.r_[np.ones(right), np.zeros(examples - right)]
    assert interval(scores) == pytest.approx((right / examples, low, high), rel=1e-12, abs=1e-15)


@pytest.mark.parametrize(
    ("scores", "lows", "highs", "low", "high"),
    [
        ([0.8, 0.82], [0.76, 0.79], [0.83, 0.85], 0.7669211395860961, 0.8501650612232623),
        ([0.5, 0.6, 0.7], [0.45, 0.56, 0.66], [0.54, 0.65, 0.75], 0.3866028898699685, 0.8099473901116939),
        ([3.1, 3.3, 2.9], [3.0, 3.2, 2.8], [3.25, 3.4, 3.0], 2.6866458165550915, 3.4989178776848027),
        ([0.9, 0.91], [0.9, 0.91], [0.9, 0.91], 0.8414689763191265, 0.9685310236808735),
        ([0.7, 0.7], [0.6, 0.65], [0.8, 0.75], 0.625, 0.775),
    ],
)
def test_combined_intervals_are_what_earlier_comparisons_hold(
    scores: list[float], lows: list[float], highs: list[float], low: float, high: float
) -> None:
    """Numbers of version 0.1.0, whose quantiles of Student's t were integrated to nine digits."""
    assert combined_interval(scores, lows, highs) == pytest.approx((low, high), rel=3e-8)


def test_one_seed_keeps_the_interval_of_its_run():
    low, high = combined_interval([0.8], [0.77], [0.82])
    assert (low, high) == pytest.approx((0.77, 0.82), abs=1e-12)


def test_equal_seeds_keep_it_too():
    """The test examples are the same for all seeds, so more seeds do not make their share smaller."""
    assert combined_interval([0.8] * 5, [0.77] * 5, [0.82] * 5) == pytest.approx((0.77, 0.82), abs=1e-12)


@pytest.mark.parametrize(("seeds", "quantile"), [(2, 12.7062), (3, 4.30265), (11, 2.22814), (31, 2.04227)])
def test_without_test_sampling_it_is_students(seeds: int, quantile: float):
    """Quantiles of Student's t with 1, 2, 10 and 30 degrees of freedom, from its tables."""
    scores = np.linspace(0.4, 0.6, seeds)
    low, high = combined_interval(scores, scores, scores)
    half = quantile * scores.std(ddof=1) / math.sqrt(seeds)
    assert (low, high) == pytest.approx((0.5 - half, 0.5 + half), rel=1e-4)


def test_covers_the_truth_as_often_as_it_says():
    rng = np.random.default_rng(1)
    inside = 0
    for _ in range(600):
        scores = 0.7 + rng.normal(0, 0.01) + rng.normal(0, 0.01, size=3)
        low, high = combined_interval(scores, scores - Z95 * 0.01, scores + Z95 * 0.01)
        inside += low <= 0.7 <= high
    assert 0.93 <= inside / 600 <= 0.99


@given(st.lists(st.floats(0.1, 0.9), min_size=1, max_size=6), st.floats(0.001, 0.1))
@settings(max_examples=30, deadline=None)
def test_never_narrower_than_test_sampling(scores: list[float], half: float):
    values = np.array(scores)
    low, high = combined_interval(values, values - half, values + half)
    assert low <= values.mean() - half + 1e-9
    assert high >= values.mean() + half - 1e-9
