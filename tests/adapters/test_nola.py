"""NOLA: one stream whatever the chunk, its modes and options, and what a checkpoint holds."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from adapter_cases import MLP, adapted, host, inputs, layers, parameters, rows, seeded, train
from peft import PeftModel
from safetensors.torch import load_file
from torch import Tensor, nn

from eckart.adapters import LayerShape, NOLAConfig, get_config, saved_bytes
from eckart.adapters import nola as methods
from eckart.errors import InputError
from eckart.linalg.random import mix_random_basis


def adapter(model: PeftModel, index: int = 0) -> Any:
    return layers(model)[index].eckart_adapters["default"]


def nola(base: nn.Module | None = None, **options: Any) -> PeftModel:
    return adapted("nola", seeded(MLP) if base is None else base, **{"num_basis": 20, "r": 3, **options})


def gradients(model: PeftModel, x: Tensor) -> list[Tensor]:
    model.zero_grad()
    model(x).square().sum().backward()
    return [p.grad for p in parameters(model).values()]


@pytest.mark.parametrize("chunk", [1, 7, 20])
def test_chunk_size_changes_no_bit_of_the_model(chunk: int) -> None:
    whole, chunked = (nola(init_weights=False, chunk_size=size) for size in (None, chunk))
    assert torch.equal(whole(rows()), chunked(rows()))
    for a, b in zip(gradients(whole, rows()), gradients(chunked, rows()), strict=True):
        assert torch.equal(a, b)


def test_factors_depend_on_seed_and_name_alone() -> None:
    """Not on the order of construction, nor on the state of the global generator, which stays as it was."""
    model = nola(init_weights=False)
    torch.manual_seed(99)
    torch.rand(1000)
    alone = nola(target_modules=["down"])
    with torch.no_grad():
        for name in ("coefficients_A", "coefficients_B"):
            getattr(adapter(alone), name).copy_(getattr(adapter(model, 1), name))
    before = torch.get_rng_state()
    assert torch.equal(adapter(alone).delta_weight(), adapter(model, 1).delta_weight())
    gradients(model, rows())
    assert torch.equal(torch.get_rng_state(), before)
    other = nola(seed=1, init_weights=False)
    assert not torch.allclose(adapter(other).delta_weight(), adapter(model).delta_weight())


def test_saved_basis_gives_the_same_numbers() -> None:
    streamed, stored = (nola(init_weights=False, save_basis=saved) for saved in (False, True))
    assert adapter(stored).basis_A.shape == (20, 3, 12)
    assert adapter(stored).basis_A.abs().max() < 1
    torch.testing.assert_close(stored(rows()), streamed(rows()))
    for a, b in zip(gradients(stored, rows()), gradients(streamed, rows()), strict=True):
        torch.testing.assert_close(a, b)


def words(model: PeftModel) -> list[int]:
    """Rows of random matrices that each side keeps."""
    kept = [
        one.shared[f"words_{side}"].words for one in (adapter(model, 0), adapter(model, 1)) for side in "AB"
    ]
    return [0 if rows is None else len(rows) for rows in kept]


@pytest.mark.parametrize("options", [{}, {"basis": "normal"}, {"factored": False}, {"shared_basis": True}])
def test_what_is_kept_changes_no_bit(options: dict[str, Any], tmp_path: Path) -> None:
    made, part, kept = (
        nola(num_basis=200, basis_memory=share, init_weights=False, **options) for share in (0, 80, 1000)
    )
    assert sum(t.numel() for t in made.buffers()) < sum(t.numel() for t in part.buffers())
    assert sum(t.numel() for t in part.buffers()) < sum(t.numel() for t in kept.buffers())
    for model in (part, kept):
        assert torch.equal(model(rows()), made(rows()))
        assert all(map(torch.equal, gradients(model, rows()), gradients(made, rows())))
    kept.save_pretrained(tmp_path)
    stored = load_file(tmp_path / "adapter_model.safetensors")
    assert {key.rpartition(".")[2].partition("_")[0] for key in stored} == {"coefficients"}
    assert sum(t.numel() * t.element_size() for t in stored.values()) == saved_bytes(kept)
    assert torch.equal(PeftModel.from_pretrained(seeded(MLP), tmp_path)(rows()), made(rows()))


def test_how_much_is_kept() -> None:
    """Of up (24, 12) and down (6, 24) with r = 3 and k = l = 200: 200 · 3 · (36 + 30) numbers, the weights hold 432."""
    model = nola(num_basis=200, basis_memory=45.8)
    assert words(model) == [64] * 4  # 45.8 · 432 / 39,600 = 0.4996 of 200 rows, in products of 64
    assert words(nola(num_basis=200, basis_memory=59)) == [128] * 4
    assert words(nola(num_basis=200, basis_memory=92)) == [200] * 4
    assert words(nola(num_basis=200, basis_memory=0)) == [0] * 4
    assert NOLAConfig().basis_memory == 0.25


def test_a_shared_basis_is_kept_once() -> None:
    base = seeded(lambda: nn.Sequential(nn.Linear(9, 7), nn.Linear(9, 7)))
    shapes = [LayerShape(str(i), "linear", (7, 9)) for i in range(2)]
    assert (
        NOLAConfig(r=2, num_basis=100, shared_basis=True, basis_memory=1.0).kept_share(shapes) == 126 / 3200
    )
    assert NOLAConfig(r=2, num_basis=100, basis_memory=1.0).kept_share(shapes) == 126 / 6400
    assert NOLAConfig(num_basis=100, factored=False, basis_memory=1.0).kept_share(shapes) == 0.01
    model = nola(base, r=2, target_modules=["0", "1"], shared_basis=True, basis_memory=1000)
    assert adapter(model).shared["words_A"] is adapter(model, 1).shared["words_A"]
    assert adapter(model).shared["words_A"] is not adapter(model).shared["words_B"]


def test_count_does_not_know_the_layers() -> None:
    """7 layers in each of 80 blocks, k = l = 512: 573,440 numbers (LLaMA-2 70B on the project page: 0.6 M)."""
    for widths in ((8, 8), (8192, 28672)):
        shapes = [LayerShape(f"x{i}", "linear", widths) for i in range(560)]
        for r in (1, 8):
            assert NOLAConfig(num_basis=512, r=r).trainable_parameters(shapes) == 573_440
    assert NOLAConfig(num_basis=10, num_basis_B=3).trainable_parameters(shapes) == 560 * 13


@pytest.mark.parametrize("r", [1, 3])
def test_one_matrix_for_each_side_already_has_full_factor_rank(r: int) -> None:
    model = nola(seeded(MLP, torch.float64), num_basis=1, r=r)
    train(model, rows(dtype=torch.float64), steps=2, lr=1.0)
    for index in (0, 1):
        assert torch.linalg.matrix_rank(adapter(model, index).delta_weight(), rtol=1e-10) == r


def test_language_mode_starts_like_lora_and_only_beta_moves_first() -> None:
    model = nola(host("linear"))
    a, b = adapter(model).factors()
    assert torch.equal(a, adapter(model).lora_A0)
    assert a.abs().max() <= 12**-0.5
    assert a.std() > 0.4 * 12**-0.5
    assert not b.count_nonzero()
    model(inputs("linear")).square().sum().backward()
    assert not adapter(model).coefficients_A.grad.count_nonzero()
    assert adapter(model).coefficients_B.grad.count_nonzero()


def test_vit_mode_starts_with_a_small_update() -> None:
    [k, r] = [400, 3]
    model = nola(host("linear", torch.float64), mode="vit", num_basis=k, save_basis=True)
    one = adapter(model)
    assert one.lora_A0 is None
    assert torch.equal(one.coefficients_A, torch.full((k,), 1 / k, dtype=torch.float64))
    assert one.basis_A.abs().max() < (12 * r) ** -0.5
    a, b = one.factors()
    torch.testing.assert_close(a, one.basis_A.mean(0))
    torch.testing.assert_close(one.delta_weight(), b @ a / r)
    assert 0 < one.delta_weight().norm() < 0.1


def test_without_offset_training_still_leaves_zero() -> None:
    model, x = nola(offset=False), rows()
    assert torch.equal(model(x), seeded(MLP)(x))
    train(model, x)
    assert adapter(model).delta_weight().count_nonzero()


def test_shared_basis_is_one_for_equal_shapes() -> None:
    def twins(shared: bool) -> list[Tensor]:
        base = seeded(lambda: nn.Sequential(nn.Linear(9, 7), nn.Linear(7, 9), nn.Linear(9, 7)))
        model = nola(
            base, target_modules=["0", "1", "2"], shared_basis=shared, offset=False, init_weights=False
        )
        with torch.no_grad():
            for p in parameters(model).values():
                p.fill_(1.0)
        return [adapter(model, index).factors()[0] for index in range(3)]

    first, between, last = twins(True)
    assert torch.equal(first, last)
    assert between.shape != first.shape
    first, _, last = twins(False)
    assert not torch.allclose(first, last)


@pytest.mark.parametrize("options", [{}, {"factored": False}, {"basis_memory": 1000, "mode": "vit"}])
def test_a_shared_basis_is_made_once_for_all_layers_and_pass(
    options: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The numbers and gradients are those of matrices in memory; in a pass each side mixes for its layers together."""
    made: list[tuple[int, ...]] = []

    def counted(coefficients: Tensor, *given: Any) -> Tensor:
        made.append(tuple(coefficients.shape))
        return mix_random_basis(coefficients, *given)

    def model(**more: Any) -> PeftModel:
        base = seeded(lambda: nn.Sequential(nn.Linear(9, 7), nn.Tanh(), nn.Linear(7, 9), nn.Linear(9, 7)))
        targets = ["0", "2", "3"]
        return nola(base, target_modules=targets, shared_basis=True, init_weights=False, **options, **more)

    monkeypatch.setattr(methods, "mix_random_basis", counted)
    ours, plain, x = model(), model(save_basis=True), rows(width=9)
    found, expected = gradients(ours, x), gradients(plain, x)
    for slope, wanted in zip(found, expected, strict=True):
        torch.testing.assert_close(slope, wanted, rtol=1e-4, atol=1e-5)
    assert sorted(made) == sorted([(2, 20), (1, 20)] * (1 if "factored" in options else 2))
    torch.testing.assert_close(ours(x), plain(x))
    delta = adapter(ours, 2).delta_weight()  # outside of a pass
    torch.testing.assert_close(delta, adapter(plain, 2).delta_weight())


@pytest.mark.parametrize("law", ["uniform", "normal", "kaiming"])
def test_laws_of_the_basis(law: str) -> None:
    basis = adapter(nola(basis=law, num_basis=300, save_basis=True)).basis_A
    spread = {"uniform": 3**-0.5, "normal": 1.0, "kaiming": (3 * 36) ** -0.5}[law]
    assert abs(basis.std() / spread - 1) < 0.03


def test_whole_matrices_without_factors() -> None:
    model = nola(host("linear", torch.float64), factored=False, save_basis=True, init_weights=False)
    one = adapter(model)
    assert [tuple(p.shape) for p in one.parameters()] == [(20,)]
    mixed = torch.einsum("k,koi->oi", one.coefficients_W, one.basis_W) / 20**0.5
    torch.testing.assert_close(one.delta_weight(), mixed)


def test_checkpoint_holds_coefficients_alone(tmp_path: Path) -> None:
    model = nola(init_weights=False)
    model.save_pretrained(tmp_path)
    stored = load_file(tmp_path / "adapter_model.safetensors")
    assert {key.rpartition(".")[2] for key in stored} == {"coefficients_A", "coefficients_B"}
    assert sum(t.numel() for t in stored.values()) == 2 * 2 * 20
    assert torch.equal(PeftModel.from_pretrained(seeded(MLP), tmp_path)(rows()), model(rows()))


@pytest.mark.parametrize(("bits", "codes"), [(8, 21), (4, 11)])
def test_coefficients_in_few_bits(bits: int, codes: int, tmp_path: Path) -> None:
    model = nola(init_weights=False, num_basis=21, coefficient_bits=bits)
    exact = adapter(model).coefficients_A.detach().clone()
    model.save_pretrained(tmp_path)
    stored = load_file(tmp_path / "adapter_model.safetensors")
    sizes = {t.numel() * t.element_size() for key, t in stored.items() if key.endswith("coefficients_A")}
    assert sizes == {codes}
    loaded = PeftModel.from_pretrained(seeded(MLP), tmp_path)
    rounded = adapter(loaded).coefficients_A
    step = exact.abs().max() / (2 ** (bits - 1) - 1)
    assert (rounded - exact).abs().max() <= step * 0.501
    assert not torch.equal(rounded, exact)
    assert torch.equal(adapter(model).coefficients_A, exact)
    again = tmp_path / "again"
    loaded.save_pretrained(again)
    assert torch.equal(PeftModel.from_pretrained(seeded(MLP), again)(rows()), loaded(rows()))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_basis": 0}, "num_basis is 0"),
        ({"num_basis_B": -1}, "num_basis_B is -1"),
        ({"chunk_size": 0}, "chunk_size is 0"),
        ({"basis_memory": -0.1}, "basis_memory is -0.1"),
        ({"mode": "speech"}, "mode is 'speech': give one of language, vit"),
        ({"basis": "gaussian"}, "basis is 'gaussian'"),
        ({"coefficient_bits": 2}, "coefficient_bits is 2"),
    ],
)
def test_refuses_options_out_of_range(options: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        get_config("nola")(**options)
