"""Real transformers models of a few thousand numbers, a tokenizer of twenty words, and texts of these words."""

from __future__ import annotations

import csv
import random
from pathlib import Path
from typing import Any

import torch
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    BertModel,
    GPT2Config,
    GPT2LMHeadModel,
    MixtralConfig,
    MixtralForCausalLM,
    PreTrainedTokenizerFast,
    ResNetConfig,
    ResNetModel,
    SegformerConfig,
    SegformerForSemanticSegmentation,
    SegformerModel,
    ViTConfig,
    ViTImageProcessor,
    ViTModel,
)

GOOD, BAD = ["good", "fine", "great", "lovely"], ["bad", "poor", "awful", "dull"]
NEUTRAL = ["the", "a", "film", "book", "was", "is", "very", "not", "and", "but", "so", "long"]
WORDS = [*GOOD, *BAD, *NEUTRAL]


def bert_config(**options: Any) -> BertConfig:
    shape = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 24}
    return BertConfig(**({"vocab_size": 40, "max_position_embeddings": 128} | shape | options))


def gpt2_config(**options: Any) -> GPT2Config:
    shape = {"n_positions": 128, "n_embd": 16, "n_layer": 1, "n_head": 2}
    return GPT2Config(**({"vocab_size": 40} | shape | options))


def save_tokenizer(
    directory: Path, *, pad: str | None = "[PAD]", framed: bool = False
) -> PreTrainedTokenizerFast:
    """Words are tokens; ``framed`` puts [CLS] before and [SEP] behind a text."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors, trainers

    special = ["[UNK]", "[EOS]", "[CLS]", "[SEP]"] + (["[PAD]"] if pad == "[PAD]" else [])
    tokenizer = Tokenizer(models.WordLevel(unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.train_from_iterator([" ".join(WORDS)], trainers.WordLevelTrainer(special_tokens=special))
    if framed:
        tokens = [(token, tokenizer.token_to_id(token)) for token in ("[CLS]", "[SEP]")]
        tokenizer.post_processor = processors.TemplateProcessing(
            single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1", special_tokens=tokens
        )
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        unk_token="[UNK]",
        eos_token="[EOS]",
        pad_token=pad,
        model_max_length=128,
    )
    fast.save_pretrained(directory)
    return fast


def save_bert(directory: Path, *, head: bool = False, trained_pooler: bool = False, **options: Any) -> Path:
    """A pooler whose bias is zero has never been trained, and a task takes it for its head's."""
    torch.manual_seed(0)
    config = bert_config(**options)
    model = BertForSequenceClassification(config) if head else BertModel(config)
    if trained_pooler:
        torch.nn.init.normal_(model.get_submodule("bert.pooler" if head else "pooler").dense.bias)
    model.save_pretrained(directory)
    save_tokenizer(directory, framed=True)
    return directory


def save_gpt2(directory: Path, *, pad: str | None = None) -> Path:
    """Its output embedding is its input embedding."""
    torch.manual_seed(0)
    GPT2LMHeadModel(gpt2_config()).save_pretrained(directory)
    save_tokenizer(directory, pad=pad)
    return directory


def save_mixtral(directory: Path) -> Path:
    """Its experts are two parameters of a layer."""
    torch.manual_seed(0)
    shape = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 24}
    config = MixtralConfig(vocab_size=40, num_key_value_heads=2, num_local_experts=4, **shape)
    MixtralForCausalLM(config).save_pretrained(directory)
    save_tokenizer(directory)
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


def save_reviews(path: Path, rows: int = 160) -> Path:
    """Sentences with a label that one of their words gives away, as CSV."""
    draw = random.Random(0)
    with path.open("w", newline="") as file:
        table = csv.writer(file)
        table.writerow(["text", "label"])
        for i in range(rows):
            good = i % 2 == 0
            words = draw.choices(NEUTRAL, k=6)
            words.insert(draw.randrange(6), draw.choice(GOOD if good else BAD))
            table.writerow([f"{' '.join(words)} {i}", "positive" if good else "negative"])
    return path


def save_segformer(directory: Path, *, classes: int | None = None) -> Path:
    """The encoder alone; with ``classes`` also a decoder that gives so many."""
    torch.manual_seed(0)
    config = SegformerConfig(
        num_encoder_blocks=2,
        depths=[1, 1],
        sr_ratios=[2, 1],
        hidden_sizes=[8, 16],
        patch_sizes=[3, 3],
        strides=[2, 2],
        num_attention_heads=[1, 2],
        mlp_ratios=[2, 2],
        decoder_hidden_size=8,
        image_size=16,
        num_labels=classes or 2,
    )
    model = SegformerModel(config) if classes is None else SegformerForSemanticSegmentation(config)
    model.save_pretrained(directory)
    return directory
