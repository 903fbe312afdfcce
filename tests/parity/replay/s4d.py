"""S4D's linear part from raw parameters, as a convolution and step by step, with its gradients; and the starts of A."""

import torch

from eckart.layers import S4D, S4DKernel
from eckart.linalg.state_space import legs_spectrum

INPUTS = [r"(?!.*_grad_).+_(kernel\..+|D|u|g|s0)"]
TOLERANCE = {r"init_.+_A_(re|im)": "init_rtol"}
INITS = ("legs", "lin", "inv", "real", "inv2", "quad")


def replay(case):
    outputs = {}
    for hyper in case.hyper:
        outputs |= _run(case, hyper) if "tag" in hyper else _starts(hyper["init_N"])
    return outputs


def _run(case, hyper):
    tag = hyper["tag"]
    layer = S4D(
        hyper["H"],
        hyper["d_state"],
        init=hyper["init"].removeprefix("diag-"),
        discretization=hyper["disc"],
        is_real=hyper["is_real"],
        dt_transform=hyper.get("dt_transform", "exp"),
        real_transform=hyper.get("real_transform", "exp"),
        bandlimit=hyper.get("bandlimit"),
        n_ssm=hyper.get("n_ssm"),
        dt_tie=case.inputs[f"{tag}_kernel.inv_dt"].shape[1] == 1,
    ).double()
    given = {name: p for name, p in layer.named_parameters() if not name.startswith("output_linear")}
    layer.load_state_dict({n: case.inputs[f"{tag}_{n}"] for n in given}, strict=False)
    u = case.inputs[f"{tag}_u"].clone().requires_grad_()
    y = layer.convolve(u)
    g = case.inputs.get(f"{tag}_g", torch.zeros_like(y))
    gradients = torch.autograd.grad(y, [u, *given.values()], g)
    layer.eval().requires_grad_(False)
    dA, dB, _ = layer.kernel.discretized()
    outputs = {
        "kernel": layer.kernel(hyper["kernel_len"]),
        "y": y,
        "dA": dA,
        "dB": dB,
        "y_rate2": layer.convolve(u, rate=2.0),
        "final_state": _steps(layer, u, layer.initial_state(len(u)))[1],
    } | {f"grad_{name}": gradient for name, gradient in zip(("u", *given), gradients, strict=True)}
    if f"{tag}_s0" in case.inputs:
        start = case.inputs[f"{tag}_s0"]
        start = start if hyper["is_real"] else torch.view_as_complex(start)
        outputs |= {"y_from_s0": layer.convolve(u, start), "s1": layer.kernel.advance(u, start)}
        stepped, state = _steps(layer, u, start)
        torch.testing.assert_close(stepped, outputs["y_from_s0"], rtol=0, atol=1e-12)
        torch.testing.assert_close(state, outputs["s1"], rtol=0, atol=1e-12)
    return {f"{tag}_{n}": torch.view_as_real(x) if x.is_complex() else x for n, x in outputs.items()}


def _steps(layer, u, state):
    recurrence, ys = layer.recurrence(), []
    for t in range(u.shape[-1]):
        y, state = recurrence.step(u[..., t], state)
        ys.append(y)
    return torch.stack(ys, dim=-1), state


def _starts(n):
    omega, weights = legs_spectrum(n)
    outputs = {"init_legs_omega": omega, "init_legs_B_abs": weights.abs()}
    for init in INITS:
        A = S4DKernel(1, n, init=init).A[0]
        outputs |= (
            {f"init_{init}_A_re": A.real, f"init_{init}_A_im": A.imag}
            if A.is_complex()
            else {f"init_{init}_A_re": A}
        )
    return outputs
