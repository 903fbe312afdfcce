from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch.profiler import ProfilerActivity, profile

from eckart.linalg.random import (
    basis_block,
    basis_words,
    counter_key,
    dot_random_basis,
    mix_random_basis,
    permutation,
    random_matrix,
    random_words,
    seeded_generator,
)

KEY = counter_key("test", 0)


def peak_bytes(run: Callable[[], object]) -> int:
    """The most memory that was allocated at once while this ran, above what there was before."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as recorded:
        run()
    events = [e for e in recorded.profiler.kineto_results.events() if e.name() == "[memory]"]
    now = most = 0
    for event in sorted(events, key=lambda e: e.start_ns()):
        now += event.nbytes()
        most = max(most, now)
    return most


def test_words_are_a_function_of_key_and_index() -> None:
    words = random_words(KEY, 100)
    assert torch.equal(random_words(KEY, 30, start=50), words[50:80])
    assert torch.equal(random_words(KEY, 100), words)
    assert (random_words(counter_key("test", 1), 100) == words).sum() < 3


def test_words_are_these() -> None:
    """Pinned: a checkpoint holds only a key, so no release may change the stream."""
    assert random_words(12345678901234567, 4).tolist() == [-980872516, -971451566, 346954109, 122229042]
    assert counter_key("nola", 0, "A", "layer") == 7563489620714128428


def test_words_are_a_permutation_of_the_counter() -> None:
    """Both hash rounds are bijections, so 2¹⁸ counters give as many words."""
    assert random_words(KEY, 2**18).unique().numel() == 2**18


@pytest.mark.parametrize("law", ["uniform", "normal"])
def test_moments_and_independence(law: str) -> None:
    rows, columns = 200, 1500
    values = random_matrix(KEY, rows, columns, law, dtype=torch.float64)
    n = values.numel()
    variance = 1 / 3 if law == "uniform" else 1
    kurtosis = 9 / 5 if law == "uniform" else 3
    assert values.mean().abs() < 4 * (variance / n) ** 0.5
    assert abs(values.var() / variance - 1) < 0.02
    assert abs((values**4).mean() / variance**2 - kurtosis) < 0.1
    other = random_matrix(KEY + 1, rows, columns, law, dtype=torch.float64)
    for a, b in ((values, other), (values[1:], values[:-1]), (values[:, 1:], values[:, :-1])):
        correlation = (a * b).mean() / variance * a.numel() ** 0.5
        assert correlation.abs() < 4
    gram = values @ values.t() / (columns * variance)
    assert (gram - torch.eye(rows)).abs().max() < 6 / columns**0.5


def test_rows_do_not_depend_on_how_many_are_made() -> None:
    whole = random_matrix(KEY, 20, 33)
    assert torch.equal(random_matrix(KEY, 5, 33, first=7), whole[7:12])
    assert whole.abs().max() < 1


def test_permutation_holds_every_index() -> None:
    order = permutation(KEY, 500)
    assert torch.equal(order.sort().values, torch.arange(500))
    assert not torch.equal(order, torch.arange(500))
    assert permutation(KEY, 0).shape == (0,)


@pytest.mark.parametrize("law", ["uniform", "normal"])
@pytest.mark.parametrize("size", [1, 21, 4096])
def test_mixture_and_its_transpose_are_the_dense_products(law: str, size: int) -> None:
    k = 19
    basis = random_matrix(KEY, k, size, law, dtype=torch.float64)
    coefficients, g = torch.randn(k, dtype=torch.float64), torch.randn(size, dtype=torch.float64)
    torch.testing.assert_close(mix_random_basis(coefficients, KEY, size, law, 0), coefficients @ basis)
    torch.testing.assert_close(dot_random_basis(g, KEY, k, law, 0), basis @ g)


@pytest.mark.parametrize("chunk", [1, 7, 16, 61, 0])
def test_chunk_size_changes_no_bit(chunk: int) -> None:
    k, size = 61, 300
    coefficients, g = torch.randn(k), torch.randn(size)
    whole = mix_random_basis(coefficients, KEY, size, "uniform", k)
    assert torch.equal(mix_random_basis(coefficients, KEY, size, "uniform", chunk), whole)
    assert torch.equal(
        dot_random_basis(g, KEY, k, "uniform", chunk), dot_random_basis(g, KEY, k, "uniform", k)
    )


@pytest.mark.parametrize("law", ["uniform", "normal"])
@pytest.mark.parametrize(
    ("k", "size", "kept"), [(150, 33, 64), (150, 33, 128), (150, 33, 150), (40, 9001, 16)]
)
def test_kept_words_change_no_bit(law: str, k: int, size: int, kept: int) -> None:
    assert kept % basis_block(size) == 0 or kept == k
    words = basis_words(KEY, kept, size)
    assert words.dtype == torch.int32 and words.shape == (kept, (size + 1) // 2)
    for chunk in (0, 16, 100):
        found = []
        for given in (None, words):
            c = torch.linspace(-1, 2, k, requires_grad=True)
            mixed = mix_random_basis(c, KEY, size, law, chunk, given)
            mixed.backward(torch.linspace(-2, 1, size))
            found.append((mixed.detach(), c.grad))
        assert all(map(torch.equal, *found))


def test_kept_words_are_what_is_read() -> None:
    words = basis_words(KEY + 1, 64, 50)
    mixed = mix_random_basis(torch.ones(64), KEY, 50, "uniform", 0, words)
    torch.testing.assert_close(mixed, random_matrix(KEY + 1, 64, 50).sum(0))


def test_rows_of_a_product() -> None:
    """Whole rows of about 2¹⁷ numbers, from 8 to 64."""
    assert [basis_block(size) for size in (1, 2048, 2049, 4096, 2**14, 2**24)] == [64, 64, 32, 32, 8, 8]


@pytest.mark.parametrize("law", ["uniform", "normal"])
def test_gradient_of_the_mixture(law: str) -> None:
    coefficients = torch.randn(11, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda c: mix_random_basis(c, KEY, 13, law, 0), coefficients)


def test_half_precision_coefficients_mix_in_single_precision() -> None:
    coefficients = torch.randn(40).bfloat16().requires_grad_()
    mixed = mix_random_basis(coefficients, KEY, 50, "uniform", 0)
    assert mixed.dtype == torch.float32
    torch.testing.assert_close(mixed, coefficients.float() @ random_matrix(KEY, 40, 50))
    mixed.sum().backward()
    assert coefficients.grad.dtype == torch.bfloat16


@pytest.mark.compiled
def test_library_checks_of_the_operators() -> None:
    coefficients = torch.randn(5, requires_grad=True)
    for words in (None, basis_words(KEY, 5, 12)):
        torch.library.opcheck(mix_random_basis, (coefficients, KEY, 12, "uniform", 0, words))
    torch.library.opcheck(dot_random_basis, (torch.randn(12), KEY, 5, "uniform", 0))


def test_memory_grows_with_the_chunk_not_with_the_basis() -> None:
    size = 4096

    def step(k: int, chunk: int) -> int:
        coefficients = torch.zeros(k, requires_grad=True)
        return peak_bytes(
            lambda: mix_random_basis(coefficients, KEY, size, "uniform", chunk).sum().backward()
        )

    few, many = step(64, 16), step(1024, 16)
    assert many < few + 64 * 1024
    assert step(1024, 256) > 4 * many
    assert many < 1024 * size * 4 / 8


def test_global_generator_is_left_alone() -> None:
    before = torch.get_rng_state()
    coefficients = torch.ones(9, requires_grad=True)
    mix_random_basis(coefficients, KEY, 30, "normal", 0).sum().backward()
    permutation(KEY, 50)
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_words_are_the_same_on_a_gpu() -> None:
    assert torch.equal(
        random_words(KEY, 10_000, device=torch.device("cuda")).cpu(), random_words(KEY, 10_000)
    )


def test_a_generator_follows_its_key_alone() -> None:
    first = torch.rand(3, generator=seeded_generator(0, "layer", "A"))
    assert torch.equal(torch.rand(3, generator=seeded_generator("0", "layer", "A")), first)
    assert not torch.equal(torch.rand(3, generator=seeded_generator(0, "layerA")), first)
    assert seeded_generator(0, "layer", "A").initial_seed() == counter_key(0, "layer", "A")


def test_words_are_the_hash_of_their_index_wherever_counters_wrap() -> None:
    """The hash by hand, over the end of 16 and of 32 bits, from any start."""

    def hashed(counter: int, key: int) -> int:
        word = counter % 2**32
        word ^= word >> 16
        word = (word * 0x7FEB352D + (key >> 31)) % 2**32
        word ^= word >> 15
        word = word * 0x846CA68B % 2**32
        return word ^ word >> 16

    for key in (0, 2**63 - 1, counter_key("words")):
        for start in (0, 2**16 - key % 2**16 - 3, 2**32 - key % 2**32 - 3, 3 * 2**33 + 5):
            start %= 2**40
            words = random_words(key, 2**16 + 7, start=start)
            places = [0, 1, 2, 3, 4, 5, 2**16 - 1, 2**16, 2**16 + 6]
            assert [w % 2**32 for w in words[places].tolist()] == [
                hashed(start + p + key, key) for p in places
            ]
