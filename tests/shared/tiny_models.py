"""Real transformers models of a few thousand numbers, saved with a tokenizer trained on the spot."""

from __future__ import annotations

from pathlib import Path

import torch
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    BertModel,
    GPT2Config,
    GPT2LMHeadModel,
    PreTrainedTokenizerFast,
    ResNetConfig,
    ResNetModel,
    ViTConfig,
    ViTImageProcessor,
    ViTModel,
)

WORDS = [
    "good",
    "fine",
    "great",
    "lovely",
    "bad",
    "poor",
    "awful",
    "dull",
    "the",
    "a",
    "film",
    "book",
    "was",
    "is",
    "very",
    "not",
    "and",
    "but",
    "so",
]


def save_tokenizer(directory: Path, *, pad: bool = True) -> PreTrainedTokenizerFast:
    from tokenizers import Tokenizer, models, pre_tokenizers, trainers

    special = ["[UNK]", "[EOS]", "[CLS]", "[SEP]"] + (["[PAD]"] if pad else [])
    tokenizer = Tokenizer(models.WordLevel(unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.train_from_iterator([" ".join(WORDS)], trainers.WordLevelTrainer(special_tokens=special))
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        unk_token="[UNK]",
        eos_token="[EOS]",
        pad_token="[PAD]" if pad else None,
        model_max_length=32,
    )
    fast.save_pretrained(directory)
    return fast


def save_bert(directory: Path, *, head: bool = False, **options: object) -> Path:
    torch.manual_seed(0)
    shape = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
    config = BertConfig(vocab_size=40, max_position_embeddings=32, **shape, **options)
    model = BertForSequenceClassification(config) if head else BertModel(config)
    for name, parameter in model.named_parameters():
        if name.endswith("pooler.dense.bias"):
            torch.nn.init.normal_(parameter)
    model.save_pretrained(directory)
    save_tokenizer(directory)
    return directory


def save_gpt2(directory: Path, *, pad: bool = False) -> Path:
    torch.manual_seed(0)
    config = GPT2Config(vocab_size=40, n_positions=32, n_embd=16, n_layer=1, n_head=2)
    GPT2LMHeadModel(config).save_pretrained(directory)
    save_tokenizer(directory, pad=pad)
    return directory


def save_vit(directory: Path, *, processor: bool = True, channels: int = 3) -> Path:
    torch.manual_seed(0)
    shape = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
    config = ViTConfig(image_size=16, patch_size=8, num_channels=channels, **shape)
    ViTModel(config, add_pooling_layer=False).save_pretrained(directory)
    if processor:
        ViTImageProcessor(
            size={"height": 16, "width": 16}, image_mean=[0.4, 0.5, 0.6], image_std=[0.2, 0.25, 0.5]
        ).save_pretrained(directory)
    return directory


def save_resnet(directory: Path) -> Path:
    torch.manual_seed(0)
    config = ResNetConfig(embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1], layer_type="basic")
    ResNetModel(config).save_pretrained(directory)
    return directory
