import copy

import pytest
import torch
from small_models import Classifier, batches, logits, make
from transformers import (
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForImageClassification,
    AutoModelForMaskedLM,
    DebertaV2Config,
    DebertaV2Model,
    Dinov2Config,
    Dinov2Model,
    LlamaConfig,
    LlamaForCausalLM,
    SwinConfig,
    SwinModel,
    T5Config,
    T5ForConditionalGeneration,
    T5Model,
)

import eckart.compression as compression
from eckart.compression import compress
from eckart.compression._layers import FactorizedLinear
from eckart.errors import InputError
from eckart.linalg.moments import add_rows, no_moments

AUTO = {"bert": AutoModelForMaskedLM, "vit": AutoModelForImageClassification}
KINDS = ("llama", "qwen2", "mistral", "gemma", "gpt2", "opt", "bert", "vit")
METHODS = ("svd", "whitened-svd", "lord", "afm", "pela")


@pytest.mark.parametrize("kind", KINDS)
def test_every_architecture_is_compressed_saved_and_loaded(kind, tmp_path):
    model, data = make(kind), batches(kind)
    dense = logits(model, data[0])
    before = sum(p.numel() for p in model.parameters())
    assert compress(model, "lord", ratio=0.3, calibration=data) is model
    assert sum(p.numel() for p in model.parameters()) < before
    small = logits(model, data[0])
    assert 0 < float((small - dense).norm() / dense.norm()) < 0.9
    compression.save(model, tmp_path / "small")
    loaded = AUTO.get(kind, AutoModelForCausalLM).from_pretrained(tmp_path / "small")
    assert torch.equal(logits(loaded, data[0]), small)
    assert {n for n, m in loaded.named_modules() if isinstance(m, FactorizedLinear)} == {
        row.layer for row in compression.report(model).rows if row.rank is not None
    }


@pytest.mark.parametrize("method", METHODS)
def test_removed_is_about_the_ratio_and_more_rank_is_closer(method):
    data, errors = batches(), []
    dense = make("llama")
    for ratio in (0.5, 0.2):
        model = compress(
            copy.deepcopy(dense), method, ratio=ratio, calibration=data, exclude=["embed_tokens"]
        )
        report = compression.report(model)
        weights = sum(row.rank * (row.out_features + row.in_features) for row in report.rows)
        whole = sum(row.out_features * row.in_features for row in report.rows)
        assert 0 <= 1 - weights / whole - ratio < 0.06
        errors.append(float((logits(model, data[0]) - logits(dense, data[0])).norm()))
    assert errors[1] < errors[0]


def test_padding_is_not_part_of_the_statistics():
    dense, ids = make("llama"), batches(padded=True)
    other = copy.deepcopy(ids)
    for batch in other:
        batch["input_ids"][batch["attention_mask"] == 0] = 7
    one, two = (compress(copy.deepcopy(dense), "lord", ratio=0.3, calibration=data) for data in (ids, other))
    for (name, a), b in zip(one.state_dict().items(), two.state_dict().values(), strict=True):
        torch.testing.assert_close(a, b, msg=name, rtol=1e-4, atol=1e-5)


def test_block_statistics_are_those_of_the_whole_model():
    dense, data = make("llama"), batches()
    seen = []
    layer = dense.model.layers[1].mlp.down_proj
    handle = layer.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].flatten(0, 1)))
    for batch in data:
        logits(dense, batch)
    handle.remove()
    x = torch.cat(seen).double()
    method = compression.LoRD()
    expected = method.factors(layer.weight, None, 10, add_rows(no_moments(x.shape[1]), x))
    model = compress(dense, "lord", rank=10, calibration=data)
    torch.testing.assert_close(
        model.model.layers[1].mlp.down_proj.weight.double(), expected.product, rtol=1e-3, atol=1e-4
    )


def test_sequential_statistics_see_the_compressed_blocks_before():
    dense, data = make("llama"), batches()
    one, two = (
        compress(copy.deepcopy(dense), "whitened-svd", ratio=0.5, calibration=data, sequential=s)
        for s in (False, True)
    )
    first, second = (m.model.layers[0].self_attn.q_proj.weight for m in (one, two))
    assert torch.equal(first, second)
    last = [m.model.layers[1].self_attn.q_proj.weight for m in (one, two)]
    assert not torch.allclose(*last)
    truth = logits(dense, data[0])
    wrong = [float((logits(m, data[0]) - truth).norm()) for m in (one, two)]
    assert wrong[1] < wrong[0]


def test_tied_and_shared_weights_stay():
    model = make("llama", tie_word_embeddings=True)
    embedding = model.get_input_embeddings().weight
    compress(model, "svd", ratio=0.3)
    assert model.lm_head.weight is embedding and model.get_input_embeddings().weight is embedding
    plain = Classifier()
    plain.again = torch.nn.Linear(12, 20, dtype=torch.float64)
    plain.again.weight = plain.first.weight
    compress(plain, "svd", ratio=0.3)
    assert plain.again.weight is plain.first.weight and isinstance(plain.second, FactorizedLinear)


def test_only_what_saves_is_factorised():
    model = Classifier()
    compress(model, "svd", rank=8)  # 8 · 32 ≥ 20 · 12, and 8 · 36 < 16 · 20
    report = {row.layer: row.rank for row in compression.report(model).rows}
    assert report == {"first": None, "second": 8}
    assert type(model.first) is torch.nn.Linear and isinstance(model.second, FactorizedLinear)
    assert type(model.head) is torch.nn.Linear


def test_budget_is_met():
    for budget, limit in (("80%", 0.8), ("80 %", 0.8)):
        model = make("llama")
        total = sum(p.numel() for p in model.parameters())
        compress(model, "svd", budget=budget)
        after = sum(p.numel() for p in model.parameters())
        assert limit * total - 0.05 * total < after <= limit * total
    model = make("llama")
    compress(model, "svd", budget="70KB")
    assert sum(p.numel() for p in model.parameters()) * 4 <= 70_000 < 4 * total


def test_ranks_by_name_and_multiples():
    model = make("llama")
    compress(model, "svd", ranks={"down_proj": 7}, multiple_of=3)
    rows = {row.layer: row.rank for row in compression.report(model).rows}
    assert {rank for name, rank in rows.items() if name.endswith("down_proj")} == {7}
    assert {rank for name, rank in rows.items() if not name.endswith("down_proj")} == {None}
    model = make("llama")
    compress(model, "svd", ratio=0.3, multiple_of=4)
    assert {row.rank % 4 for row in compression.report(model).rows} == {0}


def test_the_same_statistics_for_many_compressions(tmp_path):
    dense, data = make("llama"), batches()
    statistics = compression.gather(dense, data, tmp_path / "statistics")
    for method in ("lord", "modegpt"):
        one, two = (
            compress(copy.deepcopy(dense), method, ratio=0.3, calibration=c) for c in (data, statistics)
        )
        assert torch.equal(logits(one, data[0]), logits(two, data[0]))
    with pytest.raises(InputError, match="not of this model"):
        compress(
            make("llama", seed=1),
            "lord",
            ratio=0.3,
            calibration=compression.Statistics(tmp_path / "statistics"),
        )
    with pytest.raises(InputError, match="no statistics"):
        compression.Statistics(tmp_path)


def test_a_run_that_was_stopped_goes_on_after_its_last_block(tmp_path):
    data = batches()
    for method in ("lord", "modegpt"):
        whole = compress(make("llama"), method, ratio=0.3, calibration=data)
        place = tmp_path / method

        def stop(done, total):
            raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            compress(make("llama"), method, ratio=0.3, calibration=data, resume=place, progress=stop)
        first = (place / "block-0000.safetensors").stat().st_mtime_ns
        assert not (place / "block-0001.json").exists()
        again = compress(make("llama"), method, ratio=0.3, calibration=data, resume=place)
        assert (place / "block-0000.safetensors").stat().st_mtime_ns == first
        assert torch.equal(logits(whole, data[0]), logits(again, data[0]))
        assert compression.report(again).rows == compression.report(whole).rows
        with pytest.raises(InputError, match=r"another run \(ratio 0\.3 there, 0\.4 now\): choose"):
            compress(make("llama"), method, ratio=0.4, calibration=data, resume=place)
        with pytest.raises(InputError, match=r"another run \(data\): choose"):
            compress(make("llama"), method, ratio=0.3, calibration=batches(padded=True), resume=place)
        (place / "block-0000.safetensors").write_bytes(b"torn")
        again = compress(make("llama"), method, ratio=0.3, calibration=data, resume=place)
        assert torch.equal(logits(whole, data[0]), logits(again, data[0]))
        (place / "plan.json").write_text("{")
        with pytest.raises(InputError, match=r"plan\.json is damaged: choose another"):
            compress(make("llama"), method, ratio=0.3, calibration=data, resume=place)


def test_other_data_are_another_run_in_a_model_without_blocks_too(tmp_path):
    one, two = (
        [torch.randn(30, 12, generator=torch.Generator().manual_seed(s), dtype=torch.float64)] for s in (0, 1)
    )
    compress(Classifier(), "lord", ratio=0.3, calibration=one, resume=tmp_path)
    with pytest.raises(InputError, match=r"another run \(data\)"):
        compress(Classifier(), "lord", ratio=0.3, calibration=two, resume=tmp_path)


def test_progress_counts_blocks():
    seen = []
    compress(make("llama"), "svd", ratio=0.3, progress=lambda *step: seen.append(step))
    assert seen == [(1, 2), (2, 2)]


def test_training_mode_and_gradients_come_back():
    model = make("llama").train()
    compress(model, "lord", ratio=0.3, calibration=batches())
    assert model.training and all(module.training for module in model.modules())
    assert all(parameter.requires_grad for parameter in model.parameters())


def test_the_random_state_modes_and_flags_are_left_alone():
    model = make("llama").train()
    model.model.layers[0].eval()
    model.model.layers[0].mlp.requires_grad_(False)
    state = torch.get_rng_state()
    compress(model, "lord", ratio=0.3, calibration=batches())
    assert torch.equal(torch.get_rng_state(), state)
    assert model.training and not model.model.layers[0].mlp.training and model.model.layers[1].training
    frozen = {n for n, p in model.named_parameters() if not p.requires_grad}
    assert frozen and all(name.startswith("model.layers.0.mlp.") for name in frozen)
    data = [{**batch, "labels": batch["input_ids"]} for batch in batches()]
    model = make("llama").requires_grad_(False)
    trained, plain = (
        compress(copy.deepcopy(model), "pela", ratio=0.3, calibration=data, steps=steps) for steps in (1, 0)
    )
    assert all(p.grad is None and not p.requires_grad for p in trained.parameters())
    assert not torch.equal(*(m.model.layers[0].mlp.up_proj.A.weight for m in (trained, plain)))


def other(kind):
    """Models that give tuples, are renamed on disk, change their width on the way, or have a decoder; and data."""
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 48}
    data, pixels = batches(), [{"pixel_values": torch.randn(2, 3, 16, 16)} for _ in range(2)]
    if kind == "deberta":
        relative = {"relative_attention": True, "pos_att_type": ["p2c", "c2p"]}
        return DebertaV2Model(DebertaV2Config(**sizes, vocab_size=61, **relative)), data
    if kind == "dinov2":
        return Dinov2Model(Dinov2Config(**sizes, image_size=16, patch_size=4)), pixels
    if kind == "swin":
        stages = {"embed_dim": 16, "depths": [1, 1], "num_heads": [2, 2], "window_size": 2}
        return SwinModel(SwinConfig(**stages, image_size=16, patch_size=2)), pixels
    config = T5Config(vocab_size=61, d_model=32, d_kv=8, d_ff=48, num_layers=2, decoder_start_token_id=0)
    return T5Model(config), [{**b, "decoder_input_ids": b["input_ids"][:, :7]} for b in data]


@pytest.mark.parametrize("kind", ["deberta", "dinov2", "swin", "t5"])
def test_further_architectures(kind, tmp_path):
    model, data = other(kind)
    compress(model.eval(), "lord", ratio=0.3, calibration=data)
    compression.save(model, tmp_path / "small")
    loaded = AutoModel.from_pretrained(tmp_path / "small").eval()
    with torch.no_grad():
        assert torch.equal(model(**data[0])[0], loaded(**data[0])[0])


def test_labels_become_what_a_decoder_reads():
    model = T5ForConditionalGeneration(
        T5Config(vocab_size=61, d_model=32, d_kv=8, d_ff=48, decoder_start_token_id=0)
    )
    compress(model, "lord", ratio=0.3, calibration=[{**b, "labels": b["input_ids"]} for b in batches()])
    assert compression.report(model).removed > 0.2


@pytest.mark.parametrize("method", [*METHODS, "welore", "modegpt"])
def test_few_tokens_and_a_block_of_zeros(method):
    """Rank above what the tokens span, and layers that give nothing: an error is a number from 0 to 1."""
    model = make("llama")
    for parameter in model.model.layers[1].parameters():
        parameter.data.zero_()
    data = [{"input_ids": torch.tensor([[3, 9, 4]])}]
    dense = logits(model, data[0])
    compress(model, method, ratio=0.3, calibration=data)
    assert all(0 <= row.error < 1 for row in compression.report(model).rows)
    if method in ("lord", "whitened-svd", "afm"):
        torch.testing.assert_close(logits(model, data[0]), dense, rtol=1e-4, atol=1e-4)


def test_half_precision_stays_half():
    model, data = make("llama").bfloat16(), batches()
    compress(model, "lord", ratio=0.3, calibration=data)
    assert {p.dtype for p in model.parameters()} == {torch.bfloat16}
    assert torch.isfinite(logits(model, data[0])).all()


def test_cost_is_one_pass_of_each_block_whatever_the_depth():
    calls = {}
    for depth in (2, 4):
        config = LlamaConfig(
            hidden_size=16,
            intermediate_size=24,
            num_hidden_layers=depth,
            num_attention_heads=2,
            vocab_size=61,
        )
        model = LlamaForCausalLM(config).eval()
        count = [0]
        for layer in model.model.layers:
            layer.mlp.act_fn.register_forward_hook(lambda *_, c=count: c.__setitem__(0, c[0] + 1))
        compress(model, "lord", ratio=0.3, calibration=batches(number=3))
        calls[depth] = count[0]
    assert calls == {2: 2 * 2 * 3, 4: 2 * 4 * 3}, (
        "one pass over the batches to look at them, one for statistics"
    )
