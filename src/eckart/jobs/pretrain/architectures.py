"""The models that can be trained from scratch: Llama's architecture in the sizes of the papers, or any config.json."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from eckart.errors import InputError

LLAMA: dict[str, tuple[int, int, int, int]] = {
    "llama-2m": (128, 344, 4, 4),
    "llama-6m": (256, 688, 6, 4),
    "llama-60m": (512, 1376, 8, 8),
    "llama-130m": (768, 2048, 12, 12),
    "llama-350m": (1024, 2736, 24, 16),
    "llama-1b": (2048, 5461, 24, 32),
    "llama-7b": (4096, 11008, 32, 32),
}
"""Width, width of the MLP, blocks, heads; from 60m on as in arXiv:2403.03507 and arXiv:2406.02214."""


def check_arch(arch: str) -> None:
    """Refuse what is neither a name of `LLAMA` nor a file.

    Raises:
        InputError: neither.
    """
    if arch not in LLAMA and not Path(arch).is_file():
        raise InputError(
            f"--arch {arch}: choose one of {', '.join(LLAMA)}, or give the path of a config.json"
        )


def config_of(arch: str, vocabulary: int, length: int, end: int) -> Any:
    """The transformers config of a model.

    Args:
        arch: a name of `LLAMA`, or the path of a config.json.
        vocabulary: of the tokenizer.
        length: tokens of a sequence.
        end: id of the end token.

    Raises:
        InputError: neither, a config of no causal language model, or whose vocabulary is smaller than the tokenizer's.
    """
    from huggingface_hub.errors import StrictDataclassError
    from transformers import CONFIG_MAPPING, MODEL_FOR_CAUSAL_LM_MAPPING, LlamaConfig

    if arch in LLAMA:
        width, inner, blocks, heads = LLAMA[arch]
        return LlamaConfig(
            vocab_size=vocabulary,
            hidden_size=width,
            intermediate_size=inner,
            num_hidden_layers=blocks,
            num_attention_heads=heads,
            max_position_embeddings=length,
            bos_token_id=end,
            eos_token_id=end,
            pad_token_id=end,
            tie_word_embeddings=arch in ("llama-2m", "llama-6m"),
            use_cache=False,
        )
    check_arch(arch)
    try:
        values = json.loads(Path(arch).read_text("utf-8"))
        kind = values.pop("model_type")
        config = CONFIG_MAPPING[kind].from_dict(values)
    except (UnicodeDecodeError, json.JSONDecodeError, KeyError, AttributeError, TypeError) as error:
        raise InputError(f"--arch {arch}: no config of a transformers model ({error})") from None
    except (StrictDataclassError, ValueError) as error:
        raise InputError(f"--arch {arch}: {' '.join(str(error).split())}") from None
    if type(config) not in MODEL_FOR_CAUSAL_LM_MAPPING:
        raise InputError(
            f"--arch {arch}: {kind} is no causal language model; give the config of one, such as llama"
        )
    if config.vocab_size < vocabulary:
        raise InputError(
            f"--arch {arch}: its vocabulary of {config.vocab_size} is smaller than the tokenizer's {vocabulary}"
        )
    return config
