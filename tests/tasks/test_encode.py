"""Texts and images as a model takes them."""

from __future__ import annotations

import torch
from task_checks import refuse, scores
from tiny_models import save_tokenizer, save_vit

from eckart.tasks.task import load_task


def test_rows_are_padded_to_the_longest_of_the_batch(task):
    rows = sorted(task.train, key=lambda row: len(row["input_ids"]))
    for some in (rows[:4], rows[-4:]):
        batch = task.collator(some)
        assert batch["input_ids"].shape == (4, max(len(row["input_ids"]) for row in some))
        assert batch["attention_mask"].sum(1).tolist() == [len(row["input_ids"]) for row in some]
        assert batch["labels"].tolist() == [row["labels"] for row in some]


def test_long_texts_are_tokenised_in_pieces_to_the_same_blocks(gpt2, corpus, monkeypatch):
    import eckart.tasks.encode as encode

    whole = load_task(gpt2, corpus, max_length=16)
    monkeypatch.setattr(encode, "PIECE", 100)
    pieces = load_task(gpt2, corpus, max_length=16)
    assert all(
        torch.equal(a["input_ids"], b["input_ids"]) for a, b in zip(whole.train, pieces.train, strict=True)
    )


def test_images_as_the_processor_of_the_model_would_have_them(tmp_path, pictures):
    from transformers import AutoImageProcessor

    task = load_task(save_vit(tmp_path), pictures)
    assert (task.kind, task.head_modules, task.default_targets) == (
        "image-classification",
        ["classifier"],
        "all-linear",
    )
    batch = task.collator([task.test[i] for i in range(4)])
    processor = AutoImageProcessor.from_pretrained(tmp_path)
    wanted = processor(task.data.splits["test"].inputs[:4], return_tensors="pt")["pixel_values"]
    torch.testing.assert_close(batch["pixel_values"], wanted)
    assert set(scores(task, task.fresh_model(0), [task.test[0]])) <= {0.0, 1.0}


def test_images_too_many_for_memory_are_resized_when_read(tmp_path, pictures, monkeypatch):
    import eckart.tasks.encode as encode

    kept = load_task(save_vit(tmp_path), pictures)
    monkeypatch.setattr(encode, "IMAGES_IN_MEMORY", 0)
    late = load_task(tmp_path, pictures)
    assert late.train.pixels is None
    assert all(torch.equal(kept.train[i]["pixel_values"], late.train[i]["pixel_values"]) for i in range(5))


def test_grey_model_without_a_processor(tmp_path, pictures):
    task = load_task(save_vit(tmp_path, processor=False, channels=1), pictures)
    batch = task.collator([task.test[0], task.test[1]])
    assert batch["pixel_values"].shape == (2, 1, 16, 16)
    assert -1 <= batch["pixel_values"].min() < 0 < batch["pixel_values"].max() <= 1
    assert task.fresh_model(0)(**batch).logits.shape == (2, 3)


def test_tokenizers_that_cannot_be_used(broken, reviews):
    (broken / "tokenizer.json").write_text("{}")
    refuse(broken, reviews, "tokenizer cannot be read")
    (broken / "tokenizer.json").unlink()
    refuse(broken, reviews, "has no tokenizer")
    save_tokenizer(broken).add_tokens([f"w{i}" for i in range(50)])
    larger = save_tokenizer(broken)
    larger.add_tokens([f"w{i}" for i in range(50)])
    larger.save_pretrained(broken)
    refuse(broken, reviews, f"{len(larger)} tokens", "the model 40")


def test_lengths_and_texts_that_do_not_fit(tmp_path, gpt2, reviews):
    refuse(gpt2, reviews, "--max-length 129", "2 to 128", max_length=129)
    refuse(gpt2, reviews, "--max-length 1", max_length=1)
    (tmp_path / "short.txt").write_text("a good film\n" * 20)
    refuse(gpt2, tmp_path / "short.txt", "validation", "less than one block of 16")
