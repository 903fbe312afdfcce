"""A client's own model: the task's, with an adapter of the LoRA family whose factors the server sends and gets back.

An adapter is of the family when it is a product of two factors (`LowRankAdapter`, or PEFT's own LoRA) that begins with
``lora_A`` and ``lora_B`` wherever they are put. What it trains beside them, such as a core, is folded into the factors
that are sent. Its scaling s_k may be its own: B travels as (s_k/s) B, so that the server knows one s.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

import torch
from peft import PeftModel, get_peft_model
from torch import Tensor, nn

from eckart.errors import InputError, first_line
from eckart.federated.state import KEY_A, KEY_B
from eckart.jobs.federate import PEFT_LORA, lora

if TYPE_CHECKING:
    from eckart.jobs.federate.plan import Plan
    from eckart.tasks.task import Task

PEFT_OPTIONS = ("lora_dropout", "use_rslora")
"""Of PEFT's LoraConfig: what changes neither the base weight nor what trains."""


@dataclass(frozen=True)
class Factors:
    """The factors of one layer: the tensors they start from, what they have become, and the adapter's scaling."""

    a: Tensor
    b: Tensor
    scale: float
    now: Callable[[], tuple[Tensor, Tensor]]


class LocalModel:
    """The task's model with a client's adapter on it.

    Args:
        task: whose model it is.
        plan: the run.
        r: the client's rank.

    Raises:
        InputError: an adapter that is not of the LoRA family; unknown options; target modules that match nothing.
    """

    def __init__(self, task: Task, plan: Plan, r: int) -> None:
        self.task, self.plan = task, plan
        self.freezes_a = plan.rule().freezes_a
        if plan.method == PEFT_LORA:
            if odd := sorted(set(plan.method_options) - set(PEFT_OPTIONS)):
                raise InputError(
                    f"{PEFT_LORA} has no option {odd[0]!r} here: it has {', '.join(PEFT_OPTIONS)}"
                )
            options = (plan.target_modules, r, plan.scaling, plan.seed)
            self.model = lora.with_lora(task, *options, **plan.method_options)
            self.layers = {name: _of_peft(layer) for name, layer in lora.lora_layers(self.model).items()}
        else:
            self.model, self.layers = _of_eckart(task, plan, r)
        if self.freezes_a:
            for layer in self.layers.values():
                layer.a.requires_grad_(False)
            self._refuse_more_than_b()

    def _refuse_more_than_b(self) -> None:
        known = {id(layer.b) for layer in self.layers.values()} | {
            id(v) for v in lora.head(self.model).values()
        }
        if odd := next(
            (n for n, p in self.model.named_parameters() if p.requires_grad and id(p) not in known), None
        ):
            raise InputError(
                f"{self.plan.strategy} trains B alone, method {self.plan.method} trains {odd} too: use lora"
            )

    @property
    def shapes(self) -> dict[str, tuple[int, int]]:
        """(out, in) of every adapted weight."""
        return {name: (layer.b.shape[0], layer.a.shape[1]) for name, layer in self.layers.items()}

    @torch.no_grad()
    def load(self, start: Mapping[str, Tensor], base: Mapping[str, Tensor]) -> None:
        """Take what the server sent.

        Args:
            start: factors and head by PEFT's keys.
            base: layer name -> what is added to its weight.

        Raises:
            InputError: it has what this model has not.
        """
        targets = lora.head(self.model)
        for name, layer in self.layers.items():
            targets |= {KEY_A.format(name): layer.a, KEY_B.format(name): layer.b}
        if odd := sorted(set(start) ^ set(targets)):
            raise InputError(
                f"{odd[0]} is in the server's model or this one, not in both: use the same model"
            )
        for key, value in start.items():
            targets[key].copy_(value)
        for layer in self.layers.values():
            layer.b.mul_(self.plan.scaling / layer.scale)
        lora.add_to_base(self.model, base)

    @torch.no_grad()
    def trained(self) -> dict[str, Tensor]:
        """What is sent: all that was trained, by PEFT's keys, float32 on the CPU."""
        tensors = dict(lora.head(self.model))
        for name, layer in self.layers.items():
            a, b = layer.now()
            tensors[KEY_B.format(name)] = b * (layer.scale / self.plan.scaling)
            if not self.freezes_a:
                tensors[KEY_A.format(name)] = a
        return {key: value.detach().float().cpu().contiguous().clone() for key, value in tensors.items()}


def check_method(task: Task, plan: Plan, shapes: Mapping[str, tuple[int, int]]) -> None:
    """Refuse an adapter that clients could not train, before anything is begun.

    Args:
        task: the server's.
        plan: the run.
        shapes: of the server's model.

    Raises:
        InputError: as `LocalModel`; it adapts other layers than LoRA would.
    """
    for r in sorted(set(plan.ranks)):
        model = LocalModel(task, plan, r)
        if model.shapes != dict(shapes):
            odd = min(set(model.shapes.items()) ^ set(shapes.items()))[0]
            raise InputError(
                f"method {plan.method} does not adapt the layers of LoRA, such as {odd}: use lora"
            )
        if small := next((n for n, layer in model.layers.items() if layer.a.shape[0] != r), None):
            raise InputError(f"method {plan.method} does not take rank {r} in layer {small}: use lora")


def _of_peft(layer: Any) -> Factors:
    a, b = (cast(nn.Linear, part["default"]).weight for part in (layer.lora_A, layer.lora_B))
    return Factors(a, b, float(layer.scaling["default"]), lambda: (a, b))


def _of_eckart(task: Task, plan: Plan, r: int) -> tuple[PeftModel, dict[str, Factors]]:
    from eckart.adapters import AdapterConfig, get_config, walk

    kind = get_config(plan.method)
    fields = getattr(kind, "__dataclass_fields__", {})
    if not issubclass(kind, AdapterConfig) or "r" not in fields:
        raise InputError(f"method {plan.method} is not of the LoRA family: use {PEFT_LORA}, lora or rslora")
    given: dict[str, Any] = {
        "r": r,
        "target_modules": plan.target_modules,
        "modules_to_save": task.head_modules or None,
    }
    if "lora_alpha" in fields:
        given["lora_alpha"] = plan.scaling * r
    if taken := sorted(given.keys() & plan.method_options.keys()):
        raise InputError(f"method option {taken[0]} has an option of its own: leave it out")
    if odd := sorted(plan.method_options.keys() - fields.keys()):
        raise InputError(f"method {plan.method} has no option {odd[0]!r}")
    if plan.method == "rslora":
        given["use_rslora"] = True
    try:
        model = cast(
            PeftModel, get_peft_model(task.fresh_model(plan.seed), kind(**given, **plan.method_options))
        )
    except InputError:
        raise
    except (ValueError, TypeError) as error:
        raise InputError(f"method {plan.method}: {first_line(error)}") from None
    return model, {name: _factors(plan.method, name, adapter) for name, _, _, adapter in walk(model)}


def _factors(method: str, name: str, adapter: Any) -> Factors:
    """The factors of an eckart adapter, once it is seen that they begin where they are put."""
    from eckart.adapters import LowRankAdapter

    a, b = getattr(adapter, "lora_A", None), getattr(adapter, "lora_B", None)
    if (
        isinstance(adapter, LowRankAdapter)
        and a is not None
        and b is not None
        and adapter.delta_bias() is None
    ):
        with torch.no_grad():
            a.normal_(), b.normal_()
            now = adapter.factors()
        if all(
            one.shape == two.shape and torch.equal(one, two) for one, two in zip(now, (a, b), strict=True)
        ):
            return Factors(a, b, float(adapter.scale), adapter.factors)
    raise InputError(
        f"method {method} is not of the LoRA family: {name} gets no product of lora_A and lora_B; "
        f"use {PEFT_LORA}, lora or rslora"
    )
