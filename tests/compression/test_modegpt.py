import copy
import json

import pytest
import torch
from small_models import GATED, VOCABULARY, batches, logits, make
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    LlamaConfig,
    LlamaForCausalLM,
)

import eckart.compression as compression
from eckart.compression import MoDeGPT, compress
from eckart.compression._allocation import allocate, raw_allocation
from eckart.compression.modegpt import output_bias
from eckart.errors import InputError

KINDS = {
    "llama": {},
    "llama-biased": {"attention_bias": True, "mlp_bias": True},
    "qwen2": {},
    "qwen3": {},
    "mistral": {},
    "gemma": {},
    "llama-mha": {"num_key_value_heads": 4},
    "gpt2": {},
    "opt": {},
    "opt-plain": {"enable_bias": False, "do_layer_norm_before": False},
}


def dense(kind):
    name, _, _ = kind.partition("-")
    if kind == "llama-mha":
        torch.manual_seed(0)
        return LlamaForCausalLM(LlamaConfig(**{**GATED, **KINDS[kind]})).eval()
    return make(name, **KINDS[kind])


def generated(model, ids, **options):
    torch.manual_seed(0)
    return model.generate(ids, max_new_tokens=8, do_sample=False, pad_token_id=0, **options)


@pytest.mark.parametrize("kind", KINDS)
def test_keeping_everything_changes_nothing(kind):
    model, data = dense(kind), batches()
    before = logits(model, data[0])
    compress(model, "modegpt", ratio=1e-6, calibration=data, epsilon=1e9, multiple_of=8)
    report = compression.report(model)
    assert {row.rank for row in report.rows if "attn" in row.layer} == {8}
    torch.testing.assert_close(logits(model, data[0]), before, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("kind", KINDS)
def test_sliced_saved_loaded_generated_and_padded_agree(kind, tmp_path):
    model, data = dense(kind), batches(number=6)
    stock = type(model)
    compress(model, "modegpt", ratio=0.3, calibration=data)
    small, ids = logits(model, data[0]), data[0]["input_ids"][:, :6]
    assert type(model).__name__ == f"Eckart{stock.__name__}"
    compression.save(model, tmp_path / "sliced")
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "sliced")
    assert type(loaded) is type(model) and torch.equal(logits(loaded, data[0]), small)
    words = generated(loaded, ids)
    assert torch.equal(words, generated(loaded, ids, use_cache=False))
    assert torch.equal(words, generated(loaded, ids, cache_implementation="static"))
    padded = compression.merge(copy.deepcopy(loaded))
    assert type(padded) is stock
    torch.testing.assert_close(logits(padded, data[0]), small, rtol=1e-4, atol=1e-4)
    assert torch.equal(words, generated(padded, ids))
    padded.save_pretrained(tmp_path / "padded")
    config = json.loads((tmp_path / "padded" / "config.json").read_text())
    assert config["model_type"] == kind.partition("-")[0] and "compressed_layers" not in config
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "padded")
    assert torch.equal(logits(again, data[0]), logits(padded, data[0]))


def test_config_says_the_widths_and_the_count_follows(tmp_path):
    model = make("llama")
    compress(model, "modegpt", ratio=0.4, calibration=batches(), epsilon=0.5)
    model.save_pretrained(tmp_path)
    config = AutoConfig.from_pretrained(tmp_path)
    assert config.model_type == "eckart_llama" and config.head_dim == 8
    widths = config.compressed_layers
    for width, layer in zip(widths, model.model.layers, strict=True):
        count = 32 * (4 + 2) * (width["qk_dim"] + width["v_dim"]) + 3 * 32 * width["mlp_dim"]
        assert width["qk_dim"] % 2 == 0
        assert sum(p.numel() for m in (layer.self_attn, layer.mlp) for p in m.parameters()) == count
        assert layer.self_attn.scaling == 8**-0.5
    assert widths[0] != widths[1]


def test_every_auto_class_and_the_stock_one_refuses(tmp_path):
    model = make("llama")
    compress(model, "modegpt", ratio=0.4, calibration=batches())
    model.save_pretrained(tmp_path)
    backbone = AutoModel.from_pretrained(tmp_path)
    ids = batches()[0]["input_ids"]
    torch.testing.assert_close(backbone(ids)[0], model.model(ids)[0])
    classifier = AutoModelForSequenceClassification.from_pretrained(tmp_path, num_labels=2)
    torch.testing.assert_close(classifier.model(ids)[0], model.model(ids)[0])
    with pytest.raises(Exception, match=r"(?i)mismatch|eckart_llama"):
        LlamaForCausalLM.from_pretrained(tmp_path)


def test_value_bias_folds_exactly():
    model, data = make("qwen2"), batches()
    before = logits(model, data[0])
    for layer in model.model.layers:
        bias = output_bias(layer.self_attn)
        layer.self_attn.v_proj.bias.data.zero_()
        layer.self_attn.o_proj.bias = torch.nn.Parameter(bias.float())
    torch.testing.assert_close(logits(model, data[0]), before, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("kind", "paths"),
    [
        ("opt", ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.out_proj", "fc1", "fc2")),
        ("gpt2", ("attn.c_attn", "attn.c_proj", "mlp.c_fc", "mlp.c_proj")),
    ],
)  # fmt: skip
def test_rows_and_count_of_decoders_without_rotation(kind, paths):
    model, data = make(kind), batches()
    before = sum(p.numel() for p in model.parameters())
    compress(model, "modegpt", ratio=0.4, calibration=data, epsilon=1e9)
    report, width = compression.report(model), model.config.compressed_layers[0]
    assert width["qk_dim"] == width["v_dim"] == 4 and width["o_bias"]
    assert tuple(row.layer for row in report.rows[: len(paths)]) == tuple(
        f"{model.base_model_prefix}.{'decoder.layers' if kind == 'opt' else 'h'}.0.{path}" for path in paths
    )
    gone = sum(row.parameters_before - row.parameters_after for row in report.rows)
    assert gone == before - sum(p.numel() for p in model.parameters()) and len(report.rows) == 2 * len(paths)
    attention = dict(model.named_modules())[report.rows[0].layer.rpartition(".")[0]]
    assert attention.scaling == 8**-0.5 and not hasattr(attention, "rope_index")


def test_single_coordinates_go_where_nothing_is_rotated():
    dense, data = make("opt"), batches()
    seen = []
    source = dense.model.decoder.layers[0].self_attn
    for layer in (source.q_proj, source.k_proj):
        layer.register_forward_hook(lambda *call: seen.append(call[2].reshape(-1, 4, 8)))
    for batch in data:
        logits(dense, batch)
    query, key = (torch.cat(seen[i::2]).square().mean(0) for i in (0, 1))
    kept = (query * key).topk(5, dim=1).indices.sort(1).values
    model = compress(make("opt"), "modegpt", ratio=0.3, calibration=data, mlp=False, vo=False, epsilon=1e9)
    new = model.model.decoder.layers[0].self_attn
    for name in ("q_proj", "k_proj"):
        rows = torch.cat([kept[h] + 8 * h for h in range(4)])
        assert torch.equal(getattr(new, name).weight, getattr(source, name).weight[rows])
        assert torch.equal(getattr(new, name).bias, getattr(source, name).bias[rows])


@pytest.mark.parametrize("kind", ["llama", "gpt2", "opt"])
def test_the_error_of_the_outputs_falls_with_the_ratio(kind):
    model, data = make(kind), batches(number=6)
    truth, wrong = logits(model, data[0]), []
    for ratio in (0.6, 0.3, 0.15):
        small = compress(copy.deepcopy(model), "modegpt", ratio=ratio, calibration=data, epsilon=1e9)
        wrong.append(float((logits(small, data[0]) - truth).norm() / truth.norm()))
    assert wrong[0] > wrong[1] > wrong[2] > 0


@pytest.mark.parametrize("part", ["mlp", "qk", "vo"])
def test_each_pair_can_be_cut_alone(part):
    model, data = make("llama"), batches()
    only = {name: name == part for name in ("mlp", "qk", "vo")}
    compress(model, "modegpt", ratio=0.5, calibration=data, epsilon=1e9, **only)
    widths = model.config.compressed_layers[0]
    assert widths["qk_dim"] == (4 if part == "qk" else 8)
    assert widths["v_dim"] == (4 if part == "vo" else 8)
    assert widths["mlp_dim"] == (24 if part == "mlp" else 48)


def test_errors_of_the_report_are_those_of_the_calibration_data():
    model, data = make("llama"), batches()
    old, seen = copy.deepcopy(model.model.layers[0].mlp), []
    handle = model.model.layers[0].mlp.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    for batch in data:
        logits(model, batch)
    handle.remove()
    compress(model, "modegpt", ratio=0.5, calibration=data, epsilon=1e9)
    x = torch.cat(seen).flatten(0, 1)
    with torch.no_grad():
        full, small = old(x), model.model.layers[0].mlp(x)
    row = next(r for r in compression.report(model).rows if r.layer == "model.layers.0.mlp.down_proj")
    assert row.error == pytest.approx(float((full - small).norm() / full.norm()), rel=1e-3)


def test_pairs_keep_their_own_rotation():
    model, data = make("llama"), batches()
    source = copy.deepcopy(model.model.layers[0].self_attn)
    compress(model, "modegpt", ratio=0.5, calibration=data, mlp=False, vo=False, epsilon=1e9)
    new = model.model.layers[0].self_attn
    index = new.rope_index
    assert torch.equal(index[:, 2:], index[:, :2] + 4) and bool((index[:, 0] < index[:, 1]).all())
    for g in range(2):
        rows = source.k_proj.weight[index[g] + 8 * g]
        assert torch.equal(new.k_proj.weight[4 * g : 4 * g + 4], rows)
        for h in (2 * g, 2 * g + 1):
            assert torch.equal(new.q_proj.weight[4 * h : 4 * h + 4], source.q_proj.weight[index[g] + 8 * h])


def test_norms_of_queries_and_keys_are_never_sliced():
    model = make("qwen3")
    compress(model, "modegpt", ratio=0.5, calibration=batches(), epsilon=1e9)
    assert {width["qk_dim"] for width in model.config.compressed_layers} == {8}
    assert {width["v_dim"] for width in model.config.compressed_layers} == {4}


def test_affine_refit_keeps_the_mean():
    data, wrong = batches(), []
    for refit in ("linear", "affine"):
        model = make("llama", mlp_bias=True)
        compress(model, "modegpt", ratio=0.5, calibration=data, qk=False, vo=False, refit=refit, epsilon=1e9)
        row = next(r for r in compression.report(model).rows if r.layer.endswith("0.mlp.down_proj"))
        wrong.append(row.error)
    assert wrong[1] < wrong[0]


def test_allocation():
    influence = torch.tensor([0.1, 0.4, 0.2, 0.9], dtype=torch.float64)
    shares = allocate(influence, 0.5, 0.2, 0.8)
    assert float(shares.mean()) == pytest.approx(0.5) and float(shares.max()) <= 0.8 + 1e-12
    assert raw_allocation(influence, 0.5, 0.2).max() > 0.8
    assert shares.argsort(descending=True, stable=True).tolist() == influence.argsort(stable=True).tolist()
    torch.testing.assert_close(allocate(influence, 0.3, 1e9, 0.8), torch.full((4,), 0.3, dtype=torch.float64))
    assert allocate(influence, 0.8, 0.1, 0.8).tolist() == pytest.approx([0.8] * 4)


def test_widths_are_rounded_down_or_to_the_nearest_multiple():
    assert MoDeGPT()._width(64, 0.8, 2) == 50
    assert MoDeGPT()._width(1536, 0.8, 1) == 1228
    assert MoDeGPT(multiple_of=8)._width(64, 0.8, 2) == 48
    assert MoDeGPT(multiple_of=8)._width(64, 0.82, 2) == 56
    assert MoDeGPT(multiple_of=5)._width(64, 0.5, 2) == 30
    assert MoDeGPT()._width(8, 0.01, 2) == 2


@pytest.mark.parametrize(
    ("kind", "options", "message"),
    [
        ("bert", {}, "modegpt knows .*, not bert"),
        ("vit", {}, "not vit"),
        ("gpt2", {"add_cross_attention": True}, "gpt2 with add_cross_attention=True"),
        ("gpt2", {"n_layer": 1}, "gpt2 has one: give a model of two or more"),
        ("gpt2", {"reorder_and_upcast_attn": True}, "gpt2 with reorder_and_upcast_attn=True"),
    ],
)
def test_other_architectures_are_refused_untouched(kind, options, message):
    model = make(kind, **options)
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(InputError, match=message):
        compress(model, "modegpt", ratio=0.3, calibration=batches(kind))
    assert all(torch.equal(a, b) for a, b in zip(before.values(), model.state_dict().values(), strict=True))


@pytest.mark.parametrize(
    "options",
    [{"epsilon": 0}, {"max_sparsity": 0}, {"multiple_of": 0}, {"refit": "no"}, {"vo_mode": "x"}, {"ridge": -1.0},
     {"mlp": False, "qk": False, "vo": False}, {"ratio": 0.9}, {"exclude": ["down_proj"]}],
)  # fmt: skip
def test_bad_options(options):
    with pytest.raises(InputError):
        compress(make("llama"), "modegpt", **{"ratio": 0.3, "calibration": batches(), **options})


def test_few_calibration_tokens():
    data = [{"input_ids": torch.randint(0, VOCABULARY, (1, 5))}]
    model = compress(make("llama"), "modegpt", ratio=0.3, calibration=data)
    assert torch.isfinite(logits(model, data[0])).all()
