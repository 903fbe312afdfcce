"""Multiple choice: likelihoods of the choices, the loss on the right one alone, and scores that follow from them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from task_checks import refuse
from tiny_models import WORDS, save_gpt2

from eckart.tasks.kinds.chat import IGNORED
from eckart.tasks.scoring import score_examples, scoring_batch
from eckart.tasks.task import load_task


def write(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.fixture(scope="module")
def questions(root: Path) -> Path:
    """Three or four choices of one to three words."""
    draw = np.random.default_rng(0)
    rows = []
    for i in range(60):
        choices = [" ".join(draw.choice(WORDS, 1 + (i + j) % 3)) for j in range(3 + i % 2)]
        rows.append(
            {"ctx": " ".join(draw.choice(WORDS, 4)), "endings": choices, "label": (i // 3) % len(choices)}
        )
    return write(root / "choices.jsonl", rows)


@pytest.fixture(scope="module")
def reader(root: Path) -> Path:
    return save_gpt2(root / "reader", pad="[PAD]")


def likelihoods(model: Any, tokenizer: Any, context: str, choices: tuple[str, ...]) -> list[float]:
    """By hand: each choice alone, its tokens after those of the context."""
    start, found = len(context.split()), []
    for choice in choices:
        ids = torch.tensor([tokenizer(f"{context} {choice}", add_special_tokens=False)["input_ids"]])
        with torch.no_grad():
            logs = model(ids).logits[0].log_softmax(-1)
        found.append(sum(logs[place - 1, ids[0, place]].item() for place in range(start, ids.shape[1])))
    return found


def test_scores_are_those_of_likelihoods(reader: Path, questions: Path) -> None:
    task = load_task(reader, questions, max_length=16)
    assert (task.kind, task.metric, task.greater_is_better, task.labels) == (
        "multiple-choice",
        "accuracy",
        True,
        None,
    )
    model, split = task.fresh_model(0), task.data.splits["test"]
    told = [likelihoods(model, task.processor, context, choices) for context, choices in split.inputs]
    right = [float(np.argmax(own) == label) for own, label in zip(told, split.labels, strict=True)]
    by_letter = [
        float(np.argmax([value / len(choice) for value, choice in zip(own, choices, strict=True)]) == label)
        for own, (_, choices), label in zip(told, split.inputs, split.labels, strict=True)
    ]
    assert right != by_letter
    found = score_examples(model, task, task.test, 4)
    assert found.scores.tolist() == right and found.predictions is None
    assert found.also == {"accuracy_norm": pytest.approx(np.mean(by_letter))}
    normed = load_task(reader, questions, max_length=16, metric="accuracy_norm")
    assert score_examples(model, normed, normed.test, 3).scores.tolist() == by_letter
    batch = task.collator([task.test[i] for i in range(len(split))])
    outcomes = task.outcomes(model(**task.form.given(batch)), batch)
    assert outcomes.shape == (len(split), 9)
    for row, own, (_, choices) in zip(outcomes, told, split.inputs, strict=True):
        assert row[1 : 1 + len(own)] == pytest.approx(own, rel=1e-4)
        assert row[5 : 5 + len(own)].tolist() == [len(choice) for choice in choices]
        assert not row[1 + len(own) : 5].any() and not row[5 + len(own) :].any()


def test_the_loss_is_on_the_right_choice_alone(reader: Path, questions: Path) -> None:
    task = load_task(reader, questions, max_length=16)
    split = task.data.splits["train"]
    (context, choices), right = split.inputs[0], split.labels[0]
    row = task.train[0]
    assert task.processor.convert_ids_to_tokens(row["input_ids"]) == [
        *context.split(),
        *choices[right].split(),
    ]
    assert [label != IGNORED for label in row["labels"]] == [False] * 4 + [True] * len(choices[right].split())
    batch = task.collator([task.train[i] for i in range(4)])
    assert set(batch) == {"input_ids", "attention_mask", "labels"} and len(batch["input_ids"]) == 4
    model = task.fresh_model(0)
    scored = task.collator([task.test[i] for i in range(2)])
    test = task.data.splits["test"]
    assert len(scored["input_ids"]) == sum(len(choices) for _, choices in test.inputs[:2])
    own = [
        likelihoods(model, task.processor, context, (choices[right],))
        for (context, choices), right in zip(test.inputs[:2], test.labels[:2], strict=True)
    ]
    tokens = int((scored["labels"] != IGNORED).sum())
    assert model(**task.form.given(scored)).loss.item() == pytest.approx(-np.sum(own) / tokens, rel=1e-4)
    (context, choices), right, shown = split.inputs[0], split.labels[0], task.example()
    assert shown.startswith(f"{context} → {choices[right]}") and shown.endswith(f"(of {len(choices)})")


def test_trivial_predictor_and_metrics_of_the_user(reader: Path, questions: Path) -> None:
    task = load_task(reader, questions, max_length=16)
    name, scores = task.trivial()
    train, test = task.data.splits["train"], task.data.splits["test"]
    counts = np.bincount(train.labels, minlength=4)
    wanted = [float(np.argmax(counts[: len(choices)]) == label)
              for (_, choices), label in zip(test.inputs, test.labels, strict=True)]  # fmt: skip
    assert name == "most frequent place" and scores.tolist() == wanted
    own = load_task(reader, questions, max_length=16, metric="sklearn.metrics:accuracy_score")
    model = own.fresh_model(0)
    mine, theirs = (score_examples(model, t, t.test, 4).scores.mean() for t in (task, own))
    assert mine == pytest.approx(theirs)
    assert task.describe()["label_counts"] == {} and "3 to 4 choices for each example" in task.data.notes
    assert scoring_batch(task, 8) == 4096 // 16 // 4 and scoring_batch(task, 512) == 256


def test_logits_that_are_not_finite_score_nothing(reader: Path, questions: Path) -> None:
    task = load_task(reader, questions, max_length=16)
    model = task.fresh_model(0)
    model.transformer.wte.weight.data[:] = float("nan")
    assert np.isnan(score_examples(model, task, task.test, 4).scores).all()


def test_a_long_context_loses_its_beginning(reader: Path, questions: Path) -> None:
    task = load_task(reader, questions, max_length=5)
    split = task.data.splits["train"]
    for i, ((context, choices), right) in enumerate(zip(split.inputs, split.labels, strict=True)):
        words = [*context.split(), *choices[right].split()][-5:]
        assert task.processor.convert_ids_to_tokens(task.train[i]["input_ids"]) == words
    assert any(
        "the context loses its beginning" in note and note.startswith("train: ") for note in task.data.notes
    )
    refuse(
        reader,
        questions,
        "--max-length 3: a choice of the train split has 3 tokens; give 4 or more",
        max_length=3,
    )


def test_a_tokenizer_that_opens_texts_does_so(reader: Path, questions: Path, root: Path) -> None:
    from tiny_models import save_tokenizer

    directory = save_gpt2(root / "opening", pad="[PAD]")
    save_tokenizer(directory, framed=True)
    config = json.loads((directory / "tokenizer_config.json").read_text())
    (directory / "tokenizer_config.json").write_text(json.dumps(config | {"bos_token": "[CLS]"}))
    task = load_task(directory, questions, max_length=16)
    tokens = task.processor.convert_ids_to_tokens(task.train[0]["input_ids"])
    assert tokens[0] == "[CLS]" and "[SEP]" not in tokens
    cut = load_task(directory, questions, max_length=5)
    assert cut.processor.convert_ids_to_tokens(cut.train[0]["input_ids"]) == ["[CLS]", *tokens[-4:]]
    whole = load_task(directory, questions, max_length=4)
    for row in whole.train.rows:
        own = sum(label != IGNORED for label in row["labels"])
        first = whole.processor.convert_ids_to_tokens(row["input_ids"])[0]
        assert len(row["input_ids"]) == 4 and (first == "[CLS]") == (own < 3)


def test_models_and_data_that_do_not_suit_are_refused(
    bert: Path, reader: Path, reviews: Path, questions: Path
) -> None:
    refuse(bert, questions, "it is an encoder", kind="multiple-choice")
    refuse(reader, reviews, "--kind multiple-choice: no column of the choices", kind="multiple-choice")
    refuse(reader, None, "--data is left out", kind="multiple-choice")
    refuse(reader, questions, "--metric mcc", "accuracy, accuracy_norm", metric="mcc")
    refuse(reader, questions, "--generate is for --kind chat", generate=2)
