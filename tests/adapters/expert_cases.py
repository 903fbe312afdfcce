"""Small mixtures of experts, whose parameters are stacks of matrices."""

from __future__ import annotations

import torch
from peft import PeftModel
from torch import Tensor, nn
from transformers import (
    GptOssConfig,
    GptOssForCausalLM,
    Llama4ForCausalLM,
    Llama4TextConfig,
    MixtralConfig,
    MixtralForCausalLM,
    PreTrainedModel,
    Qwen2MoeConfig,
    Qwen2MoeForCausalLM,
    Qwen3MoeConfig,
    Qwen3MoeForCausalLM,
)

import eckart
from eckart.adapters import AdaptedWeight

BOTH = ["experts.gate_up_proj", "experts.down_proj"]
IDS = torch.arange(12).view(2, 6)
SIZES = {
    "vocab_size": 32,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
}
MODELS = {
    "mixtral": lambda: MixtralForCausalLM(MixtralConfig(**SIZES, num_local_experts=4)),
    "qwen2-moe": lambda: Qwen2MoeForCausalLM(
        Qwen2MoeConfig(
            **SIZES,
            num_experts=4,
            num_experts_per_tok=2,
            moe_intermediate_size=12,
            shared_expert_intermediate_size=20,
        )
    ),
    "qwen3-moe": lambda: Qwen3MoeForCausalLM(
        Qwen3MoeConfig(**SIZES, num_experts=4, num_experts_per_tok=2, moe_intermediate_size=12, head_dim=8)
    ),
    "gpt-oss": lambda: GptOssForCausalLM(
        GptOssConfig(**SIZES, num_local_experts=4, num_experts_per_tok=2, head_dim=8)
    ),
    "llama4": lambda: Llama4ForCausalLM(
        Llama4TextConfig(
            **SIZES, num_local_experts=4, head_dim=8, intermediate_size_mlp=24, interleave_moe_layer_step=1
        )
    ),
}


def moe(kind: str = "mixtral", dtype: torch.dtype = torch.float32) -> PreTrainedModel:
    """One of the models; its weights depend on nothing."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = MODELS[kind]().to(dtype).eval()
        for parameter in model.parameters():
            if parameter.dim() == 3:  # Llama4 starts half of them at zero
                nn.init.normal_(parameter, std=0.1)
    return model


def adapt_experts(base: nn.Module, method: str, **options: object) -> PeftModel:
    """A method on the experts alone; `init_weights=False` always draws the same numbers."""
    options = {"target_modules": [], "target_parameters": BOTH, **options}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return eckart.adapt(base, method, **options).eval()


def weights(model: nn.Module) -> dict[str, AdaptedWeight]:
    """What is adapted, by name."""
    return {w.shape.name: w for w in model.modules() if isinstance(w, AdaptedWeight)}


@torch.no_grad()
def changed_by_hand(kind: str, model: nn.Module, adapter: str = "default") -> PreTrainedModel:
    """The model without adapters, each ΔW added to its own matrix, by name and number."""
    plain = moe(kind, next(model.parameters()).dtype)
    for weight in weights(model).values():
        delta, name = weight.get_delta_weight(adapter), weight.shape.name
        if weight.shape.stack:
            whole = plain.get_parameter(weight.shape.stack)
            (whole if whole.dim() == 2 else whole[int(name.rpartition(".")[2])]).add_(delta)
        else:
            plain.get_parameter(f"{name}.weight").add_(delta)
    return plain


def logits(model: nn.Module) -> Tensor:
    """The outputs for `IDS`."""
    return model(IDS).logits
