"""Settings of the adapter tests: one thread, few and repeatable hypothesis examples."""

from __future__ import annotations

import torch
from hypothesis import settings

settings.register_profile("adapters", max_examples=8, deadline=None, derandomize=True, database=None)
settings.load_profile("adapters")
torch.set_num_threads(1)
