import copy

import pytest
import torch
from small_models import batches, logits, make

import eckart.compression as compression
from eckart.compression import PELA, Distillation, compress
from eckart.compression._layers import FactorizedLinear
from eckart.compression.pela import drift
from eckart.errors import InputError

G = torch.Generator().manual_seed(0)


def normal(*shape):
    return torch.randn(*shape, dtype=torch.float64, generator=G)


def test_ranks_are_the_formula_and_the_product_the_truncated_svd():
    dense = make("vit")
    model = compress(copy.deepcopy(dense), "pela", ratio=0.5)
    for row in compression.report(model).rows:
        out, width = row.out_features, row.in_features
        assert row.rank == int(out * width // (2 * (out + width)))
        weight = dense.get_submodule(row.layer).weight.double()
        u, s, vh = torch.linalg.svd(weight, full_matrices=False)
        best = (u[:, : row.rank] * s[: row.rank]) @ vh[: row.rank]
        layer = model.get_submodule(row.layer)
        torch.testing.assert_close(layer.weight.double(), best, rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(
            layer.A.weight @ layer.A.weight.T, layer.B.weight.T @ layer.B.weight, rtol=1e-4, atol=1e-5
        )
        assert torch.equal(layer.B.bias, dense.get_submodule(row.layer).bias)


def test_drift_is_of_the_largest_entry():
    zero = torch.zeros(2, 2)
    frozen = -torch.tensor([[1.0, -5.0], [2.0, 3.0]])
    assert float(drift(zero, zero, frozen, 0.0)) == 25
    assert float(drift(zero, zero, frozen, 1.0)) == 16
    assert float(drift(zero, zero, frozen, 6.0)) == 1
    assert float(drift(zero, zero, frozen, 6.0, "hinge")) == 0
    assert float(drift(zero, zero, frozen, 6.0, "fro")) == 39


@pytest.mark.parametrize("kind", ["paper", "hinge"])
def test_gradient_of_the_drift_is_that_of_the_whole_product(kind):
    first, second, frozen = normal(2, 5).requires_grad_(), normal(4, 2).requires_grad_(), normal(4, 5)
    sparse = torch.autograd.grad(drift(first, second, frozen, 0.01, kind), (first, second))
    whole = ((second @ first - frozen).abs().max() - 0.01).square()
    for a, b in zip(sparse, torch.autograd.grad(whole, (first, second)), strict=True):
        torch.testing.assert_close(a, b)
    assert int((sparse[0] != 0).any(0).sum()) == 1 and int((sparse[1] != 0).any(1).sum()) == 1


def test_training_distils_and_leaves_the_teacher_alone():
    dense, data = make("vit"), batches("vit", number=2)
    for batch in data:
        batch["labels"] = torch.zeros(6, dtype=torch.long)
    plain = compress(copy.deepcopy(dense), "pela", ratio=0.5)
    trained = compress(
        copy.deepcopy(dense), "pela", ratio=0.5, calibration=data, steps=30, lr=3e-3, alpha=1.0, gamma=0.0
    )
    losses = compression.report(trained).losses
    assert len(losses) == 30 and losses[-1] < losses[0]
    before, after = (Distillation(m, copy.deepcopy(dense)).parts(data[0])["fd"] for m in (plain, trained))
    assert float(after) < 0.7 * float(before)
    assert all(parameter.requires_grad for parameter in trained.parameters())


def test_teacher_has_no_gradient_and_does_not_move():
    dense, data = make("llama"), batches()
    student = compress(copy.deepcopy(dense), "pela", ratio=0.5)
    teacher = copy.deepcopy(dense)
    distill = Distillation(student, teacher, alpha=0.5, beta=0.3, gamma=2.0)
    batch = {**data[0], "labels": data[0]["input_ids"]}
    parts = distill.parts(batch)
    expected = parts["task"] + 0.5 * parts["fd"] + 0.3 * parts["logit"] + 2.0 * parts["wp"]
    torch.testing.assert_close(distill(batch), expected)
    distill(batch).backward()
    assert all(p.grad is None and not p.requires_grad for p in teacher.parameters())
    assert torch.equal(logits(teacher, data[0]), logits(dense, data[0]))
    assert len(distill.features) == 2 and len(distill.pairs) == 14


def test_without_weights_it_is_plain_fine_tuning():
    dense, data = make("llama"), batches()
    student = compress(copy.deepcopy(dense), "pela", ratio=0.5)
    batch = {**data[0], "labels": data[0]["input_ids"]}
    plain = student(**batch).loss
    torch.testing.assert_close(Distillation(student, dense, alpha=0, beta=0, gamma=0)(batch), plain)


def test_small_heads_and_excluded_layers_stay():
    model = compress(make("vit"), "pela", ratio=0.5, exclude=["fc1", r".*\.o_proj"])
    names = {n for n, m in model.named_modules() if isinstance(m, FactorizedLinear)}
    assert names and not any(n.endswith(("fc1", "o_proj", "classifier")) for n in names)


@pytest.mark.parametrize(
    "options", [{"steps": -1}, {"lr": 0.0}, {"alpha": -1.0}, {"gamma": -1.0}, {"epsilon": -0.1}, {"wp": "l2"}]
)
def test_bad_options(options):
    with pytest.raises(InputError):
        PELA(**options)


def test_no_batches_and_no_features():
    with pytest.raises(InputError, match="no list of blocks"):
        Distillation(torch.nn.Linear(3, 3), torch.nn.Linear(3, 3))
    with pytest.raises(InputError, match="no batches"):
        compress(make("vit"), "pela", ratio=0.5, calibration=[], steps=3)
