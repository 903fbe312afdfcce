"""Tasks of lm-evaluation-harness, whose documents are here: the scores are those of the model's own likelihoods."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from task_checks import refuse
from tiny_models import WORDS

from eckart.jobs.adapt.finetuning import finetune
from eckart.tasks.scoring import score_examples
from eckart.tasks.task import load_task

DOCUMENTS = 12
YAML = """
task: {name}
dataset_path: json
dataset_kwargs:
  data_files: {{test: {documents}}}
test_split: test
output_type: multiple_choice
doc_to_text: "{{{{context}}}}"
doc_to_choice: "{{{{choices}}}}"
doc_to_target: "{{{{gold}}}}"
metric_list:
  - metric: acc
"""


@pytest.fixture(scope="module")
def question(root: Path) -> tuple[Path, list[dict]]:
    """A task in a file, and its documents: which of three words goes on with a few."""
    pytest.importorskip("lm_eval")
    draw = np.random.default_rng(3)
    folder = root / "harness"
    folder.mkdir()
    told = [
        {"context": " ".join(draw.choice(WORDS, 4)), "choices": list(draw.choice(WORDS, 3, replace=False))}
        for _ in range(DOCUMENTS)
    ]
    told = [
        {**one, "choices": [str(word) for word in one["choices"]], "gold": i % 3}
        for i, one in enumerate(told)
    ]
    documents = folder / "documents.jsonl"
    documents.write_text("".join(json.dumps(one) + "\n" for one in told))
    path = folder / "next.yaml"
    path.write_text(YAML.format(name="next", documents=documents))
    return path, told


def right(task, model, told: list[dict]) -> list[bool]:
    """Whether the likeliest of the words is the right one."""
    found = []
    for one in told:
        context = task.processor(one["context"], add_special_tokens=False)["input_ids"]
        sums = []
        for word in one["choices"]:
            rest = task.processor(f"{one['context']} {word}", add_special_tokens=False)["input_ids"][
                len(context) :
            ]
            with torch.no_grad():
                logs = model(torch.tensor([context + rest])).logits[0].log_softmax(-1)
            sums.append(sum(float(logs[len(context) - 1 + i, token]) for i, token in enumerate(rest)))
        found.append(int(np.argmax(sums)) == one["gold"])
    return found


def test_scores_are_those_of_the_models_likelihoods(gpt2: Path, corpus: Path, question, capfd) -> None:
    path, told = question
    for limit in (None, 5):
        task = load_task(gpt2, corpus, max_length=16, lm_eval=str(path), lm_eval_limit=limit)
        model = task.fresh_model(0).train()
        found = score_examples(model, task, task.test, 4).also
        assert model.training, "it is left as it was"
        wanted = pytest.approx(np.mean(right(task, model.eval(), told[:limit])))
        assert found["next.acc"] == wanted
        state = torch.random.get_rng_state(), np.random.get_state()[1].copy()
        capfd.readouterr()
        assert task.harness.scores(model, 2) == {"next.acc": wanted}
        assert capfd.readouterr() == ("", "")
        assert torch.equal(state[0], torch.random.get_rng_state()), "it draws nothing"
        assert (state[1] == np.random.get_state()[1]).all()
        assert "next.acc" not in score_examples(model, task, task.validation, 4).also


def test_what_decides_the_numbers_is_kept(gpt2: Path, corpus: Path, question, tmp_path: Path) -> None:
    path, _ = question
    asked = {"lm_eval": str(path), "lm_eval_limit": 3, "max_length": 16, "steps": 1, "budget": "20%"}
    told = finetune(str(gpt2), str(corpus), "lora", output=tmp_path / "out", **asked)
    assert told["test"]["also"]["next.acc"] in (0, 1 / 3, 2 / 3, 1), told


def test_tasks_that_cannot_be_had(gpt2: Path, corpus: Path, tmp_path: Path, monkeypatch) -> None:
    refuse(gpt2, corpus, "--lm-eval is for language models", kind="text-classification", lm_eval="arc_easy")
    refuse(gpt2, corpus, "--lm-eval-limit without --lm-eval", lm_eval_limit=3)
    refuse(gpt2, corpus, "lm_eval_limit is 0", lm_eval="arc_easy", lm_eval_limit=0)
    monkeypatch.setitem(sys.modules, "lm_eval", None)
    monkeypatch.setitem(sys.modules, "lm_eval.tasks", None)
    refuse(gpt2, corpus, "pip install 'eckart[lm-eval]'", max_length=16, lm_eval="arc_easy")
    monkeypatch.undo()
    pytest.importorskip("lm_eval")
    refuse(gpt2, corpus, "nowhere.yaml: no such file", max_length=16, lm_eval="nowhere.yaml")
    refuse(gpt2, corpus, "names no task", max_length=16, lm_eval=" , ")
    broken = tmp_path / "broken.yaml"
    broken.write_text(YAML.format(name="broken", documents=tmp_path / "none.jsonl"))
    refuse(gpt2, corpus, "broken.yaml cannot be had: ", max_length=16, lm_eval=str(broken))
