"""The kinds of compressed layers by name, and layers built from their specs."""

from __future__ import annotations

import torch

from eckart.compression._convolutions import DecoupledConv2d, FactorizedConv2d
from eckart.compression._layers import CompressedLayer, FactorizedEmbedding, FactorizedLinear, Spec
from eckart.errors import InputError, first_line

KINDS: dict[str, type[CompressedLayer]] = {
    layer.kind: layer for layer in (FactorizedLinear, FactorizedEmbedding, FactorizedConv2d, DecoupledConv2d)
}


def build_layer(
    spec: Spec, device: torch.device | None = None, dtype: torch.dtype | None = None
) -> CompressedLayer:
    """The layer that a spec describes, its numbers not yet set.

    Raises:
        InputError: a kind that this version does not know, or a spec that is none.
    """
    kind = KINDS.get(str(spec.get("kind")))
    if kind is None:
        raise InputError(
            f"layer kind {spec.get('kind')!r} is not known: known are {', '.join(KINDS)}; upgrade eckart"
        )
    try:
        return kind.build(spec, device, dtype)
    except (TypeError, ValueError, RuntimeError, KeyError) as error:
        raise InputError(f"layer spec {spec} is damaged ({first_line(error)}): restore the config") from None
