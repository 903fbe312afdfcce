"""Paired differences: their two sources of luck, shrunk variances, groups, and many comparisons."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import t as student

from eckart.jobs.compare.paired import Difference, Scores, holm, shrunk_variances
from eckart.tasks.statistics import cluster_variance, interval


def scores(table: np.ndarray, groups: np.ndarray | None = None) -> Scores:
    """Arms × seeds × examples as `Scores`."""
    arms, seeds, _ = table.shape
    examples = {(a, k): table[a, k] for a in range(arms) for k in range(seeds)}
    return Scores(table.mean(axis=2), examples, np.zeros(arms), groups)


def drawn(arms: int = 4, seeds: int = 3, examples: int = 60, seed: int = 0) -> np.ndarray:
    generator = np.random.default_rng(seed)
    shared = generator.random((1, 1, examples)) < 0.7
    return (shared ^ (generator.random((arms, seeds, examples)) < 0.15)).astype(float)


def test_two_sources_by_hand() -> None:
    table = np.array([[[1.0, 1, 1, 0], [1, 1, 0, 0]], [[1, 0, 1, 0], [0, 1, 0, 0]]])
    found = scores(table).difference(0, 1)
    assert found is not None
    per_example = np.array([0.5, 0.5, 0, 0])  # mean over seeds of what arm 0 has more
    assert found.value == pytest.approx(0.25)
    examples = per_example.var(ddof=1) / 4
    assert found.examples_variance == pytest.approx(examples)
    # Means .75 .5 and .5 .25: nothing is left of arm + seed, so the least is what seeds decide of single examples.
    d = table[0] - table[1]
    rest = d - d.mean(axis=0) - d.mean(axis=1, keepdims=True) + d.mean()
    assert found.seed_variance == pytest.approx((rest**2).sum() / (1 * 3 * 4))
    assert found.standard_error == pytest.approx(math.sqrt(examples + found.seed_variance / 2))
    assert found.variance(4) == pytest.approx(examples + found.seed_variance / 4)
    assert found.variance(2, 3) == pytest.approx(examples / 3 + found.seed_variance / 2)


def test_the_interval_and_p_are_students() -> None:
    found = Difference(0.1, 3, 0.001, 0.0006, 7.0, level=0.01)
    half = student.isf(0.005, 7) * math.sqrt(0.0012)
    assert (found.low, found.high) == pytest.approx((0.1 - half, 0.1 + half))
    assert found.p == pytest.approx(2 * student.sf(0.1 / math.sqrt(0.0012), 7))
    assert found.told == 0
    assert Difference(1.0, 3, 0.001, 0.0006, 7.0).told == 1
    assert Difference(-1.0, 3, 0.001, 0.0006, 7.0).told == -1


def test_what_seeds_do_to_all_arms_is_not_in_a_difference() -> None:
    means = np.array([[0.5, 0.6, 0.7], [0.55, 0.65, 0.75], [0.4, 0.5, 0.6]])
    variances, _ = shrunk_variances(means)
    assert variances == pytest.approx(0, abs=1e-12)
    found = Scores(means, {}, np.zeros(3)).difference(0, 2)
    assert found is not None and found.value == pytest.approx(0.1)
    assert found.seed_variance == pytest.approx(0, abs=1e-12)


def test_the_pool_is_the_residual_variance() -> None:
    means = np.random.default_rng(0).standard_normal((2, 4))
    residual = means - means.mean(0) - means.mean(1, keepdims=True) + means.mean()
    variances, degrees = shrunk_variances(means)
    assert variances == pytest.approx(np.full(2, (residual**2).sum() / 3))
    assert degrees == pytest.approx([3, 3])


def test_variances_are_shrunk_towards_the_pool_and_not_all_the_way() -> None:
    generator = np.random.default_rng(1)
    means = generator.standard_normal((8, 6)) * np.r_[np.full(7, 0.01), 1.0][:, None]
    variances, _ = shrunk_variances(means)
    assert variances[7] > 20 * np.median(variances[:7])
    assert variances[7] < 1.3 * means[7].var(ddof=1)
    equal, degrees = shrunk_variances(generator.standard_normal((8, 6)))
    assert np.ptp(equal) < 0.5 * equal.mean()
    assert (degrees <= 35 + 1e-9).all()


def test_an_arm_with_one_seed_has_the_pools_variance_and_none_is_known_without_two() -> None:
    means = np.array([[0.5, 0.61, 0.7], [0.55, 0.63, 0.76], [0.4, math.nan, math.nan]])
    variances, _ = shrunk_variances(means)
    assert variances[2] == pytest.approx(variances[:2].mean())
    single, _ = shrunk_variances(means[:, :1])
    assert np.isnan(single).all()
    found = Scores(means[:, :1], {}, np.full(3, 0.02)).difference(0, 1)
    assert found is not None and found.seed_variance == 0
    assert found.standard_error == pytest.approx(0.02 * math.sqrt(2))


def test_only_common_seeds_are_compared() -> None:
    table = drawn(2, 3)
    study = scores(table)
    study.means[1, 0] = math.nan
    found = study.difference(0, 1)
    assert found is not None and found.seeds == 2
    assert found.value == pytest.approx(table[0, 1:].mean() - table[1, 1:].mean())
    study.means[1] = math.nan
    assert study.difference(0, 1) is None


def test_an_arm_that_no_seed_changes_stands_for_every_seed() -> None:
    table = drawn(3, 3)
    fixed = {(2, 0): table[2, 0]} | {(a, k): table[a, k] for a in range(2) for k in range(3)}
    means = table.mean(axis=2)
    means[2, 1:] = math.nan
    study = Scores(means, fixed, np.zeros(3), fixed=[2])
    found = study.difference(0, 2)
    assert found is not None and found.seeds == 3
    assert found.value == pytest.approx(table[0].mean() - table[2, 0].mean())
    assert study.variances[2] == 0


def test_a_missing_seed_is_filled_in_by_what_it_did_to_the_others() -> None:
    study = scores(drawn(2, 2))
    study.means[:] = [[0.5, 0.7], [0.6, math.nan]]
    assert study.placed() == pytest.approx([0.6, 0.7])
    study.means[1] = math.nan
    assert study.placed()[1] == -math.inf


def test_groups_widen_what_they_share() -> None:
    groups = np.repeat(np.arange(12), 10)
    values = np.repeat(np.random.default_rng(0).random(12), 10)
    assert cluster_variance(values, groups) == pytest.approx(values[::10].var(ddof=1) / 12)
    alone = cluster_variance(values, np.arange(120))
    assert alone == pytest.approx(values.var(ddof=1) / 120)
    table = drawn(2, 3, 120)
    table[0] = np.maximum(table[0], np.repeat(np.arange(12) % 3 == 0, 10))
    wide, narrow = (scores(table, given).difference(0, 1) for given in (groups, None))
    assert wide is not None and narrow is not None and wide.examples_variance > 2 * narrow.examples_variance
    mean, low, high = interval(values, [f"file {g}" for g in groups])
    half = student.ppf(0.975, 11) * math.sqrt(cluster_variance(values, groups))
    assert (mean, low, high) == pytest.approx((values.mean(), mean - half, mean + half))


def test_equal_predictions_are_no_difference_and_equal_differences_no_certainty() -> None:
    table = drawn(1, 2)
    same = scores(np.concatenate([table, table])).difference(0, 1)
    assert same is not None and (same.value, same.told, same.p) == (0, 0, 1)
    few = scores(np.stack([np.ones((2, 3)), np.zeros((2, 3))])).difference(0, 1)
    assert few is not None and few.standard_error == pytest.approx(1 / 3)


@given(st.lists(st.floats(-0.2, 0.2), min_size=1, max_size=8), st.integers(2, 30))
@settings(max_examples=80, deadline=None)
def test_holms_intervals_agree_with_his_procedure(values: list[float], degrees: int) -> None:
    plain = {i: Difference(v, 3, 0.0009, 0.0003, float(degrees)) for i, v in enumerate(values)}
    judged = holm(plain, 0.05)
    rejected, order = set(), sorted(plain, key=lambda i: plain[i].p)
    for place, i in enumerate(order):
        if plain[i].p > 0.05 / (len(order) - place):
            break
        rejected.add(i)
    assert {i for i, found in judged.items() if found.told} == rejected
    assert list(judged) == list(plain)
    assert all(judged[i].value == plain[i].value for i in plain)
