"""ReLoRA: pretraining of full-rank weights by low-rank updates that are merged and begun anew.

    y = x (W + s B A)ᵀ + b        W (out, in)   A (r, in)   B (out, r)   s = lora_alpha/r

    at first     W trains, the factors rest (B = 0)
    from then    W rests, A and B train; every so many steps  W ← W + s B A,  A drawn anew,  B ← 0,
                 of each moment of the factors the largest numbers stay, and the rate rises from zero again

`ReLoRA` is the procedure, `ReLoRALinear` the layer.

Source: Lialin, Shivagunde, Muckatira & Rumshisky, "ReLoRA: High-Rank Training Through Low-Rank Updates", ICLR 2024,
arXiv:2307.05695.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, cast

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim import Optimizer

from eckart.arguments import check_attributes, checked
from eckart.errors import InputError
from eckart.layers._structured import Key, StructuredLinear, check_rank, register_layer
from eckart.linalg.random import seeded_generator
from eckart.tensors import Stateful


@register_layer("relora")
class ReLoRALinear(StructuredLinear):
    """y = x (W + s B A)ᵀ + b; A starts uniform on ±1/√in, B at zero, so that it starts as the dense layer.

    All of it trains unless `ReLoRA` says what rests.

    Args:
        in_features, out_features, bias: as in `nn.Linear`.
        r: rank of an update, at most the shorter side.
        lora_alpha: s = lora_alpha/r.
        seed: 63 bits that every A follows from.
        device, dtype: of the parameters.

    Attributes:
        warm: the factors rest, and take no time.

    Raises:
        InputError: an option out of its range.

    Source: Lialin et al., 2024, arXiv:2307.05695.
    """

    weight: nn.Parameter

    @checked
    def __init__(
        self,
        in_features: int,
        out_features: int,
        bias: bool = True,
        *,
        r: int,
        lora_alpha: float = 32.0,
        seed: Key = 0,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        self.check(in_features, out_features, r=r)
        options = {"r": r, "lora_alpha": lora_alpha, "seed": seed}
        super().__init__(in_features, out_features, bias, True, options, device, dtype)
        self.weight.requires_grad_(True)
        made: dict[str, Any] = {"device": device, "dtype": dtype}
        self.lora_A = nn.Parameter(torch.zeros(r, in_features, **made))
        self.lora_B = nn.Parameter(torch.zeros(out_features, r, **made))
        self.warm = False
        self.draw(0)

    @classmethod
    def check(cls, in_features: int, out_features: int, **options: Any) -> None:
        check_rank(options["r"], in_features, out_features)

    @classmethod
    def count(cls, in_features: int, out_features: int, **options: Any) -> int:
        return in_features * out_features + int(options["r"]) * (in_features + out_features)

    @classmethod
    def from_linear(cls, linear: nn.Linear, key: int, **options: Any) -> ReLoRALinear:
        made: dict[str, Any] = {"device": linear.weight.device, "dtype": linear.weight.dtype}
        layer = cls(
            linear.in_features, linear.out_features, linear.bias is not None, seed=key, **options, **made
        )
        with torch.no_grad():
            layer.weight.copy_(linear.weight)
            if layer.bias is not None:
                layer.bias.copy_(linear.bias)
        return layer

    @property
    def factors(self) -> tuple[nn.Parameter, nn.Parameter]:
        """A and B."""
        return self.lora_A, self.lora_B

    @property
    def scale(self) -> float:
        """s."""
        return float(self.options["lora_alpha"] / self.options["r"])

    def forward(self, x: Float[Tensor, "... in"]) -> Float[Tensor, "... out"]:
        """y = x (W + s B A)ᵀ + b."""
        if self.warm and x.shape[-1] == self.in_features:
            return F.linear(x, self.weight, self.bias)
        return super().forward(x)

    def branch(self, x: Float[Tensor, "... in"]) -> Float[Tensor, "... out"]:
        return F.linear(F.linear(x, self.lora_A), self.lora_B) * self.scale

    def structured_weight(self) -> Float[Tensor, "out in"]:
        wide = torch.promote_types(self.lora_A.dtype, torch.float32)
        weight: Tensor = self.scale * (self.lora_B.to(wide) @ self.lora_A.to(wide))
        return weight

    @torch.no_grad()
    def draw(self, restart: int) -> None:
        """A of the restart with this number, and B zero."""
        if self.lora_A.device.type == "meta":
            return
        bound, generator = 1 / math.sqrt(self.in_features), seeded_generator(self.options["seed"], restart)
        self.lora_A.copy_(torch.empty(self.lora_A.shape).uniform_(-bound, bound, generator=generator))
        self.lora_B.zero_()

    @torch.no_grad()
    def restart(self, number: int) -> None:
        """Merge the factors into W and begin new ones: the layer's outputs stay, up to the rounding of W.

        Args:
            number: of the restart, from 1.
        """
        self.weight.copy_(self.dense_weight())
        self.draw(number)


@dataclass
class ReLoRA(Stateful):
    """Decides what of a model's `ReLoRALinear` layers trains, and restarts their factors.

    Lifecycle:
        attach       the warm start: W of the layers trains, their factors rest
        before step  in the first ``rewarm`` steps after the warm start and after each restart every rate is lower,
                     by a factor that rises from zero to one along a line
        after step   the rates are put back; at the end of the warm start W is frozen and its moments are dropped;
                     every ``restart_every`` steps from there the factors are merged, begun anew, their moments pruned
        detach       it stops acting

    Args:
        restart_every: steps between restarts; None: a quarter of the training.
        warm_start: steps at full rank before; None: as many as between restarts; 0: none.
        rewarm: steps in which the rate rises again; None: a fiftieth of those between restarts, at least
            one of several.
        prune: share of each moment's numbers, the smallest, that a restart sets to zero. With 1, or where a factor's
            state is of another shape or type (low-rank optimisers, moments of few bits), it begins anew.

    Raises:
        InputError: an option out of its range.

    Source: Lialin et al., 2024, arXiv:2307.05695.
    """

    restart_every: int | None = None
    warm_start: int | None = None
    rewarm: int | None = None
    prune: float = 0.99

    slug: ClassVar[str] = "relora"

    def __post_init__(self) -> None:
        check_attributes(self, type(self))
        self.step = 0
        self.layers: dict[str, ReLoRALinear] = {}
        self._handles: list[Any] = []

    def attach(self, model: nn.Module, optimizer: Optimizer, *, steps: int | None = None) -> ReLoRA:
        """Begin to act whenever the optimiser steps.

        Args:
            model: after ``convert(model, "relora", r=…)``.
            optimizer: over its parameters.
            steps: how many steps the training has.

        Raises:
            InputError: attached already, no such layer, an optimiser without their parameters, a training that ends
                before the first restart or whose length is not known; nothing was changed.
        """
        if self._handles:
            raise InputError("ReLoRA is attached already: detach it first, or make another")
        optimizer = cast(Optimizer, getattr(optimizer, "optimizer", optimizer))  # accelerate's wrapper
        layers = {name: m for name, m in model.named_modules() if isinstance(m, ReLoRALinear)}
        if not layers:
            raise InputError(
                f"{type(model).__name__} has no ReLoRA layer: convert(model, 'relora', r=…) makes them"
            )
        every, warm, rewarm = self._lengths(steps)
        held = {id(p) for group in optimizer.param_groups for p in group["params"]}
        for name, layer in layers.items():
            needed = (*layer.factors, *((layer.weight,) if warm else ()))
            if any(id(p) not in held for p in needed):
                raise InputError(f"the optimiser does not hold all of {name}: make it after convert")
        self._every, self._warm, self._rewarm = every, warm, rewarm
        self.optimizer, self.layers = optimizer, layers
        self._arrange()
        self._handles = [
            optimizer.register_step_pre_hook(self._before),
            optimizer.register_step_post_hook(self._after),
        ]
        return self

    def check_length(self, steps: int) -> None:
        """Refuse a training that ends before the first restart.

        Raises:
            InputError: it does, or a restart comes before the rate has risen again.
        """
        self._lengths(steps)

    def _lengths(self, steps: int | None) -> tuple[int, int, int]:
        """Steps between restarts, of the warm start, and in which the rate rises again."""
        if self.restart_every is None and steps is None:
            raise InputError("restart_every is None: give it, or the steps of the training")
        every = max(1, (steps or 0) // 4) if self.restart_every is None else self.restart_every
        warm = every if self.warm_start is None else self.warm_start
        rewarm = min(max(1, every // 50), every - 1) if self.rewarm is None else self.rewarm
        if steps is not None and warm + every >= steps:
            raise InputError(
                f"restart_every={every} after warm_start={warm}: the training ends after {steps} steps, before the "
                "first restart; lower them"
            )
        if rewarm >= every:
            raise InputError(f"rewarm={rewarm}: a restart comes every {every} steps; give less than that")
        return every, warm, rewarm

    def detach(self) -> None:
        """Stop acting; W stays frozen where it was."""
        for handle in self._handles:
            handle.remove()
        self._handles = []

    def share(self, step: int) -> float:
        """What the schedule's rate is multiplied by in the update after so many."""
        since = (step - self._warm) % self._every
        if step < max(self._warm, 1) or since >= self._rewarm or step - since == 0:
            return 1.0
        return since / self._rewarm

    def _arrange(self) -> None:
        """What trains at this step."""
        warm = self.step < self._warm
        for layer in self.layers.values():
            layer.warm = warm
            layer.weight.requires_grad_(warm)
            for factor in layer.factors:
                factor.requires_grad_(not warm)

    def _before(self, optimizer: Optimizer, *_: Any) -> None:
        self._rates = [float(group["lr"]) for group in optimizer.param_groups]
        share = self.share(self.step)
        _set_rates(optimizer, [share * rate for rate in self._rates])

    @torch.no_grad()
    def _after(self, optimizer: Optimizer, *_: Any) -> None:
        _set_rates(optimizer, self._rates)
        self.step += 1
        number, since = divmod(self.step - self._warm, self._every)
        if self.step == self._warm:
            self._arrange()
            for layer in self.layers.values():
                for one in getattr(self.optimizer, "inner", [self.optimizer]):
                    one.state.pop(layer.weight, None)
                layer.weight.grad = None
        elif number > 0 and since == 0:
            for layer in self.layers.values():
                layer.restart(number)
                for factor in layer.factors:
                    self._prune(factor)

    def _prune(self, p: Tensor) -> None:
        for one in getattr(self.optimizer, "inner", [self.optimizer]):
            values = one.state.get(p, {}).values()
            held = [v for v in values if isinstance(v, Tensor) and v.dim() and v.is_floating_point()]
            if held and self.prune < 1 and all(type(v) is Tensor and v.shape == p.shape for v in held):
                keep_largest(held, 1 - self.prune)
            elif held:
                del one.state[p]

    def state_dict(self) -> dict[str, Tensor]:
        """When it restarts; all else is in the model and the optimiser, or follows from the step."""
        return {"lengths": torch.tensor([self._every, self._warm, self._rewarm])}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Compare with the options of this one, once attached.

        Raises:
            InputError: the state is of other options.
        """
        here = [self._every, self._warm, self._rewarm]
        if state["lengths"].tolist() != here:
            raise InputError(
                f"the state of relora has restart_every, warm_start and rewarm {state['lengths'].tolist()}, here they "
                f"are {here}: give the same"
            )

    def load(self, path: str | Path) -> None:
        super().load(path)
        self._arrange()


def keep_largest(moments: list[Tensor], share: float) -> None:
    """Set the moments of an entry to zero in place, unless one of them is among this share of the largest of its kind.

    They stay or go together: a first moment without its second would be a step of its size divided by Adam's ε.
    """
    kept = torch.zeros_like(moments[0], dtype=torch.bool).flatten()
    for values in moments:
        count = values.numel() - int((1 - share) * values.numel() + 1e-9)
        kept[values.abs().flatten().topk(count).indices] = True
    for values in moments:
        values.mul_(kept.view(values.shape))


def _set_rates(optimizer: Optimizer, rates: list[float]) -> None:
    for group, rate in zip(optimizer.param_groups, rates, strict=True):
        if isinstance(group["lr"], Tensor):  # torchao's
            group["lr"].fill_(rate)
        else:
            group["lr"] = rate
