"""LOST's split of a dense weight, by all triples and by a few; its layer with and without SiLU."""

import torch

from eckart.layers import LOSTLinear
from eckart.linalg.columns import low_rank_columns

INPUTS = ["W0", "bias", "x", "g", "lora_A", "lora_B", "sparse_values", "gamma"]


def replay(case):
    hyper, given = case.hyper, case.inputs
    linear = case.linear(given["W0"], given.get("bias"))

    def made(**options):
        shared = {"r": hyper["r"], "sparsity": hyper["sparsity_kept_columns"], "gamma": hyper["gamma"]}
        return LOSTLinear.from_linear(linear, 0, **shared, **options)

    plain = made(activation="identity")
    few = made(activation="identity", sparse_svd_rank=hyper["sparse_svd_rank_adapter"] or hyper["r"])
    columns = plain.selected_columns
    assert len(columns) == hyper["n_cols"]
    residual = given["W0"] - (plain.lora_B @ plain.lora_A).detach()
    outputs = {
        "adapter_BA": (few.lora_B @ few.lora_A).detach(),
        "adapter_selected_columns": few.selected_columns,
        "adapter_values": few.sparse_values.detach(),
        "selected_columns": columns,
        "ref_residual_column_norms": residual.norm(dim=0),
        "singular_values": torch.linalg.svdvals(given["W0"]),
    }
    whole = low_rank_columns(given["W0"], hyper["r"], hyper["n_cols"])
    torch.testing.assert_close(whole.residual, residual, rtol=0, atol=1e-12)
    for prefix, layer in (("", plain), ("silu_", made())):
        layer.load_state_dict(
            {n: given[n] for n in ("lora_A", "lora_B", "sparse_values", "bias") if n in given}, strict=False
        )
        x = given["x"].clone().requires_grad_()
        y = layer(x)
        y.backward(given["g"])
        outputs |= {f"{prefix}y": y.detach(), f"{prefix}grad_x": x.grad}
        outputs |= {f"{prefix}grad_{name}": p.grad for name, p in layer.named_parameters()}
    return outputs | {"weight": plain.dense_weight()}
