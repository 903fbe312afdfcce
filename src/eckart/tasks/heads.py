"""Pretrained models loaded for a task, their head found and drawn from a seed.

The head is what a task trains beside an adapter: the module that gives the classes (``classifier``, ``score``, …), what
stands outside the pretrained base and is missing from the checkpoint, and a pooler that was never trained: one the
checkpoint lacks, or whose bias is exactly zero (sentence encoders such as MiniLM carry one that their training by mean
pooling never touched). It is drawn afresh from a seed, so that all methods start from the same head.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from transformers.models.auto import modeling_auto

from eckart.compression._sliced_config import PREFIX
from eckart.errors import InputError
from eckart.tasks.memory import fit
from eckart.tasks.options import LANGUAGE, Memory
from eckart.tasks.pretrained import Checkpoint, load_pretrained, refuse_incomplete

AUTO_CLASSES = {  # kind of task -> its auto class, and transformers' table of the architectures that have one
    "text-classification": (
        "AutoModelForSequenceClassification",
        "MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES",
    ),
    **dict.fromkeys(
        ("regression", "multi-label"),
        ("AutoModelForSequenceClassification", "MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES"),
    ),
    "token-classification": (
        "AutoModelForTokenClassification",
        "MODEL_FOR_TOKEN_CLASSIFICATION_MAPPING_NAMES",
    ),
    **dict.fromkeys(LANGUAGE, ("AutoModelForCausalLM", "MODEL_FOR_CAUSAL_LM_MAPPING_NAMES")),
    "image-classification": (
        "AutoModelForImageClassification",
        "MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING_NAMES",
    ),
    "segmentation": (
        "AutoModelForSemanticSegmentation",
        "MODEL_FOR_SEMANTIC_SEGMENTATION_MAPPING_NAMES",
    ),
}


@dataclass(frozen=True)
class Base:
    """A pretrained model for a task: what `fresh` copies, and the modules that are its head."""

    model: Any
    head_modules: list[str]

    def is_head(self, parameter: str) -> bool:
        """Whether the parameter of that name belongs to the head."""
        return any(parameter.startswith(f"{module}.") for module in self.head_modules)

    @property
    def head_parameters(self) -> int:
        """Numbers in the head."""
        return sum(int(p.numel()) for name, p in self.model.named_parameters() if self.is_head(name))

    @property
    def base_parameters(self) -> int:
        """Numbers in the pretrained part: a budget in percent is a share of this."""
        return sum(int(p.numel()) for p in self.model.parameters()) - self.head_parameters

    def fresh(self, seed: int) -> Any:
        """A copy in eval mode whose head is drawn from ``seed``: weights normal, biases zero."""
        model = copy.deepcopy(self.model)
        std = getattr(getattr(model, "config", None), "initializer_range", 0.02)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            for name in self.head_modules:
                for module in model.get_submodule(name).modules():
                    if isinstance(module, nn.Linear):
                        nn.init.normal_(module.weight, std=std)
                        if module.bias is not None:
                            nn.init.zeros_(module.bias)
                    elif hasattr(module, "reset_parameters"):
                        module.reset_parameters()
        return model.eval()

    def default_targets(self) -> str | list[str]:
        """ "all-linear", or the names of the convolutions of a network that has no linear layer outside its head."""
        linear, convolutions = False, set()
        for name, module in self.model.named_modules():
            if not self.is_head(f"{name}."):
                linear |= isinstance(module, nn.Linear) or type(module).__name__ == "Conv1D"
                if isinstance(module, nn.Conv2d):
                    convolutions.add(name.rpartition(".")[2])
        return "all-linear" if linear else sorted(convolutions)


class FrozenStatisticsBatchNorm2d(nn.BatchNorm2d):
    """Batch norm that normalises with its pretrained statistics in training too: an adapter checkpoint does not hold
    running statistics, so they must not move under it."""

    def train(self, mode: bool = True) -> FrozenStatisticsBatchNorm2d:
        """Stay in eval mode."""
        super().train(False)
        return self


def load_base(
    checkpoint: Checkpoint,
    kind: str,
    labels: list[str] | None,
    config: Mapping[str, Any] | None = None,
    memory: Memory | None = None,
) -> Base:
    """Load a model for a task, on the CPU.

    Args:
        checkpoint: a transformers model with safetensors weights.
        kind: a key of `AUTO_CLASSES`.
        labels: names of what the head gives; None for language modelling.
        config: further fields of the model's config.
        memory: how small the base is made; as it is when None.

    Raises:
        InputError: an architecture that cannot do the task, weights that are incomplete or of other shapes.
    """
    auto_class, architectures = AUTO_CLASSES[kind]
    name, model_type = checkpoint.name, checkpoint.config().get("model_type")
    if str(model_type).removeprefix(PREFIX) not in getattr(modeling_auto, architectures):
        raise InputError(
            f"--model {name} is of type {model_type!r}, which has no {kind} model in transformers"
        )
    options: dict[str, Any] = {}
    if labels is not None:
        ids = dict(enumerate(labels))
        options = {"id2label": ids, "label2id": {label: i for i, label in ids.items()}}
    model, missing = load_pretrained(auto_class, checkpoint, **options)
    if kind in LANGUAGE and looks_ahead(model):
        raise InputError(
            f"--model {name} lets a position see later ones: it is an encoder, no causal language model; "
            "give a decoder such as GPT-2 or Llama, or a labelled data set"
        )
    vars(model.config).update(config or {})
    heads = _heads(model, missing, checkpoint, labels, pixels=kind == "segmentation")
    for module in model.modules():
        if type(module) is nn.BatchNorm2d:
            module.__class__ = FrozenStatisticsBatchNorm2d
    fit(model, heads, memory or Memory(), checkpoint.name)
    return Base(model.eval(), heads)


def _heads(
    model: Any, missing: set[str], checkpoint: Checkpoint, labels: list[str] | None, *, pixels: bool
) -> list[str]:
    """Modules to train beside an adapter; refuses a checkpoint that lacks anything else."""
    heads: list[str] = []
    if labels is not None:
        outer = _pixel_heads if pixels else _outer_heads
        heads = outer(model, missing, len(labels)) + _untrained_poolers(model, missing)
    within = tuple(f"{head}." for head in heads)
    refuse_incomplete(checkpoint, [key for key in missing if not key.startswith(within)])
    return heads


def _outer_heads(model: Any, missing: set[str], classes: int) -> list[str]:
    """Children outside the base that give the classes or are missing from the checkpoint."""
    children = {child: list(module.parameters()) for child, module in model.named_children()}
    outside = [child for child, held in children.items() if held and child != model.base_model_prefix]
    if (
        model.base_model_prefix not in children
    ):  # CLIP and a few others keep no base as such: their head stands last
        outside = outside[-1:]
    return [
        child
        for child in outside
        if any(p.ndim > 1 and len(p) == classes for p in children[child])
        or any(key.startswith(f"{child}.") for key in missing)
    ]


def _pixel_heads(model: Any, missing: set[str], classes: int) -> list[str]:
    """Of the children outside the base those that are missing from the checkpoint, and of a decoder that is there the
    layers that give the classes: what it has learnt of pixels stays."""
    found: list[str] = []
    for child, module in model.named_children():
        own = [
            (f"{child}.{name}".rstrip("."), list(layer.named_parameters(recurse=False)))
            for name, layer in module.named_modules()
        ]
        held = [(name, parameters) for name, parameters in own if parameters]
        heads = [
            name
            for name, parameters in held
            if any(p.ndim > 1 and len(p) == classes for _, p in parameters)
            or any(f"{name}.{key}" in missing for key, _ in parameters)
        ]
        if child not in (model.base_model_prefix, "backbone"):
            found += [child] if heads and len(heads) == len(held) else heads
    return found


def _untrained_poolers(model: Any, missing: set[str]) -> list[str]:
    """Modules of a pooler inside the base that the checkpoint lacks or that no training has moved."""
    found = {
        key.rpartition(".")[0]
        for key, value in model.named_parameters()
        if ".pooler." in key and (key in missing or (key.endswith(".bias") and not value.any()))
    }
    return sorted(found)


def looks_ahead(model: Any, length: int = 16) -> bool:
    """Whether the second half of a text changes the outputs for the first, by more than rounding."""
    half = length // 2
    one = torch.arange(length)[None] % model.config.vocab_size
    two = torch.cat([one[:, :half], model.config.vocab_size - 1 - one[:, half:]], dim=1)
    with torch.no_grad():
        first, second = (model.eval()(input_ids=ids).logits[0, :half] for ids in (one, two))
    return bool((first - second).abs().max() > 1e-5 * first.abs().max())
