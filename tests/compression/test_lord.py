import pytest
import torch
from small_models import Classifier

import eckart.compression as compression
from eckart.compression import LoRD, PlainSVD, WhitenedSVD, compress
from eckart.compression._layers import FactorizedLinear
from eckart.compression._method import largest_rank, rank_for_ratio, saves
from eckart.linalg.moments import add_rows, no_moments
from eckart.linalg.whitened import Factors, output_error

G = torch.Generator().manual_seed(0)
X = torch.randn(90, 12, dtype=torch.float64, generator=G) + 1
W = torch.randn(20, 12, dtype=torch.float64, generator=G)
B = torch.randn(20, dtype=torch.float64, generator=G)
MOMENTS = add_rows(no_moments(12), X)


@pytest.mark.parametrize(
    "method", [PlainSVD(), WhitenedSVD(), LoRD(), LoRD(center=False), LoRD(balance=True)]
)
@pytest.mark.parametrize("bias", [B, None])
def test_full_rank_is_the_layer(method, bias):
    layer = FactorizedLinear.of(method.factors(W, bias, 12, MOMENTS), W)
    torch.testing.assert_close(layer(X), torch.nn.functional.linear(X, W, bias), rtol=1e-10, atol=1e-10)


def test_whitened_svd_is_lord_without_the_centre_and_balanced():
    whitened, uncentred = (
        WhitenedSVD().factors(W, B, 5, MOMENTS),
        LoRD(center=False).factors(W, B, 5, MOMENTS),
    )
    torch.testing.assert_close(whitened.product, uncentred.product, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(whitened.A @ whitened.A.T, whitened.B.T @ whitened.B)
    torch.testing.assert_close(uncentred.B.T @ uncentred.B, torch.eye(5, dtype=torch.float64))


def test_errors_of_the_layer_are_ordered():
    errors = [
        output_error(W, B, method.factors(W, B, 4, MOMENTS), MOMENTS)
        for method in (LoRD(), LoRD(center=False), PlainSVD())
    ]
    assert errors[0] < errors[1] < errors[2]


def test_energy_takes_the_least_ranks_that_hold_it():
    model = compress(Classifier(), "lord", energy=0.9, calibration=[X])
    report = {row.layer: row for row in compression.report(model).rows}
    layer = Classifier().first
    values = torch.linalg.eigvalsh(torch.cov((X @ layer.weight.T).T, correction=0)).flip(0)
    held = values.cumsum(0) / values.sum()
    rank = report["first"].rank
    if rank is None:
        rank = int((held < 0.9).sum()) + 1
        assert not saves((20, 12), rank)
    else:
        assert held[rank - 1] >= 0.9 > held[rank - 2]


def test_rank_for_a_ratio():
    assert rank_for_ratio((576, 576), 0.2) == 224  # 0.8 · 288 = 230.4, down to a multiple of 8
    assert rank_for_ratio((576, 576), 0.2, 1) == 230
    assert rank_for_ratio((576, 576), 0.2, 128) == 128
    assert rank_for_ratio((64, 64), 0.2) == 25  # below 64 nothing is rounded
    assert rank_for_ratio((4, 4), 0.6) is None
    assert rank_for_ratio((16, 48), 0.5) == 6
    assert largest_rank((16, 48)) == 11 and saves((16, 48), 11) and not saves((16, 48), 12)


def test_gradients_of_the_factors():
    layer = FactorizedLinear.of(LoRD().factors(W, B, 4, MOMENTS), W)
    x = X[:3].clone().requires_grad_()
    assert torch.autograd.gradcheck(layer, (x,))
    g = torch.randn(3, 20, dtype=torch.float64, generator=G)
    layer(x).backward(g)
    a, b = layer.A.weight.detach(), layer.B.weight.detach()
    torch.testing.assert_close(layer.B.weight.grad, g.T @ (x.detach() @ a.T))
    torch.testing.assert_close(layer.A.weight.grad, b.T @ g.T @ x.detach())
    torch.testing.assert_close(layer.B.bias.grad, g.sum(0))
    torch.testing.assert_close(x.grad, (g @ b) @ a)


def test_multiply_adds_and_parameters():
    model = compress(Classifier(), "lord", rank=4, calibration=[X])
    assert sum(p.numel() for p in model.first.parameters()) == 4 * (12 + 20) + 20
    assert model.first.spec["rank"] == 4 and model.first.A.bias is None
    assert isinstance(model.second, FactorizedLinear) and model.second.B.bias is not None


def test_centred_layers_keep_the_mean_of_the_outputs():
    dense = Classifier()
    model = compress(Classifier(), "lord", rank=4, calibration=[X])
    torch.testing.assert_close(model.first(X).mean(0), dense.first(X).mean(0))
    assert isinstance(LoRD().factors(W, None, 2, MOMENTS), Factors)
