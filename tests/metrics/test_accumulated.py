"""The torchmetrics classes: batches, texts without a score, merging, and two processes under torchrun (gloo).

Run as a script by torchrun this file is the worker: it measures its share and writes what every metric says then.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from torchmetrics import MetricCollection
from two_processes import reports

import eckart
from eckart import metrics

CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "MatrixNuclearNorm": ("matrix_nuclear_norm", {"D": 3, "per_token": False, "normalise": False}),
    "MatrixEntropy": ("matrix_entropy", {"relative": False, "normalise": False}),
    "RenyiEntropy": ("renyi_entropy", {"normalise": False}),
    "NuclearNorm": ("nuclear_norm", {"per_token": False, "normalise": False}),
    "SchattenNorm": ("schatten_norm", {"p": 3.0, "per_token": False, "normalise": False}),
    "EffectiveRank": ("effective_rank", {"power": 2.0, "normalise": False}),
    "EnergyRank": ("energy_rank", {"energy": 0.5, "normalise": False}),
    "StableRank": ("stable_rank", {"normalise": False}),
    "ParticipationRatio": ("participation_ratio", {"normalise": False}),
    "AlphaReQ": ("alpha_req", {"first": 2, "last": 3, "normalise": False}),
}
NEEDED = {"SchattenNorm": {"p": 3.0}}
LENGTHS = torch.tensor([9, 1, 4, 6, 0, 7])
every_class = pytest.mark.parametrize("name", CASES)


def texts() -> tuple[Tensor, Tensor]:
    """Six texts, two of them without a score."""
    hidden = torch.randn(6, 9, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    return hidden, torch.arange(9) < LENGTHS.unsqueeze(1)


def plain(name: str) -> Any:
    """The class with its default options."""
    return getattr(metrics, name)(**NEEDED.get(name, {}))


def wanted(name: str) -> Tensor:
    """The mean over the texts that have a score, from the function."""
    hidden, mask = texts()
    return getattr(metrics, CASES[name][0])(hidden, mask, **NEEDED.get(name, {})).nanmean()


@every_class
def test_batches_of_any_size_give_the_mean_over_texts(name: str) -> None:
    hidden, mask = texts()
    metric = plain(name)
    values = [metric(hidden[part], mask[part]) for part in (slice(0, 3), slice(3, 4), slice(4, 5))]
    metric.update(hidden[5, : LENGTHS[5]])
    torch.testing.assert_close(metric.compute(), wanted(name))
    assert (int(metric.counted), int(metric.skipped)) == (4, 2)
    alone = getattr(metrics, CASES[name][0])(hidden[3, :6], **NEEDED.get(name, {}))
    torch.testing.assert_close(values[1], alone)
    assert values[2].isnan()
    metric.reset()
    assert (float(metric.total), int(metric.counted), int(metric.skipped)) == (0, 0, 0)
    metric.update(hidden[1:2], mask[1:2])
    assert metric.compute().isnan() and int(metric.skipped) == 1


@every_class
def test_options_reach_the_function(name: str) -> None:
    function, options = CASES[name]
    hidden, mask = texts()
    metric = getattr(metrics, name)(**options)
    metric.update(hidden, mask)
    values = getattr(metrics, function)(hidden, mask, **options)
    torch.testing.assert_close(metric.compute(), values.nanmean())
    assert not torch.isclose(metric.compute(), wanted(name), rtol=1e-3)


@every_class
def test_merged_metrics_are_one(name: str) -> None:
    hidden, mask = texts()
    left, right = plain(name), plain(name)
    left.update(hidden[:2], mask[:2])
    right.update(hidden[2:], mask[2:])
    left.merge_state(right)
    torch.testing.assert_close(left.compute(), wanted(name))
    assert (int(left.counted), int(left.skipped)) == (4, 2)


@every_class
def test_state_goes_through_safetensors(name: str, tmp_path: Path) -> None:
    hidden, mask = texts()
    first = plain(name)
    first.persistent(True)
    first.update(hidden[:3], mask[:3])
    save_file(first.state_dict(), tmp_path / "state.safetensors")
    second = plain(name)
    second.persistent(True)
    second.load_state_dict(load_file(tmp_path / "state.safetensors"))
    second.update(hidden[3:], mask[3:])
    torch.testing.assert_close(second.clone().compute(), wanted(name))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_sums_are_kept_in_float64(dtype: torch.dtype) -> None:
    metric = metrics.EffectiveRank()
    metric.update(torch.randn(3, 8, 4, generator=torch.Generator().manual_seed(0)).to(dtype))
    assert metric.total.dtype == torch.float64 and metric.skipped.dtype == torch.int64


@pytest.mark.parametrize("name", [n for n in CASES if n not in ("EffectiveRank", "EnergyRank", "StableRank")])
def test_the_value_of_a_batch_has_a_gradient_and_the_state_has_none(name: str) -> None:
    hidden, mask = texts()
    metric = plain(name)
    assert metric.is_differentiable
    hidden.requires_grad_()
    metric(hidden, mask)
    metric(hidden, mask).backward()
    assert hidden.grad is not None and hidden.grad.isfinite().all()
    assert hidden.grad[0].any() and not hidden.grad[1].any() and not hidden.grad[~mask].any()
    assert not metric.total.requires_grad


def test_which_way_is_better() -> None:
    lower = {name for name in CASES if getattr(metrics, name).higher_is_better is False}
    assert lower == {"MatrixNuclearNorm", "MatrixEntropy", "RenyiEntropy"}
    assert all(getattr(metrics, name).higher_is_better is None for name in CASES if name not in lower)


def test_a_collection_measures_them_together() -> None:
    together = MetricCollection([plain(name) for name in CASES])
    together.update(*texts())
    torch.testing.assert_close(together.compute(), {name: wanted(name) for name in CASES})


def test_a_bad_batch_leaves_the_sums_as_they_were() -> None:
    metric = metrics.MatrixEntropy()
    metric.update(*texts())
    before = metric.compute()
    with pytest.raises(eckart.InputError, match="mask has the shape"):
        metric.update(texts()[0], texts()[1][:, 1:])
    metric.update(texts()[0][1:2], texts()[1][1:2])
    torch.testing.assert_close(metric.compute(), before)


@pytest.mark.parametrize(
    "make", [lambda: metrics.MatrixNuclearNorm(D=0), lambda: metrics.EnergyRank(energy=2)]
)
def test_options_are_checked_before_the_first_batch(make) -> None:
    with pytest.raises(eckart.InputError, match=r"(D is 0|energy is 2): give a"):
        make()


def test_without_torchmetrics_the_extra_is_named_and_the_functions_work() -> None:
    code = """
import sys
sys.modules["torchmetrics"] = None
import torch, eckart
from eckart import metrics
metrics.matrix_entropy(torch.randn(4, 3))
try:
    metrics.MatrixEntropy
except eckart.InputError as error:
    assert "eckart[metrics]" in str(error) and "\\n" not in str(error), error
else:
    raise AssertionError("nothing raised")
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_an_unknown_name_is_no_attribute() -> None:
    with pytest.raises(AttributeError, match="has no attribute 'MatrixEntropie'"):
        metrics.MatrixEntropie  # noqa: B018


def work(report: Path) -> None:
    """One process of the two: measures its share of the texts, and writes the value over all of them."""
    import torch.distributed as dist

    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    rank = dist.get_rank()
    hidden, mask = texts()
    mine = slice(0, 2) if rank == 0 else slice(2, 6)
    found = {}
    for name in CASES:
        metric = plain(name)
        metric.update(hidden[mine], mask[mine])
        value = float(metric.compute())
        with metric.sync_context():
            found[name] = [value, int(metric.counted), int(metric.skipped)]
    (report / f"{rank}.json").write_text(json.dumps(found))
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def said(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """What each of two processes says."""
    return reports(__file__, tmp_path_factory.mktemp("torchrun"))


@every_class
def test_two_processes_say_what_one_says(name: str, said: list[dict[str, Any]]) -> None:
    for report in said:
        value, counted, skipped = report[name]
        assert value == pytest.approx(float(wanted(name)), rel=1e-9)
        assert (counted, skipped) == (4, 2)


if __name__ == "__main__":
    work(Path(sys.argv[1]))
