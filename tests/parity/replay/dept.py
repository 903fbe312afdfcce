"""DePT before a toy model of one attention head, whose forward is all that is not ours."""

import torch
from peft import set_peft_model_state_dict
from torch import nn

import eckart

INPUTS = [
    "word_embeddings",
    "input_ids",
    "attention_mask",
    "prompt_embedding",
    r"lora_embedding_[AB]",
    "W_[qkv]",
    "cotangent",
]


class Head(nn.Module):
    """Attention with one head, averaged over the real positions; it remembers what it was given."""

    def __init__(self, table, q, k, v):
        super().__init__()
        self.table = nn.Embedding.from_pretrained(table)
        self.q, self.k, self.v = q, k, v

    def get_input_embeddings(self):
        return self.table

    def forward(self, input_ids=None, attention_mask=None, inputs_embeds=None):
        self.seen = inputs_embeds, attention_mask
        q, k, v = (inputs_embeds @ weight.T for weight in (self.q, self.k, self.v))
        hidden = (attention_mask == 0)[:, None, :]
        scores = (q @ k.transpose(1, 2) / len(self.q) ** 0.5).masked_fill(hidden, -torch.inf)
        weights = attention_mask.to(v.dtype)[..., None]
        return ((scores.softmax(-1) @ v) * weights).sum(1) / weights.sum(1)


def replay(case):
    hyper, given = case.hyper, case.inputs
    head = Head(given["word_embeddings"], *(given[f"W_{name}"] for name in "qkv"))
    model = eckart.adapt(
        head,
        "dept",
        num_virtual_tokens=hyper["m"],
        max_length=hyper["s_max_length"],
        r=hyper["r"],
        lora_alpha=hyper["lora_alpha"],
    )
    names = ("prompt_embedding", "lora_embedding_A", "lora_embedding_B")
    inside = "base_model.model.input_prompt.eckart_adapters."
    set_peft_model_state_dict(model, {inside + name: given[name].clone() for name in names if name in given})
    y = model(input_ids=given["input_ids"], attention_mask=given["attention_mask"])
    y.backward(given["cotangent"])
    embeddings, mask = head.seen
    prompt = case.layer(model, "input_prompt").adapter("default")
    return {
        "inputs_embeds": embeddings,
        "extended_attention_mask": mask,
        "y": y,
        **{f"grad.{name}": parameter.grad for name, parameter in prompt.named_parameters()},
    }
