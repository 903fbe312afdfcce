"""S4D: the convolution, the recurrence and the dense system agree; what it costs; what it refuses."""

from __future__ import annotations

import copy
import itertools
import math
import pickle
import warnings
from pathlib import Path
from typing import Any, get_args

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from eckart.errors import InputError
from eckart.layers import S4D, S4DBlock, S4DKernel, S4DRecurrence, param_groups
from eckart.linalg.state_space import Discretization, Init

INITS, DISCRETIZATIONS = get_args(Init), get_args(Discretization)
DOUBLE = torch.float64


def make(cls: Any = S4D, *size: int, seed: int = 0, dtype: torch.dtype = DOUBLE, **options: Any) -> Any:
    torch.manual_seed(seed)
    return cls(*(size or (6, 8)), **options).to(dtype)


def numbers(*shape: int, dtype: torch.dtype = DOUBLE, seed: int = 1) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=DOUBLE).to(dtype)


def stepped(layer: Any, x: Tensor, state: Tensor | None = None, rate: float = 1.0) -> tuple[Tensor, Tensor]:
    """(B, L, H) one time step after the other."""
    state = layer.initial_state(len(x)) if state is None else state
    ys = []
    for x_t in x.unbind(1):
        y, state = layer.step(x_t, state, rate)
        ys.append(y)
    return torch.stack(ys, dim=1), state


@pytest.mark.parametrize("init", INITS)
@pytest.mark.parametrize("discretization", DISCRETIZATIONS)
@pytest.mark.parametrize(("dtype", "tolerance"), [(DOUBLE, 1e-12), (torch.float32, 1e-5)])
@torch.no_grad()
def test_convolution_equals_recurrence(
    init: Init, discretization: Discretization, dtype: torch.dtype, tolerance: float
) -> None:
    layer = make(init=init, discretization=discretization, dtype=dtype, n_ssm=3).eval()
    x = numbers(2, 150, 6, dtype=dtype)
    recurrence, state, ys = layer.recurrence(), layer.initial_state(2), []
    for x_t in x.unbind(1):
        y, state = recurrence.step(x_t, state)
        ys.append(y)
    linear = layer.convolve(x.mT).mT
    torch.testing.assert_close(torch.stack(ys, dim=1), linear, rtol=0, atol=tolerance)
    torch.testing.assert_close(stepped(layer, x)[0], layer(x), rtol=0, atol=tolerance)
    torch.testing.assert_close(layer.forward_with_state(x)[1], state, rtol=0, atol=tolerance)


@pytest.mark.parametrize("options", [{}, {"init": "real"}, {"init": "real", "discretization": "bilinear"}])
@torch.no_grad()
def test_three_parts_with_their_states_equal_one_pass(options: dict[str, Any]) -> None:
    block, x = make(S4DBlock, **options), numbers(2, 40, 6)
    first, state = block.forward_with_state(x[:, :13])
    second, state = block.forward_with_state(x[:, 13:14], state)
    third = block(x[:, 14:], state)
    whole, last = block.forward_with_state(x)
    torch.testing.assert_close(torch.cat([first, second, third], dim=1), whole, rtol=0, atol=1e-12)
    _, state = block.forward_with_state(x[:, 14:], state)
    torch.testing.assert_close(state, last, rtol=0, atol=1e-12)
    torch.testing.assert_close(stepped(block, x[:, 14:], block.forward_with_state(x[:, :14])[1])[0], third)


@pytest.mark.parametrize("discretization", DISCRETIZATIONS)
def test_kernel_equals_powers_of_the_dense_matrix(discretization: Discretization) -> None:
    kernel = make(S4DKernel, 2, 12, discretization=discretization)
    B, C = torch.view_as_complex(kernel.B)[0], torch.view_as_complex(kernel.C)[0]
    eye, dt = torch.eye(6, dtype=torch.complex128), kernel.inv_dt.exp()
    for h in range(2):
        A = kernel.A[h].diag()
        if discretization == "zoh":
            dA = torch.linalg.matrix_exp(dt[h] * A)
            dB = torch.linalg.solve(A, (dA - eye) @ B[h])
        else:
            left = torch.linalg.inv(eye - dt[h] / 2 * A)
            dA, dB = left @ (eye + dt[h] / 2 * A), dt[h] * (left @ B[h])
        dense = [2 * (C[h] @ torch.linalg.matrix_power(dA, power) @ dB).real for power in range(30)]
        torch.testing.assert_close(kernel(30)[0, h], torch.stack(dense), rtol=0, atol=1e-12)


@pytest.mark.parametrize(
    "options", [{}, {"bidirectional": True}, {"is_real": True}, {"discretization": "bilinear"}]
)
def test_gradients_of_the_whole_layer(options: dict[str, Any]) -> None:
    layer = make(S4D, 2, 4, **options)
    names, values = zip(*layer.named_parameters(), strict=True)

    def run(x: Tensor, *parameters: Tensor) -> Tensor:
        return torch.func.functional_call(layer, dict(zip(names, parameters, strict=True)), (x,))

    assert torch.autograd.gradcheck(run, (numbers(2, 5, 2).requires_grad_(), *values))


def test_steps_have_the_gradients_of_the_convolution() -> None:
    layer, x, g = make(), numbers(2, 9, 6), numbers(2, 9, 6, seed=2)
    for ours, expected in zip(
        torch.autograd.grad(stepped(layer, x)[0], list(layer.parameters()), g),
        torch.autograd.grad(layer(x), list(layer.parameters()), g),
        strict=True,
    ):
        torch.testing.assert_close(ours, expected, rtol=1e-9, atol=1e-11)


@torch.no_grad()
def test_an_input_changes_no_earlier_output() -> None:
    layer, x = make(), numbers(1, 100, 6)
    changed = x.clone()
    changed[:, 60] += 1
    difference = (layer(changed) - layer(x)).abs().amax((0, 2))
    assert difference[:60].max() < 1e-10 and difference[60:].min() > 1e-6


@pytest.mark.parametrize("init", ["lin", "inv", "legs"])
def test_eigenvalues_start_at_the_closed_forms_with_a_decay_of_one_half(init: Init) -> None:
    """At 1e-4 in place of Lin's frequency 0, as in the authors' code."""
    A, N, n = make(S4DKernel, 1, 64, init=init).A[0], 64, torch.arange(32).double()
    forms = {"lin": (math.pi * n).clamp_min(1e-4), "inv": N / math.pi * (N / (2 * n + 1) - 1)}
    if init in forms:
        torch.testing.assert_close(-A.imag, forms[init], rtol=1e-6, atol=0)
    assert (A.imag < 0).all()
    torch.testing.assert_close(A.real, torch.full_like(n, -0.5), rtol=1e-6, atol=0)


@torch.no_grad()
def test_twice_the_rate_is_twice_the_step_and_every_other_sample_of_the_same_response() -> None:
    kernel = make(S4DKernel)
    doubled = copy.deepcopy(kernel)
    doubled.inv_dt += math.log(2)
    torch.testing.assert_close(kernel(50, rate=2.0), doubled(50), rtol=0, atol=1e-13)
    integral = kernel(100)
    torch.testing.assert_close(
        kernel(50, rate=2.0), integral[..., ::2] + integral[..., 1::2], rtol=0, atol=1e-12
    )
    layer, x = make(), numbers(2, 20, 6)
    torch.testing.assert_close(stepped(layer, x, rate=2.0)[0], layer(x, rate=2.0), rtol=0, atol=1e-12)


@torch.no_grad()
def test_bilinear_and_zoh_differ_by_the_square_of_the_step() -> None:
    differences = []
    for dt in (0.02, 0.01, 0.005):
        zoh, bilinear = (
            make(S4DKernel, 4, 8, discretization=how, dt_min=dt, dt_max=dt)(round(1 / dt))
            for how in DISCRETIZATIONS
        )
        differences.append(((zoh - bilinear).abs().max() / dt).item())
    for coarse, fine in itertools.pairwise(differences):
        assert 3.5 < coarse / fine < 4.5


class LargestTensor(TorchDispatchMode):
    """The bytes of the largest tensor that any operation gives."""

    bytes = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        self.bytes = max([self.bytes, *(x.nbytes for x in tree_leaves(out) if isinstance(x, Tensor))])
        return out


def memory(run: Any) -> int:
    """Bytes kept for the backward pass, each storage once, and of the largest tensor of either pass."""
    kept: dict[int, int] = {}

    def keep(x: Tensor) -> Tensor:
        kept[x.untyped_storage()._cdata] = x.untyped_storage().nbytes()
        return x

    with LargestTensor() as largest, torch.autograd.graph.saved_tensors_hooks(keep, lambda x: x):
        run().sum().backward()
    return sum(kept.values()) + largest.bytes


def test_kernel_and_gradient_stay_below_a_quarter_of_the_memory_of_the_whole_matrix() -> None:
    H, N, L = 64, 64, 16384
    kernel = make(S4DKernel, H, N, dtype=torch.float32)

    def whole() -> Tensor:
        meta = copy.deepcopy(kernel).to("meta")
        A = torch.complex(-meta.A_real.exp(), -meta.A_imag)
        B, C = torch.view_as_complex(meta.B)[0], torch.view_as_complex(meta.C)[0]
        z = meta.inv_dt.exp() * A
        powers = (z.unsqueeze(-1) * torch.arange(L, device="meta")).exp()
        return 2 * torch.einsum("hn,hnl->hl", B * C * torch.expm1(z) / A, powers).real

    assert memory(whole) >= 8 * H * (N // 2) * L
    assert memory(lambda: kernel(L)) < memory(whole) / 4


def test_a_layer_keeps_no_spectrum_for_its_gradient() -> None:
    """Beside its input, the sequences kept are those around GELU, dropout and the gated mix."""
    layer, x, kept = make(S4D, 16, 8, dtype=torch.float32), torch.randn(4, 512, 16), []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
        layer(x)
    assert not any(t.is_complex() and t.numel() >= x.numel() for t in kept)


@pytest.mark.parametrize(("H", "N", "S"), [(6, 8, None), (6, 8, 2), (128, 64, 1)])
def test_number_of_parameters(H: int, N: int, S: int | None) -> None:
    layer, copies = make(S4D, H, N, n_ssm=S), S or H
    expected = H + 2 * copies * N + H * N + H + 2 * H * H + 2 * H
    assert sum(p.numel() for p in layer.parameters()) == expected
    assert {name: tuple(p.shape) for name, p in layer.named_parameters()} == {
        "kernel.inv_dt": (H, 1),
        "kernel.A_real": (copies, N // 2),
        "kernel.A_imag": (copies, N // 2),
        "kernel.B": (1, copies, N // 2, 2),
        "kernel.C": (1, H, N // 2, 2),
        "D": (1, H),
        "output_linear.weight": (2 * H, H),
        "output_linear.bias": (2 * H,),
    }


def test_number_of_real_parameters_and_of_untied_steps() -> None:
    shapes = {
        n: tuple(p.shape) for n, p in make(S4DKernel, 4, 5, init="real", dt_tie=False).named_parameters()
    }
    assert shapes == {"inv_dt": (4, 5), "A_real": (4, 5), "B": (1, 4, 5), "C": (1, 4, 5)}
    assert make(S4DKernel, 4, 6, dt_tie=False).inv_dt.shape == (4, 3)
    assert make(S4D, 4, 6, bidirectional=True).kernel.C.shape == (2, 4, 3, 2)


def test_how_parameters_start() -> None:
    kernel = make(S4DKernel, 400, 32, dt_min=1e-2, dt_max=1.0, dt_transform="softplus")
    dt = nn.functional.softplus(kernel.inv_dt)
    assert dt.min() > 0.0099 and dt.max() < 1.01 and abs(dt.log10().mean() + 1) < 0.1
    assert abs(kernel.C.square().mean() - 0.5) < 0.02 and abs(kernel.C.mean()) < 0.02
    assert abs(make(S4DKernel, 400, 32, init="real").C.square().mean() - 1) < 0.04
    assert abs(make(S4D, 4000, 2).D.square().mean() - 1) < 0.1
    first, second = kernel.C.clone(), make(S4DKernel, 400, 32, seed=0).C
    assert torch.equal(first, second)
    kernel.reset_parameters()
    assert not torch.equal(first, kernel.C)


def test_groups_hold_every_parameter_once_and_spare_the_dynamics_from_decay() -> None:
    model = nn.Sequential(nn.Linear(3, 6), make(S4DBlock), make(S4DBlock, bidirectional=True))
    fast, slow = param_groups(model, lr=1e-2, weight_decay=0.05)
    assert (fast["lr"], fast["weight_decay"], slow["lr"], slow["weight_decay"]) == (1e-2, 0.05, 1e-3, 0.0)
    names = {id(p): name for name, p in model.named_parameters()}
    ends = sorted(names[id(p)].rsplit(".", 1)[1] for p in slow["params"])
    assert ends == sorted(["inv_dt", "A_real", "A_imag", "B"] * 2)
    assert sorted(id(p) for p in fast["params"] + slow["params"]) == sorted(names)
    assert param_groups(model, lr=1e-4)[1]["lr"] == 1e-4


def test_a_rate_of_zero_or_no_gradient_freezes() -> None:
    layer, x = make(), numbers(2, 20, 6)
    before = copy.deepcopy(layer.state_dict())
    layer.D.requires_grad_(False)
    groups = param_groups(layer, lr=1e-2, ssm_lr=0.0)
    optimizer = torch.optim.AdamW(groups)
    layer(x).square().sum().backward()
    optimizer.step()
    same = {name for name, value in layer.state_dict().items() if torch.equal(value, before[name])}
    assert same == {"D", *(f"kernel.{name}" for name in ("inv_dt", "A_real", "A_imag", "B"))}
    layer.requires_grad_(False)
    assert param_groups(layer, lr=1e-2) == []


@torch.no_grad()
def test_state_dict_copies_and_files(tmp_path: Path) -> None:
    block, other, x = make(S4DBlock), make(S4DBlock, seed=5), numbers(2, 30, 6)
    block.eval()
    size = len(pickle.dumps(block))
    expected = block(x)
    assert len(pickle.dumps(block)) == size
    assert not any(value.is_complex() for value in block.state_dict().values())
    save_file(block.state_dict(), tmp_path / "block.safetensors")
    other.load_state_dict(load_file(tmp_path / "block.safetensors"))
    for twin in (other, copy.deepcopy(block), pickle.loads(pickle.dumps(block))):
        assert torch.equal(twin(x), expected)
    recurrence = block.layer.recurrence()
    save_file(recurrence.state_dict(), tmp_path / "recurrence.safetensors")
    again = S4DRecurrence(*make(S4D, seed=5).kernel.discretized(), torch.zeros(6, dtype=DOUBLE))
    again.load_state_dict(load_file(tmp_path / "recurrence.safetensors"))
    state = recurrence.initial_state(2)
    assert torch.equal(again.step(x[:, 0], state)[0], recurrence.step(x[:, 0], state)[0])


def test_a_model_without_memory_can_be_made_and_filled() -> None:
    with torch.device("meta"):
        layer = S4D(6, 8)
    assert all(p.is_meta for p in layer.parameters())
    filled = layer.to_empty(device="cpu").double()
    filled.load_state_dict(make().state_dict())
    assert torch.equal(filled(numbers(1, 9, 6)), make()(numbers(1, 9, 6)))


@pytest.mark.parametrize("dt", [0.5, 5.0])
def test_real_states_with_a_negative_bilinear_factor(dt: float) -> None:
    """ā < 0 where Δ|a| > 2, and 0 where it is 2; a logarithm of real numbers would be NaN."""
    layer = make(
        S4D, 3, 8, init="real", discretization="bilinear", dt_min=dt, dt_max=dt, real_transform="none"
    )
    dA, dB, C = layer.kernel.discretized()
    assert (dA < -0.3).any() and dA.abs().max() < 1
    lags = dA.unsqueeze(-1) ** torch.arange(60)
    kernel = layer.kernel(60)
    torch.testing.assert_close(kernel[0], 2 * ((C * dB).unsqueeze(-1) * lags).sum(1), rtol=0, atol=1e-12)
    kernel.sum().backward()
    assert all(p.grad.isfinite().all() for p in layer.kernel.parameters())
    x = numbers(2, 60, 3)
    torch.testing.assert_close(stepped(layer, x)[0], layer(x), rtol=0, atol=1e-12)
    torch.testing.assert_close(layer.forward_with_state(x)[1], stepped(layer, x)[1], rtol=0, atol=1e-12)


@pytest.mark.parametrize("discretization", DISCRETIZATIONS)
@torch.no_grad()
def test_no_decay_is_the_boundary_of_stability(discretization: Discretization) -> None:
    layer, x = make(real_transform="none", discretization=discretization), numbers(2, 200, 6)
    layer.kernel.A_real.zero_()
    layer.kernel.A_imag[:, 0] = 0
    dA, dB, _ = layer.kernel.discretized()
    torch.testing.assert_close(dA.abs(), torch.ones_like(dA.real), rtol=0, atol=1e-14)
    torch.testing.assert_close(
        dB[:, 0], layer.kernel.inv_dt.exp()[:, 0] * torch.view_as_complex(layer.kernel.B)[0, :, 0]
    )
    torch.testing.assert_close(stepped(layer, x)[0], layer(x), rtol=0, atol=1e-11)


@pytest.mark.parametrize("discretization", DISCRETIZATIONS)
@pytest.mark.parametrize("transform", ["exp", "softplus", "sigmoid", "relu"])
@torch.no_grad()
def test_whatever_is_learnt_decays(transform: str, discretization: Discretization) -> None:
    kernel = make(S4DKernel, 8, 16, real_transform=transform, discretization=discretization)
    torch.testing.assert_close(kernel.A.real, torch.full_like(kernel.A.real, -0.5), rtol=1e-6, atol=0)
    kernel.A_real.copy_(torch.linspace(-15, 5, 64).view(8, 8))
    assert kernel.discretized()[0].abs().max() < 1


@torch.no_grad()
def test_channel_h_has_the_system_h_mod_s() -> None:
    kernel = make(S4DKernel, 6, 8, n_ssm=3)
    before = kernel(20).clone()
    kernel.A_imag[1] += 1
    changed = (kernel(20) - before)[0].abs().amax(1) > 1e-6
    assert changed.tolist() == [False, True, False, False, True, False]


@torch.no_grad()
def test_band_limit_leaves_out_fast_states_at_every_rate() -> None:
    limited = make(S4DKernel, 3, 64, init="lin", bandlimit=0.5, dt_min=0.02, dt_max=0.1)
    plain = make(S4DKernel, 3, 64, init="lin", dt_min=0.02, dt_max=0.1)
    fast = plain.inv_dt.exp() * plain.A_imag / (2 * math.pi) >= 0.25
    assert 0 < fast.sum() < fast.numel()
    plain.C[0, fast] = 0
    for rate in (1.0, 2.0):
        torch.testing.assert_close(limited(40, rate), plain(40, rate), rtol=0, atol=0)


@torch.no_grad()
def test_bidirectional_sums_over_both_sides() -> None:
    layer, u = make(bidirectional=True), numbers(2, 6, 25)
    past, future = layer.kernel(25)
    y = layer.D.mT * u
    for t in range(25):
        for s in range(25):
            y[..., t] += (past[:, t - s] if s <= t else future[:, s - t - 1]) * u[..., s]
    torch.testing.assert_close(layer.convolve(u), y, rtol=0, atol=1e-12)


@pytest.mark.parametrize("bidirectional", [False, True])
@torch.no_grad()
def test_padding_on_the_right_changes_no_real_position(bidirectional: bool) -> None:
    block = make(S4DBlock, bidirectional=bidirectional).eval()
    x, lengths = numbers(3, 20, 6), (20, 13, 1)
    mask = torch.arange(20) < torch.tensor(lengths).unsqueeze(1)
    x[~mask] = torch.nan
    y = block(x, mask=mask)
    for row, length in enumerate(lengths):
        alone = block(x[row : row + 1, :length])
        torch.testing.assert_close(y[row : row + 1, :length], alone, rtol=0, atol=1e-12)


def test_dropout_leaves_out_whole_channels() -> None:
    layer, seen = make(dropout=0.5), []
    layer.dropout.register_forward_hook(lambda module, inputs, out: seen.append((inputs[0], out)))
    layer(numbers(4, 10, 6))
    before, after = seen[0]
    kept = (after != 0).any(-1)
    assert 0 < kept.sum() < kept.numel()
    torch.testing.assert_close(after, before * 2 * kept.unsqueeze(-1))


@pytest.mark.parametrize("norm", ["layer", "rms"])
@torch.no_grad()
def test_block_adds_the_layer_to_its_input(norm: str) -> None:
    x = numbers(2, 12, 6)
    before, after = (make(S4DBlock, norm=norm, prenorm=prenorm) for prenorm in (True, False))
    torch.testing.assert_close(before(x), x + before.layer(before.norm(x)))
    torch.testing.assert_close(after(x), after.norm(x + after.layer(x)))
    torch.testing.assert_close(stepped(after, x)[0], after(x), rtol=0, atol=1e-12)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_short_types_are_computed_in_float32(dtype: torch.dtype) -> None:
    layer, x = make(dtype=torch.float32), numbers(2, 50, 6, dtype=dtype)
    y = layer(x)
    assert y.dtype == dtype and torch.equal(y, layer(x.float()).to(dtype))
    y.float().sum().backward()
    assert all(p.grad.isfinite().all() for p in layer.parameters())
    short = copy.deepcopy(layer).to(dtype)
    assert short.D.dtype == short.output_linear.weight.dtype == dtype
    assert {p.dtype for p in short.kernel.parameters()} == {torch.float32}
    assert torch.equal(short.kernel(9), layer.kernel(9)) and short.initial_state(2).dtype == torch.complex64
    assert short(x).dtype == dtype and short.step(x[:, 0], short.initial_state(2))[0].dtype == dtype
    torch.testing.assert_close(short(x).float(), layer(x.float()), rtol=0.02, atol=0.02)


def test_a_layer_in_double_becomes_single_not_half_and_moves_otherwise_as_told() -> None:
    layer = make()
    assert (
        layer.kernel.A_imag.dtype == DOUBLE
        and copy.deepcopy(layer).float().kernel.A_imag.dtype == torch.float32
    )
    single = copy.deepcopy(layer).half().kernel
    assert torch.equal(single.A_imag, layer.kernel.A_imag.float())
    assert layer.to("meta").kernel.A_imag.is_meta


@pytest.mark.compiled
@pytest.mark.parametrize("options", [{}, {"bidirectional": True}])
@pytest.mark.parametrize("cls", [S4D, S4DBlock])
def test_a_trace_has_the_numbers_and_gradients_of_the_layer(cls: Any, options: dict[str, Any]) -> None:
    layer, x = make(cls, dtype=torch.float32, **options), numbers(2, 21, 6, dtype=torch.float32)
    with warnings.catch_warnings():
        warnings.simplefilter("error", torch.jit.TracerWarning)
        traced = torch.jit.trace(layer, (x,))
    other = numbers(2, 21, 6, dtype=torch.float32, seed=5)
    torch.testing.assert_close(traced(other), layer(other))
    kernel = (layer.layer if cls is S4DBlock else layer).kernel
    (found,) = torch.autograd.grad(traced(other).square().sum(), kernel.A_imag)
    (wanted,) = torch.autograd.grad(layer(other).square().sum(), kernel.A_imag)
    torch.testing.assert_close(found, wanted)


def test_a_mask_of_zeros_and_ones_is_one_of_booleans() -> None:
    layer, x = make(), numbers(2, 9, 6)
    mask = torch.arange(9) < torch.tensor([[4], [9]])
    for kind in (torch.int64, torch.uint8):
        assert torch.equal(layer(x, mask=mask.to(kind)), layer(x, mask=mask))
    with pytest.raises(InputError, match="mask holds other numbers than 0 and 1"):
        layer(x, mask=2 * mask.long())


@torch.no_grad()
def test_autocast_touches_the_mix_alone() -> None:
    layer, x = make(dtype=torch.float32), numbers(2, 50, 6, dtype=torch.float32)
    u, state = x.mT, layer.forward_with_state(x)[1]
    plain = layer.convolve(u, state), layer.kernel.advance(u, state)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        cast = layer.convolve(u, state), layer.kernel.advance(u, state)
        y = layer(x)
    assert torch.equal(plain[0], cast[0]) and torch.equal(plain[1], cast[1])
    assert y.dtype == torch.float32
    torch.testing.assert_close(y, layer(x), rtol=0.05, atol=0.05)


@pytest.fixture
def kernels_made(monkeypatch: pytest.MonkeyPatch) -> list[None]:
    made: list[None] = []
    system = S4DKernel._system
    monkeypatch.setattr(S4DKernel, "_system", lambda *arguments: made.append(None) or system(*arguments))
    return made


@torch.no_grad()
def test_evaluation_makes_a_kernel_once(kernels_made: list[None]) -> None:
    layer, x = make().eval(), numbers(1, 30, 6)
    first = layer(x)
    assert torch.equal(layer(x), first) and len(kernels_made) == 1
    layer(x[:, :20])
    layer(x, rate=2.0)
    layer(x)
    assert len(kernels_made) == 4
    state = layer.initial_state(1)
    for x_t in x.unbind(1):
        _, state = layer.step(x_t, state)
    assert len(kernels_made) == 5
    layer.kernel.C.data.mul_(2)
    changed = layer(x)
    assert len(kernels_made) == 6 and not torch.equal(changed, first)
    layer.train()
    layer(x)
    layer(x)
    assert len(kernels_made) == 8


def test_a_kept_kernel_stands_in_no_gradient_s_way() -> None:
    layer, x = make().eval(), numbers(1, 30, 6)
    with torch.inference_mode():
        kept = layer(x)
    layer(x).sum().backward()
    assert layer.kernel.C.grad.any()
    layer.requires_grad_(False)
    with torch.inference_mode():
        stepped(layer, x)
    x.requires_grad_()
    y = layer(x)
    (y.sum() + stepped(layer, x)[0].sum()).backward()
    assert torch.equal(y, kept) and x.grad.any()


@pytest.mark.compiled
def test_compiled_layer_has_the_same_numbers() -> None:
    layer, x = make(S4DBlock, 4, 4), numbers(2, 30, 4)
    mask = torch.arange(30) < torch.tensor([[30], [11]])
    compiled = torch.compile(layer, backend="aot_eager", fullgraph=True)
    expected, y = layer(x, mask=mask), compiled(x, mask=mask)
    torch.testing.assert_close(y, expected, rtol=0, atol=1e-12)
    parameters = list(layer.parameters())
    for ours, plain in zip(
        torch.autograd.grad(y.sum(), parameters), torch.autograd.grad(expected.sum(), parameters), strict=True
    ):
        torch.testing.assert_close(ours, plain, rtol=1e-9, atol=1e-11)


def test_an_empty_batch_is_no_mistake() -> None:
    layer = make()
    y, state = layer.forward_with_state(torch.zeros(0, 5, 6, dtype=DOUBLE))
    assert y.shape == (0, 5, 6) and state.shape == (0, 6, 4)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"d_state": 7}, "d_state=7 is odd: complex states come in pairs"),
        ({"d_state": 0}, "d_state is 0: give a whole number"),
        ({"d_model": 2.5}, r"d_model is 2\.5: give a whole number"),
        ({"n_ssm": 4}, "n_ssm=4 does not divide d_model=6"),
        ({"n_ssm": 0}, "n_ssm is 0: give a whole number"),
        ({"init": "hippo"}, "init='hippo': choose one of legs, lin, inv, real"),
        ({"discretization": "euler"}, "discretization='euler': choose one of zoh, bilinear"),
        ({"real_transform": "tanh"}, "real_transform='tanh': choose one of exp, relu"),
        ({"dt_transform": "sigmoid"}, "dt_transform='sigmoid': choose one of exp, softplus"),
        ({"init": "real", "real_transform": "sigmoid"}, "real_transform='sigmoid' stays below 1"),
        ({"dt_min": 0.0}, r"dt_min is 0\.0: give a positive number"),
        ({"dt_min": 0.2}, r"dt_min=0\.2, dt_max=0\.1: give 0 < dt_min <= dt_max"),
        ({"bandlimit": -1.0}, r"bandlimit is -1\.0: give a positive number"),
        ({"bandlimit": 0.0}, r"bandlimit is 0\.0: give a positive number"),
        ({"dropout": 1.0}, r"dropout is 1\.0: give a probability in \[0, 1\)"),
        ({"max_length": 0}, "max_length is 0: give a whole number"),
        ({"norm": "batch"}, "norm='batch': choose one of layer, rms"),
        ({"real_scale": -1.0}, r"real_scale is -1\.0: give a number of at least 0"),
        ({"imag_scale": math.nan}, "imag_scale is nan: give a number"),
    ],
)
def test_options_that_cannot_be_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        S4DBlock(**{"d_model": 6, "d_state": 8, **options})


@pytest.mark.parametrize(
    ("x", "options", "message"),
    [
        (
            torch.zeros(2, 11, 6),
            {},
            "x has length 11, max_length=10: cut it, or pass parts of it with a state",
        ),
        (torch.zeros(2, 0, 6), {}, "x has no time step"),
        (
            torch.zeros(2, 5, 7),
            {},
            r"x is torch.float32 of shape \(2, 5, 7\): give real numbers \(batch, length, 6\)",
        ),
        (torch.zeros(5, 6), {}, r"x is torch.float32 of shape \(5, 6\)"),
        (torch.zeros(2, 5, 6).long(), {}, "x is torch.int64"),
        (torch.zeros(2, 5, 6) + 0j, {}, "x is torch.complex64"),
        (torch.zeros(2, 5, 6).numpy(), {}, "x is a ndarray: give real numbers"),
        (torch.zeros(2, 5, 6), {"rate": 0.0}, r"rate=0\.0: give a positive factor"),
        (torch.zeros(2, 5, 6), {"rate": math.inf}, "rate=inf: give a positive factor"),
        (torch.zeros(2, 5, 6), {"mask": [[True] * 5] * 2}, "mask is a list: give booleans"),
        (torch.zeros(2, 5, 6), {"state": ()}, "state is a tuple: give complex numbers"),
        (torch.zeros(2, 5, 6), {"mask": torch.ones(2, 5)}, "mask is torch.float32 of shape"),
        (
            torch.zeros(2, 5, 6),
            {"mask": torch.ones(2, 6).bool()},
            r"give booleans, or 0 and 1, of shape \(2, 5\)",
        ),
        (torch.zeros(1, 3, 6), {"mask": torch.tensor([[False, True, True]])}, "pad on the right"),
        (torch.zeros(1, 3, 6), {"mask": torch.tensor([[True, False, True]])}, "pad on the right"),
        (
            torch.zeros(2, 5, 6),
            {"state": torch.zeros(2, 6, 4)},
            r"state is torch.float32 .*: give complex numbers",
        ),
        (torch.zeros(2, 5, 6), {"state": torch.zeros(2, 6, 3) + 0j}, r"give complex numbers \(2, 6, 4\)"),
        (torch.zeros(2, 5, 6), {"state": torch.zeros(1, 6, 4) + 0j}, r"give complex numbers \(2, 6, 4\)"),
    ],
)
def test_sequences_that_cannot_be_are_refused(x: Tensor, options: dict[str, Any], message: str) -> None:
    for cls in (S4D, S4DBlock):
        with pytest.raises(InputError, match=message):
            make(cls, dtype=torch.float32, max_length=10)(x, **options)


def test_steps_and_states_that_cannot_be_are_refused() -> None:
    layer, real = make(), make(init="real")
    state, x = layer.initial_state(2), numbers(2, 6)
    for bad in (numbers(2, 7), numbers(2, 1, 6), numbers(2, 6).long()):
        for steps in (layer, make(S4DBlock)):
            with pytest.raises(InputError, match=r"x is .*: give real numbers \(batch, 6\)"):
                steps.step(bad, state)
    with pytest.raises(InputError, match=r"give complex numbers \(2, 6, 4\)"):
        layer.step(x, real.initial_state(2))
    with pytest.raises(InputError, match=r"give real numbers \(2, 6, 8\)"):
        real.step(x, state)
    with pytest.raises(InputError, match="length=0: give at least 1"):
        layer.kernel(0)
    both = make(bidirectional=True)
    for call in (
        lambda: both.step(x, state),
        lambda: both.initial_state(2),
        lambda: both.recurrence(),
        lambda: both.forward_with_state(x.unsqueeze(1)),
        lambda: both(x.unsqueeze(1), state),
    ):
        with pytest.raises(InputError, match="bidirectional=True sees the whole sequence"):
            call()
