"""Which parameters of a model a low-rank optimiser is for."""

from __future__ import annotations

from typing import Any

from torch import nn

from eckart.errors import InputError


def hidden_groups(model: nn.Module, weight_decay: float = 0.01) -> list[dict[str, Any]]:
    """Two parameter groups: the hidden matrices, and embeddings, output head, norms and biases, left to AdamW.

    The output head is what `get_output_embeddings` of a transformers model names; weights tied to it or to an
    embedding belong to the second group. Norms and biases get no weight decay.

    Args:
        model: what needs no gradient is in no group.
        weight_decay: λ of matrices and embeddings.

    Raises:
        InputError: no hidden matrix trains.
    """
    outer = {id(p) for m in model.modules() if isinstance(m, nn.Embedding) for p in m.parameters()}
    if (head := getattr(model, "get_output_embeddings", lambda: None)()) is not None:
        outer |= {id(p) for p in head.parameters()}
    trained = [p for p in model.parameters() if p.requires_grad]
    hidden = [p for p in trained if p.ndim >= 2 and id(p) not in outer]
    if not hidden:
        raise InputError("the model has no hidden matrix that trains: use torch.optim.AdamW")
    tables = [p for p in trained if p.ndim >= 2 and id(p) in outer]
    vectors = [p for p in trained if p.ndim < 2]
    groups = [
        {"params": hidden, "weight_decay": weight_decay},
        {"params": tables, "weight_decay": weight_decay, "low_rank": False},
        {"params": vectors, "weight_decay": 0.0, "low_rank": False},
    ]
    return [group for group in groups if group["params"]]
