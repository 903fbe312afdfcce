"""Input that cannot be used: one clear line, and everything as it was."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from adapter_cases import (
    MLP,
    Host,
    adapted,
    assert_untouched,
    config,
    every_method,
    every_ranked_method,
    layers,
    rows,
    seeded,
    snapshot,
)
from peft import PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from torch import nn

import eckart
from eckart.adapters import ADAPTERS, get_config, make_config
from eckart.errors import InputError

WEIGHTS = "adapter_model.safetensors"


def refusal(call: Callable[[], Any], *words: str) -> None:
    """The call raises `InputError` with one line that holds these words."""
    with pytest.raises(InputError) as caught:
        call()
    message = str(caught.value)
    assert "\n" not in message
    for word in words:
        assert word in message, message


# --- names -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("typo", "meant"),
    [("randlra", "randlora"), ("svd-fit", "svfit"), ("Flora_Tuker", "flora-tucker"), ("bon", "bone")],
)
def test_unknown_method_names_the_nearest(typo: str, meant: str) -> None:
    refusal(lambda: get_config(typo), repr(typo), f"did you mean '{meant}'?", *sorted(ADAPTERS))


def test_unknown_method_with_nothing_near_lists_what_there_is() -> None:
    refusal(lambda: eckart.adapt(seeded(MLP), "qqq"), "'qqq'", "eckart methods", *sorted(ADAPTERS))


@every_method
def test_unknown_option_names_the_nearest(slug: str) -> None:
    refusal(lambda: make_config(slug, target_module=["up"]), slug, "'target_module'", "'target_modules'")
    refusal(lambda: make_config(slug, zzz=1), slug, "'zzz'", "dropout")


@every_method
def test_options_outside_their_range(slug: str) -> None:
    for value in (-0.1, 1.0, 2):
        refusal(lambda value=value: config(slug, dropout=value), "dropout", str(value))
    refusal(lambda: config(slug, route="fast"), "route", "'fast'", "auto")


# --- rank ------------------------------------------------------------------------------------------------------------


@every_ranked_method
@pytest.mark.parametrize("r", [0, -1, 2.5, True])
def test_rank_that_is_no_rank(slug: str, r: Any) -> None:
    refusal(lambda: config(slug, r=r), "r", str(r))


@every_ranked_method
def test_rank_that_is_a_word(slug: str) -> None:
    refusal(lambda: config(slug, r="4"), "r is '4'", "whole number")


def test_ranks_for_a_method_without_them() -> None:
    without = next(slug for slug in ADAPTERS if not hasattr(ADAPTERS[slug], "r"))
    refusal(lambda: config(without, rank_pattern={"up": 2}), "rank_pattern", f"{without} has no ranks")


@every_method
@pytest.mark.parametrize(
    ("option", "value", "wanted"),
    [
        ("seed", "abc", "whole number"),
        ("dropout", "0.1", "a number"),
        ("dropout", float("nan"), "a number"),
        ("save_basis", "no", "True or False"),
        ("init_weights", 1, "True or False"),
    ],
)
def test_options_of_another_kind(slug: str, option: str, value: Any, wanted: str) -> None:
    refusal(lambda: config(slug, **{option: value}), f"{option} is {value!r}", wanted)


@every_method
def test_every_value_of_the_knob_suits_every_layer(slug: str) -> None:
    chosen = config(slug)
    shapes = eckart.adapters.target_shapes(seeded(MLP), chosen)
    values = list(chosen.knob_values(shapes))
    assert values
    for value in {values[0], values[len(values) // 2], values[-1]}:
        model = get_peft_model(seeded(MLP), config(slug, **{chosen.knob: value}))
        assert torch.isfinite(model(rows())).all()


# --- layers ----------------------------------------------------------------------------------------------------------


@every_method
def test_targets_that_match_nothing_list_what_is_there(slug: str) -> None:
    base = seeded(MLP)
    before = snapshot(base)
    refusal(lambda: eckart.adapt(base, slug, target_modules=["qproj"]), "qproj", "down, head, up")
    refusal(lambda: eckart.adapt(base, slug, target_modules="x.*y"), "x.*y", "down, head, up")
    assert_untouched(base, before)


class Odd(nn.Module):
    """Layers that no adapter can have, beside one that can."""

    def __init__(self) -> None:
        super().__init__()
        self.good = nn.Linear(4, 4)
        self.norm, self.back, self.pair = nn.LayerNorm(4), nn.ConvTranspose1d(4, 4, 2), nn.Bilinear(4, 4, 4)
        self.attention = nn.MultiheadAttention(4, 2)
        self.bounded = nn.Embedding(5, 4, max_norm=1.0)


@every_method
@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("norm", "LayerNorm"),
        ("back", "ConvTranspose1d"),
        ("pair", "Bilinear"),
        ("attention", "MultiheadAttention"),
        ("attention.out_proj", "without calling it"),
        ("bounded", "max_norm=1.0"),
    ],
)
def test_layers_that_cannot_be_adapted_are_named(slug: str, name: str, words: str) -> None:
    base = seeded(Odd)
    before = snapshot(base)
    refusal(lambda: adapted(slug, base, target_modules=["good", name]), f"layer {name}", words)
    assert_untouched(base, before)


@every_method
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_weight_that_is_not_finite_is_named(slug: str, value: float) -> None:
    base = seeded(MLP)
    with torch.no_grad():
        base.down.weight[2, 3] = value
    before = snapshot(base)
    refusal(lambda: adapted(slug, base), "layer down", "NaN or Inf")
    assert_untouched(base, before)


@every_method
def test_a_refused_second_adapter_leaves_the_first(slug: str) -> None:
    model = adapted(slug, seeded(MLP), init_weights=False)
    before, outputs = snapshot(model), model(rows())
    for options in ({"rank_pattern": {"nowhere": 2}}, {"target_modules": ["nowhere"]}):
        with pytest.raises(InputError):
            model.add_adapter("other", config(slug, **options))
        assert_untouched(model, before)
        assert list(model.peft_config) == ["default"]
        assert torch.equal(model(rows()), outputs)
    model.add_adapter("other", config(slug))


@every_method
def test_weights_that_are_not_loaded_yet(slug: str) -> None:
    with torch.device("meta"):
        base = MLP()
    refusal(lambda: adapted(slug, base), "layer up", "meta device", "load the base model first")


# --- checkpoints -----------------------------------------------------------------------------------------------------


def save(slug: str, path: Path) -> None:
    """A checkpoint of the method on the MLP."""
    adapted(slug, seeded(MLP), target_modules=["up", "down"], init_weights=False).save_pretrained(path)


def refuses_to_load(path: Path, *words: str, base: nn.Module | None = None) -> None:
    """Both ways of loading refuse, and neither the base nor an adapter that is there is touched."""
    base = seeded(MLP) if base is None else base
    before = snapshot(base)
    refusal(lambda: PeftModel.from_pretrained(base, path), *words)
    assert_untouched(base, before)
    model = adapted(next(iter(ADAPTERS)), seeded(MLP), target_modules=["head"])
    before = snapshot(model)
    with pytest.raises(ValueError):
        model.load_adapter(path, adapter_name="other")
    assert_untouched(model, before)
    assert list(model.peft_config) == ["default"]


@every_method
def test_checkpoint_without_weights(slug: str, tmp_path: Path) -> None:
    save(slug, tmp_path)
    (tmp_path / WEIGHTS).unlink()
    refuses_to_load(tmp_path, str(tmp_path), WEIGHTS)


@every_method
@pytest.mark.parametrize("share", [0.0, 0.3, 0.99])
def test_checkpoint_cut_short(slug: str, share: float, tmp_path: Path) -> None:
    save(slug, tmp_path)
    whole = (tmp_path / WEIGHTS).read_bytes()
    (tmp_path / WEIGHTS).write_bytes(whole[: int(share * len(whole))])
    refuses_to_load(tmp_path, WEIGHTS, "damaged")


@every_method
def test_checkpoint_that_is_no_safetensors_file(slug: str, tmp_path: Path) -> None:
    save(slug, tmp_path)
    (tmp_path / WEIGHTS).write_bytes(b"PK\x03\x04" + bytes(200))
    refuses_to_load(tmp_path, WEIGHTS, "damaged")


@every_method
def test_checkpoint_with_altered_shapes(slug: str, tmp_path: Path) -> None:
    save(slug, tmp_path)
    tensors = load_file(tmp_path / WEIGHTS)
    for key in tensors:
        altered = {**tensors, key: torch.cat([tensors[key], tensors[key]])}
        save_file(altered, tmp_path / WEIGHTS)
        refuses_to_load(tmp_path, key)


@every_method
def test_checkpoint_with_missing_or_foreign_tensors(slug: str, tmp_path: Path) -> None:
    save(slug, tmp_path)
    tensors = load_file(tmp_path / WEIGHTS)
    first = next(iter(tensors))
    save_file({key: value for key, value in tensors.items() if key != first}, tmp_path / WEIGHTS)
    refuses_to_load(tmp_path, first, "missing")
    stranger = first.replace(".up.", ".nowhere.").replace(".down.", ".nowhere.")
    save_file({**tensors, stranger: tensors[first].clone()}, tmp_path / WEIGHTS)
    refuses_to_load(tmp_path, stranger)


@every_method
def test_checkpoint_of_another_method(slug: str, tmp_path: Path) -> None:
    """The weights of one method under the configuration of another."""
    other = sorted(ADAPTERS)[sorted(ADAPTERS).index(slug) - 1]
    save(slug, tmp_path / "mine")
    save(other, tmp_path / "other")
    os.replace(tmp_path / "other" / WEIGHTS, tmp_path / "mine" / WEIGHTS)
    refuses_to_load(tmp_path / "mine", "it was saved for another model")


@pytest.mark.parametrize("slug", [slug for slug, config in ADAPTERS.items() if config.checks])
def test_checkpoint_whose_frozen_factors_cannot_be_rebuilt(slug: str, tmp_path: Path) -> None:
    save(slug, tmp_path)
    tensors = load_file(tmp_path / WEIGHTS)
    [name] = get_config(slug).checks
    key = next(key for key in tensors if key.endswith(f".{name}"))
    save_file({**tensors, key: tensors[key] + 10_000}, tmp_path / WEIGHTS)
    refuses_to_load(tmp_path, "checkpoint")


def test_randlora_with_another_seed_than_its_checkpoint(tmp_path: Path) -> None:
    save("randlora", tmp_path)
    path = tmp_path / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"seed": 5}))
    refuses_to_load(tmp_path, "the bases that the seed gives here", "save_basis=True")


class Wider(nn.Module):
    """Layers of the names that `MLP` has, in other sizes."""

    def __init__(self) -> None:
        super().__init__()
        self.up, self.down, self.head = nn.Linear(12, 40), nn.Linear(40, 9), nn.Linear(9, 2)


@every_method
def test_checkpoint_of_a_model_of_other_sizes(slug: str, tmp_path: Path) -> None:
    save(slug, tmp_path)
    base = seeded(Wider)
    before = snapshot(base)
    refusal(lambda: PeftModel.from_pretrained(base, tmp_path), "layer up is (40, 12)", "its own base model")
    assert_untouched(base, before)


@every_method
def test_checkpoint_of_a_model_with_other_layers(slug: str, tmp_path: Path) -> None:
    save(slug, tmp_path)
    base = seeded(lambda: Host(nn.Linear(12, 24)))
    before = snapshot(base)
    refusal(lambda: PeftModel.from_pretrained(base, tmp_path), "match no layer", "layer")
    assert_untouched(base, before)


@every_method
def test_checkpoint_of_another_base_model(slug: str, tmp_path: Path) -> None:
    """Same sizes, other weights."""
    save(slug, tmp_path)
    base = seeded(MLP, seed=9)
    before = snapshot(base)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        refusal(
            lambda: PeftModel.from_pretrained(base, tmp_path),
            "is not the one",
            "load it on its own base model",
        )
    assert_untouched(base, before)


@every_method
def test_checkpoint_of_a_base_model_fine_tuned_since(slug: str, tmp_path: Path) -> None:
    """Refused where ΔW depends on the base weight, a warning where it does not."""
    save(slug, tmp_path)
    base = seeded(MLP)
    with torch.no_grad():
        base.up.weight.mul_(1.01)
    before = snapshot(base)
    if config(slug).needs_base:
        refusal(
            lambda: PeftModel.from_pretrained(base, tmp_path), "layer up", "load it on its own base model"
        )
        assert_untouched(base, before)
    else:
        with pytest.warns(UserWarning, match="layer up is not the one"):
            PeftModel.from_pretrained(base, tmp_path)


@every_method
def test_checkpoint_with_nan(slug: str, tmp_path: Path) -> None:
    save(slug, tmp_path)
    path = tmp_path / "adapter_model.safetensors"
    state = load_file(path)
    name = next(key for key, value in state.items() if value.is_floating_point())
    state[name].view(-1)[0] = torch.nan
    save_file(state, path)
    base = seeded(MLP)
    before = snapshot(base)
    refusal(lambda: PeftModel.from_pretrained(base, tmp_path), "NaN or Inf", name)
    assert_untouched(base, before)


def test_methods_that_rebuild_from_the_weight_say_so() -> None:
    """Another base changes ΔW of exactly the methods that declare `needs_base`."""
    for slug in sorted(ADAPTERS):
        deltas = []
        for seed in (0, 9):
            [layer] = layers(
                adapted(slug, seeded(lambda: Host(nn.Linear(12, 8)), seed=seed), init_weights=False)
            )
            deltas.append(layer.get_delta_weight("default"))
        assert torch.equal(*deltas) != config(slug).needs_base, slug


@every_method
@pytest.mark.parametrize("text", ["", "{", '{"peft_type": "NOTHING"}', '{"no": "type"}', "[1]"])
def test_checkpoint_with_a_broken_config(slug: str, text: str, tmp_path: Path) -> None:
    save(slug, tmp_path)
    (tmp_path / "adapter_config.json").write_text(text)
    base = seeded(MLP)
    before = snapshot(base)
    with pytest.raises(Exception):  # noqa: B017  PEFT reads this file, before we are asked
        PeftModel.from_pretrained(base, tmp_path)
    assert_untouched(base, before)


@every_method
def test_checkpoint_with_an_option_out_of_range(slug: str, tmp_path: Path) -> None:
    save(slug, tmp_path)
    written = json.loads((tmp_path / "adapter_config.json").read_text())
    (tmp_path / "adapter_config.json").write_text(json.dumps({**written, "dropout": 7}))
    refuses_to_load(tmp_path, "dropout is 7")


@every_method
def test_default_targets_of_an_unknown_model_type(slug: str) -> None:
    refusal(
        lambda: eckart.adapt(seeded(MLP), slug, target_modules=None, budget=500), "target_modules", "'custom'"
    )


# --- saving ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("slug", ["lora"])
def test_a_full_disk_is_an_error_and_the_model_lives(slug: str, tmp_path: Path) -> None:
    """A file-size limit stands for the full disk; it is set in a process of its own."""
    script = f"""
import resource, signal, sys, torch
sys.path.insert(0, {str(Path(__file__).parent)!r})
from adapter_cases import MLP, adapted, rows, seeded
model, x = adapted({slug!r}, seeded(MLP), init_weights=False, r=6), rows()
before = model(x)
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (1024, 1024))
try:
    model.save_pretrained({str(tmp_path / "full")!r})
except Exception as error:
    assert torch.equal(model(x), before)
    sys.stderr.write("refused " + type(error).__name__)
    sys.exit(7)
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert done.returncode == 7, done.stderr
    assert "refused" in done.stderr


@pytest.mark.parametrize("slug", ADAPTERS)
@pytest.mark.parametrize(
    "dtype", [torch.int8, torch.uint8, torch.bool, torch.float8_e4m3fn, torch.float8_e5m2, torch.complex64]
)
def test_a_weight_to_which_nothing_can_be_added(slug: str, dtype: torch.dtype) -> None:
    model = nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 4))
    model[0].weight = nn.Parameter(model[0].weight.data.to(dtype), requires_grad=False)
    before = dict(model.named_modules())
    with pytest.raises(
        InputError, match=f"the weight of layer 0 is of {dtype}, to which nothing can be added: load"
    ):
        eckart.adapt(model, slug, target_modules=["0", "2"])
    with pytest.raises(InputError, match=f"the weight of layer 0 is of {dtype}"):
        eckart.adapt(model, slug, target_modules=["0", "2"], budget="300%")
    assert dict(model.named_modules()) == before
