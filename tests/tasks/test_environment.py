"""What numbers were made with is told as it is."""

from __future__ import annotations

import json
import os
import platform

import numpy as np
import torch

from eckart.tasks.environment import machine, versions


def test_versions_are_those_of_the_libraries_that_are_loaded() -> None:
    found = versions()
    assert found["python"] == platform.python_version()
    assert found["numpy"] == np.__version__ and torch.__version__.startswith(found["torch"])
    assert {"eckart", "transformers", "peft", "optuna"} <= found.keys()


def test_the_machine_is_told_in_plain_values() -> None:
    found = machine()
    assert json.loads(json.dumps(found)) == found
    assert found["threads"] > 0 and 0 < found["cores"] <= (os.cpu_count() or 1)
    assert found["memory_gb"] > 0.1 and found["cpu"] and found["system"].startswith(platform.system())
    assert ("gpu" in found) == torch.cuda.is_available()
