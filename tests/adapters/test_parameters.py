"""The census of parameters: which are found by name, on which side their inputs are, and which are refused."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from adapter_cases import assert_untouched, snapshot
from expert_cases import BOTH, MODELS, moe
from torch import Tensor, nn
from torch.nn import functional as F

import eckart
from eckart.adapters import make_config, walk
from eckart.adapters._parameters import all_parameters, find_parameters, stored_transposed
from eckart.errors import InputError


def refused(base: nn.Module, *names: str, **options: Any) -> str:
    """The one line with which names are refused, the model being left as it was."""
    before = snapshot(base)
    options = {"target_modules": [], **options}
    with pytest.raises(InputError) as caught:
        eckart.adapt(base, "lora", target_parameters=list(names), r=2, **options)
    assert_untouched(base, before)
    assert "\n" not in str(caught.value)
    return str(caught.value)


# --- names -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("experts.gate_up_prj", "fits no parameter of this model: did you mean 'experts.gate_up_proj'?"),
        ("down_projection", "fits no parameter of this model: did you mean 'down_proj'?"),
        ("zz", "fits no parameter of this model: known are down_proj, gate_up_proj, weight"),
        ("perts.down_proj", "fits no parameter of this model: did you mean 'experts.down_proj'?"),
        (
            "q_proj.weight",
            "is the weight of the layer model.layers.0.self_attn.q_proj: name that in target_modules",
        ),
        ("norm.weight", "is no matrix and no stack of them, but of shape (16,): leave it out"),
    ],
)
def test_names_that_fit_nothing(name: str, told: str) -> None:
    assert refused(moe(), BOTH[0], name) == f"target_parameters names {name!r}, which {told}"


@pytest.mark.parametrize(
    ("options", "found"),
    [
        ({"target_parameters": ["down_proj"]}, ["0.mlp.experts.down_proj", "1.mlp.experts.down_proj"]),
        ({"target_parameters": ["1.mlp.experts.down_proj"]}, ["1.mlp.experts.down_proj"]),
        ({"layers_to_transform": [0]}, ["0.mlp.experts.gate_up_proj", "0.mlp.experts.down_proj"]),
        (
            {"exclude_modules": ["gate_up_proj"], "target_parameters": ["layers.0.mlp.experts.down_proj"]},
            ["0.mlp.experts.down_proj"],
        ),
    ],
)
def test_names_follow_the_rules_for_layers(options: dict[str, Any], found: list[str]) -> None:
    config = make_config("lora", **{"target_parameters": BOTH, "target_modules": [], **options})
    assert [t.name for t in find_parameters(moe(), config)] == [f"model.layers.{name}" for name in found]


def test_names_that_are_left_out_by_another_option() -> None:
    told = "is left out by exclude_modules, modules_to_save or layers_to_transform"
    assert told in refused(moe(), "experts.down_proj", exclude_modules=["experts.down_proj"])
    assert told in refused(moe(), "experts.down_proj", layers_to_transform=[7])
    assert told in refused(moe(), "experts.down_proj", modules_to_save=["mlp"])


@pytest.mark.parametrize("names", ["experts.down_proj", [1], [""]])
def test_names_that_are_no_list_of_names(names: Any) -> None:
    with pytest.raises(InputError, match=r"target_parameters is .*: give a list of names"):
        make_config("svfit", target_parameters=names)
    assert make_config("svfit", target_parameters=[]).target_parameters is None


@pytest.mark.parametrize(("option", "value"), [("dropout", 0.1), ("route", "factored")])
def test_options_of_a_branch_are_refused(option: str, value: Any) -> None:
    with pytest.raises(InputError, match=rf"{option} is .*, and target_parameters have no branch beside"):
        make_config("lora", target_parameters=BOTH, **{option: value})


def test_all_linear_names_what_it_leaves_out_and_how_to_have_it() -> None:
    with pytest.warns(
        UserWarning, match=r"experts\.down_proj \(a stack of .*: name it in target_parameters\)"
    ) as told:
        eckart.adapt(moe(), "lora", target_parameters=BOTH[:1])
    assert "gate_up_proj" not in str(told[0].message)


# --- sides -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", MODELS)
def test_the_sides_of_transformers_own(kind: str) -> None:
    experts = next(m for name, m in moe(kind).named_modules() if name.endswith("experts"))
    for name in ("gate_up_proj", "down_proj"):
        assert stored_transposed(type(experts), name) is (kind in ("gpt-oss", "llama4")), (kind, name)


class Inner(nn.Module):
    """A parameter, and a forward that a test gives."""

    def __init__(self, *shape: int) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.randn(*shape))


class Out(Inner):
    def forward(self, x: Tensor) -> Tensor:
        assert self.w.shape[-1] == x.shape[-1] and self.w.dtype == x.dtype
        return F.linear(x, self.w[0].to(x.dtype))


class Matmul(Inner):
    def forward(self, x: Tensor) -> Tensor:
        return x @ self.w


class Turned(Inner):
    def forward(self, x: Tensor) -> Tensor:
        return torch.matmul(x, self.w.transpose(-1, -2))


class TurnedTwice(Inner):
    def forward(self, x: Tensor) -> Tensor:
        return x.matmul(self.w.mT.transpose(1, 2))


class Left(Inner):
    def forward(self, x: Tensor) -> Tensor:
        return (self.w @ x.t()).t()


class Batched(Inner):
    def forward(self, x: Tensor) -> Tensor:
        return torch.bmm(x, self.w.unsqueeze(0)) if self.w is not None else x


class Both(Inner):
    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x @ self.w, self.w)


class Scaled(Inner):
    def forward(self, x: Tensor) -> Tensor:
        return x @ self.w + self.w.sum()


class Swapped(Inner):
    def forward(self, x: Tensor) -> Tensor:
        return torch.bmm(x, self.w.transpose(0, 1))


class Aliased(Inner):
    def forward(self, x: Tensor) -> Tensor:
        weight = self.w
        return x @ weight


class Unread(Inner):
    def forward(self, x: Tensor) -> Tensor:
        return x


@pytest.mark.parametrize(
    ("kind", "transposed"),
    [
        (Out, False),
        (Matmul, True),
        (Turned, False),
        (TurnedTwice, True),
        (Left, False),
        (Batched, True),
        (Both, None),
        (Scaled, None),
        (Swapped, None),
        (Aliased, None),
        (Unread, None),
    ],
)
def test_what_the_code_of_a_module_tells(kind: type, transposed: bool | None) -> None:
    assert stored_transposed(kind, "w") is transposed


class Holder(nn.Module):
    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(x)


class Reader(Holder):
    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.inner.w)


class Asker(Holder):
    def forward(self, x: Tensor) -> Tensor:
        return self.inner(x.to(self.inner.w.dtype))


class Nested(Matmul):
    def __init__(self, *shape: int) -> None:
        super().__init__(*shape)
        self.lin = nn.Linear(3, 3)


def tied() -> nn.Module:
    first = Holder(Matmul(3, 5))
    second = Matmul(3, 5)
    second.w = first.inner.w
    first.twin = second
    return first


@pytest.mark.parametrize(
    ("make", "names", "options", "told"),
    [
        (
            lambda: Holder(Both(3, 3)),
            ["inner.w"],
            {},
            "the code of Both does not tell which of its sides the inputs",
        ),
        (lambda: Holder(Unread(3, 3)), ["w"], {}, "the code of Unread does not tell"),
        (lambda: Asker(Matmul(3, 5)), ["w"], {}, "Asker reads it without calling inner; leave it out"),
        (lambda: Reader(Matmul(3, 5)), ["w"], {}, "Reader reads it without calling inner; leave it out"),
        (
            tied,
            ["inner.w"],
            {},
            "it is also twin.w, which would not follow; give each a parameter of its own",
        ),
        (lambda: Matmul(3, 5), ["w"], {}, "it lies on the model itself"),
        (
            lambda: Holder(Nested(3, 5)),
            ["w"],
            {"target_modules": ["lin"]},
            "layer inner.lin inside the same module is adapted too; adapt one of them",
        ),
    ],
)
def test_parameters_that_cannot_be_adapted(
    make: Callable[[], nn.Module], names: list[str], options: dict[str, Any], told: str
) -> None:
    message = refused(make(), *names, **options)
    assert message.startswith("parameter ") and " cannot be adapted: " in message
    assert told in message


def test_a_layer_inside_that_another_adapter_is_on() -> None:
    model = eckart.adapt(Holder(Nested(3, 5)), "lora", r=1, target_modules=["lin"])
    with pytest.raises(InputError, match=r"layer inner\.lin inside the same module is adapted too"):
        model.add_adapter("other", make_config("lora", r=1, target_modules=[], target_parameters=["w"]))


def test_a_tie_is_seen_from_a_second_adapter_too() -> None:
    """A parameter that has an adapter is not held to be its own twin."""
    model = eckart.adapt(Holder(Matmul(3, 5)), "lora", r=1, target_modules=[], target_parameters=["w"])
    model.add_adapter("other", make_config("lora", r=2, target_modules=[], target_parameters=["w"]))
    assert [a.factor_rank for _, _, _, a in walk(model, "other")] == [2]


def test_a_weight_of_whole_numbers_or_without_values_is_refused() -> None:
    base = Holder(Matmul(3, 5))
    base.inner.w = nn.Parameter(torch.ones(3, 5, dtype=torch.int8), requires_grad=False)
    with pytest.raises(InputError, match=r"of torch\.int8, to which nothing can be added"):
        eckart.adapt(base, "lora", target_parameters=["w"], target_modules=[], r=2)
    assert "is on the meta device: load the base model first" in refused(Holder(Matmul(3, 5)).to("meta"), "w")
    base = Holder(Matmul(3, 5))
    with torch.no_grad():
        base.inner.w[0, 0] = torch.nan
    assert "the weight of layer inner.w holds NaN or Inf" in refused(base, "w")


def test_a_quantised_parameter_is_refused() -> None:
    class Packed(nn.Parameter):
        pass

    base = Holder(Matmul(3, 5))
    base.inner._parameters["w"] = Packed(torch.randn(3, 5))
    assert "it is a Packed (quantised?); load the model without quantisation" in refused(base, "w")


def test_one_module_under_two_names_is_wrapped_and_unwrapped_under_both() -> None:
    base = Holder(Matmul(5, 5))
    base.again, inner = base.inner, base.inner
    model = eckart.adapt(base, "lora", r=1, target_modules=[], target_parameters=["w"], init_weights=False)
    assert base.again is base.inner is not inner
    x = torch.randn(2, 5)
    outputs = model(x)
    assert model.merge_and_unload() is base
    assert base.again is base.inner is inner
    torch.testing.assert_close(base(x), outputs)


def test_the_parameters_of_layers_and_adapters_are_none_of_these() -> None:
    base = moe()
    before = [target.name for target in all_parameters(base)]
    assert before == [
        f"model.layers.{layer}.mlp.{name}"
        for layer in range(2)
        for name in ("gate.weight", "experts.gate_up_proj", "experts.down_proj")
    ]
    eckart.adapt(base, "lora", target_parameters=BOTH)
    assert [target.name for target in all_parameters(base)] == before
