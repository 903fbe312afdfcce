"""Several adapters as one: Σ wᵢ ΔWᵢ of every layer, as a LoRA."""

from __future__ import annotations

import math
import re
from collections.abc import Collection, Mapping, Sequence
from typing import Any, cast

import torch
from jaxtyping import Float
from torch import Tensor

from eckart.adapters._adapted import AdaptedWeight
from eckart.adapters._base import LowRankAdapter
from eckart.adapters._config import AdapterConfig
from eckart.adapters._registry import ADAPTERS
from eckart.errors import InputError
from eckart.linalg.spectrum import svd_within

Factors = tuple[Float[Tensor, "r in"], Float[Tensor, "out r"]]
_EXACT = 1e-6


def check_combination(
    there: Collection[str],
    adapters: Sequence[str],
    weights: Sequence[float],
    adapter_name: str,
    combination_type: str,
    svd_rank: int | None,
) -> None:
    """Refuse what `combine` cannot be asked.

    Raises:
        InputError: a name that is not there or is taken, another number of weights, an unknown combination.
    """
    if unknown := [name for name in adapters if name not in there]:
        raise InputError(f"adapters names {unknown[0]!r}; this model has {', '.join(there)}")
    if adapter_name in there:
        raise InputError(f"adapter_name {adapter_name!r} is taken: choose another")
    if not adapters or len(set(adapters)) != len(adapters) or len(adapters) != len(weights):
        raise InputError(
            f"{len(weights)} weights for adapters {list(adapters)}: give one for each, named once"
        )
    if not all(math.isfinite(weight) for weight in weights):
        raise InputError(f"weights are {list(weights)}: give finite numbers")
    if combination_type not in ("svd", "cat", "linear"):
        raise InputError(f"combination_type is {combination_type!r}: give 'svd', 'cat' or 'linear'")
    if svd_rank is not None and (combination_type != "svd" or svd_rank < 1):
        raise InputError(
            f"svd_rank is {svd_rank}: give a rank of at least 1, with combination_type 'svd' only"
        )


def combine(
    layers: Mapping[str, AdaptedWeight],
    configs: Mapping[str, AdapterConfig],
    weights: Mapping[str, float],
    combination_type: str,
    svd_rank: int | None,
) -> tuple[AdapterConfig, dict[str, Factors]]:
    """The config of a LoRA and its factors for each layer, scaling in B.

    Args:
        layers: all adapted layers by name.
        configs: of the adapters, by name.
        weights: wᵢ of the adapters.
        combination_type: ``"svd"`` (Σ wᵢ ΔWᵢ, cut to a rank), ``"cat"`` (the same, exactly, by stacking the factors of
            low-rank methods) or ``"linear"`` (PEFT's sum of the factors of adapters of one rank, which is *not* the sum
            of their ΔW).
        svd_rank: for ``"svd"``; the smallest exact one of each layer when None.

    Raises:
        InputError: factors asked of a method that has none, or of different ranks; trained biases or modules, which a
            sum of ΔW cannot hold; NaN in an adapter.
    """
    for name, config in configs.items():
        if config.modules_to_save or config.trainable_token_indices:
            raise InputError(
                f"adapter {name!r} also trains whole modules or tokens, which cannot be summed: merge it"
            )
    factors: dict[str, Factors] = {}
    for name, layer in layers.items():
        own = [adapter for adapter in weights if adapter in layer.eckart_adapters]
        if own:
            _check(name, layer, own, combination_type)
            with torch.no_grad():
                pieces = {adapter: weights[adapter] for adapter in own}
                factors[name] = _sum(layer, pieces, combination_type, svd_rank)
    most = max(len(a) for a, _ in factors.values())
    stacks = sorted({layer.shape.stack for name, layer in layers.items() if name in factors} - {""})
    names = [re.escape(name) for name in factors if not layers[name].shape.stack]
    lora = ADAPTERS["lora"](
        target_modules="|".join(names) if names else set(),
        target_parameters=stacks or None,
        task_type=next(iter(configs.values())).task_type,
        base_model_name_or_path=next(iter(configs.values())).base_model_name_or_path,
        rank_pattern={re.escape(name): len(a) for name, (a, _) in factors.items() if len(a) != most} or None,
        **cast(Any, {"r": most, "lora_alpha": float(most)}),
    )
    return lora, {name: (a, b * (len(a) / most)) for name, (a, b) in factors.items()}


def _check(name: str, layer: AdaptedWeight, own: Sequence[str], combination_type: str) -> None:
    for adapter in own:
        if layer.adapter(adapter).delta_bias() is not None:
            raise InputError(
                f"adapter {adapter!r} moves the bias of layer {name}, which a LoRA cannot hold: merge it"
            )
        if combination_type != "svd" and not isinstance(layer.adapter(adapter), LowRankAdapter):
            raise InputError(
                f"combination_type {combination_type!r} needs two factors, and {adapter!r} is "
                f"{layer.configs[adapter].slug}: give 'svd'"
            )


def _sum(
    layer: AdaptedWeight, weights: Mapping[str, float], combination_type: str, svd_rank: int | None
) -> Factors:
    low = {name: cast(LowRankAdapter, layer.adapter(name)) for name in weights}
    highest = layer.shape.max_rank
    if combination_type == "linear":
        ranks = {name: adapter.factor_rank for name, adapter in low.items()}
        if len(set(ranks.values())) > 1:
            raise InputError(
                f"combination_type 'linear' needs one rank, and layer {layer.shape.name} has {ranks}: "
                "give 'cat' or 'svd'"
            )
    if combination_type != "svd" and (
        combination_type == "linear" or sum(adapter.factor_rank for adapter in low.values()) <= highest
    ):
        pairs = []
        for name, adapter in low.items():
            a, b = adapter.factors()
            a = a if adapter.active is None else a * adapter.active.to(a.dtype).unsqueeze(1)
            share = weights[name] * layer.scaling[name] * adapter.scale
            root = math.sqrt(abs(share))
            pairs.append((a * math.copysign(root, share), b * root))
        if combination_type == "linear":
            return sum(a for a, _ in pairs), sum(b for _, b in pairs)  # type: ignore[return-value]
        return torch.cat([a for a, _ in pairs]), torch.cat([b for _, b in pairs], 1)
    delta = cast(Tensor, sum(w * layer.get_delta_weight(name) for name, w in weights.items()))
    if not torch.isfinite(delta).all():
        raise InputError(f"an adapter of layer {layer.shape.name} holds NaN or Inf: it cannot be combined")
    u, s, vh = svd_within(layer.op.to_matrix(delta), _EXACT)
    kept = max(min(s.numel(), svd_rank or s.numel()), 1)
    if not s.numel():
        return delta.new_zeros(1, vh.shape[1]), delta.new_zeros(u.shape[0], 1)
    sigma = s[:kept].sqrt()
    return (sigma.unsqueeze(1) * vh[:kept]).to(delta.dtype), (u[:, :kept] * sigma).to(delta.dtype)
