"""Forgetting: bits of a general text before and after, on blocks that lie evenly over it."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from task_checks import refuse
from tiny_models import WORDS

from eckart.tasks import forgetting
from eckart.tasks.forgetting import bits_before, bits_of, forgotten
from eckart.tasks.task import load_task


@pytest.fixture(scope="module")
def general(root: Path) -> Path:
    draw = np.random.default_rng(5)
    path = root / "general.txt"
    path.write_text("".join(" ".join(draw.choice(WORDS, 9)) + "\n" for _ in range(30)))
    return path


def test_bits_are_those_of_the_model(gpt2: Path, corpus: Path, general: Path) -> None:
    task = load_task(gpt2, corpus, max_length=16, also=str(general))
    assert task.general is not None and len(task.general.blocks) == 270 // 16
    model = task.fresh_model(0)
    ids = torch.tensor(task.processor(general.read_text(), add_special_tokens=False)["input_ids"])
    nats = []
    with torch.no_grad():
        for block in ids[: 16 * 16].view(16, 16):
            logs = model(block[None]).logits[0].log_softmax(-1)
            nats.append(-logs[torch.arange(15), block[1:]].mean().item())
    wanted = np.mean(nats) / math.log(2)
    assert bits_of(model.train(), task.general) == pytest.approx(wanted, rel=1e-5) and model.training
    state = torch.random.get_rng_state()
    before = bits_before(task)
    assert torch.equal(state, torch.random.get_rng_state()), "it draws nothing"
    assert before == pytest.approx(wanted, rel=1e-5)
    with torch.no_grad():
        model.transformer.wte.weight *= 0.0
    found = forgotten(task, before, model)["forgetting"]
    assert found["text"] == "general.txt" and found["before"] == before
    assert found["after"] == pytest.approx(math.log2(40), rel=1e-5)
    assert found["bits_per_token"] == pytest.approx(found["after"] - before)


def test_blocks_lie_evenly_over_a_long_text(gpt2: Path, corpus: Path, general: Path, monkeypatch) -> None:
    monkeypatch.setattr(forgetting, "TOKENS", 64)
    task = load_task(gpt2, corpus, max_length=16, also=str(general))
    whole = torch.tensor(
        task.processor(general.read_text(), add_special_tokens=False)["input_ids"][:256]
    ).view(16, 16)
    assert torch.equal(task.general.blocks, whole[[0, 5, 10, 15]])
    assert any("general.txt: 4 blocks of 16 tokens of 16, evenly" in note for note in task.data.notes)


def test_the_text_is_part_of_what_a_task_is(gpt2: Path, corpus: Path, general: Path, root: Path) -> None:
    bare = load_task(gpt2, corpus, max_length=16)
    assert bare.general is None and bits_before(bare) is None and forgotten(bare, None, bare.base.model) == {}
    one = load_task(gpt2, corpus, max_length=16, also=str(general))
    other = root / "other.txt"
    other.write_text(general.read_text()[::-1])
    texts = root / "texts.jsonl"
    texts.write_text('{"text": "the film was good and long", "n": 1}\n' * 9)
    prints = {bare.fingerprint, one.fingerprint}
    for path in (other, texts):
        prints.add(load_task(gpt2, corpus, max_length=16, also=str(path)).fingerprint)
    assert len(prints) == 4


def test_what_cannot_be_measured_is_refused(
    gpt2: Path, bert: Path, corpus: Path, reviews: Path, general: Path
) -> None:
    also = str(general)
    refuse(bert, reviews, "--also is for language models (causal-lm, chat", "text-classification", also=also)
    refuse(gpt2, corpus, "--also none.txt: no such file", also="none.txt")
    short, empty, odd = (general.with_name(name) for name in ("short.txt", "empty.txt", "odd.csv"))
    short.write_text("so long")
    empty.write_text("")
    odd.write_text("a,b\nx,y\n")
    refuse(gpt2, corpus, f"--also {short}: the text has 2 tokens, less than one block of 16", also=str(short))
    refuse(gpt2, corpus, f"--also {empty}: is empty", also=str(empty))
    refuse(gpt2, corpus, f"--also {odd}: ", "cannot tell which column", also=str(odd))
