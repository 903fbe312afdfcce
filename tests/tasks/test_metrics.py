"""Scores: equal to scikit-learn's and SciPy's, and the same as the mean of what each example adds."""

from __future__ import annotations

import math
import sys

import numpy as np
import pytest
from scipy import stats
from sklearn import metrics as sk

from eckart.errors import InputError
from eckart.tasks import metrics
from eckart.tasks.choosing import chosen
from eckart.tasks.metrics import Metric, jackknife


@pytest.fixture
def three() -> np.ndarray:
    """Classes and logits that are often right, of unequal classes; the last two rows tie."""
    draw = np.random.default_rng(0)
    labels = draw.choice(3, 90, p=[0.6, 0.3, 0.1])
    logits = draw.normal(size=(90, 3)) + 1.2 * np.eye(3)[labels]
    logits[-2:] = logits[0]
    return np.concatenate([labels[:, None], logits], axis=1)


def test_scores_of_classes(three: np.ndarray) -> None:
    labels, logits = three[:, 0].astype(int), three[:, 1:]
    said, shares = logits.argmax(1), np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    assert metrics.right(three).mean() == pytest.approx(sk.accuracy_score(labels, said))
    assert metrics.macro_f1(three) == pytest.approx(sk.f1_score(labels, said, average="macro"))
    assert metrics.matthews(three) == pytest.approx(sk.matthews_corrcoef(labels, said))
    assert metrics.auroc(three) == pytest.approx(sk.roc_auc_score(labels, shares, multi_class="ovr"))
    two = three[three[:, 0] < 2][:, :3]
    assert metrics.auroc(two) == pytest.approx(sk.roc_auc_score(two[:, 0], two[:, 2] - two[:, 1]))
    assert metrics.auroc(two[two[:, 0] == 0]) == 0.5
    constant = three.copy()
    constant[:, 1:] = [0, 1, 0]
    assert metrics.matthews(constant) == 0


def test_scores_of_numbers() -> None:
    draw = np.random.default_rng(1)
    pairs = draw.integers(0, 6, (40, 2)) + 0.0
    pairs[:, 1] += pairs[:, 0]
    assert metrics.pearson(pairs) == pytest.approx(stats.pearsonr(*pairs.T).statistic)
    assert metrics.spearman(pairs) == pytest.approx(stats.spearmanr(*pairs.T).statistic)
    assert metrics.rmse(pairs) == pytest.approx(sk.root_mean_squared_error(*pairs.T))
    pairs[:, 1] = 3
    assert metrics.pearson(pairs) == metrics.spearman(pairs) == 0


def test_scores_of_several_labels() -> None:
    draw = np.random.default_rng(2)
    truth, logits = draw.integers(0, 2, (50, 3)), draw.normal(size=(50, 3))
    rows, said = np.concatenate([truth, logits], axis=1), logits > 0
    assert metrics.labels_right(rows).mean() == pytest.approx(1 - sk.hamming_loss(truth, said))
    assert metrics.all_labels_right(rows).mean() == pytest.approx(sk.accuracy_score(truth, said))
    assert metrics.labels_micro_f1(rows) == pytest.approx(sk.f1_score(truth, said, average="micro"))
    assert metrics.labels_macro_f1(rows) == pytest.approx(sk.f1_score(truth, said, average="macro"))
    assert metrics.labels_auroc(rows) == pytest.approx(sk.roc_auc_score(truth, logits))


def test_a_score_of_all_is_the_mean_of_its_parts_and_their_spread_its_error(three: np.ndarray) -> None:
    for whole in (metrics.macro_f1, metrics.matthews, metrics.auroc):
        parts = Metric("m", whole=whole).scores(three)
        assert parts.mean() == pytest.approx(whole(three))
    mean = jackknife(lambda rows: float(rows[:, 0].mean()), three)
    assert mean == pytest.approx(three[:, 0]), "of a mean the parts are the scores themselves"
    draw = np.random.default_rng(3)
    samples = [three[draw.integers(0, 90, 90)] for _ in range(400)]
    spread = np.std([metrics.macro_f1(sample) for sample in samples])
    error = Metric("m", whole=metrics.macro_f1).scores(three).std(ddof=1) / math.sqrt(90)
    assert error == pytest.approx(spread, rel=0.25)


def test_many_examples_are_left_out_together_with_the_same_error(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = np.random.default_rng(4).normal(size=(1200, 1))
    one = jackknife(lambda r: float(r.mean()), rows)
    monkeypatch.setattr(metrics, "JACKKNIFE", 250)
    some = jackknife(lambda r: float(r.mean()), rows)
    assert some.mean() == pytest.approx(one.mean()) and len(set(some)) <= 250
    assert some.std() == pytest.approx(one.std(), rel=0.15)


def test_a_run_that_diverged_has_no_score(three: np.ndarray) -> None:
    three[4, 2] = math.nan
    assert np.isnan(Metric("m", whole=metrics.macro_f1).scores(three)).all()
    assert np.isnan(metrics.right(three)[4]) and np.isfinite(np.delete(metrics.right(three), 4)).all()


def test_bits_of_all_are_those_of_all_tokens() -> None:
    rows = np.array([[10.0, 2, math.nan], [3, 3, math.nan], [8, 4, math.nan]])
    assert metrics.ratio_of_sums(rows).mean() == pytest.approx(21 / 9)
    assert metrics.ratio_of_sums(rows) == pytest.approx(
        jackknife(lambda r: r[:, 0].sum() / r[:, 1].sum(), rows), abs=0.5
    )


def test_a_metric_by_name_or_by_function(three: np.ndarray) -> None:
    known = {"accuracy": Metric("accuracy", each=metrics.right)}
    split = lambda rows: (rows[:, 0].astype(int), metrics.classes_said(rows))  # noqa: E731
    assert chosen(None, known, split, "x").name == "accuracy"
    kappa = chosen("sklearn.metrics:cohen_kappa_score", known, split, "x")
    assert kappa.name == "cohen_kappa_score" and kappa.greater_is_better
    assert kappa.value(three) == pytest.approx(sk.cohen_kappa_score(*split(three)))
    assert not chosen("sklearn.metrics:zero_one_loss", known, split, "x").greater_is_better
    for name, words in (
        ("f2", "has accuracy; or give evaluate:NAME or module:function"),
        ("none.such:f", "No module"),
        ("sklearn.metrics:none", "none"),
        ("math:pi", "is no function"),
    ):
        with pytest.raises(InputError, match="--metric") as caught:
            chosen(name, known, split, "x")
        assert words in str(caught.value) and "\n" not in str(caught.value)
    with pytest.raises(InputError, match="cannot score this task"):
        chosen("math:sqrt", known, split, "x").value(three)
    with pytest.raises(InputError, match="an example of x has no single label to score; choose accuracy"):
        chosen("sklearn.metrics:cohen_kappa_score", known, None, "x")


class Library:
    """`evaluate`, as far as it is used: metrics that give a dictionary, and the hub out of reach."""

    def load(self, name: str) -> Library:
        if "absent" in name:
            raise FileNotFoundError(f"Couldn't find a module script at {name}\nsecond line")
        self.name = name
        return self

    def _compute(self, references: np.ndarray, predictions: np.ndarray) -> dict[str, float]:
        share = float((references == predictions).mean())
        return {"other": 7.0, "exact": share} if self.name.endswith("exact.py") else {"only": share}


def test_a_metric_of_evaluate(three: np.ndarray, monkeypatch: pytest.MonkeyPatch) -> None:
    known = {"accuracy": Metric("accuracy", each=metrics.right)}
    split = lambda rows: (rows[:, 0].astype(int), metrics.classes_said(rows))  # noqa: E731
    monkeypatch.setitem(sys.modules, "evaluate", None)
    with pytest.raises(InputError, match=r"pip install 'eckart\[evaluate\]'"):
        chosen("evaluate:exact", known, split, "x")
    monkeypatch.setitem(sys.modules, "evaluate", Library())
    right = sk.accuracy_score(*split(three))
    for name, short, greater in (
        ("evaluate:lib/exact.py", "exact", True),
        ("evaluate:f1", "f1", True),
        ("evaluate:mse", "mse", False),
    ):
        found = chosen(name, known, split, "x")
        assert (found.name, found.greater_is_better) == (short, greater)
        assert found.value(three) == pytest.approx(right)
        assert found.scores(three).mean() == pytest.approx(right)
    with pytest.raises(InputError, match="--metric evaluate:absent cannot be had: Couldn't find") as caught:
        chosen("evaluate:absent", known, split, "x")
    assert "\n" not in str(caught.value) and "second line" not in str(caught.value)
