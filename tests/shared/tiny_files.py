"""Models and data small enough for a test, as the files a user would give: a BERT, a GPT-2 and labelled sentences."""

from __future__ import annotations

import csv
import random
from pathlib import Path

import torch
from transformers import (
    BertConfig,
    BertModel,
    BertTokenizerFast,
    GPT2Config,
    GPT2LMHeadModel,
    PreTrainedTokenizerFast,
)

GOOD, BAD = ["good", "great", "fine"], ["bad", "poor", "awful"]
WORDS = ["the", "film", "book", "was", "and", "a", "very", "long", *GOOD, *BAD]


def write_bert(folder: Path) -> Path:
    """An untrained two-layer BERT with a tokenizer of a dozen words."""
    torch.manual_seed(0)
    folder.mkdir(parents=True, exist_ok=True)
    vocabulary = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS]
    (folder / "vocab.txt").write_text("\n".join(vocabulary) + "\n")
    BertTokenizerFast(vocab=str(folder / "vocab.txt")).save_pretrained(folder)
    config = BertConfig(
        vocab_size=len(vocabulary),
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=24,
        max_position_embeddings=128,
    )
    BertModel(config).save_pretrained(folder)
    return folder


def write_gpt2(folder: Path) -> Path:
    """An untrained one-layer GPT-2, whose output embedding is its input embedding, with a tokenizer of words."""
    from tokenizers import Tokenizer, models, pre_tokenizers

    torch.manual_seed(0)
    tokenizer = Tokenizer(
        models.WordLevel({word: i for i, word in enumerate(["<unk>", "<eos>", *WORDS])}, "<unk>")
    )
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, unk_token="<unk>", eos_token="<eos>", pad_token="<eos>"
    ).save_pretrained(folder)
    config = GPT2Config(vocab_size=len(WORDS) + 2, n_layer=1, n_head=2, n_embd=16, n_positions=128)
    GPT2LMHeadModel(config).save_pretrained(folder)
    return folder


def write_reviews(path: Path, rows: int = 160) -> Path:
    """Sentences with a label that one of their words gives away, as CSV."""
    draw = random.Random(0)
    with path.open("w", newline="") as file:
        table = csv.writer(file)
        table.writerow(["text", "label"])
        for i in range(rows):
            good = i % 2 == 0
            words = draw.choices(WORDS[:8], k=6)
            words.insert(draw.randrange(6), draw.choice(GOOD if good else BAD))
            table.writerow([f"{' '.join(words)} {i}", "positive" if good else "negative"])
    return path
