"""Token classification: tags on first tokens, entity F₁ from its definition, and scores of sentences."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from task_checks import refuse
from tiny_models import BAD, GOOD, WORDS

from eckart.tasks.kinds.chat import IGNORED
from eckart.tasks.kinds.tokens import first_tokens
from eckart.tasks.scoring import score_examples
from eckart.tasks.task import load_task


def write(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def tagged(words: list[str]) -> list[str]:
    """Praise and blame; two of a kind in a row are one entity."""
    kinds = ["P" if word in GOOD else "B" if word in BAD else "" for word in words]
    return [
        f"{'I' if i and kinds[i - 1] == kind else 'B'}-{kind}" if kind else "O"
        for i, kind in enumerate(kinds)
    ]


@pytest.fixture(scope="module")
def sentences(root: Path) -> Path:
    draw = np.random.default_rng(0)
    texts = [draw.choice(WORDS, 3 + i % 4).tolist() for i in range(60)]
    return write(root / "tags.jsonl", [{"tokens": words, "ner_tags": tagged(words)} for words in texts])


def test_first_tokens_have_the_tags() -> None:
    #        [CLS]  New    ##er   York   a blank  it's   [SEP]
    offsets = [(0, 0), (0, 3), (3, 5), (5, 10), (10, 11), (11, 13), (13, 15), (0, 0)]
    assert first_tokens(["Newer", "York", "it's"], [4, 5, 6], offsets) == [
        IGNORED, 4, IGNORED, 5, IGNORED, 6, IGNORED, IGNORED]  # fmt: skip
    assert first_tokens(["a", "b"], [1, 2], [(0, 1)]) == [1]


def test_examples(bert: Path, sentences: Path) -> None:
    task = load_task(bert, sentences, max_length=16)
    assert (task.kind, task.metric, task.labels) == ("token-classification", "entity_f1", None)
    assert task.data.labels == ["O", "B-B", "I-B", "B-P", "I-P"]
    split, row = task.data.splits["train"], task.train[0]
    assert row["labels"] == [IGNORED, *split.labels[0], IGNORED]
    batch = task.collator([task.train[i] for i in range(4)])
    assert batch["labels"].shape == batch["input_ids"].shape
    model = task.fresh_model(0)
    assert model.config.id2label[1] == "B-B" and task.head_modules == ["classifier"]
    outputs = model(**batch)
    wanted = F.cross_entropy(outputs.logits.transpose(1, 2), batch["labels"], ignore_index=IGNORED)
    assert outputs.loss.item() == pytest.approx(wanted.item(), rel=1e-5)
    counts = task.describe()["label_counts"]["train"]
    assert sum(counts.values()) == sum(map(len, split.inputs)) and counts["B-P"] > 0
    first = " ".join(word if not tag else f"{word}/{task.data.labels[tag]}"
                     for word, tag in zip(split.inputs[0], split.labels[0], strict=True))  # fmt: skip
    assert task.example() == first


def say(task: Any, batch: Any, tags: list[list[str]]) -> Any:
    """Outputs of a model that says these tags of the words."""
    said = torch.zeros(*batch["labels"].shape, len(task.data.labels))
    for row, own in enumerate(tags):
        places = (batch["labels"][row] != IGNORED).nonzero()[:, 0]
        for place, tag in zip(places, own, strict=True):
            said[row, place, task.data.labels.index(tag)] = 1
    return SimpleNamespace(logits=said)


def test_f1_is_of_whole_entities(bert: Path, root: Path) -> None:
    rows = [{"tokens": ["the", "good", "film", "was", "bad"], "ner_tags": ["O", "B-P", "I-P", "O", "B-B"]}]
    task = load_task(bert, write(root / "one.jsonl", rows * 30), max_length=16)
    batch = task.collator([task.test[0], task.test[1]])
    said = [["O", "B-P", "I-P", "O", "O"], ["O", "B-P", "O", "O", "B-B"]]  # one missed; one with a wrong end
    outcomes = task.outcomes(say(task, batch, said), batch)
    assert outcomes.tolist() == [[4, 5, 0, 0, 1, 1, 1, 1], [4, 5, 1, 1, 1, 0, 1, 1]]
    scores, also = task.scores(outcomes)
    assert scores.mean() == pytest.approx(2 * 2 / (3 + 4))
    assert also == {
        "entity_macro_f1": pytest.approx((2 * 1 / 3 + 2 * 1 / 4) / 2),
        "token_accuracy": pytest.approx(0.8),
    }
    right = task.outcomes(say(task, batch, [rows[0]["ner_tags"]] * 2), batch)
    assert task.scores(right)[0].tolist() == [1, 1]
    assert task.scores(task.outcomes(say(task, batch, [["O"] * 5] * 2), batch))[0].tolist() == [0, 0]


def test_sentences_that_are_scored_alone_are_scored_as_in_a_batch(bert: Path, sentences: Path) -> None:
    task = load_task(bert, sentences, max_length=16, metric="token_accuracy")
    model = task.fresh_model(0)
    one, other = (score_examples(model, task, task.test, size) for size in (1, 6))
    assert one.scores == pytest.approx(other.scores) and set(one.also) == {"entity_f1", "entity_macro_f1"}
    hits = total = 0
    for i in range(len(task.test)):
        row = task.test[i]
        with torch.no_grad():
            said = model(torch.tensor([row["input_ids"]])).logits[0].argmax(-1).tolist()
        pairs = [(a, b) for a, b in zip(said, row["labels"], strict=True) if b != IGNORED]
        hits, total = hits + sum(a == b for a, b in pairs), total + len(pairs)
    assert one.scores.mean() == pytest.approx(hits / total)
    model.classifier.bias.data[:] = float("nan")
    assert np.isnan(score_examples(model, task, task.test, 4).scores).all()


def test_trivial_predictor(bert: Path, sentences: Path) -> None:
    task = load_task(bert, sentences, max_length=16)
    name, scores = task.trivial()
    assert name == "most frequent tag" and scores.tolist() == [0] * len(task.test)
    accuracy = load_task(bert, sentences, max_length=16, metric="token_accuracy")
    tags = [tag for tags in task.data.splits["test"].labels for tag in tags]
    assert accuracy.trivial()[1].mean() == pytest.approx(tags.count(0) / len(tags))


def test_tags_that_mark_no_entities(bert: Path, root: Path) -> None:
    draw = np.random.default_rng(1)
    texts = [draw.choice(WORDS, 4).tolist() for _ in range(60)]
    rows = [
        {"tokens": words, "upos": ["ADJ" if word in GOOD + BAD else "X" for word in words]} for words in texts
    ]
    task = load_task(bert, write(root / "upos.jsonl", rows), max_length=16)
    assert (task.metric, list(task.form.metrics)) == ("token_accuracy", ["token_accuracy", "macro_f1"])
    assert any("mark no entities" in note for note in task.data.notes)
    batch = task.collator([task.test[0]])
    words = task.data.splits["test"].inputs[0]
    outcomes = task.outcomes(say(task, batch, [["ADJ"] * 4]), batch)
    there = sum(word in GOOD + BAD for word in words)
    assert task.data.labels == ["ADJ", "X"] and outcomes.tolist() == [
        [there, 4, there, 4, there, 0, 0, 4 - there]
    ]
    refuse(bert, root / "upos.jsonl", "--metric entity_f1", "token_accuracy, macro_f1", metric="entity_f1")


def test_words_beyond_the_length_are_told(bert: Path, sentences: Path, root: Path) -> None:
    task = load_task(bert, sentences, max_length=5)
    assert all(len(row["input_ids"]) <= 5 for row in task.train.rows)
    words = task.data.splits["train"].inputs
    lost = sum(max(0, len(own) - 3) for own in words)
    assert any(
        note.startswith(f"train: {lost} of {sum(map(len, words))} words have no token")
        for note in task.data.notes
    )
    refuse(bert, sentences, "--max-length 2: no word of the train split", max_length=2)


def test_what_does_not_suit_is_refused(bert: Path, reviews: Path, sentences: Path, pictures: Path) -> None:
    refuse(
        bert, reviews, "--kind token-classification: no column of lists of words", kind="token-classification"
    )
    refuse(
        bert,
        sentences,
        "an example of token-classification has no single label",
        metric="sklearn.metrics:f1_score",
    )
    refuse(bert, None, "--data is left out", kind="token-classification")
