"""Settings of the whole suite: no network, no threads of its own beside the workers."""

from __future__ import annotations

import gc
import os
import sys

import pytest

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")


@pytest.fixture(scope="module", autouse=True)
def short_collections() -> None:
    """Once transformers' Trainer is loaded: each training forces garbage collections, which are long with it."""
    if "transformers.trainer" in sys.modules and not gc.get_freeze_count():
        gc.collect()
        gc.freeze()
