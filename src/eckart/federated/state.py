"""The server's model between two rounds: factors of each layer, what was added to the base weights, and the head.

    W_eff = W₀ + Σ (residuals of all rounds) + s B A

It is what clients are sent (at their own rank), what a round's checkpoint holds, and what the final adapter is made of.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from eckart.errors import InputError
from eckart.federated._products import DTYPE, ProductSum
from eckart.federated._registry import FederatedStrategy
from eckart.federated._sums import Aggregate
from eckart.files import atomic_write

KEY_A, KEY_B = "base_model.model.{}.lora_A.weight", "base_model.model.{}.lora_B.weight"
"""PEFT's names of a layer's factors."""
BASE_A, BASE_B, BASE = "base_update.{}.A", "base_update.{}.B", "base_update.{}.dense"
"""Names of what is to be added to a layer's base weight: B A, or the matrix where that is smaller."""


def fresh_a(name: str, r: int, inner: int, seed: int) -> Float[Tensor, "r in"]:
    """The A that everybody starts a layer from, uniform on ±1/√in: one rank's rows are the first of a higher one's.

    Args:
        name: of the layer.
        r: rank.
        inner: columns.
        seed: of the run, or of the round where clients start afresh every round.
    """
    digest = hashlib.sha256(f"{seed}/{name}".encode()).digest()
    generator = torch.Generator().manual_seed(int.from_bytes(digest[:7], "little"))
    return (2 * torch.rand(r, inner, generator=generator) - 1) / math.sqrt(inner)


def complete(
    message: Mapping[str, Tensor], shapes: Mapping[str, tuple[int, int]], r: int, seed: int
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """A client's side of `ServerState.message`: what it starts from, and what it adds to its base weights.

    Args:
        message: as received.
        shapes: layer name -> (out, in) of its weight.
        r: the client's rank.
        seed: `ServerState.fresh_seed`.

    Returns:
        factors and head by PEFT's keys; layer name -> (out, in), for the layers that change.
    """
    base_keys = tuple(key.partition("{}")[0] for key in (BASE_A, BASE_B, BASE))
    start = {key: value for key, value in message.items() if not key.startswith(base_keys)}
    base = {}
    for name, (out, inner) in shapes.items():
        start.setdefault(KEY_A.format(name), fresh_a(name, r, inner, seed))
        start.setdefault(KEY_B.format(name), torch.zeros(out, r))
        if BASE.format(name) in message:
            base[name] = message[BASE.format(name)]
        elif BASE_A.format(name) in message:
            base[name] = message[BASE_B.format(name)] @ message[BASE_A.format(name)]
    return start, base


@dataclass(frozen=True)
class ServerState:
    """The server's model.

    Attributes:
        round: how many rounds it has seen.
        shapes: layer name -> (out, in) of its weight.
        layers: layer name -> the factors that clients start from.
        base: layer name -> all that rounds added to its base weight; empty where nothing was.
        head: other trained tensors by PEFT's key, float32.
        seed: of the fresh factors.
        scaling: α/r, the same at every client.
    """

    round: int
    shapes: Mapping[str, tuple[int, int]]
    layers: Mapping[str, Aggregate]
    base: Mapping[str, ProductSum]
    head: Mapping[str, Tensor]
    seed: int
    scaling: float

    @classmethod
    def begin(
        cls,
        shapes: Mapping[str, tuple[int, int]],
        head: Mapping[str, Tensor],
        r: int,
        scaling: float,
        seed: int,
    ) -> ServerState:
        """The model before the first round: the same fresh A for all, B = 0.

        Raises:
            InputError: no layers, a rank below 1 or above what a layer can hold.
        """
        if not shapes:
            raise InputError("target_modules match no layer: there is nothing to federate")
        most = min(min(shape) for shape in shapes.values())
        if not 1 <= r <= most:
            raise InputError(f"r is {r}: the layers can hold ranks from 1 to {most}")
        layers = {
            name: Aggregate(
                fresh_a(name, r, inner, seed).to(DTYPE), torch.zeros(out, r, dtype=DTYPE), scaling
            )
            for name, (out, inner) in shapes.items()
        }
        return cls(0, dict(shapes), layers, {}, dict(head), seed, scaling)

    @property
    def restarts(self) -> bool:
        """Whether clients start their factors afresh in the next round."""
        return any(layer.a is None for layer in self.layers.values())

    @property
    def fresh_seed(self) -> int:
        """Seed of `fresh_a` in the next round: one for the whole run, or one a round where clients start afresh."""
        return self.seed + (1_000_003 * self.round if self.restarts else 0)

    def start(self, r: int) -> dict[str, Tensor]:
        """What a client of rank r starts the next round from: factors and head by PEFT's keys, float32."""
        tensors = {key: value.clone() for key, value in self.head.items()}
        for name, (out, inner) in self.shapes.items():
            fresh = fresh_a(name, r, inner, self.fresh_seed)
            a, b = self.layers[name].factors_for(fresh, out, self.scaling)
            tensors[KEY_A.format(name)], tensors[KEY_B.format(name)] = a.float(), b.float()
        return tensors

    def message(self, strategy: FederatedStrategy, r: int) -> dict[str, Tensor]:
        """What is sent to a client of rank r, see `complete`. What it can draw from the seed itself is left out: a
        frozen A, and both factors where clients start afresh. What was added to base weights is sent as a whole: no
        factor in it is one client's."""
        left_out = set()
        for name in self.shapes:
            if strategy.freezes_a or self.restarts:
                left_out.add(KEY_A.format(name))
            if self.restarts:
                left_out.add(KEY_B.format(name))
        tensors = {key: value for key, value in self.start(r).items() if key not in left_out}
        return tensors | {key: value.float() for key, value in self._base_tensors(sent=True)}

    def _base_tensors(self, sent: bool) -> Iterator[tuple[str, Tensor]]:
        for name, total in self.base.items():
            if total.numbers < total.out * total.inner:
                b, a = total.mixed_stacks() if sent else total.stacks()
                yield BASE_A.format(name), a
                yield BASE_B.format(name), b
            else:
                yield BASE.format(name), total.dense()

    def update(self, name: str) -> ProductSum:
        """The whole change of a layer's weight since the run began."""
        out, inner = self.shapes[name]
        total = ProductSum(out, inner)
        if name in self.base:
            total.merge(self.base[name])
        total.merge(self.layers[name].update(out, inner))
        return total

    def advance(self, results: Mapping[str, Aggregate], head: Mapping[str, Tensor]) -> ServerState:
        """The model after a round.

        Args:
            results: layer name -> what the strategy made of it.
            head: the averaged other tensors.
        """
        base = {}
        for name, (out, inner) in self.shapes.items():
            total = ProductSum(out, inner)
            for part in (self.base.get(name), results[name].residual):
                if part is not None:
                    total.merge(part)
            if total.numbers:
                base[name] = total
        layers = {name: replace(result, residual=None) for name, result in results.items()}
        return replace(self, round=self.round + 1, layers=layers, base=base, head=dict(head))

    def save(self, path: str | Path, **facts: Any) -> None:
        """Write the state to one safetensors file, whole or not at all.

        Args:
            path: the file.
            facts: JSON values to keep beside the tensors.
        """
        tensors = {f"head/{key}": value for key, value in self.head.items()}
        tensors |= {f"base/{key}": value for key, value in self._base_tensors(sent=False)}
        for name, layer in self.layers.items():
            if layer.a is not None and layer.b is not None:
                tensors |= {f"a/{name}": layer.a, f"b/{name}": layer.b}
        facts |= {
            "round": self.round,
            "seed": self.seed,
            "scaling": self.scaling,
            "shapes": {name: list(shape) for name, shape in self.shapes.items()},
            "scalings": {name: layer.scaling for name, layer in self.layers.items()},
        }
        with atomic_write(path) as file:
            save_file({k: v.contiguous() for k, v in tensors.items()}, file, {"eckart": json.dumps(facts)})

    @classmethod
    def load(cls, path: str | Path) -> tuple[ServerState, dict[str, Any]]:
        """Read a state and the facts saved with it.

        Raises:
            InputError: the file is damaged or is none of `save`.
        """
        try:
            with safe_open(str(path), framework="pt") as file:
                facts = json.loads(file.metadata()["eckart"])
                tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 - no mapping
        except (SafetensorError, OSError, KeyError, TypeError, ValueError) as error:
            raise InputError(f"checkpoint {path} is damaged ({error}): remove it") from None
        shapes = {name: (int(out), int(inner)) for name, (out, inner) in facts["shapes"].items()}
        layers = {
            name: Aggregate(tensors.get(f"a/{name}"), tensors.get(f"b/{name}"), scaling)
            for name, scaling in facts["scalings"].items()
        }
        base = {}
        for name, (_, inner) in shapes.items():
            keys = [f"base/{key.format(name)}" for key in (BASE_B, BASE_A, BASE)]
            if keys[2] in tensors:
                base[name] = ProductSum.of(tensors[keys[2]], torch.eye(inner))
            elif keys[0] in tensors:
                base[name] = ProductSum.of(tensors[keys[0]], tensors[keys[1]])
        head = {key.removeprefix("head/"): value for key, value in tensors.items() if key.startswith("head/")}
        state = cls(facts["round"], shapes, layers, base, head, facts["seed"], facts["scaling"])
        return state, facts
