"""Models of every architecture that is compressed, a few thousand parameters each, and data for them."""

from __future__ import annotations

import torch
import transformers
from torch import nn

VOCABULARY = 61
SIZES = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
TEXT = {"vocab_size": VOCABULARY, "max_position_embeddings": 64}
GATED = {**SIZES, **TEXT, "intermediate_size": 48, "num_key_value_heads": 2, "head_dim": 8}


def make(kind: str, seed: int = 0, **options):
    """A model of this kind in eval mode, every bias and norm moved away from its start."""
    torch.manual_seed(seed)
    config = {
        "llama": lambda: transformers.LlamaConfig(**GATED, **options),
        "qwen2": lambda: transformers.Qwen2Config(
            **{k: v for k, v in GATED.items() if k != "head_dim"}, **options
        ),
        "qwen3": lambda: transformers.Qwen3Config(**GATED, **options),
        "mistral": lambda: transformers.MistralConfig(**GATED, sliding_window=None, **options),
        "gemma": lambda: transformers.GemmaConfig(**GATED, **options),
        "gpt2": lambda: transformers.GPT2Config(
            **{
                "n_embd": 32,
                "n_layer": 2,
                "n_head": 4,
                "vocab_size": VOCABULARY,
                "n_positions": 64,
                **options,
            }
        ),
        "opt": lambda: transformers.OPTConfig(**SIZES, **TEXT, ffn_dim=48, word_embed_proj_dim=32, **options),
        "bert": lambda: transformers.BertConfig(**SIZES, **TEXT, intermediate_size=48, **options),
        "vit": lambda: transformers.ViTConfig(
            **SIZES, intermediate_size=48, image_size=8, patch_size=4, num_labels=3, **options
        ),
    }[kind]()
    auto = {
        "bert": transformers.AutoModelForMaskedLM,
        "vit": transformers.AutoModelForImageClassification,
    }.get(kind, transformers.AutoModelForCausalLM)
    model = auto.from_config(config)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.dim() == 1 or "norm" in name:
                parameter.add_(torch.randn_like(parameter), alpha=0.2)
            elif "embed" not in name and "wte" not in name:
                parameter.mul_(5)
    return model.eval()


def batches(kind: str = "llama", number: int = 3, padded: bool = False, seed: int = 0):
    """Calibration batches for a model of this kind."""
    generator = torch.Generator().manual_seed(seed)
    if kind == "vit":
        return [{"pixel_values": torch.randn(6, 3, 8, 8, generator=generator)} for _ in range(number)]
    found = []
    for _ in range(number):
        ids = torch.randint(0, VOCABULARY, (4, 20), generator=generator)
        mask = torch.ones_like(ids)
        if padded:
            mask[0, 12:] = 0
        found.append({"input_ids": ids, "attention_mask": mask})
    return found


def logits(model, batch):
    with torch.no_grad():
        return model(**batch).logits


class Classifier(nn.Module):
    """A plain module: three linear layers, the last a head that is left alone."""

    def __init__(self, dtype=torch.float64) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first = nn.Linear(12, 20, dtype=dtype)
        self.second = nn.Linear(20, 16, bias=False, dtype=dtype)
        self.head = nn.Linear(16, 3, dtype=dtype)

    def forward(self, x):
        return self.head(torch.relu(self.second(torch.relu(self.first(x)))))


class Convolutions(nn.Module):
    """Convolutions of every kind that TRP meets: the first, strided, 1×1, grouped, with and without a bias."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.wide = nn.Conv2d(8, 12, 3, padding=1, bias=False)
        self.strided = nn.Conv2d(12, 16, (3, 5), stride=2, padding=(1, 2))
        self.point = nn.Conv2d(16, 16, 1)
        self.grouped = nn.Conv2d(16, 16, 3, padding=1, groups=4)
        self.head = nn.Linear(16, 4)

    def forward(self, x):
        for layer in (self.stem, self.wide, self.strided, self.point, self.grouped):
            x = torch.relu(layer(x))
        return self.head(x.mean((-1, -2)))


class Clicks(nn.Module):
    """A click model: two tables and one dense column into two linear layers and a head."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.tables = nn.ModuleList([nn.Embedding(40, 8), nn.Embedding(30, 8, padding_idx=0)])
        self.first = nn.Linear(17, 24)
        self.second = nn.Linear(24, 24)
        self.head = nn.Linear(24, 1)

    def forward(self, inputs):
        ids, dense = inputs[:, :2].long(), inputs[:, 2:]
        x = torch.cat([*(table(ids[:, i]) for i, table in enumerate(self.tables)), dense], dim=1)
        return self.head(torch.relu(self.second(torch.relu(self.first(x))))).squeeze(1)


def click_rows(number=200, seed=0):
    generator = torch.Generator().manual_seed(seed)
    first = (torch.rand(number, generator=generator) ** 3 * 40).long()
    second = (torch.rand(number, generator=generator) ** 2 * 30).long()
    return torch.stack([first.float(), second.float(), torch.randn(number, generator=generator)], dim=1)
