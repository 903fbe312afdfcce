"""MoDeGPT on one layer of a Llama model of the case's sizes: MLP, queries and keys, values and outputs, shares."""

import torch
from transformers import LlamaConfig
from transformers.models.llama.modeling_llama import LlamaAttention, LlamaMLP, LlamaRotaryEmbedding

from eckart.compression import MoDeGPT
from eckart.compression._allocation import allocate, raw_allocation
from eckart.compression.modegpt import kept_units, output_bias
from eckart.linalg.heads import coordinate_scores, value_output
from eckart.linalg.moments import add_rows, no_moments, output_energy
from eckart.linalg.nystroem import ridge_leverage

INPUTS = ["x", r"(q|k|v|o|gate|up|down)_proj\.(weight|bias)", "inv_freq", r"alloc\.bi"]


def replay(case):
    hyper, x = case.hyper, case.inputs["x"]
    attention, mlp, rope, method = _layer(case)
    moments = add_rows(no_moments(x.shape[1]), x)
    return {
        **_mlp(case, mlp),
        **_heads(case, attention, moments),
        **_outputs(case, attention, rope, method, moments),
        "alloc.phi_raw": raw_allocation(case.inputs["alloc.bi"], hyper["phi_avg"], hyper["epsilon"]),
        "alloc.phi": allocate(case.inputs["alloc.bi"], hyper["phi_avg"], hyper["epsilon"], hyper["cap"]),
    }


def _layer(case):
    hyper = case.hyper
    assert hyper["act"].endswith("gated")
    theta = (
        float(1 / case.inputs["inv_freq"][1] ** (hyper["head_dim"] / 2))
        if len(case.inputs["inv_freq"]) > 1
        else 1e4
    )
    config = LlamaConfig(
        hidden_size=hyper["num_heads"] * hyper["head_dim"],
        intermediate_size=hyper["intermediate"],
        hidden_act=hyper["act"].split(",")[0],
        num_attention_heads=hyper["num_heads"],
        num_key_value_heads=hyper["num_kv_heads"],
        head_dim=hyper["head_dim"],
        num_hidden_layers=1,
        attention_bias=True,
        mlp_bias=True,
        rope_parameters={"rope_type": "default", "rope_theta": theta},
        attn_implementation="sdpa",  # eager takes its softmax in float32
    )
    config.hidden_size = hyper["hidden"]  # which need be no multiple of the heads
    attention, mlp = LlamaAttention(config, 0).double(), LlamaMLP(config).double()
    rope = LlamaRotaryEmbedding(config)
    rope.inv_freq = case.inputs["inv_freq"]
    for name, value in case.inputs.items():
        if name.endswith(("weight", "bias")):
            owner = attention if name[0] in "qkvo" and name[1] == "_" else mlp
            owner.get_parameter(name).data.copy_(value)
    return attention.requires_grad_(False), mlp.requires_grad_(False), rope, MoDeGPT()


def _mlp(case, mlp):
    hyper, x = case.hyper, case.inputs["x"]
    seen = []
    handle = mlp.down_proj.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    full = mlp(x)
    handle.remove()
    hidden = add_rows(no_moments(hyper["intermediate"]), seen[0])
    gram = hidden.second
    ridge = hyper["ridge_lambda"]
    kept = kept_units(gram, hyper["r_mlp"], ridge)
    method = MoDeGPT(ridge=ridge / float(gram.diagonal().mean()))
    new, _ = method.slice_mlp(mlp, hidden, hyper["r_mlp"])
    smaller = mlp.act_fn(new["gate_proj"](x)) * new["up_proj"](x)
    return {
        "mlp.C": gram,
        "mlp.scores": ridge_leverage(gram, ridge),
        "mlp.keep": kept,
        "mlp.down_new.weight": new["down_proj"].weight,
        "mlp.y_full": full,
        "mlp.y": new["down_proj"](smaller),
        "mlp.y_sliced_only": torch.nn.functional.linear(
            smaller, mlp.down_proj.weight[:, kept], mlp.down_proj.bias
        ),
    }


def _heads(case, attention, moments):
    hyper = case.hyper
    kv, d, groups = hyper["num_kv_heads"], hyper["head_dim"], hyper["num_heads"] // hyper["num_kv_heads"]
    query = output_energy(moments, attention.q_proj.weight, attention.q_proj.bias).reshape(kv, groups, d)
    key = output_energy(moments, attention.k_proj.weight, attention.k_proj.bias).reshape(kv, d)
    outputs = {
        name: torch.stack(
            [coordinate_scores(q, k, d // 2, other)[0] for q, k in zip(query, key, strict=True)]
        )
        for name, other in (("qk.pair_scores", False), ("qk.pair_scores_reimpl", True))
    }
    values = attention.v_proj.weight.reshape(kv, d, -1)
    outs = attention.o_proj.weight.reshape(hyper["hidden"], kv, groups, d).permute(1, 2, 0, 3)
    for mode in ("joint", "value_only"):
        pairs = [
            value_output(v, o, moments.second, hyper["r_v"], mode == "joint")
            for v, o in zip(values, outs, strict=True)
        ]
        outputs[f"vo.{mode}.product"] = torch.cat([pair.outputs @ pair.value for pair in pairs])
        if mode == "joint":
            outputs["vo.singular_values"] = torch.stack([pair.singular_values for pair in pairs])
    return {**outputs, "vo.C": moments.second, "vo.o_bias_new": output_bias(attention)}


def _outputs(case, attention, rope, method, moments):
    hyper, x = case.hyper, case.inputs["x"].reshape(case.hyper["batch"], case.hyper["seq"], -1)
    positions = torch.arange(hyper["seq"]).unsqueeze(0)
    angles = positions[..., None].double() * case.inputs["inv_freq"]
    angles = torch.cat([angles, angles], dim=-1)
    tables = angles.cos(), angles.sin()
    mask = torch.full((hyper["seq"], hyper["seq"]), -torch.inf, dtype=x.dtype).triu(1)[None, None]
    mask = mask if hyper["causal"] else torch.zeros_like(mask)
    outputs = {}
    for name, qk, v in (
        ("attn.y_full", hyper["head_dim"], None),
        ("attn.y_qk", hyper["r_qk"], None),
        ("attn.y_vo", hyper["head_dim"], hyper["r_v"]),
        ("attn.y", hyper["r_qk"], hyper["r_v"]),
    ):
        method.vo = v is not None
        module = attention
        if name != "attn.y_full":
            module, _, _ = method.slice_attention(attention, moments, qk, v or hyper["head_dim"])
        outputs[name] = module(x, position_embeddings=tables, attention_mask=mask)[0].reshape(
            -1, hyper["hidden"]
        )
        if name == "attn.y_qk":
            outputs["qk.pairs"] = module.rope_index[:, : qk // 2]
    return outputs
