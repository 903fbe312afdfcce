"""Kinds of tasks: regression, several labels, chat; what the loss is on, and scores that mean what they say."""

from __future__ import annotations

import json
import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from task_checks import refuse
from tiny_models import WORDS, save_gpt2

from eckart.data.chat import Conversation
from eckart.tasks.kinds.chat import IGNORED, encode_conversation, extractor, last_number, left_padded
from eckart.tasks.scoring import score_examples
from eckart.tasks.task import load_task

TEMPLATE = (
    "{% for m in messages %}{{ '[CLS]' + m['content'] + '[EOS]' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '[CLS]' }}{% endif %}"
)


def save(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.fixture(scope="module")
def questions(root: Path) -> Path:
    """What is asked in two words is answered by the second, then the first."""
    draw = np.random.default_rng(0)
    pairs = [draw.choice(WORDS, 2).tolist() for _ in range(40)]
    return save(root / "questions.jsonl", [{"question": f"{a} {b}", "answer": f"{b} {a}"} for a, b in pairs])


@pytest.fixture(scope="module")
def talker(root: Path) -> Path:
    """GPT-2 with a chat template."""
    directory = save_gpt2(root / "talker", pad="[PAD]")
    (directory / "chat_template.jinja").write_text(TEMPLATE)
    return directory


def test_the_loss_is_on_the_answer_and_its_end_alone(talker: Path, questions: Path) -> None:
    task = load_task(talker, questions, max_length=16)
    assert (task.kind, task.metric, task.greater_is_better) == ("chat", "bits_per_answer_token", False)
    row, conversation = task.train[0], task.data.splits["train"].inputs[0]
    decoded = task.processor.convert_ids_to_tokens(row["input_ids"])
    asked, answer = (message["content"].split() for message in conversation)
    assert decoded == ["[CLS]", *asked, "[EOS]", "[CLS]", *answer, "[EOS]"]
    trained = [token for token, label in zip(decoded, row["labels"], strict=True) if label != IGNORED]
    assert trained == [*answer, "[EOS]"]
    assert task.example().startswith("[CLS]") and task.example().endswith(f"[[{' '.join(answer)} [EOS]]]")
    assert any("not packed" in note for note in task.data.notes)


def test_bits_of_answers_are_those_of_the_model(talker: Path, questions: Path) -> None:
    task = load_task(talker, questions, max_length=16)
    model, rows = task.fresh_model(0), [task.test[i] for i in range(len(task.test))]
    bits, tokens = 0.0, 0
    for row in rows:
        with torch.no_grad():
            logs = model(torch.tensor([row["input_ids"]])).logits[0].log_softmax(-1)
        for place, label in enumerate(row["labels"]):
            if label != IGNORED:
                bits, tokens = bits - logs[place - 1, label].item() / math.log(2), tokens + 1
    found = score_examples(model, task, task.test, 3)
    assert found.scores.mean() == pytest.approx(bits / tokens, rel=1e-5)
    assert found.predictions is None and found.also == {}
    batch = task.collator(rows)
    assert batch["labels"].shape == batch["input_ids"].shape == batch["attention_mask"].shape
    name, trivial = task.trivial()
    assert name == "unigram" and 0 < trivial.mean() < 6


class Scripted(torch.nn.Module):
    """Generates the answers it is given, in the order of the prompts."""

    def __init__(self, told: dict[tuple[int, ...], list[int]], pad: int) -> None:
        super().__init__()
        self.told, self.pad, self.sizes = told, pad, []
        self.weight = torch.nn.Parameter(torch.zeros(1))

    def generate(self, input_ids: Any, attention_mask: Any, generation_config: Any) -> Any:
        assert not generation_config.do_sample
        self.sizes.append(len(input_ids))
        prompts = [tuple(row[mask > 0].tolist()) for row, mask in zip(input_ids, attention_mask, strict=True)]
        answers = [self.told[prompt] for prompt in prompts]
        longest = max(map(len, answers))
        return torch.cat(
            [input_ids, torch.tensor([a + [self.pad] * (longest - len(a)) for a in answers])], dim=1
        )


def test_exact_match_of_generated_answers(talker: Path, questions: Path) -> None:
    task = load_task(talker, questions, max_length=16, generate=3)
    assert any("3 test examples, compared by text" in note for note in task.data.notes)
    split, tokens = task.test, task.processor
    told = {
        tuple(prompt): tokens(answer if i != 1 else "not so")["input_ids"]
        for i, (prompt, answer) in enumerate(zip(split.prompts, split.answers, strict=True))
    }
    model = Scripted(told, tokens.pad_token_id)
    right = task.form.answered(model, split, 3, 2)
    assert right.tolist() == [1, 0, 1] and model.sizes == [2, 1]
    outcomes = np.array([[8.0, 2, math.nan]] * len(split))
    scores, also = task.scores(task.answered(model, split, outcomes.copy(), 2))
    assert scores.tolist() == [4.0] * len(split) and also == {"exact_match": pytest.approx(2 / 3)}
    beside = task.answered(model, task.validation, outcomes[: len(task.validation)].copy(), 2)
    assert np.isnan(beside[:, 2]).all(), "only test examples are answered beside"
    decided = load_task(talker, questions, max_length=16, metric="exact_match")
    scores, also = decided.scores(decided.answered(model, decided.test, outcomes.copy(), 2))
    assert scores.tolist() == [1, 0, *[1] * (len(split) - 2)]
    assert also == {"bits_per_answer_token": 4.0} and decided.greater_is_better


def test_a_real_model_answers_in_batches_as_alone(talker: Path, questions: Path) -> None:
    task = load_task(talker, questions, max_length=16)
    model = task.fresh_model(0)
    batch = left_padded([task.test.prompts[0], task.test.prompts[1][:2]], task.processor.pad_token_id)
    assert batch["attention_mask"][1].tolist() == [0] * (len(task.test.prompts[0]) - 2) + [1, 1]
    whole = task.form.answered(model, task.test, 4, 4)
    alone = task.form.answered(model, task.test, 4, 1)
    assert whole.tolist() == alone.tolist()


def test_what_is_compared_of_an_answer(talker: Path, root: Path) -> None:
    assert last_number("5 + 1,234.50 = #### -1,239.5.") == -1239.5
    assert last_number("none") is None
    assert extractor("text")("  The  End\n") == "the end"
    assert extractor("builtins:len")("abc") == 3
    rows = [{"prompt": "a film", "completion": f"so #### {i}"} for i in range(30)]
    task = load_task(talker, save(root / "sums.jsonl", rows), max_length=32)
    assert task.form.extract_name == "last-number"
    assert load_task(talker, root / "sums.jsonl", max_length=32, extract="text").form.extract_name == "text"
    refuse(talker, root / "sums.jsonl", "--extract words", "last-number or text", extract="words")
    refuse(talker, root / "sums.jsonl", "--extract none:x", extract="none:x")
    refuse(talker, root / "sums.jsonl", "--generate is for --kind chat", kind="causal-lm", generate=3)
    refuse(talker, root / "sums.jsonl", "--metric accuracy", "exact_match", metric="accuracy")


def test_long_conversations_are_cut_and_it_is_said(talker: Path, questions: Path) -> None:
    task = load_task(talker, questions, max_length=6)
    assert all(len(row["input_ids"]) == 6 for row in task.train.rows)
    assert any("train: 32 of 32 conversations are longer" in note for note in task.data.notes)
    refuse(talker, questions, "--max-length 4", "no answer", max_length=4)


def test_a_model_without_a_template(gpt2: Path, questions: Path) -> None:
    task = load_task(gpt2, questions, max_length=16)
    assert any("no chat template" in note for note in task.data.notes)
    asked, answer = (message["content"].split() for message in task.data.splits["train"].inputs[0])
    row = task.train[0]
    assert task.processor.convert_ids_to_tokens(row["input_ids"]) == [*asked, *answer, "[EOS]"]
    assert sum(label != IGNORED for label in row["labels"]) == 3


def test_each_answer_of_a_conversation_is_learnt(talker: Path, questions: Path) -> None:
    tokenizer = load_task(talker, questions, max_length=16).processor
    words: Conversation = [
        {"role": role, "content": word}
        for role, word in zip(["user", "assistant"] * 2, WORDS[:4], strict=True)
    ]
    ids, labels = encode_conversation(words, tokenizer)
    trained = tokenizer.convert_ids_to_tokens(
        [i for i, label in zip(ids, labels, strict=True) if label != IGNORED]
    )
    assert trained == [WORDS[1], "[EOS]", WORDS[3], "[EOS]"]
    tokenizer.chat_template = "{{ messages|length }}" + TEMPLATE
    with pytest.raises(ValueError, match="writes a message otherwise when others follow"):
        encode_conversation(words, tokenizer)


def test_regression_learns_scaled_numbers_and_scores_those_of_the_user(bert: Path, root: Path) -> None:
    draw = np.random.default_rng(0)
    rows = [
        {"sentence1": " ".join(draw.choice(WORDS, 3)), "sentence2": "so", "label": 100 + i / 2}
        for i in range(60)
    ]
    task = load_task(bert, save(root / "numbers.jsonl", rows), max_length=16)
    assert (task.kind, task.metric, task.labels) == ("regression", "pearson", None)
    scaled = [row["labels"] for row in task.train.rows]
    assert np.mean(scaled) == pytest.approx(0, abs=1e-9) and np.std(scaled) == pytest.approx(1)
    model = task.fresh_model(0)
    config = model.config
    assert (config.num_labels, config.problem_type) == (1, "regression")
    truth = config.label_mean + config.label_std * np.array(scaled)
    assert sorted(truth) == pytest.approx(sorted(task.data.splits["train"].labels))
    batch = task.collator([task.test[i] for i in range(4)])
    outputs = model(**batch)
    assert outputs.loss.item() == pytest.approx(((outputs.logits[:, 0] - batch["labels"]) ** 2).mean().item())
    wanted = config.label_mean + config.label_std * outputs.logits.detach()[:, 0].numpy()
    assert task.outcomes(outputs, batch)[:, 1] == pytest.approx(wanted, rel=1e-5)
    found = score_examples(model, task, task.test, 4)
    assert set(found.also) == {"spearman", "rmse"} and -1 <= found.scores.mean() <= 1
    assert task.trivial()[1].mean() == 0
    assert "→ 1" in task.example() and task.describe()["label_counts"] == {}
    lower = load_task(bert, root / "numbers.jsonl", max_length=16, metric="rmse")
    assert not lower.greater_is_better


def test_several_labels(bert: Path, root: Path) -> None:
    rows = [
        {"text": f"{WORDS[i % 16]} film", "label": [n for k, n in enumerate("ab") if i % (k + 2)]}
        for i in range(60)
    ]
    task = load_task(bert, save(root / "several.jsonl", rows), max_length=16)
    assert (task.kind, task.metric, task.labels) == ("multi-label", "label_accuracy", None)
    model = task.fresh_model(0)
    assert model.config.problem_type == "multi_label_classification" and model.config.id2label == {
        0: "a",
        1: "b",
    }
    batch = task.collator([task.test[i] for i in range(4)])
    assert batch["labels"].shape == (4, 2) and batch["labels"].dtype == torch.float32
    outputs = SimpleNamespace(logits=2 * batch["labels"] - 1)
    assert task.scores(task.outcomes(outputs, batch))[0].tolist() == [1.0] * 4
    found = score_examples(model, task, task.test, 4)
    assert set(found.also) == {"micro_f1", "macro_f1", "auroc", "subset_accuracy"}
    assert sum(task.describe()["label_counts"]["train"].values()) == sum(
        map(sum, task.data.splits["train"].labels)
    )
    assert 0.4 < task.trivial()[1].mean() < 1


def test_other_scores_of_classes_stand_beside_the_one_that_decides(bert: Path, reviews: Path) -> None:
    task = load_task(bert, reviews, max_length=16, metric="mcc")
    found = score_examples(task.fresh_model(0), task, task.test, 8)
    assert task.metric == "mcc" and set(found.also) == {"accuracy", "macro_f1", "auroc"}
    assert task.trivial()[1].mean() == 0
    own = load_task(bert, reviews, max_length=16, metric="sklearn.metrics:balanced_accuracy_score")
    assert own.metric == "balanced_accuracy_score" and own.trivial()[1].mean() == pytest.approx(0.5)
    refuse(bert, reviews, "--metric pearson", "macro_f1", metric="pearson")
    refuse(bert, reviews, "--extract is for --kind chat", extract="text")
