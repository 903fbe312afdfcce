"""Put structured layers in the place of linear ones before training, and dense ones back after it."""

from __future__ import annotations

import inspect
import re
from collections import Counter
from collections.abc import Callable, Collection, Sequence
from typing import Any, TypeVar

from torch import nn

import eckart.layers.lost
import eckart.layers.low_rank
import eckart.layers.maestro
import eckart.layers.relora
import eckart.layers.sltrain  # noqa: F401  the classes enter the table
from eckart.arguments import check_seed, plain
from eckart.errors import InputError
from eckart.layers._replacing import install, kept_random_state, refuse_adapter, refuse_wrapped
from eckart.layers._structured import STRUCTURED, StructuredLayer, sides
from eckart.linalg.random import counter_key

Model = TypeVar("Model", bound=nn.Module)
HIDDEN = r".*(attn|attention|mlp).*"
"""Names of the layers that are replaced where none are given: those of attention and of the MLP."""


def convert(
    model: Model,
    method: str,
    *,
    target_modules: str | Sequence[str] | None = None,
    seed: int = 0,
    **options: Any,
) -> Model:
    """Replace a model's linear layers (with "maestro" its convolutions too) by structured ones, to pretrain it.

    A transformers model remembers what was replaced: `save_pretrained` writes it into config.json, and
    `from_pretrained` makes the same layers again.

    Args:
        model: changed in place. Structures that start from a dense weight start from the one it has now.
        method: ``"sltrain"``, ``"lost"``, ``"low-rank"``, ``"maestro"`` or ``"relora"``.
        target_modules: a regular expression that matches a layer's whole name, or the ends of names such as
            ``["q_proj", "v_proj"]``; None: every linear layer whose name contains attn, attention or mlp.
        seed: everything random follows from it and the layer's name.
        options: of the layer, such as ``r`` and ``sparsity``.

    Returns:
        The model.

    Raises:
        InputError: an unknown method, an option that a layer cannot have, a layer that cannot be replaced, no layer at
            all; the model is then as it was.
    """
    cls, seed = _method(method), check_seed(seed)
    options = {name: plain(value) for name, value in options.items()}
    kinds = cls.kinds()
    found = targets(model, target_modules, kinds)
    for name, module in found.items():
        try:
            cls.check(*sides(module), **_required(cls, options))
        except InputError as error:
            raise InputError(f"{name}: {error}") from None
    with kept_random_state(model):
        made = {
            name: kinds[type(module)].from_module(module, counter_key(method, seed, name), **options)
            for name, module in found.items()
        }
    for name, layer in made.items():
        install(model, name, layer.train(model.get_submodule(name).training))
    remember(model)
    return model


def to_dense(model: Model) -> Model:
    """Replace a model's structured layers by stock ones that give the same numbers, in place.

    Raises:
        InputError: a layer that is not linear; the model is then as it was.
    """
    made = {}
    with kept_random_state(model):
        for name, layer in structured_layers(model).items():
            try:
                made[name] = layer.to_module()
            except InputError as error:
                raise InputError(f"{name}: {error}") from None
    for name, module in made.items():
        install(model, name, module.train(model.training))
    remember(model)
    return model


def trained_parameters(
    model: nn.Module, method: str, target_modules: str | Sequence[str] | None = None, **options: Any
) -> int:
    """Trained numbers that a model would have after `convert`, before anything is made.

    Raises:
        InputError: as `convert`.
    """
    cls = _method(method)
    found = targets(model, target_modules, cls.kinds())
    given = _required(cls, options)
    before = sum(p.numel() for p in model.parameters() if p.requires_grad)
    replaced = sum(a * b for a, b in map(sides, found.values()))
    counts = (cls.count(*sides(module), **given) for module in found.values())
    return before - replaced + sum(counts)


def structured_layers(model: nn.Module) -> dict[str, StructuredLayer]:
    """Name → structured layer."""
    return {name: m for name, m in model.named_modules() if isinstance(m, StructuredLayer)}


def targets(
    model: nn.Module, target_modules: str | Sequence[str] | None, kinds: Collection[type[nn.Module]]
) -> dict[str, Any]:
    """Name → layer that `convert` would replace.

    Args:
        model: holds the layers.
        target_modules: as in `convert`.
        kinds: the types that the method replaces.

    Raises:
        InputError: none, or one that cannot be replaced: another kind of layer, a weight that is shared, a model that
            is compressed, quantised, wrapped or adapted.
    """
    _refuse(model)
    matches = _matcher(target_modules)
    inside = tuple(f"{name}." for name in structured_layers(model))
    uses = Counter(id(p) for _, p in model.named_parameters(remove_duplicate=False))
    found: dict[str, Any] = {}
    for name, module in model.named_modules():
        if not name or not matches(name) or name.startswith(inside):
            continue
        if type(module) not in kinds:
            if isinstance(target_modules, str | None) or any(True for _ in module.children()):
                continue
            known = " and ".join(f"nn.{kind.__name__}" for kind in kinds)
            raise InputError(f"{name} is a {type(module).__name__}: only {known} layers can be replaced")
        if uses[id(module.weight)] > 1:
            raise InputError(f"{name} shares its weight with another layer: leave it out of target_modules")
        found[name] = module
    if not found:
        some = [name for name, m in model.named_modules() if type(m) in kinds][:5]
        raise InputError(
            f"target_modules={target_modules!r} matches no layer that can be replaced: the model has "
            f"{', '.join(some) or 'none'}"
        )
    if not isinstance(target_modules, str | None):
        for end in target_modules:
            if not any(_matcher([end])(name) for name in found):
                raise InputError(f"target_modules names {end!r}, which no layer ends with: leave it out")
    return found


def _refuse(model: nn.Module) -> None:
    """Refuse a model whose linear layers are parts of something else.

    Raises:
        InputError: saying of what.
    """
    refuse_wrapped(model, "convert")
    for name, module in model.named_modules():
        refuse_adapter(name, module, "convert")
    quantisation = getattr(getattr(model, "config", None), "quantization_config", None)
    if quantisation is not None and getattr(quantisation, "quant_method", None) != "eckart-structured":
        raise InputError("the model is compressed or quantised: convert the dense model")


def _matcher(target_modules: str | Sequence[str] | None) -> Callable[[str], bool]:
    if not isinstance(target_modules, str | Collection | None):
        raise InputError(f"target_modules={target_modules!r}: give a regular expression, or ends of names")
    if not isinstance(target_modules, str | None):
        ends = tuple(target_modules)
        return lambda name: any(name == end or name.endswith(f".{end}") for end in ends)
    try:
        pattern = re.compile(HIDDEN if target_modules is None else target_modules)
    except re.error as error:
        raise InputError(f"target_modules={target_modules!r}: no regular expression ({error})") from None
    return lambda name: pattern.fullmatch(name) is not None


def remember(model: nn.Module) -> None:
    """Write what was replaced into a transformers model's config, from where `save_pretrained` takes it."""
    config: Any = getattr(model, "config", None)
    if not hasattr(config, "to_diff_dict"):
        return
    layers = structured_layers(model)
    if not layers:
        vars(config).pop("quantization_config", None)
        return
    from eckart.layers._quantizer import StructuredConfig

    config.quantization_config = StructuredConfig({name: layer.spec() for name, layer in layers.items()})


def _method(method: str) -> type[StructuredLayer]:
    if method not in STRUCTURED:
        raise InputError(f"method={method!r}: choose one of {', '.join(sorted(STRUCTURED))}")
    return STRUCTURED[method]


def _required(cls: type[StructuredLayer], options: dict[str, Any]) -> dict[str, Any]:
    """The options, refused where the class has none of that name or lacks the rank."""
    parameters = inspect.signature(cls).parameters
    given_here = {name for name, p in parameters.items() if p.kind is p.KEYWORD_ONLY}
    known = given_here - {"seed", "device", "dtype"}
    for name in options:
        if name not in known:
            raise InputError(
                f"{name}={options[name]!r}: {cls.slug} has the options {', '.join(sorted(known))}"
            )
    if "r" not in options and parameters["r"].default is inspect.Parameter.empty:
        raise InputError(f"r is missing: give the rank of the {cls.slug} layers")
    return options
