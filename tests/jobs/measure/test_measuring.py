"""Measuring hidden states: numbers against direct computation, one batch in memory, resume, files, every refusal."""

from __future__ import annotations

import csv
import json
import shutil
import weakref
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from xml.etree import ElementTree

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny_models import bert_config, gpt2_config, save_bert, save_gpt2, save_reviews, save_tokenizer, save_vit
from torch import Tensor, nn
from transformers import (
    AutoConfig,
    AutoModel,
    AutoTokenizer,
    BertModel,
    FNetConfig,
    FNetModel,
    GPT2LMHeadModel,
    GPT2Model,
    T5Config,
    T5EncoderModel,
    T5ForConditionalGeneration,
)

from eckart import metrics
from eckart.data.read import read_data
from eckart.data.splits import PARTS, sample
from eckart.errors import InputError
from eckart.jobs.measure import measuring as room
from eckart.jobs.measure.layer_scores import Moments
from eckart.jobs.measure.measuring import METRICS, Measurement, ModelScores, measure, measure_model

TEXTS = [
    "the film was good",
    "a long book",
    "bad",
    "the book and the film was very bad and a very poor film",
    "fine film",
]
SMALL: dict[str, Any] = {"split": "all", "max_length": 32, "limit": 20, "batch_size": 4}


@pytest.fixture(scope="module")
def bert(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_bert(tmp_path_factory.mktemp("model") / "bert")


@pytest.fixture(scope="module")
def gpt2(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_gpt2(tmp_path_factory.mktemp("model") / "gpt2", pad="[EOS]")


@pytest.fixture(scope="module")
def texts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("data") / "texts.jsonl"
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in TEXTS))
    return path


@pytest.fixture(scope="module")
def reviews(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_reviews(tmp_path_factory.mktemp("data") / "reviews.csv", rows=60)


def means(scores: ModelScores) -> dict[tuple[int, str], float]:
    return {(score.layer, score.metric): score.mean for score in scores.scores}


def tiny_gpt2(**options: Any) -> GPT2Model:
    torch.manual_seed(0)
    model = GPT2Model(gpt2_config(vocab_size=20, n_layer=2, n_embd=8, n_positions=16, **options))
    for block in (*model.h, model):
        for norm in (module for name, module in block.named_children() if name.startswith("ln")):
            nn.init.normal_(norm.weight)
    return model


def some_batches(*, tokens: int = 9) -> list[tuple[Tensor, Tensor]]:
    generator = torch.Generator().manual_seed(3)
    ids = torch.randint(0, 20, (3, 4, tokens), generator=generator)
    lengths = torch.randint(2, tokens + 1, (3, 4, 1), generator=generator)
    return list(zip(ids, torch.arange(tokens) < lengths, strict=True))


# One model in memory


def test_scores_are_the_metrics_of_each_text_alone() -> None:
    model, batches = tiny_gpt2().eval(), some_batches(tokens=14)
    assert {bool(length > 8) for _, mask in batches for length in mask.sum(1)} == {True, False}
    scores = measure_model(model, batches, metrics=list(metrics.METRICS))
    assert (scores.depth, scores.width, scores.texts, scores.layers) == (2, 8, 12, [0, 1, 2])
    assert scores.tokens == pytest.approx(sum(mask.sum().item() for _, mask in batches) / 12)
    rows = [ids[mask] for batch in batches for ids, mask in zip(*batch, strict=True)]
    with torch.no_grad():
        states = [model(input_ids=row[None], output_hidden_states=True).hidden_states for row in rows]
    for score in scores.scores:
        metric = score.metric.removesuffix("_relative")
        values = torch.stack([getattr(metrics, metric)(s[score.layer][0]).double() for s in states])
        if score.metric.endswith("_relative"):
            values /= torch.tensor([(min(len(row), 8) / len(row)) ** 0.5 for row in rows])
        assert score.mean == pytest.approx(values.mean().item(), rel=1e-5)
        assert score.std == pytest.approx(values.std().item(), rel=1e-4, abs=1e-6)
        assert score.ci == pytest.approx(1.959964 * score.std / 12**0.5)
        assert (score.n, score.skipped) == (12, 0)
    names = [score.metric for score in scores.scores if score.layer == 0]
    assert set(names) == {*metrics.METRICS, "matrix_nuclear_norm_relative", "nuclear_norm_relative"}


def test_metrics_of_states_as_they_are() -> None:
    model, batches = tiny_gpt2().eval(), some_batches(tokens=14)
    scores = measure_model(model, batches, metrics=list(metrics.RAW_METRICS))
    rows = [ids[mask] for batch in batches for ids, mask in zip(*batch, strict=True)]
    with torch.no_grad():
        states = [model(input_ids=row[None], output_hidden_states=True).hidden_states for row in rows]
    assert {score.metric for score in scores.scores} == set(metrics.RAW_METRICS)
    for score in scores.scores:
        values = torch.stack([getattr(metrics, score.metric)(s[score.layer][0]).double() for s in states])
        assert score.mean == pytest.approx(values[~values.isnan()].mean().item(), rel=1e-4)
        assert score.skipped == values.isnan().sum()


def test_the_last_layer_is_after_the_final_norm_with_and_without_a_head() -> None:
    model, batches = tiny_gpt2().eval(), some_batches()
    headed = GPT2LMHeadModel(model.config)
    headed.transformer.load_state_dict(model.state_dict())
    assert means(measure_model(headed, batches)) == means(measure_model(model, batches))
    ids, mask = batches[0]
    taken: list[Tensor] = []
    model.h[-1].register_forward_hook(
        lambda _, __, out: taken.append(out[0] if isinstance(out, tuple) else out)
    )
    found = measure_model(model, [(ids, mask)], metrics=["matrix_nuclear_norm"], layers="last")
    before_norm, after_norm = taken[0], model.ln_f(taken[0])
    expected = metrics.matrix_nuclear_norm(after_norm, mask).mean().item()
    assert found.at()["matrix_nuclear_norm"].mean == pytest.approx(expected, rel=1e-5)
    assert metrics.matrix_nuclear_norm(before_norm, mask).mean().item() != pytest.approx(expected, rel=1e-3)


def test_batches_of_another_size_or_padding_give_the_same_scores() -> None:
    model, batches = tiny_gpt2(), some_batches()
    whole = measure_model(model, batches)
    single = [(ids[i : i + 1], mask[i : i + 1]) for ids, mask in batches for i in range(4)]
    padded = [
        (torch.cat([ids, torch.full((4, 3), 7)], 1), torch.cat([mask, torch.zeros(4, 3)], 1))
        for ids, mask in batches
    ]
    for other in (single, padded):
        found = measure_model(model, iter(other))
        assert means(found) == pytest.approx(means(whole), rel=1e-5)
        assert found.tokens == whole.tokens
        for one, two in zip(found.scores, whole.scores, strict=True):
            assert one.std == pytest.approx(two.std, rel=1e-4, abs=1e-6)


def test_skipped_tokens_do_not_count_wherever_the_padding_is() -> None:
    model, ((ids, mask), *_) = tiny_gpt2().eval(), some_batches()
    mask = torch.ones_like(mask)
    found = measure_model(model, [(ids, mask)], metrics=["matrix_entropy"], skip_first=2)
    with torch.no_grad():
        states = model(input_ids=ids, output_hidden_states=True).hidden_states
    for layer, state in enumerate(states):
        expected = metrics.matrix_entropy(state[:, 2:]).mean().item()
        assert found.at(layer)["matrix_entropy"].mean == pytest.approx(expected, rel=1e-5)
    assert found.tokens == ids.shape[1] - 2
    torch.manual_seed(0)
    encoder = BertModel(bert_config(num_hidden_layers=1))
    encoder.embeddings.position_embeddings.weight.data.zero_()
    pad, hidden = torch.full((4, 2), 7), torch.zeros(4, 2)
    left = (torch.cat([pad, ids], 1), torch.cat([hidden, mask], 1))
    right = (torch.cat([ids, pad], 1), torch.cat([mask, hidden], 1))
    one, two = (measure_model(encoder, [batch], skip_first=2) for batch in (left, right))
    assert means(one) == pytest.approx(means(two), rel=1e-5)


def test_texts_without_a_score_are_counted_and_left_out() -> None:
    model, ((ids, _), *_) = tiny_gpt2(), some_batches()
    mask = torch.arange(9) < torch.tensor([[9], [1], [5], [1]])
    seen: list[tuple[list[int], list[float]]] = []
    found = measure_model(
        model,
        [(ids, mask)],
        on_batch=lambda counts, values: seen.append((counts.tolist(), values["stable_rank"].tolist())),
    )
    assert all((score.n, score.skipped) == (2, 2) for score in found.scores)
    assert means(found) == pytest.approx(means(measure_model(model, [(ids[::2], mask[::2])])), rel=1e-5)
    ((counts, values),) = seen
    assert counts == [9, 1, 5, 1]
    assert [value == value for value in values] == [True, False, True, False]
    alone = measure_model(model, [(ids[:1], mask[:1])]).scores[0]
    assert (alone.n, alone.std == alone.std, alone.ci == alone.ci) == (1, False, False)


def test_moments_of_batches_are_those_of_the_whole() -> None:
    generator = torch.Generator().manual_seed(0)
    values = 1e3 + torch.randn(2, 1, 500, dtype=torch.float64, generator=generator)
    values[1, 0, ::3] = torch.nan
    moments = Moments()
    for part in values.split([1, 7, 300, 192], dim=-1):
        moments.add(part)
    for score, row in zip(moments.scores([0, 1], ["m"]), values[:, 0], strict=True):
        known = row[~row.isnan()]
        assert (score.n, score.skipped) == (len(known), 500 - len(known))
        assert score.mean == pytest.approx(known.mean().item(), rel=1e-13)
        assert score.std == pytest.approx(known.std().item(), rel=1e-10)


class Watched(nn.Module):
    """A model that refuses to run while hidden states of an earlier batch are alive."""

    def __init__(self) -> None:
        super().__init__()
        self.made: list[weakref.ref[Tensor]] = []
        self.calls = 0

    def forward(
        self, input_ids: Tensor, attention_mask: Tensor, output_hidden_states: bool
    ) -> SimpleNamespace:
        assert [state for state in self.made if state() is not None] == []
        self.calls += 1
        states = tuple(torch.randn(*input_ids.shape, 4) for _ in range(3))
        self.made = [weakref.ref(state) for state in states]
        return SimpleNamespace(hidden_states=states, last_hidden_state=states[-1])


def test_only_one_batch_of_hidden_states_is_alive() -> None:
    model, drawn = Watched(), []

    def batches() -> Iterator[tuple[Tensor, Tensor]]:
        for batch in some_batches():
            assert len(drawn) == model.calls  # none is drawn before the last one is done with
            drawn.append(batch)
            yield batch

    assert measure_model(model, batches()).texts == 12
    assert model.calls == 3
    assert [state for state in model.made if state() is not None] == []


def test_the_mode_of_the_model_is_as_before() -> None:
    model = tiny_gpt2(resid_pdrop=0.5).train()
    first = measure_model(model, some_batches())
    assert model.training
    assert means(measure_model(model, some_batches())) == means(first)
    with pytest.raises(InputError):
        measure_model(model, some_batches(), layers=[9])
    assert model.training
    assert not any(parameter.grad is not None for parameter in model.parameters())


def test_layers_are_chosen_by_number() -> None:
    model, batches = tiny_gpt2(), some_batches()
    everything = measure_model(model, batches)
    chosen = measure_model(model, batches, layers=[-3, 2])
    assert chosen.layers == [0, 2]
    assert means(chosen) == {key: mean for key, mean in means(everything).items() if key[0] != 1}
    assert measure_model(model, batches, layers="last").layers == [2]


def test_broken_hidden_states_and_batches_are_refused() -> None:
    model, ((ids, mask), *_) = tiny_gpt2(), some_batches()
    with pytest.raises(InputError, match="batches holds no text"):
        measure_model(model, [])
    with pytest.raises(InputError, match=r"a batch has ids \(4, 9\) and a mask \(4, 8\)"):
        measure_model(model, [(ids, mask[:, 1:])])
    with pytest.raises(InputError, match=r"no layer 3: this model has 0 \(embeddings\) to 2 \(last\)"):
        measure_model(model, [(ids, mask)], layers=[0, 3])
    with pytest.raises(InputError, match="did you mean 'stable_rank'"):
        measure_model(model, [(ids, mask)], metrics=["stabel_rank"])
    with pytest.raises(InputError, match="metrics is"):
        measure_model(model, [(ids, mask)], metrics=[])
    model.h[1].mlp.c_proj.bias.data[0] = torch.inf
    with pytest.raises(InputError, match="layer 2 of GPT2Model holds NaN or Inf"):
        measure_model(model, [(ids, mask)])
    watched = Watched()
    watched.forward = lambda **_: SimpleNamespace(logits=torch.zeros(4, 9, 20))
    with pytest.raises(InputError, match="Watched gives no hidden_states"):
        measure_model(watched, [(ids, mask)])


def test_a_model_without_attention_mask_needs_batches_without_padding() -> None:
    torch.manual_seed(0)
    config = FNetConfig(vocab_size=20, hidden_size=8, num_hidden_layers=1, intermediate_size=8)
    model, ((ids, mask), *_) = FNetModel(config), some_batches()
    with pytest.raises(InputError, match=r"FNetModel takes no attention mask.*--batch-size 1"):
        measure_model(model, [(ids, mask)])
    assert measure_model(model, [(ids, torch.ones_like(mask))]).texts == 4


# Models and texts from files


def test_texts_are_scored_as_the_tokenizer_gives_them(bert: Path, texts: Path) -> None:
    found = measure(bert, texts, **SMALL)
    (scores,) = found.models
    tokenizer, model = AutoTokenizer.from_pretrained(bert), BertModel.from_pretrained(bert).eval()
    splits = read_data(texts, labelled=False).splits
    lengths, entropies = [], []
    for text in (text for part in PARTS for text in splits[part].inputs):
        with torch.no_grad():
            state = model(**tokenizer(text, return_tensors="pt")).last_hidden_state[0]
        lengths.append(len(state))  # [CLS] and [SEP] are among them
        entropies.append(metrics.matrix_entropy(state).item())
    assert lengths != sorted(lengths)
    assert scores.values["tokens"].tolist() == lengths
    assert scores.values["matrix_entropy"].tolist() == pytest.approx(entropies, rel=1e-4)
    assert found.notes == []


@pytest.mark.parametrize("batch_size", [1, 3, 64])
def test_batch_size_changes_nothing(
    bert: Path, texts: Path, batch_size: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = measure(bert, texts, **SMALL).models[0]
    monkeypatch.setattr("eckart.jobs.measure.hidden_states.POOL", 2)
    found = measure(bert, texts, **SMALL | {"batch_size": batch_size}).models[0]
    assert means(found) == pytest.approx(means(whole), rel=1e-5)
    for name, column in found.values.items():
        torch.testing.assert_close(column, whole.values[name], rtol=1e-4, atol=1e-6, equal_nan=True)


def test_long_texts_are_cut_and_windows_are_of_one_length(gpt2: Path, reviews: Path) -> None:
    cut = measure(gpt2, reviews, **SMALL | {"max_length": 5}).models[0]
    assert set(cut.values["tokens"].tolist()) == {5}
    windows = measure(gpt2, reviews, **SMALL, window=True, skip_first=1)
    assert set(windows.models[0].values["tokens"].tolist()) == {31}
    assert windows.models[0].texts == 60 * 9 // 32  # eight words and the end of each text, all of them joined


def test_a_decoder_without_a_padding_token(tmp_path: Path, reviews: Path) -> None:
    model = save_gpt2(tmp_path / "gpt2")
    together = measure(model, reviews, **SMALL).models[0]
    alone = measure(model, reviews, **SMALL | {"batch_size": 1}).models[0]
    assert means(together) == pytest.approx(means(alone), rel=1e-5)


def test_of_an_encoder_decoder_the_encoder_is_measured(tmp_path: Path, texts: Path) -> None:
    torch.manual_seed(0)
    shape = {"d_model": 16, "d_ff": 16, "d_kv": 8, "num_heads": 2, "num_layers": 2}
    whole = T5ForConditionalGeneration(T5Config(vocab_size=40, **shape))
    encoder = T5EncoderModel(whole.config)
    encoder.encoder.load_state_dict(whole.encoder.state_dict())
    for name, model in (("whole", whole), ("encoder", encoder)):
        model.save_pretrained(tmp_path / name)
        save_tokenizer(tmp_path / name)
    one, two = (measure(tmp_path / name, texts, **SMALL).models[0] for name in ("whole", "encoder"))
    assert one.layers == [0, 1, 2]
    assert means(one) == means(two)


def test_models_that_cannot_be_compared_say_so(bert: Path, gpt2: Path, tmp_path: Path, reviews: Path) -> None:
    wide = tmp_path / "wide"
    shutil.copytree(bert, wide)
    config = AutoConfig.from_pretrained(bert)
    config.hidden_size, config.num_hidden_layers = 32, 1
    BertModel(config).save_pretrained(wide)
    notes = measure([bert, wide], reviews, **SMALL).notes
    assert len(notes) == 2
    assert "all: 20 of 60 texts" in notes[0]
    assert "the widths differ (16, 32)" in notes[1]
    notes = measure([bert, gpt2], reviews, **SMALL).notes
    assert any("the tokenizers differ" in note for note in notes)
    assert not any("widths" in note for note in notes)


def test_texts_without_a_score_are_noted_or_refused(gpt2: Path, tmp_path: Path) -> None:
    path = tmp_path / "short.jsonl"
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in (*TEXTS, "film", "book")))
    found = measure(gpt2, path, **SMALL)
    (scores,) = found.models
    assert scores.at()["matrix_entropy"].skipped == 3  # with the "bad" of TEXTS
    assert "3 of 7 texts have no score" in found.notes[0]
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in ("film", "book", "bad")))
    with pytest.raises(InputError, match="none of 3 texts has a score"):
        measure(gpt2, path, **SMALL)


def test_metrics_that_need_more_tokens_say_so(gpt2: Path, tmp_path: Path) -> None:
    """Two tokens suffice for an entropy, three for a slope of eigenvalues, four for two neighbours each."""
    path = tmp_path / "short.jsonl"
    words = ("film", "the book", "a long book", "a very long book", "the film was very good")
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in words))
    names = ["matrix_entropy", "alpha_req", "two_nn"]
    found = measure(gpt2, path, **SMALL, metrics=names)
    skipped = {name: found.models[0].at()[name].skipped for name in names}
    assert skipped == {"matrix_entropy": 1, "alpha_req": 2, "two_nn": 3}
    for note, (name, least) in zip(
        found.notes[-3:], {"score": 2, "alpha_req": 3, "two_nn": 4}.items(), strict=True
    ):
        count = skipped.get(name, skipped["matrix_entropy"])
        assert f"{count} of 5 texts have no {name}, with fewer than {least} tokens" in note


# How alike layers are


def test_cka_is_that_of_the_mean_states(bert: Path, gpt2: Path, reviews: Path, tmp_path: Path) -> None:
    settings = SMALL | {"metrics": ["stable_rank"], "skip_first": 1, "cka": True}
    found = measure([gpt2, bert], reviews, **settings, output=tmp_path / "out")
    means = []
    for path in (gpt2, bert):
        model, tokenizer = AutoModel.from_pretrained(path).eval(), AutoTokenizer.from_pretrained(path)
        read = read_data(reviews, labelled=False)
        inputs = [text for part in PARTS for text in read.splits[part].inputs]
        chosen = [inputs[i] for i in sample(None, len(inputs), 20, seed=0)]
        with torch.no_grad():
            texts = [tokenizer(text, truncation=True, max_length=32, return_tensors="pt") for text in chosen]
            states = [model(**text, output_hidden_states=True).hidden_states for text in texts]
        means.append([torch.stack([s[i][0, 1:].mean(0) for s in states]) for i in range(len(states[0]))])
    assert [(pair.model, pair.other) for pair in found.likeness] == [
        *((str(gpt2), str(gpt2)), (str(gpt2), str(bert)), (str(bert), str(bert)))
    ]
    for pair, (one, two) in zip(found.likeness, ((0, 0), (0, 1), (1, 1)), strict=True):
        wanted = metrics.LinearCKA()
        wanted.update(means[one], means[two])
        torch.testing.assert_close(torch.tensor(pair.cka).double(), wanted.compute(), rtol=1e-4, atol=1e-5)
    rows = read_csv(tmp_path / "out" / "cka.csv")
    assert list(rows[0]) == ["model", "layer", "other", "other_layer", "cka"]
    between = [row for row in rows if row["model"] != row["other"]]
    assert [(int(r["layer"]), int(r["other_layer"])) for r in between] == [
        (a, b) for a in range(len(means[0])) for b in range(len(means[1]))
    ]
    assert float(between[1]["cka"]) == pytest.approx(found.likeness[1].cka[0][1])
    picture = ElementTree.parse(tmp_path / "out" / "cka.svg").getroot()
    maps = [group for group in picture.iter() if "mark-rect role-mark" in group.get("class", "")]
    assert [len(list(map)) for map in maps] == [len(pair.rows()) for pair in found.likeness]
    assert (
        json.loads((tmp_path / "out" / "measure.json").read_text())["cka"][1]["cka"]
        == found.likeness[0].cka[0][1]
    )
    again = measure([gpt2, bert], reviews, **settings, output=tmp_path / "out")
    assert again.likeness == found.likeness


def test_many_texts_are_compared_in_parts(gpt2: Path, reviews: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[int] = []
    update = metrics.LinearCKA.update
    monkeypatch.setattr(
        metrics.LinearCKA, "update", lambda self, a, b: (seen.append(len(a[0])), update(self, a, b))
    )
    monkeypatch.setattr("eckart.jobs.measure.compared.AT_ONCE", 8)
    (pair,) = measure(gpt2, reviews, **SMALL, cka=True).likeness
    assert seen == [7, 7, 6]
    assert [line[i] for i, line in enumerate(pair.cka)] == pytest.approx([1.0] * len(pair.layers))


def test_cka_needs_four_texts_with_tokens(gpt2: Path, tmp_path: Path) -> None:
    path = tmp_path / "few.jsonl"
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in ("bad", *TEXTS[:2], TEXTS[3])))
    assert len(measure(gpt2, path, **SMALL, cka=True).likeness) == 1
    with pytest.raises(InputError, match="--cka: 3 texts have a token that counts: give at least 4"):
        measure(gpt2, path, **SMALL, cka=True, skip_first=1)


def test_progress_goes_over_all_models(bert: Path, gpt2: Path, texts: Path) -> None:
    seen: list[tuple[int, int]] = []
    measure([bert, gpt2], texts, **SMALL, on_text=lambda *step: seen.append(step))
    assert seen == [(4, 10), (5, 10), (9, 10), (10, 10)]


# Files


@pytest.fixture
def written(bert: Path, gpt2: Path, reviews: Path, tmp_path: Path) -> tuple[Path, Measurement]:
    return tmp_path / "out", measure([bert, gpt2], reviews, **SMALL, output=tmp_path / "out")


def read_csv(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def test_files_say_what_was_measured(written: tuple[Path, Measurement]) -> None:
    folder, measurement = written
    assert sorted(path.name for path in folder.iterdir()) == [
        *("measure.csv", "measure.json", "measure.svg", "models", "texts.csv"),
    ]
    rows = read_csv(folder / "measure.csv")
    assert list(rows[0]) == ["model", "layer", "metric", "mean", "std", "ci", "n", "skipped", "tokens"]
    expected = [(m, score) for m in measurement.models for score in m.scores]
    assert len(rows) == len(expected) == (3 + 2) * (len(METRICS) + 1)
    for row, (model, score) in zip(rows, expected, strict=True):
        assert (row["model"], int(row["layer"]), row["metric"]) == (model.model, score.layer, score.metric)
        assert (float(row["mean"]), float(row["ci"]), int(row["n"])) == (score.mean, score.ci, score.n)
        assert float(row["tokens"]) == model.tokens
    texts = read_csv(folder / "texts.csv")
    assert list(texts[0]) == ["model", "text", "tokens", *measurement.models[0].at()]
    for model in measurement.models:
        own = [row for row in texts if row["model"] == model.model]
        assert [int(row["text"]) for row in own] == list(range(20))
        assert sum(int(row["tokens"]) for row in own) == pytest.approx(20 * model.tokens)
        mean = sum(float(row["stable_rank"]) for row in own) / 20
        assert mean == pytest.approx(model.at()["stable_rank"].mean, rel=1e-6)
    assert json.loads((folder / "measure.json").read_text()) == measurement.to_dict()


def test_picture_has_a_panel_for_each_metric_and_a_line_for_each_model(
    written: tuple[Path, Measurement],
) -> None:
    folder, measurement = written
    picture = ElementTree.parse(folder / "measure.svg").getroot()
    tag = "{http://www.w3.org/2000/svg}"
    shown = [element.text or "" for element in picture.iter(f"{tag}text")]
    names = list(measurement.models[0].at())
    assert all(name.replace("_", " ") in shown for name in names)
    assert all(any(text.startswith(f"{m.model}: width 16") for text in shown) for m in measurement.models)
    lines = [group for group in picture.iter(f"{tag}g") if "mark-line" in group.get("class", "")]
    assert len(lines) == len(measurement.models) * len(names)


def test_a_missing_number_is_empty_in_files(gpt2: Path, tmp_path: Path) -> None:
    path = tmp_path / "short.jsonl"
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in ("film", "bad", "the book")))
    found = measure(gpt2, path, **SMALL, output=tmp_path / "out")
    rows = read_csv(tmp_path / "out" / "measure.csv")
    assert {(row["n"], row["skipped"], row["std"], row["ci"]) for row in rows} == {("1", "2", "", "")}
    texts = read_csv(tmp_path / "out" / "texts.csv")
    assert sorted(row["stable_rank"] == "" for row in texts) == [False, True, True]
    plain = json.loads((tmp_path / "out" / "measure.json").read_text())
    assert plain["models"][0]["scores"][0]["std"] is None
    again = measure(gpt2, path, **SMALL, output=tmp_path / "out")
    assert again.to_dict() == found.to_dict() == plain
    ElementTree.parse(tmp_path / "out" / "measure.svg")


def test_a_killed_run_goes_on_with_the_models_that_are_left(
    bert: Path, gpt2: Path, reviews: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, load = tmp_path / "out", room.load_backbone
    loaded: list[str] = []

    def watched(checkpoint: Any) -> Any:
        if loaded == ["bert"]:
            raise KeyboardInterrupt
        loaded.append(checkpoint.directory.name)
        return load(checkpoint)

    monkeypatch.setattr(room, "load_backbone", watched)
    with pytest.raises(KeyboardInterrupt):
        measure([bert, gpt2], reviews, **SMALL, output=folder)
    assert sorted(path.name for path in folder.iterdir()) == ["measure.json", "models"]
    loaded.append("killed")
    found = measure([bert, gpt2], reviews, **SMALL, output=folder)
    assert loaded == ["bert", "killed", "gpt2"]
    whole = measure([bert, gpt2], reviews, **SMALL, output=tmp_path / "whole")
    assert found.to_dict() == whole.to_dict()
    for name in ("measure.csv", "texts.csv", "measure.svg", "measure.json"):
        assert (folder / name).read_text() == (tmp_path / "whole" / name).read_text()
    loaded.clear()
    seen: list[tuple[int, int]] = []
    measure([gpt2, bert], reviews, **SMALL, output=folder, on_text=lambda *step: seen.append(step))
    assert (loaded, seen) == ([], [])
    assert read_csv(folder / "measure.csv")[0]["model"] == str(gpt2)


def test_a_changed_model_is_measured_anew(bert: Path, reviews: Path, tmp_path: Path) -> None:
    model, folder = tmp_path / "bert", tmp_path / "out"
    shutil.copytree(bert, model)
    before = measure(model, reviews, **SMALL, output=folder).models[0]
    tensors = load_file(model / "model.safetensors")
    tensors["encoder.layer.0.output.dense.weight"] += torch.eye(16, 24)
    save_file(tensors, model / "model.safetensors", metadata={"format": "pt"})
    after = measure(model, reviews, **SMALL, output=folder).models[0]
    assert after.at(0) == before.at(0)
    assert after.at() != before.at()
    assert replace(after, values={}) == replace(measure(model, reviews, **SMALL).models[0], values={})


def test_another_measurement_is_not_overwritten_unasked(
    bert: Path, reviews: Path, texts: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "out"
    measure(bert, reviews, **SMALL, output=folder)
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    for change, message in (
        ({"max_length": 16}, "max_length is 32 there and 16 here"),
        ({"layers": "last"}, "layers is all there and last here"),
        ({"metrics": ["stable_rank"]}, "metrics is"),
        ({"data": texts}, "the texts have changed"),
    ):
        with pytest.raises(InputError, match=message):
            measure(bert, **{"data": reviews} | SMALL | change, output=folder)
    assert before == {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    found = measure(bert, texts, **SMALL, output=folder, overwrite=True)
    assert json.loads((folder / "measure.json").read_text()) == found.to_dict()
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    with pytest.raises(InputError, match="there is no layer 7"):
        measure(bert, texts, **SMALL | {"layers": [7]}, output=folder, overwrite=True)
    assert before == {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    (folder / "measure.json").write_text("{}")
    with pytest.raises(InputError, match=r"its measure\.json is not a measurement's"):
        measure(bert, texts, **SMALL, output=folder)
    with pytest.raises(InputError, match="not empty"):
        measure(bert, texts, **SMALL, output=tmp_path)
    assert folder.is_dir()


# Refusals


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"metrics": ["matrix_nuclear_nrom"]},
            "unknown metric 'matrix_nuclear_nrom': did you mean 'matrix_nuclear_norm'",
        ),
        ({"split": "dev"}, "split is 'dev': choose train, validation, test"),
        ({"layers": "first"}, "layers is 'first': give all, last"),
        ({"layers": [7]}, "--model .*bert: layers: there is no layer 7"),
        ({"limit": 1}, "limit is 1"),
        ({"batch_size": 0}, "batch_size is 0"),
        ({"skip_first": 31}, "skip_first is 31: give 0 to 30"),
        ({"skip_first": -1}, "skip_first is -1"),
        ({"max_length": 1}, "max_length is 1"),
        ({"max_length": 129}, "bert: --max-length 129: this model takes 2 to 128 tokens"),
        ({"text_column": "body"}, "--text-column body"),
        ({"models": []}, "models is empty"),
        ({"models": "/nowhere/x"}, "--model /nowhere/x: no such directory"),
        ({"data": "/nowhere.csv"}, "--data /nowhere.csv"),
        ({"split": "test"}, "the test split is one text, which has no spread"),
        (
            {"window": True, "split": "train"},
            "the train split is one window of 16 tokens|has [0-9]+ tokens, less than",
        ),
    ],
)
def test_options_that_are_refused(
    bert: Path, texts: Path, tmp_path: Path, options: dict[str, Any], message: str
) -> None:
    given = {"models": bert, "data": texts} | SMALL | options
    with pytest.raises(InputError, match=message):
        measure(**given, output=tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_one_text_file_is_measured_in_windows(gpt2: Path, tmp_path: Path) -> None:
    path = tmp_path / "book.txt"
    path.write_text("the film was good and the book was bad\n" * 40)
    with pytest.raises(InputError, match="is one text, which has no spread: cut it with --window"):
        measure(gpt2, path, max_length=8)
    assert measure(gpt2, path, max_length=8, window=True).models[0].texts == 4 * 9 // 8


def test_models_and_data_that_are_refused(bert: Path, gpt2: Path, texts: Path, tmp_path: Path) -> None:
    shutil.copytree(bert, tmp_path / "copy")
    with pytest.raises(
        InputError, match=r"copy holds the same files as --model .*bert: give each model once"
    ):
        measure([gpt2, bert, tmp_path / "copy"], texts, **SMALL)
    save_tokenizer(save_vit(tmp_path / "vit"))
    with pytest.raises(InputError, match="vit reads pixel_values: give a model of text"):
        measure(tmp_path / "vit", texts, **SMALL)
    from PIL import Image

    for name in ("a", "b"):
        (tmp_path / "images" / name).mkdir(parents=True)
        for i in range(3):
            Image.new("RGB", (4, 4)).save(tmp_path / "images" / name / f"{i}.png")
    with pytest.raises(InputError, match="images holds images: give texts"):
        measure(bert, tmp_path / "images", **SMALL)
    tensors = load_file(tmp_path / "copy" / "model.safetensors")
    tensors["embeddings.LayerNorm.weight"][3] = torch.nan
    save_file(tensors, tmp_path / "copy" / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(
        InputError, match=r"embeddings\.LayerNorm\.weight in model\.safetensors holds NaN or Inf"
    ):
        measure(tmp_path / "copy", texts, **SMALL)
    config = json.loads((bert / "config.json").read_text())
    (tmp_path / "copy" / "config.json").write_text(json.dumps(config | {"hidden_size": "16"}))
    save_file(load_file(bert / "model.safetensors"), tmp_path / "copy" / "model.safetensors")
    with pytest.raises(InputError, match=r"copy cannot be loaded: .*'hidden_size'"):
        measure(tmp_path / "copy", texts, **SMALL)
    (tmp_path / "copy" / "config.json").write_text(json.dumps(config))
    del tensors["embeddings.LayerNorm.weight"]
    save_file(tensors, tmp_path / "copy" / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(InputError, match=r"1 tensors are missing .*embeddings\.LayerNorm\.weight"):
        measure(tmp_path / "copy", texts, **SMALL)
