"""A random rotation of the feature space."""

from __future__ import annotations

import torch
from torch import Tensor


def rotation(d: int, seed: int) -> Tensor:
    gaussian = torch.randn(d, d, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    return torch.linalg.qr(gaussian).Q
