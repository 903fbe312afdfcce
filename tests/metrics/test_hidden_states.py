"""Masks, short types, texts without a score and bad input: the same for every metric."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

import eckart.metrics
from eckart.metrics import METRICS, measure_states, normalised_states

LENGTHS = (11, 2, 7, 1, 5, 0)
CLOSE = {"rtol": 1e-10, "atol": 1e-10, "equal_nan": True}
every_metric = pytest.mark.parametrize("name", METRICS)


def padded(side: str = "right", width: int = 8, dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor]:
    """Texts of the lengths, padded by rows that would spoil the score, and their mask."""
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(len(LENGTHS), max(LENGTHS), width, dtype=dtype, generator=generator) + 1
    mask = torch.arange(max(LENGTHS)) < torch.tensor(LENGTHS).unsqueeze(1)
    if side == "left":
        mask = mask.flip(1)
    junk = torch.tensor([torch.nan, torch.inf, 1e30, -3.0]).to(dtype).repeat(width // 4)
    return torch.where(mask.unsqueeze(-1), hidden, junk), mask


@pytest.mark.parametrize("normalise", [True, False])
@pytest.mark.parametrize("side", ["right", "left"])
@every_metric
def test_a_padded_batch_gives_what_its_texts_give_one_by_one(name: str, side: str, normalise: bool) -> None:
    hidden, mask = padded(side)
    metric = getattr(eckart.metrics, name)
    alone = torch.stack(
        [metric(text[real], normalise=normalise) for text, real in zip(hidden, mask, strict=True)]
    )
    torch.testing.assert_close(metric(hidden, mask, normalise=normalise), alone, **CLOSE)
    few = (1 if normalise else 0) + (name == "alpha_req")  # two eigenvalues make a slope
    assert alone.isnan().tolist() == [n <= few for n in LENGTHS]


@every_metric
def test_any_number_of_leading_dimensions(name: str) -> None:
    hidden, mask = padded()
    flat = measure_states(hidden, mask, [name])[name]
    deep = measure_states(hidden.view(3, 2, 11, 8), mask.view(3, 2, 11), [name])[name]
    torch.testing.assert_close(deep, flat.view(3, 2), **CLOSE)
    assert measure_states(hidden[:0], mask[:0], [name])[name].shape == (0,)


def test_states_are_centred_by_real_tokens_and_of_unit_length() -> None:
    hidden, mask = padded()
    z = normalised_states(hidden, mask)
    assert not z[~mask].any()
    assert z[3][mask[3]].isnan().all()
    for text in (0, 1, 2, 4):
        real = hidden[text][mask[text]]
        x = real - real.mean(0)
        torch.testing.assert_close(z[text][mask[text]], x / x.norm(dim=1, keepdim=True), **CLOSE)
    assert normalised_states(hidden[:, :0]).shape == (6, 0, 8)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@every_metric
def test_short_types_are_widened_before_they_are_centred(name: str, dtype: torch.dtype) -> None:
    hidden = torch.randn(4, 40, 24, generator=torch.Generator().manual_seed(1)) + 3
    short = measure_states(hidden.to(dtype), metrics=[name])[name]
    assert short.dtype == torch.float32
    assert torch.equal(short, measure_states(hidden.to(dtype).float(), metrics=[name])[name])
    if name != "energy_rank":  # a whole number: a hair's breadth may move it by one
        torch.testing.assert_close(short, measure_states(hidden, metrics=[name])[name], rtol=1e-2, atol=0)


@every_metric
def test_float32_agrees_with_float64_and_keeps_its_type(name: str) -> None:
    hidden, mask = padded(dtype=torch.float32)
    single = measure_states(hidden, mask, [name])[name]
    double = measure_states(hidden.double(), mask, [name])[name]
    assert single.dtype == torch.float32 and double.dtype == torch.float64
    torch.testing.assert_close(single.double(), double, rtol=1e-5, atol=1e-6, equal_nan=True)


@every_metric
def test_autocast_changes_nothing(name: str) -> None:
    hidden, mask = padded(dtype=torch.float32)
    wanted = measure_states(hidden, mask, [name])[name]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = measure_states(hidden, mask, [name])[name]
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, wanted, rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64])
@every_metric
def test_texts_that_cannot_be_normalised_are_nan(name: str, dtype: torch.dtype) -> None:
    """One token, one token many times, a token at the mean, NaN, Inf; the text beside them keeps its score."""
    generator = torch.Generator().manual_seed(2)
    good = torch.randn(300, 6, generator=generator).to(dtype)
    same = good[:1].expand(300, 6)
    middle = torch.cat([good[:149], -good[:149], torch.zeros(2, 6, dtype=dtype)])
    with_nan, with_inf = good.clone(), good.clone()
    with_nan[5, 2], with_inf[9, 0] = torch.nan, torch.inf
    batch = torch.stack([good, same, middle, with_nan, with_inf])
    found = measure_states(batch, metrics=[name])[name]
    assert found.isnan().tolist() == [False, True, True, True, True]
    torch.testing.assert_close(found[0], measure_states(good, metrics=[name])[name], rtol=1e-6, atol=0)
    assert measure_states(good[:1], metrics=[name])[name].isnan()
    assert measure_states(good[:0], metrics=[name])[name].isnan()


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@every_metric
def test_a_gpu_gives_what_the_processor_gives(name: str) -> None:
    hidden, mask = padded(dtype=torch.float32)
    found = measure_states(hidden.cuda(), mask, [name])[name]
    assert found.is_cuda
    wanted = measure_states(hidden, mask, [name])[name]
    torch.testing.assert_close(found.cpu(), wanted, rtol=1e-5, atol=1e-6, equal_nan=True)


def test_a_single_feature_has_a_score_and_no_entropy() -> None:
    found = measure_states(torch.tensor([[1.0], [2.0], [4.0]]))
    assert found.pop("alpha_req").isnan()
    assert {name: round(float(value), 6) for name, value in found.items()} == {
        "matrix_nuclear_norm": round(3**0.5 / 3, 6),
        "matrix_entropy": 0.0,
        "renyi_entropy": 0.0,
        "nuclear_norm": round(3**0.5 / 3, 6),
        "effective_rank": 1.0,
        "energy_rank": 1.0,
        "stable_rank": 1.0,
        "participation_ratio": 1.0,
    }


@every_metric
def test_numbers_whose_squares_overflow_cost_their_own_text_alone(name: str) -> None:
    metric = getattr(eckart.metrics, name)
    hidden = torch.randn(2, 5, 3, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    wanted = metric(hidden, normalise=False)
    found = metric(torch.stack([hidden[0], hidden[1] * 1e200]), normalise=False)
    assert found[0] == wanted[0] and found[1].isnan()


H = torch.randn(2, 5, 3)


@pytest.mark.parametrize(
    ("hidden", "mask", "message"),
    [
        (H[0, 0], None, r"hidden has the shape \(3,\): give \(\.\.\., tokens, width\)"),
        (H[..., :0], None, r"hidden has the shape \(2, 5, 0\)"),
        (H.long(), None, "hidden is torch.int64: give a tensor of real floating-point numbers"),
        (H.to(torch.complex64), None, "hidden is torch.complex64"),
        (H.numpy(), None, "hidden is ndarray"),
        (H, torch.ones(2, 5), "mask is torch.float32: give booleans or 0 and 1"),
        (H, [[True] * 5] * 2, "mask is list"),
        (H, torch.full((2, 5), 2), "mask holds other numbers than 0 and 1"),
        (H, torch.ones(5, dtype=torch.bool), r"mask has the shape \(5,\): hidden \(2, 5, 3\) needs \(2, 5\)"),
        (H, torch.ones(2, 5, 1, dtype=torch.bool), r"mask has the shape \(2, 5, 1\)"),
    ],
)
def test_what_is_no_batch_of_hidden_states_is_refused(hidden, mask, message: str) -> None:
    for call in (measure_states, normalised_states, *(getattr(eckart.metrics, name) for name in METRICS)):
        with pytest.raises(eckart.InputError, match=message):
            call(hidden, mask)
