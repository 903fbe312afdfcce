import copy

import pytest
import torch
from small_models import batches, logits, make
from torch import nn

import eckart.compression as compression
from eckart.compression import WeLore, compress, train_low_rank
from eckart.compression._layers import FactorizedLinear
from eckart.compression.welore import is_low_rank, pruned_count, reduction
from eckart.errors import InputError
from eckart.linalg.spectrum import singular_values

S = torch.tensor([10.0, 6.0, 3.0, 2.0, 1.0])  # normalised: 1, 5/9, 2/9, 1/9, 0


def tailed(kind="llama", seed=0):
    """A model whose matrices have falling spectra, faster from layer to layer."""
    model = make(kind, seed)
    for i, layer in enumerate(model.model.layers):
        for j, module in enumerate(m for m in layer.modules() if isinstance(m, nn.Linear)):
            u, s, vh = torch.linalg.svd(module.weight.data, full_matrices=False)
            fall = torch.exp(-torch.arange(len(s)) * (0.05 + 0.05 * (i + j)))
            module.weight.data.copy_(5 * (u * fall) @ vh)
    return model


def test_counts_on_a_known_spectrum():
    assert pruned_count(S, 1e-9) == 1  # the least value always counts, for t > 0
    assert pruned_count(S, 2 / 9 + 1e-6) == 3 and pruned_count(S, 2 / 9 - 1e-6) == 2
    assert pruned_count(S, 1.0) == 4  # the largest never
    assert pruned_count(3 * S, 0.2) == pruned_count(S, 0.2)
    assert pruned_count(torch.full((5,), 2.0), 0.5) == 0
    assert pruned_count(torch.zeros(5), 0.5) == 0


def test_rule_is_strict():
    assert not is_low_rank(S, 0.2, 2 / 5) and is_low_rank(S, 0.2, 0.39)


def test_threshold_meets_the_target_within_one_step():
    values = {n: singular_values(m.weight) for n, m in tailed().named_modules() if isinstance(m, nn.Linear)}
    del values["lm_head"]
    shapes = {n: tuple(m.weight.shape) for n, m in tailed().named_modules() if n in values}
    spectra = list(values.values())
    steps = [reduction(spectra, t) for t in torch.linspace(0.01, 1, 40).tolist()]
    assert steps == sorted(steps)
    for target in (0.3, 0.5):
        t = WeLore(target_on="attempted", threshold=0.5).find_threshold(values, shapes, target)
        assert reduction(spectra, t) >= target > reduction(spectra, t * (1 - 1e-6))
    t = WeLore(target_on="params").find_threshold(values, shapes, 0.2)
    ranks = WeLore().low_rank_components(values, shapes, t)
    saved = sum(shapes[n][0] * shapes[n][1] - k * sum(shapes[n]) for n, k in ranks.items())
    assert saved / sum(a * b for a, b in shapes.values()) >= 0.2
    t = WeLore(target_on="realised").find_threshold(values, shapes, 0.2)
    ranks = WeLore().low_rank_components(values, shapes, t)
    assert sum(len(values[n]) - k for n, k in ranks.items()) / sum(map(len, spectra)) >= 0.2


def test_adaptive_ranks_lose_less_than_uniform_ones():
    dense, data = tailed(), batches()
    truth = logits(dense, data[0])
    adaptive = compress(copy.deepcopy(dense), "welore", ratio=0.3, lrc_rule="break_even")
    report = compression.report(adaptive)
    uniform = compress(copy.deepcopy(dense), "svd", ratio=report.removed)
    wrong = [float((logits(m, data[0]) - truth).norm()) for m in (adaptive, uniform)]
    assert wrong[0] < wrong[1]
    assert len({row.rank for row in report.rows}) > 3


def test_others_stay_bit_identical_and_the_product_is_the_best_of_its_rank():
    dense = tailed()
    model = compress(copy.deepcopy(dense), "welore", threshold=0.3)
    for row in compression.report(model).rows:
        old, new = (m.get_submodule(row.layer) for m in (dense, model))
        if row.rank is None:
            assert torch.equal(new.weight, old.weight)
            continue
        s = singular_values(old.weight)
        assert row.rank == len(s) - pruned_count(s, 0.3) and is_low_rank(s, 0.3, 0.4999)
        lost = (old.weight - new.weight).square().sum()
        torch.testing.assert_close(lost, s[row.rank :].square().sum(), rtol=1e-3, atol=1e-6)
        kept = torch.diag(s[: row.rank])
        torch.testing.assert_close(new.B.weight.T @ new.B.weight, kept, rtol=1e-3, atol=1e-4)
        torch.testing.assert_close(new.A.weight @ new.A.weight.T, kept, rtol=1e-3, atol=1e-4)
    assert {row.rank is None for row in compression.report(model).rows} == {True, False}


def test_only_low_rank_components_and_norms_train():
    data = batches()
    model = compress(tailed(), "welore", threshold=0.3)
    trained = train_low_rank(model)
    before = copy.deepcopy(model.state_dict())
    optimizer = torch.optim.AdamW(trained, lr=1e-2)
    for _ in range(5):
        optimizer.zero_grad()
        model(**data[0], labels=data[0]["input_ids"]).loss.backward()
        optimizer.step()
    moved = {n for n, v in model.state_dict().items() if not torch.equal(v, before[n])}
    factors = {
        f"{name}.{n}"
        for name, module in model.named_modules()
        if isinstance(module, FactorizedLinear)
        for n, _ in module.named_parameters()
    }
    assert factors <= moved and all(name in factors or "norm" in name for name in moved)
    with pytest.raises(InputError, match="no low-rank component"):
        train_low_rank(make("llama"))


def test_biases_are_kept():
    dense = make("qwen2")
    model = compress(copy.deepcopy(dense), "welore", ratio=0.2, lrc_rule="break_even")
    for row in compression.report(model).rows:
        old = dense.get_submodule(row.layer).bias
        if row.rank is not None and old is not None:
            assert torch.equal(model.get_submodule(row.layer).B.bias, old)
    assert any(row.layer.endswith("q_proj") and row.rank for row in compression.report(model).rows)
