import pytest
import torch
from small_models import Clicks, click_rows
from torch import nn

import eckart.compression as compression
from eckart.compression import AFM, compress, fuse
from eckart.compression._layers import FactorizedEmbedding, FactorizedLinear
from eckart.compression.afm import oriented, table_factors
from eckart.errors import InputError
from eckart.linalg.moments import add_rows, no_moments

G = torch.Generator().manual_seed(0)
X = torch.randn(80, 12, dtype=torch.float64, generator=G) + 1
W = torch.randn(20, 12, dtype=torch.float64, generator=G)
B = torch.randn(20, dtype=torch.float64, generator=G)
MOMENTS = add_rows(no_moments(12), X)
TABLE = torch.randn(30, 6, dtype=torch.float64, generator=G) * torch.arange(1, 7)
COUNTS = torch.randint(0, 9, (30,), generator=G) ** 2


@pytest.mark.parametrize("bias", [B, None])
def test_full_rank_is_the_layer_and_the_bias_is_split(bias):
    factors, inner = AFM().layers(W, bias, 12, MOMENTS)
    layer = FactorizedLinear.of(factors, W, inner)
    torch.testing.assert_close(layer(X), nn.functional.linear(X, W, bias), rtol=1e-10, atol=1e-10)
    if bias is None:
        assert inner is None
    else:
        torch.testing.assert_close(inner, factors.B.T @ bias)


def test_error_is_the_sum_of_the_values_left_out():
    factors, inner = AFM().layers(W, B, 4, MOMENTS)
    y = nn.functional.linear(X, W, B)
    wrong = (y - FactorizedLinear.of(factors, W, inner)(X)).square().sum(1).mean()
    values = torch.linalg.eigvalsh(torch.cov(y.T, correction=0)).flip(0)
    torch.testing.assert_close(wrong, values[4:].sum(), rtol=1e-9, atol=0)


def test_signs_matter_with_an_activation_and_are_fixed():
    factors, inner = AFM(act="relu").layers(W, B, 4, MOMENTS)
    mean = factors.B.T @ (W @ MOMENTS.mean + B)
    assert bool((mean >= 0).all())
    flip = torch.tensor([1.0, -1.0, 1.0, 1.0], dtype=torch.float64)
    other = factors._replace(A=flip[:, None] * factors.A, B=factors.B * flip)
    layers = [
        FactorizedLinear.of(f, W, i, act)
        for f, i in ((factors, inner), (other, flip * inner))
        for act in ("relu", None)
    ]
    assert not torch.allclose(layers[0](X), layers[2](X))
    torch.testing.assert_close(layers[1](X), layers[3](X))
    signs = oriented(torch.tensor([[1.0, -3.0], [-2.0, 1.0]]), torch.tensor([0.0, -1.0]))
    assert signs.tolist() == [-1.0, -1.0]
    with pytest.raises(InputError, match="no dense form"):
        layers[0].dense()


def test_tables_follow_the_lookups():
    ids = torch.repeat_interleave(torch.arange(30), COUNTS)
    factors = table_factors(TABLE, COUNTS, 3)
    rebuilt = factors.small @ factors.up.T + factors.mean
    rows = TABLE[ids]
    values = torch.linalg.eigvalsh(torch.cov(rows.T, correction=0)).flip(0)
    torch.testing.assert_close(factors.mean, rows.mean(0))
    wrong = (rows - rebuilt[ids]).square().sum(1).mean()
    torch.testing.assert_close(wrong, values[3:].sum())
    other = table_factors(TABLE, torch.ones(30), 3)
    blind = (rows - (other.small @ other.up.T + other.mean)[ids]).square().sum(1).mean()
    assert wrong < blind
    whole = table_factors(TABLE, COUNTS, 6)
    torch.testing.assert_close(whole.small @ whole.up.T + whole.mean, TABLE)


def test_a_click_model_gets_thin_tables_and_layers():
    x, dense = click_rows(), Clicks()
    model = compress(Clicks(), "afm", ratio=0.5, calibration=[x[:100], x[100:]])
    tables = list(model.tables)
    assert all(isinstance(table, FactorizedEmbedding) for table in tables)
    assert [table.rank for table in tables] == [3, 3]  # ⌊0.5 · 40 · 8 / 48⌋, ⌊0.5 · 30 · 8 / 38⌋
    assert isinstance(model.second, FactorizedLinear) and type(model.head) is nn.Linear
    counts = torch.bincount(x[:, 0].long(), minlength=40)
    expected = table_factors(dense.tables[0].weight.detach(), counts, 3)
    torch.testing.assert_close(
        tables[0].weight.double(), expected.small @ expected.up.T + expected.mean, rtol=1e-4, atol=1e-5
    )
    rows = {row.layer: row for row in compression.report(model).rows}
    assert rows["tables.0"].parameters_after == 40 * 3 + 3 * 8 + 8


def test_full_width_tables_and_layers_are_the_model():
    x, dense = click_rows(), Clicks()
    model = Clicks()
    counts = torch.bincount(x[:, 0].long(), minlength=40)
    factors = table_factors(model.tables[0].weight.detach(), counts, 8)
    table = FactorizedEmbedding(40, 8, 8)
    for parameter, value in zip((table.A.weight, table.B.weight, table.B.bias), factors, strict=True):
        parameter.data.copy_(value)
    model.tables[0] = table
    torch.testing.assert_close(model(x), dense(x), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(table.dense().weight, dense.tables[0].weight, rtol=1e-5, atol=1e-5)


def test_padding_rows_stay_zero():
    x = click_rows()
    model = compress(Clicks(), "afm", ratio=0.5, calibration=[x])
    table = model.tables[1]
    assert table.padding_idx == 0
    assert torch.equal(table(torch.tensor([0, 1]))[0], torch.zeros(8))
    assert torch.equal(table.dense().weight[0], torch.zeros(8)) and torch.equal(
        table.weight[0], torch.zeros(8)
    )


def test_fusing_absorbs_the_decoders():
    x, model = click_rows(), Clicks()
    model.tables[1].weight.data[0] = 1.0  # no padding row then
    compress(model, "afm", ratio=0.5, calibration=[x], exclude=["first"])
    before = model(x)
    fuse(model, "first", ["tables.0", "tables.1"])
    torch.testing.assert_close(model(x), before, rtol=1e-5, atol=1e-5)
    assert [type(t) for t in model.tables] == [nn.Embedding] * 2 and model.first.in_features == 3 + 3 + 1


def test_fusing_refuses_what_does_not_fit():
    x = click_rows()
    model = compress(Clicks(), "afm", ratio=0.5, calibration=[x])
    with pytest.raises(InputError, match="exclude the first layer"):
        fuse(model, "first", ["tables.0"])
    model = compress(Clicks(), "afm", ratio=0.5, calibration=[x], exclude=["first", r"tables\.0"])
    with pytest.raises(InputError, match="name factorised embeddings"):
        fuse(model, "first", ["tables.0"])
    with pytest.raises(InputError, match="has a padding row"):
        fuse(model, "first", ["tables.1"])
    model.tables[1].padding_idx = None
    with pytest.raises(InputError, match="name fewer"):
        fuse(model, "first", ["tables.1"] * 3)
    assert isinstance(model.tables[1], FactorizedEmbedding)


@pytest.mark.parametrize("options", [{"act": "step"}, {"embedding_rank": 0}])
def test_bad_options(options):
    with pytest.raises(InputError):
        AFM(**options)
