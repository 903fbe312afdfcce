"""Image segmentation: masks made as their images are, Dice and IoU from their definitions, heads of decoders."""

from __future__ import annotations

import io
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from task_checks import refuse
from tiny_models import save_segformer, save_vit

from eckart.data.masks import IGNORED
from eckart.tasks import encode
from eckart.tasks.scoring import score_examples
from eckart.tasks.task import load_task

DRAW = np.random.default_rng(0)
PIXELS = DRAW.integers(0, 256, (40, 12, 20, 3), np.uint8)
SHAPES = np.zeros((40, 12, 20), np.uint8)
for i in range(40):
    SHAPES[i, i % 5 : i % 5 + 6, i % 9 : i % 9 + 8] = 1 + i % 2
PIXELS[SHAPES > 0] //= 4


def png(pixels: np.ndarray) -> bytes:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


@pytest.fixture(scope="module")
def shapes(root: Path) -> Path:
    """Dark rectangles of two classes on a bright ground."""
    np.savez(root / "shapes.npz", images=PIXELS, masks=SHAPES)
    return root / "shapes.npz"


@pytest.fixture(scope="module")
def encoder(root: Path) -> Path:
    return save_segformer(root / "encoder")


def test_examples(encoder: Path, shapes: Path) -> None:
    task = load_task(encoder, shapes)
    assert (task.kind, task.metric, task.greater_is_better, task.labels) == (
        "segmentation",
        "dice",
        True,
        None,
    )
    assert list(task.form.metrics) == ["dice", "iou", "mean_iou", "pixel_accuracy"]
    row, mask = task.train[0], task.data.splits["train"].labels[0].pixels()
    assert row["pixel_values"].shape == (3, 16, 16) and row["labels"].shape == (16, 16)
    rows, columns = ((np.arange(16) * size + size // 2) // 16 for size in mask.shape)
    assert (row["labels"].numpy() == mask[np.ix_(rows, columns)]).mean() > 0.9, (
        "no other resizing, nor turned"
    )
    batch = task.collator([task.train[i] for i in range(3)])
    assert batch["labels"].dtype == torch.int64 and batch["labels"].shape == (3, 16, 16)
    model = task.fresh_model(0)
    assert model.config.id2label == {0: "0", 1: "1", 2: "2"}
    outputs = model(**batch)
    grown = F.interpolate(outputs.logits, size=(16, 16), mode="bilinear", align_corners=False)
    assert outputs.loss.item() == pytest.approx(F.cross_entropy(grown, batch["labels"]).item(), rel=1e-5)
    found = score_examples(model, task, task.test, 3)
    alone = score_examples(model, task, task.test, 1)
    assert found.scores == pytest.approx(alone.scores) and set(found.also) == {
        "iou",
        "mean_iou",
        "pixel_accuracy",
    }
    counts = task.describe()["label_counts"]["train"]
    assert sum(counts.values()) == 32 * 240 and counts["0"] > counts["1"]
    assert task.example().startswith("20×12 pixels → 0 8") and any(
        "background" in note for note in task.data.notes
    )


def outputs(said: np.ndarray, classes: int) -> Any:
    return SimpleNamespace(
        logits=F.one_hot(torch.as_tensor(said).long(), classes).permute(0, 3, 1, 2).float()
    )


def test_scores_follow_their_definitions(encoder: Path, shapes: Path) -> None:
    form = load_task(encoder, shapes).form
    truth = torch.tensor(
        [[[0, 0, 1, 1], [0, 2, 2, 2]], [[0, 0, 0, 0], [0, 0, 0, 0]], [[0, 0, 0, 0], [0, 0, 0, 0]]]
    )
    said = np.array(
        [[[0, 1, 1, 1], [0, 0, 2, 2]], [[0, 0, 0, 0], [0, 0, 0, 0]], [[0, 1, 0, 0], [0, 0, 0, 0]]]
    )
    outcomes = form.outcomes(outputs(said, 3), {"labels": truth})
    assert outcomes[0].tolist() == [6, 8, 2, 3, 3, 2, 3, 2, 2, 2, 3]
    dice, iou, mean_iou, accuracy = form.metrics.values()
    # classes 1 and 2: Dice 4/5 and 4/5, IoU 2/3 and 2/3; no class and none said is right; one said is wrong
    assert dice.scores(outcomes) == pytest.approx([0.8, 1, 0])
    assert iou.scores(outcomes) == pytest.approx([2 / 3, 1, 0])
    assert mean_iou.value(outcomes) == pytest.approx((17 / 20 + 2 / 4 + 2 / 3) / 3)
    assert accuracy.value(outcomes) == pytest.approx((6 + 8 + 7) / 24)
    assert mean_iou.scores(outcomes).mean() == pytest.approx(mean_iou.value(outcomes))
    truth[0, 0, 1] = IGNORED
    outcomes = form.outcomes(outputs(said, 3), {"labels": truth})
    assert outcomes[0].tolist() == [6, 7, 2, 3, 2, 2, 2, 2, 2, 2, 3]
    bad = outputs(said, 3)
    bad.logits[1] = float("nan")
    assert np.isnan(form.outcomes(bad, {"labels": truth})).all(1).tolist() == [False, True, False]
    assert np.isnan(dice.scores(form.outcomes(bad, {"labels": truth}))).tolist() == [False, True, False]


def test_without_a_background_all_classes_count(encoder: Path, root: Path) -> None:
    np.savez(root / "ground.npz", images=PIXELS, masks=SHAPES + 3)
    form = load_task(encoder, root / "ground.npz").form
    truth = torch.tensor([[[0, 0, 1, 1]]])
    outcomes = form.outcomes(outputs(np.array([[[0, 1, 1, 1]]]), 3), {"labels": truth})
    assert form.metrics["dice"].value(outcomes) == pytest.approx((2 / 3 + 4 / 5) / 2)


def test_pixels_of_no_class_do_not_count(encoder: Path, root: Path) -> None:
    masks = SHAPES.copy()
    masks[:, :, :10] = 255
    np.savez(root / "void.npz", images=PIXELS, masks=masks)
    task = load_task(encoder, root / "void.npz")
    batch = task.collator([task.test[i] for i in range(2)])
    assert (batch["labels"][:, :, :7] == IGNORED).all() and (batch["labels"][:, :, 9:] != IGNORED).all()
    model = task.fresh_model(0)
    assert model.config.semantic_loss_ignore_index == IGNORED
    told = model(**batch)
    grown = F.interpolate(told.logits, size=(16, 16), mode="bilinear", align_corners=False)
    wanted = F.cross_entropy(grown, batch["labels"], ignore_index=IGNORED)
    assert told.loss.item() == pytest.approx(wanted.item(), rel=1e-5)
    assert task.outcomes(told, batch)[:, 1].tolist() == (batch["labels"] != IGNORED).sum((1, 2)).tolist()


def test_a_processor_that_cuts_and_pads_does_so_to_masks(root: Path, shapes: Path) -> None:
    from transformers import BeitImageProcessor

    directory = save_segformer(root / "cutting")
    BeitImageProcessor(
        size={"height": 16, "width": 16}, do_center_crop=True, crop_size={"height": 20, "width": 8}
    ).save_pretrained(directory)
    task = load_task(directory, shapes)
    row = task.train[0]
    assert row["pixel_values"].shape == (3, 20, 8) and row["labels"].shape == (20, 8)
    assert (row["labels"][:2] == IGNORED).all() and (row["labels"][-2:] == IGNORED).all()
    assert (row["labels"][2:-2] != IGNORED).all()


def test_images_that_a_processor_leaves_unequal_are_refused(root: Path) -> None:
    from transformers import DPTImageProcessor

    directory = save_segformer(root / "unequal")
    size = {"height": 16, "width": 16}
    DPTImageProcessor(size=size, keep_aspect_ratio=True, ensure_multiple_of=8).save_pretrained(directory)
    cells = [png(DRAW.integers(0, 256, (12, 12 + 8 * (i % 2), 3), np.uint8)) for i in range(12)]
    masks = [png(DRAW.integers(0, 2, (12, 12 + 8 * (i % 2)), np.uint8)) for i in range(12)]
    pd.DataFrame({"image": cells, "mask": masks}).to_parquet(root / "unequal.parquet")
    refuse(
        directory,
        root / "unequal.parquet",
        "its image processor makes images of ",
        "give images of one shape",
    )


def test_a_decoder_that_was_trained_keeps_what_it_has_learnt(root: Path, encoder: Path, shapes: Path) -> None:
    assert load_task(encoder, shapes).head_modules == ["decode_head"]
    whole = load_task(save_segformer(root / "whole", classes=7), shapes)
    assert whole.head_modules == ["decode_head.classifier"]
    same = load_task(save_segformer(root / "same", classes=3), shapes)
    assert same.head_modules == ["decode_head.classifier"]
    one, other = same.fresh_model(0), same.fresh_model(1)
    for name, value in one.named_parameters():
        assert torch.equal(value, other.get_parameter(name)) != name.startswith("decode_head.classifier.")


def test_images_that_do_not_fit_in_memory_are_read_each_time(
    encoder: Path, shapes: Path, monkeypatch: Any
) -> None:
    whole = load_task(encoder, shapes)
    monkeypatch.setattr(encode, "IMAGES_IN_MEMORY", 100)
    lazy = load_task(encoder, shapes)
    assert lazy.train.masks is None and whole.train.masks is not None
    for one, other in ((whole.train[i], lazy.train[i]) for i in (0, 7)):
        assert all(torch.equal(one[name], other[name]) for name in ("pixel_values", "labels"))


def test_trivial_predictor(encoder: Path, shapes: Path) -> None:
    task = load_task(encoder, shapes, metric="pixel_accuracy")
    name, scores = task.trivial()
    wanted = np.mean([(task.test[i]["labels"] == 0).float().mean().item() for i in range(len(task.test))])
    assert name == "majority class" and scores.mean() == pytest.approx(wanted)
    assert load_task(encoder, shapes).trivial()[1].tolist() == [0] * len(task.test)


def test_bfloat16_base_with_a_whole_decoder_as_head(encoder: Path, shapes: Path) -> None:
    task = load_task(encoder, shapes, dtype="bf16")
    model = task.fresh_model(0)
    batch = task.collator([task.train[i] for i in range(2)])
    model(**batch).loss.backward()
    assert model.decode_head.classifier.weight.grad.dtype == torch.float32


def test_what_does_not_suit_is_refused(
    root: Path, encoder: Path, bert: Path, shapes: Path, pictures: Path
) -> None:
    refuse(bert, shapes, "has no segmentation model in transformers")
    refuse(save_vit(root / "vit"), shapes, "has no segmentation model in transformers")
    refuse(encoder, pictures, "--kind segmentation: no columns of images and masks", kind="segmentation")
    refuse(encoder, shapes, "--metric accuracy", "dice, iou, mean_iou", metric="accuracy")
