"""NOLA with the official code's random matrices, loaded as a checkpoint with ``save_basis`` holds them."""

from __future__ import annotations

from typing import Any

from torch import nn

from eckart.adapters import NOLAConfig

SAVED = ("coefficients_A", "coefficients_B", "lora_A0", "basis_A", "basis_B")
INPUTS = ("x", "cotangent", "weight", "bias", *SAVED)
NOT_COMPARED = {
    "seed_[AB]": "seeds torch's Mersenne Twister, whose draws are the given basis_A and basis_B; we draw by a hash"
}


def replay(case: Any) -> dict[str, Any]:
    given, hyper = case.inputs, case.hyper
    config = NOLAConfig(
        num_basis=hyper["num_basis_A"],
        num_basis_B=hyper["num_basis_B"],
        r=hyper["r"],
        lora_alpha=hyper["alpha"],
        offset="lora_A0" in given,
        save_basis=True,
        target_modules=["layer"],
    )
    model = nn.ModuleDict({"layer": case.linear(given["weight"], given["bias"])})
    model = case.adapt(model, config, {"layer": {name: given[name] for name in SAVED if name in given}})
    y, adapter = case.layer(model, "layer")(given["x"]), case.adapter(model, "layer")
    (y * given["cotangent"]).sum().backward()
    a, b = adapter.factors()
    return {
        "y": y,
        "lora_A": a,
        "lora_B": b,
        "delta_weight": adapter.delta_weight(),
        "grad.coefficients_A": adapter.coefficients_A.grad,
        "grad.coefficients_B": adapter.coefficients_B.grad,
    }
