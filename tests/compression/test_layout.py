"""Second factors lie by columns where that is read faster; what they are, what is written and who shares them stays."""

import copy

import pytest
import torch
from safetensors.torch import load_file, save_file
from small_models import Classifier, batches, logits, make
from torch import nn
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

from eckart.compression import FactorizedLinear, compress
from eckart.compression._layout import by_columns, by_rows

COLUMNS, ROWS = (1, 7), (3, 1)


def factor(dtype=torch.float32):
    return nn.Parameter(torch.arange(21, dtype=dtype).view(7, 3))


def strides(model):
    return {layer.B.weight.stride() for layer in model.modules() if isinstance(layer, FactorizedLinear)}


def by_columns_all(model):
    return all(first == 1 and second > 1 for first, second in strides(model))


def by_rows_all(model):
    return all(first > 1 and second == 1 for first, second in strides(model))


@pytest.fixture(scope="module")
def small():
    return compress(make("llama"), "lord", ratio=0.3, calibration=batches())


@pytest.fixture(scope="module")
def saved(small, tmp_path_factory):
    place = tmp_path_factory.mktemp("layout")
    small.save_pretrained(place)
    return place


@pytest.mark.parametrize("fresh", [False, True])
def test_a_factor_goes_to_columns_and_back(fresh):
    weight, numbers = factor(), factor().data
    before = weight.data
    for _ in range(2):
        by_columns(weight, fresh)
        assert weight.stride() == COLUMNS and torch.equal(weight.data, numbers)
    assert torch.equal(before, numbers)  # whoever held the rows has them
    columns = weight.data
    for _ in range(2):
        by_rows(weight)
        assert weight.stride() == ROWS and torch.equal(weight.data, numbers)
    assert torch.equal(columns, numbers)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
def test_rows_stay_where_columns_are_slower(dtype):
    weight = factor(dtype)
    by_columns(weight)
    assert weight.stride() == ROWS


def test_what_a_file_mapped_to_memory_holds_is_laid_out_in_its_place(tmp_path):
    path = tmp_path / "factor.safetensors"
    save_file({"B": factor().data}, path)
    for fresh in (True, False):
        weight = nn.Parameter(load_file(path)["B"])
        place = weight.data_ptr()
        for _ in range(2):
            by_columns(weight, fresh)
            assert weight.stride() == COLUMNS and torch.equal(weight.data, factor().data)
        assert (weight.data_ptr() == place) is fresh
    assert torch.equal(load_file(path)["B"], factor().data)


def test_what_others_reach_by_its_place_in_memory_stays_there():
    flat = torch.arange(42.0)
    part, shared = nn.Parameter(flat[:21].view(7, 3)), nn.Parameter(factor().data.share_memory_())
    for weight in (part, shared):
        by_columns(weight)
        assert weight.stride() == ROWS
    flat[0] = 5
    assert part[0, 0] == 5
    weight = factor()
    by_columns(weight)
    weight.share_memory_()
    by_rows(weight)
    assert weight.stride() == COLUMNS


def test_what_is_no_plain_parameter_is_left_alone():
    layer = FactorizedLinear(5, 7, 3)
    nn.utils.parametrizations.weight_norm(layer.B)
    plain = torch.ones(7, 3)
    for weight in (None, layer.B.weight, plain):
        by_columns(weight)
    assert layer.B.weight.stride() == plain.stride() == ROWS
    turned = plain.t().contiguous().t()
    by_rows(turned)
    assert turned.stride() == COLUMNS
    assert layer.train().to(torch.float64)(torch.ones(2, 5, dtype=torch.float64)).shape == (2, 7)


def test_compressed_and_loaded_models_lie_by_columns_and_files_by_rows(small, saved):
    loaded = AutoModelForCausalLM.from_pretrained(saved)
    assert by_columns_all(small) and by_columns_all(loaded) and by_columns_all(copy.deepcopy(loaded))
    state, written = loaded.state_dict(), load_file(saved / "model.safetensors")
    assert (
        not loaded.model.layers[0].mlp.up_proj.B.weight.untyped_storage().resizable()
    )  # the file's own memory
    assert set(written) == {name for name in state if name != "lm_head.weight" or name in written}
    assert all(torch.equal(state[name], value) and value.is_contiguous() for name, value in written.items())
    one = {"input_ids": batches()[0]["input_ids"][:1, :1]}
    rows = copy.deepcopy(loaded).train()
    torch.testing.assert_close(logits(loaded, one), logits(rows, one), rtol=1e-5, atol=1e-5)
    assert by_rows_all(rows)


def test_what_trains_lies_by_rows_and_what_is_frozen_as_it_did(saved, tmp_path):
    loaded = AutoModelForCausalLM.from_pretrained(saved)
    assert by_columns_all(loaded.requires_grad_(False).train())
    held = loaded.state_dict()
    assert by_rows_all(loaded.requires_grad_(True).train())
    assert by_rows_all(loaded.eval())
    state = loaded.state_dict()
    save_file({name: value for name, value in state.items() if name != "lm_head.weight"}, tmp_path / "raw")
    assert all(torch.equal(held[name], value) for name, value in state.items())
    assert by_rows_all(compress(make("llama").train(), "svd", ratio=0.3))


def test_another_dtype_lies_by_rows(saved):
    for dtype in (torch.float64, torch.bfloat16):
        assert by_rows_all(AutoModelForCausalLM.from_pretrained(saved, dtype=dtype))
        assert by_rows_all(AutoModelForCausalLM.from_pretrained(saved).to(dtype))
    assert by_columns_all(AutoModelForCausalLM.from_pretrained(saved).to("cpu"))
    assert by_rows_all(AutoModelForCausalLM.from_pretrained(saved).to("meta"))


def test_a_state_that_the_caller_holds_keeps_its_numbers(saved):
    state = load_file(saved / "model.safetensors")
    before = {name: value.clone() for name, value in state.items()}
    config = LlamaConfig.from_pretrained(saved)
    loaded = LlamaForCausalLM.from_pretrained(None, config=config, state_dict=state)
    assert all(torch.equal(state[name], value) for name, value in before.items())
    assert torch.equal(
        loaded.model.layers[0].mlp.up_proj.B.weight, before["model.layers.0.mlp.up_proj.B.weight"]
    )


def test_plain_modules_keep_rows():
    assert by_rows_all(compress(Classifier().float().eval(), "svd", ratio=0.4))
