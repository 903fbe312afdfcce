"""DiffoRA: which modules get an adapter at all, learned as a matrix of gates and then rounded.

    W'_lm = W_lm + Γ̄_lm · ΔW_lm,   Γ̄ = φ(α) ∈ (0, 1)
    search, in turn:  α ← α − ∇_α L_val(w, Γ̄(α))  on a validation batch, then  w ← w − ∇_w L_train(w, Γ̄)
    then Γ: per layer the max(1, ⌊ρ M⌋) largest gates are 1, the others 0

Of the paper only the abstracts and a summary were at hand; this is a complete design built from them and from the
differentiable architecture search that they name. Source: Jiang et al., 2025, arXiv:2502.08905.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from eckart.adapters import Adapter, LowRankAdapter
from eckart.errors import InputError
from eckart.training._base import Rule, register_rule

Validation = Callable[[nn.Module, int], Tensor]


@register_rule(
    "diffora",
    title="DiffoRA",
    paper="Jiang et al., 2025",
    arxiv="2502.08905",
    trains="gates of the modules, then a choice among them",
    saves="gates, their optimiser, the choice, and the starts while searching",
    knob="rho",
)
@dataclass
class DiffoRA(Rule):
    """DiffoRA: learn by bi-level optimisation which modules are adapted; the others share an adapter, or have none.

    Lifecycle:
        attach       the gates are equal; the first step on α
        after_step   while searching, a step on α; after the last one the gates are rounded, the adapters start anew and
                     the optimiser forgets their moments
        detach       gates that are still soft are taken out

    Args:
        validation: gives the loss of the model on the validation batch of a step: ``validation(model, step)``.
        rho: ρ, the share of modules that keep an adapter of their own.
        search_steps: steps of the search; 15 % of the training when None.
        warm_up: first steps in which α rests.
        relaxation: φ: "sigmoid", "softmax" over the modules of a layer, or "softmax_all".
        scope: round "layer" by layer, or "global".
        select_by: rank modules by "gate" or by "gate_norm", Γ̄ ‖ΔW‖_F.
        sharing: modules that lost share one adapter by "shape", by "module_type", or have none ("none").
        init: "restart" from the first weights, or "keep" those of the search, B times its gate.
        match_budget: search with ⌊ρ r⌋ directions, so that the chosen ones get r for the same count.
        temperature: τ of φ(α/τ).
        entropy: factor of Σ Γ̄ (1 − Γ̄) in the validation loss.
        dam_lr: learning rate of α.
        dam_optimizer: "adam" or "sgd".

    Raises:
        InputError: an option outside its range.

    Source: Jiang et al., 2025, arXiv:2502.08905.
    """

    validation: Validation | None = None
    rho: float = 0.5
    search_steps: int | None = None
    warm_up: int = 0
    relaxation: Literal["sigmoid", "softmax", "softmax_all"] = "sigmoid"
    scope: Literal["layer", "global"] = "layer"
    select_by: Literal["gate", "gate_norm"] = "gate"
    sharing: Literal["shape", "module_type", "none"] = "shape"
    init: Literal["restart", "keep"] = "restart"
    match_budget: bool = False
    temperature: float = 1.0
    entropy: float = 0.0
    dam_lr: float = 3e-3
    dam_optimizer: Literal["adam", "sgd"] = "adam"

    claims = "ranks"

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 < self.rho <= 1:
            raise InputError(f"rho is {self.rho}: give a share in (0, 1]")
        for name in ("temperature", "dam_lr"):
            if not 0 < getattr(self, name) < math.inf:
                raise InputError(f"{name} is {getattr(self, name)}: give a positive number")
        for name, least in (("search_steps", 1), ("warm_up", 0), ("entropy", 0)):
            if (value := getattr(self, name)) is not None and not least <= value < math.inf:
                raise InputError(f"{name} is {value}: give at least {least}")
        for name, known in (
            ("relaxation", ("sigmoid", "softmax", "softmax_all")),
            ("scope", ("layer", "global")),
            ("select_by", ("gate", "gate_norm")),
            ("sharing", ("shape", "module_type", "none")),
            ("init", ("restart", "keep")),
            ("dam_optimizer", ("adam", "sgd")),
        ):
            if getattr(self, name) not in known:
                raise InputError(f"{name} is {getattr(self, name)!r}: give one of {', '.join(known)}")
        if self.scope == "global" and self.relaxation == "softmax":
            raise InputError(
                "scope 'global' with relaxation 'softmax': gates of other layers do not compare; "
                "use 'sigmoid' or 'softmax_all'"
            )
        self.dam: Bool[Tensor, " modules"] | None = None
        self.search = 0

    @classmethod
    def for_task(cls, loss: Validation) -> Rule:
        return cls(validation=loss)

    @classmethod
    def suits(cls, adapter: Adapter) -> str:
        own = isinstance(adapter, LowRankAdapter) and adapter.own_directions
        return "" if own else "it has no parameters of its own that start at zero"

    def begin(self, steps: int | None) -> None:
        if self.validation is None:
            raise InputError(
                "validation is None: give a function of the model and the step that returns a loss"
            )
        if self.search_steps is None and steps is None:
            raise InputError("search_steps is None, and the training's length is not known: give it")
        self.search = max(1, 15 * (steps or 0) // 100) if self.search_steps is None else self.search_steps
        if steps is not None and self.search >= steps:
            raise InputError(f"search_steps is {self.search}, and the training has {steps}: lower it")
        if self.warm_up >= self.search:
            raise InputError(f"warm_up is {self.warm_up}, and the search takes {self.search} steps: lower it")
        self._modules: list[tuple[str, Any]] = [(name, adapter) for name, _, _, adapter in self.adapters]
        if any(adapter.active is not None for _, adapter in self._modules) and self.match_budget:
            raise InputError(
                "match_budget is True, and directions of the adapter rest already: use a fresh adapter"
            )
        first = self._modules[0][1]
        wide = torch.promote_types(first.dtype, torch.float32)
        self.logits = nn.Parameter(self.first_logits().to(first.device, wide))
        kind = torch.optim.Adam if self.dam_optimizer == "adam" else torch.optim.SGD
        self._optimizer = kind([self.logits], lr=self.dam_lr)
        self._rows = [next((p for p in n.split(".") if p.isdigit()), "") for n, _ in self._modules]
        self._start = [[p.detach().clone() for p in adapter.parameters()] for _, adapter in self._modules]
        if self.match_budget:
            for _, adapter in self._modules:
                few = max(1, int(self.rho * adapter.factor_rank + 1e-9))
                adapter.set_active(torch.arange(adapter.factor_rank) < few)
        self._open(self.gates().detach())
        self._search()

    def end(self) -> None:
        for *_, adapter in self.adapters:
            if isinstance(adapter, LowRankAdapter):
                adapter.gate = None

    def first_logits(self) -> Float[Tensor, " modules"]:
        """α at the start: all gates equal."""
        return torch.zeros(len(self._modules))

    def gates(self) -> Float[Tensor, " modules"]:
        """Γ̄ at the current α."""
        logits = self.logits / self.temperature
        if self.relaxation == "sigmoid":
            return logits.sigmoid()
        if self.relaxation == "softmax_all":
            return logits.softmax(0)
        gates = torch.empty_like(logits)
        for members in self._by_row():
            gates = gates.index_put(
                (torch.tensor(members, device=logits.device),), logits[members].softmax(0)
            )
        return gates

    def _by_row(self) -> list[list[int]]:
        """The modules of each layer."""
        return [[i for i, own in enumerate(self._rows) if own == row] for row in dict.fromkeys(self._rows)]

    def _open(self, gates: Float[Tensor, " modules"]) -> None:
        for (_, adapter), gate in zip(self._modules, gates, strict=True):
            adapter.gate = gate.to(adapter.device)

    def _search(self) -> None:
        """One step on α, the adapters held constant, without dropout."""
        if self.step < self.warm_up:
            return
        gates = self.gates()
        self._open(gates)
        loss = self._loss()
        if self.entropy:
            loss = loss + self.entropy * (gates * (1 - gates)).sum()
        (self.logits.grad,) = torch.autograd.grad(loss, [self.logits])
        if torch.distributed.is_available() and torch.distributed.is_initialized():
            torch.distributed.all_reduce(self.logits.grad)
            self.logits.grad /= torch.distributed.get_world_size()
        self._optimizer.step()
        self._open(self.gates().detach())

    def _loss(self) -> Float[Tensor, ""]:
        """The validation loss of this step, the model as in evaluation."""
        assert self.validation is not None
        training = [module for module in self.model.modules() if module.training]
        self.model.eval()
        try:
            with torch.enable_grad():
                loss = self.validation(self.model, self.step)
        finally:
            for module in training:
                module.training = True
        self.validation_loss = loss.detach()
        return loss

    def after_step(self) -> None:
        if self.step < self.search:
            self._search()
        elif self.step == self.search:
            self._round()

    @torch.no_grad()
    def choose(self) -> Bool[Tensor, " modules"]:
        """Γ: the largest gates, the lower index where two are equal."""
        values = self.gates()
        if self.select_by == "gate_norm":
            sizes = []
            for _, adapter in self._modules:
                gate, adapter.gate = adapter.gate, None
                sizes.append(torch.linalg.matrix_norm(adapter.delta_weight()).to(values))
                adapter.gate = gate
            values = values * torch.stack(sizes)
        chosen = torch.zeros(len(values), dtype=torch.bool)
        for members in self._by_row() if self.scope == "layer" else [list(range(len(values)))]:
            count = max(1, int(self.rho * len(members) + 1e-9))
            order = sorted(members, key=lambda i: -float(values[i]))
            chosen[order[:count]] = True
        return chosen

    def _round(self) -> None:
        """Γ̄ → Γ; the adapters of the final phase."""
        gates, self.dam = self.gates().detach(), self.choose()
        with torch.no_grad():
            for i, (_, adapter) in enumerate(self._modules):
                if self.init == "keep" and self.dam[i]:
                    b = getattr(adapter, "lora_B", None)
                    (b if b is not None else next(adapter.parameters())).mul_(gates[i].to(adapter.device))
                else:
                    for parameter, start in zip(adapter.parameters(), self._start[i], strict=True):
                        parameter.copy_(start)
                for parameter in adapter.parameters():
                    self.optimizer.state.pop(parameter, None)
        self._settle()

    def _settle(self) -> None:
        """The structure that Γ says: gates gone, losers at rest or sharing one adapter."""
        assert self.dam is not None
        owners: dict[Any, Any] = {}
        for kept, (name, adapter) in zip(self.dam.tolist(), self._modules, strict=True):
            adapter.gate = None
            if self.match_budget:
                adapter.set_active(torch.ones(adapter.factor_rank, dtype=torch.bool))
            if kept:
                continue
            if self.sharing == "none":
                adapter.set_active(torch.zeros(adapter.factor_rank, dtype=torch.bool))
                continue
            shape = adapter.layer.shape.weight, adapter.factor_rank
            kind = ".".join(p for p in name.split(".") if not p.isdigit())
            owner = owners.setdefault((shape, kind) if self.sharing == "module_type" else shape, adapter)
            if owner is not adapter:
                for key, parameter in owner.named_parameters():
                    setattr(adapter, key, parameter)
        self._start = []

    def state_dict(self) -> dict[str, Tensor]:
        state = {"logits": self.logits.detach()}
        for key, value in self._optimizer.state.get(self.logits, {}).items():
            if isinstance(value, Tensor):
                state[f"optimizer.{key}"] = value
        if self.dam is not None:
            return state | {"dam": self.dam}
        starts = {f"start.{i}.{j}": p for i, own in enumerate(self._start) for j, p in enumerate(own)}
        return state | starts

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        if "logits" not in state or state["logits"].shape != self.logits.shape:
            raise InputError(
                f"the state of {self.slug} is not of {len(self.logits)} modules: resume the same model"
            )
        with torch.no_grad():
            self.logits.copy_(state["logits"])
        moments = {k.removeprefix("optimizer."): v for k, v in state.items() if k.startswith("optimizer.")}
        self._optimizer.state[self.logits].clear()
        for key, value in moments.items():
            self._optimizer.state[self.logits][key] = value.clone()
        if "dam" in state:
            self.dam = state["dam"]
            self._settle()
            return
        self._start = [
            [state[f"start.{i}.{j}"].to(p) for j, p in enumerate(o)] for i, o in enumerate(self._start)
        ]
        self._open(self.gates().detach())
