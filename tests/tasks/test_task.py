"""Tasks from real models: what every method shares, and scores that mean what they say."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from task_checks import refuse, scores

from eckart.tasks.task import load_task


def test_embedded_task(embedded):
    assert embedded.kind == "text-classification"
    assert embedded.labels == ["acts", "returns"]
    assert embedded.head_modules == ["classifier", "bert.pooler.dense"]
    assert embedded.base.head_parameters == 384 * 384 + 384 + 384 * 2 + 2
    model = embedded.fresh_model(0)
    assert (
        sum(p.numel() for p in model.parameters())
        == embedded.base.base_parameters + embedded.base.head_parameters
    )
    assert model.config.id2label[0] == embedded.labels[0]
    result = scores(embedded, model, [embedded.test[i] for i in range(24)])
    assert set(result) <= {0.0, 1.0}
    described = embedded.describe()
    assert described["sizes"] == {"train": 24, "validation": 24, "test": 24}
    assert sum(described["label_counts"]["train"].values()) == 24
    json.dumps(described)


def test_training_one_model_leaves_the_next_untouched(task):
    model = task.fresh_model(0)
    for parameter in model.parameters():
        parameter.data.add_(1)
    fresh = task.fresh_model(0)
    assert not any(torch.equal(a, b) for a, b in zip(model.parameters(), fresh.parameters(), strict=True))


def test_splits_are_disjoint(task):
    texts = [set(task.data.splits[part].inputs) for part in ("train", "validation", "test")]
    assert sum(len(getattr(task, part)) for part in ("train", "validation", "test")) == 60
    assert not texts[0] & texts[2]


def test_fingerprint_tells_model_data_and_options_apart(tmp_path, task, bert, reviews):
    assert load_task(bert, reviews, max_length=16).fingerprint == task.fingerprint
    shutil.copytree(bert, tmp_path / "moved")
    shutil.copy(reviews, tmp_path / "copy.jsonl")
    assert (
        load_task(tmp_path / "moved", tmp_path / "copy.jsonl", max_length=16).fingerprint == task.fingerprint
    )
    others = [
        load_task(bert, reviews, max_length=15),
        load_task(bert, reviews, max_length=16, seed=1),
        load_task(bert, reviews, max_length=16, limits={"train": 10}),
    ]
    weights = load_file(tmp_path / "moved" / "model.safetensors")
    weights["embeddings.LayerNorm.bias"][0] += 1e-3
    save_file(weights, tmp_path / "moved" / "model.safetensors", {"format": "pt"})
    others.append(load_task(tmp_path / "moved", reviews, max_length=16))
    assert len({task.fingerprint, *(other.fingerprint for other in others)}) == 5


def test_adapter_and_head_are_saved_and_come_back(tmp_path, bert, reviews):
    from peft import LoraConfig, PeftModel, get_peft_model

    weights = load_file(bert / "model.safetensors")
    weights["pooler.dense.bias"].zero_()
    shutil.copytree(bert, tmp_path / "bert")
    save_file(weights, tmp_path / "bert" / "model.safetensors", {"format": "pt"})
    task = load_task(tmp_path / "bert", reviews, max_length=16)
    assert task.head_modules == ["classifier", "bert.pooler.dense"]
    config = LoraConfig(
        r=2, target_modules=task.default_targets, modules_to_save=task.head_modules, init_lora_weights=False
    )
    model = get_peft_model(task.fresh_model(0), config)
    trained = sum(p.numel() for n, p in model.named_parameters() if p.requires_grad and "lora_" not in n)
    assert trained == task.base.head_parameters
    batch = task.collator([task.test[i] for i in range(4)])
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.5)
    model(**batch).loss.backward()
    optimizer.step()
    model.save_pretrained(tmp_path / "adapter")
    with torch.no_grad():
        wanted = model.eval()(**batch).logits
        found = PeftModel.from_pretrained(task.fresh_model(9), tmp_path / "adapter").eval()(**batch).logits
    assert torch.equal(wanted, found)


def test_language_model_blocks_and_bits(gpt2, corpus):
    task = load_task(gpt2, corpus, max_length=16, limits={"train": 20})
    assert (task.kind, task.metric, task.greater_is_better) == ("causal-lm", "bits_per_token", False)
    assert task.head_modules == []
    assert len(task.train) == 20
    words = Path(corpus).read_text().split()
    assert sum(len(getattr(task, part)) for part in ("validation", "test")) == 2 * (len(words) // 10 // 16)
    assert task.processor.decode(task.test[-1]["input_ids"]) in " ".join(words)
    model = task.fresh_model(0)
    rows = [task.test[i] for i in range(3)]
    found = scores(task, model, rows)
    with torch.no_grad():
        for row, score in zip(rows, found, strict=True):
            logits = model(input_ids=row["input_ids"][None]).logits[0, :-1]
            chosen = logits.log_softmax(-1)[torch.arange(15), row["input_ids"][1:]]
            assert score == pytest.approx(-chosen.mean().item() / math.log(2), rel=1e-5)
    uniform = SimpleNamespace(logits=torch.zeros(2, 4, 32))
    found = task.outcomes(uniform, {"labels": torch.ones(2, 4, dtype=torch.long)})
    assert task.scores(found)[0].tolist() == pytest.approx([5, 5])


def test_language_model_on_rows_joins_them_by_the_end_token(gpt2, reviews):
    task = load_task(gpt2, reviews, kind="causal-lm", max_length=8)
    assert task.labels is None
    tokens = torch.cat([row["input_ids"] for row in task.train])
    assert (tokens == task.processor.eos_token_id).sum() > 30


def test_scores_of_classes_and_of_a_run_that_diverged(task):
    outputs = SimpleNamespace(logits=torch.tensor([[1.0, 2], [2, 1], [math.nan, 1], [math.inf, 1]]))
    result, _ = task.scores(task.outcomes(outputs, {"labels": torch.tensor([1, 1, 0, 0])}))
    assert result[:2].tolist() == [1, 0]
    assert np.isnan(result[2:]).all()


def test_kinds_that_do_not_suit_the_data(gpt2, reviews, corpus, pictures):
    refuse(gpt2, reviews, "--kind vision", "causal-lm", kind="vision")
    refuse(gpt2, reviews, "--kind image-classification", "text-classification", kind="image-classification")
    refuse(gpt2, pictures, "images without labels", kind="causal-lm")
    refuse(gpt2, corpus, "--label-column", kind="text-classification")


def test_the_trivial_predictor_looks_at_no_input(task, gpt2, corpus, embedded):
    name, right = task.trivial()
    labels = task.data.splits["train"].labels
    most = max(set(labels), key=labels.count)
    assert name == "majority class"
    assert list(right) == [float(label == most) for label in task.data.splits["test"].labels]
    assert task.groups is None and len(embedded.groups) == len(embedded.test)
    text = load_task(gpt2, corpus, max_length=16)
    name, bits = text.trivial()
    counts = np.ones(text.base.model.config.vocab_size)
    for block in text.train:
        np.add.at(counts, np.asarray(block["labels"])[1:], 1)
    first = -np.log2(counts / counts.sum())[np.asarray(text.test[0]["labels"])[1:]].mean()
    assert (name, len(bits), text.groups) == ("unigram", len(text.test), None)
    assert bits[0] == pytest.approx(first)
    by_token = load_task(gpt2, corpus, max_length=16, metric="token_accuracy")
    most_frequent = [(np.asarray(block["labels"])[1:] == counts.argmax()).mean() for block in text.test]
    assert by_token.greater_is_better and by_token.trivial()[1].tolist() == most_frequent
    assert 0 < max(most_frequent) < 1


def test_text_is_scored_by_bits_and_by_its_tokens_that_are_right(gpt2, corpus):
    task = load_task(gpt2, corpus, max_length=16)
    model = task.fresh_model(0)
    ids = task.collator([task.test[i] for i in range(len(task.test))])["labels"]
    with torch.no_grad():
        logits = model(ids).logits
        logits[0, 3], logits[1, 5] = 0.0, 0.0
        logits[0, 3, ids[0, 4]], logits[1, 5, ids[1, 6]], logits[2, 2, 0] = 50.0, 50.0, math.nan
    outcomes = task.outcomes(SimpleNamespace(logits=logits), {"labels": ids})
    right = [
        sum(int(logits[i, t - 1].argmax()) == int(ids[i, t]) for t in range(1, 16)) for i in range(len(ids))
    ]
    assert outcomes[:, 1].tolist() == [15.0] * len(ids) and outcomes[:, 2].tolist() == right
    assert right[0] >= 1 and right[1] >= 1
    scores, also = task.scores(outcomes)
    assert np.flatnonzero(np.isnan(scores)).tolist() == [2]
    assert also == {"token_accuracy": pytest.approx(np.mean([r / 15 for r in right[:2] + right[3:]]))}
