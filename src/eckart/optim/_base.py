"""What the low-rank optimisers share: groups, which parameters are low-rank, AdamW for the others, plain state."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import cache
from typing import Any, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.optim import Optimizer

from eckart.arguments import check_number
from eckart.errors import InputError
from eckart.optim._adamw import Adam, adamw_update, descend, number
from eckart.optim._basis import Basis, basis_of
from eckart.optim._layout import Layout, local
from eckart.optim._options import STRUCTURE, check_options

Params = Iterable[Tensor] | Iterable[dict[str, Any]]


class Entry(NamedTuple):
    """One tensor of a parameter's state; ``by_rows`` where FSDP2's shards of it are rows of the layout's M."""

    shape: tuple[int, ...]
    dtype: torch.dtype
    by_rows: bool = False


class LowRankOptimizer(Optimizer):
    """Chooses for each matrix r vectors of a fixed orthogonal basis; what is no matrix is AdamW's.

    A subclass gives ``entries``, what its state holds, and ``update``. Options may differ between parameter groups.

    Args:
        params: parameters, or groups of them; ``{"params": …, "low_rank": False}`` leaves a group to AdamW.
        arguments: the subclass's own, `locals()`: ``compile`` and the defaults of all groups.

    Raises:
        InputError: an option out of its range, a rank above a parameter's shorter side, a parameter given twice.
    """

    def __init__(self, params: Params, arguments: dict[str, Any]) -> None:
        self.compile: bool | None = arguments["compile"]
        if self.compile is not None:
            check_number("compile", self.compile, "bool")
        options = {k: v for k, v in arguments.items() if k not in ("self", "params", "compile", "__class__")}
        super().__init__(params, {**options, "low_rank": True})

    def __getstate__(self) -> dict[str, Any]:
        """What a copy or a pickle needs beside `torch.optim.Optimizer`'s own."""
        return {**super().__getstate__(), "compile": self.compile}

    def entries(self, group: dict[str, Any], p: Tensor) -> dict[str, Entry]:
        """The state of a low-rank parameter beside its step."""
        raise NotImplementedError

    def update(self, group: dict[str, Any], p: Tensor, state: dict[str, Any]) -> Float[Tensor, "m n"]:
        """What is subtracted from the rows of the layout's M, at a rate of one; brings the state up to date."""
        raise NotImplementedError

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """As `torch.optim.Optimizer.add_param_group`; a group that cannot be is refused before anything changes."""
        given = param_group["params"]
        members = [given] if isinstance(given, Tensor) else list(given)
        group = {**self.defaults, **param_group, "params": members}
        check_options(group)
        taken = {id(p) for other in self.param_groups for p in other["params"]}
        for i, member in enumerate(members):
            p = member[1] if isinstance(member, tuple) and len(member) == 2 else member  # of named_parameters
            if not isinstance(p, Tensor):
                raise InputError(
                    f"params[{i}] is a {type(p).__name__}: give parameters, or (name, parameter)"
                )
            shape = tuple(p.shape)
            if id(p) in taken:
                raise InputError(f"params[{i}] of shape {shape} is given twice: leave it in one group")
            taken.add(id(p))
            if not p.is_floating_point():
                raise InputError(f"params[{i}] is of {p.dtype}: give real floating-point parameters")
            if self.is_low_rank(group, p) and (group["rank"] or 0) > (n := Layout.of(p).n):
                raise InputError(
                    f"rank={group['rank']}: params[{i}] of shape {shape} holds at most {n}; lower rank, or give "
                    "rank_ratio, a share of each parameter's shorter side"
                )
        super().add_param_group({**param_group, "params": members})

    @staticmethod
    def is_low_rank(group: dict[str, Any], p: Tensor) -> bool:
        """Whether a parameter of this group is updated in a subspace: two or more dimensions, sides below max_shape."""
        if not group["low_rank"] or p.ndim < 2 or p.numel() == 0:
            return False
        layout = Layout.of(p)
        return max(layout.rows, layout.columns) < int(group["max_shape"])

    @staticmethod
    def rank_of(group: dict[str, Any], p: Tensor) -> int:
        """The rank of a parameter's update: ``rank``, or the share ``rank_ratio`` of its shorter side, at least 1."""
        share = group["rank_ratio"]
        return int(group["rank"]) if share is None else max(1, round(share * Layout.of(p).n))

    def state_entries(self, group: dict[str, Any], p: Tensor) -> dict[str, Entry]:
        """Name, shape and type of every tensor of a parameter's state."""
        step = {"step": Entry((), torch.float32)}
        if self.is_low_rank(group, p):
            return step | self.entries(group, p)
        return step | dict.fromkeys(("m", "v"), Entry(tuple(p.shape), wide(p), by_rows=True))

    def state_bytes(self) -> int:
        """Bytes of the whole state of what trains, of all processes together, before any step was made."""
        entries = (
            entry
            for group in self.param_groups
            for p in group["params"]
            if p.requires_grad
            for entry in self.state_entries(group, p).values()
        )
        return sum(torch.Size(e.shape).numel() * e.dtype.itemsize for e in entries)

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """One update of every parameter that has a gradient; the gradients stay as they are."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group, p in self._with_gradient():
            state = self.state[p]
            if not state:
                state.update(self._zeros(group, p))
            state["step"] += 1
            lr = float(self.rate(group, p))
            rates = number(lr), number(1 - lr * group["weight_decay"])
            if self.is_low_rank(group, p):
                part = Layout.of(p).parameter_part(self.update(group, p, state), p)
                self.run(descend, p)(local(p), part, *rates)
            else:
                # torch.compile loses in-place changes of tensors without dimensions (2.13)
                parts = (flat(local(t)) for t in (p, p.grad, state["m"], state["v"]))
                self.run(adamw_update, p)(*parts, Adam.at(group, int(state["step"])), *rates)
        return loss

    def rate(self, group: dict[str, Any], p: Tensor) -> Any:
        """The learning rate of a parameter."""
        return group["lr"]

    def _with_gradient(self) -> Iterator[tuple[dict[str, Any], Tensor]]:
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is not None and p.grad.is_sparse:
                    raise InputError(
                        f"the gradient of a parameter of shape {tuple(p.shape)} is sparse: build its embedding with "
                        "sparse=False"
                    )
        yield from ((g, p) for g in self.param_groups for p in g["params"] if p.grad is not None)

    def _zeros(self, group: dict[str, Any], p: Tensor) -> dict[str, Tensor]:
        entries = self.state_entries(group, p)
        made = {"step": torch.zeros(())}
        if not self.is_low_rank(group, p):
            return made | {name: torch.zeros_like(p, dtype=wide(p)) for name in ("m", "v")}
        layout = Layout.of(p)
        return made | {name: layout.zeros(*e, p.device) for name, e in entries.items() if name != "step"}

    def basis(self, group: dict[str, Any], p: Tensor) -> Basis:
        """The basis that a parameter shares with all others of its shorter side."""
        return basis_of(group["basis"], group["transform"], Layout.of(p).n, wide(p), p.device)

    def run(self, function: Callable[..., Any], p: Tensor) -> Callable[..., Any]:
        """The function, compiled where this optimiser compiles."""
        wanted = p.device.type != "cpu" if self.compile is None else self.compile
        return _compiled(function) if wanted else function

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """As `torch.optim.Optimizer.load_state_dict`; every tensor keeps its type, integers too.

        Raises:
            InputError: another rank, basis or error feedback, or tensors of other names or shapes; nothing is changed.
        """
        self._check_state(state_dict)
        super().load_state_dict(state_dict)
        order = [p for group in self.param_groups for p in group["params"]]
        keys = [key for group in state_dict["param_groups"] for key in group["params"]]
        for key, p in zip(keys, order, strict=True):
            for name, value in state_dict["state"].get(key, {}).items():
                self.state[p][name] = value.clone().to("cpu" if name == "step" else p.device)

    def _check_state(self, state_dict: dict[str, Any]) -> None:
        if not isinstance(state_dict, Mapping) or not {"state", "param_groups"} <= state_dict.keys():
            raise InputError("the state has no 'state' and 'param_groups': give what state_dict() returned")
        groups = state_dict["param_groups"]
        if [len(g["params"]) for g in groups] != [len(g["params"]) for g in self.param_groups]:
            raise InputError(
                "the state is of other parameter groups: group the same parameters in the same way"
            )
        for i, (theirs, ours) in enumerate(zip(groups, self.param_groups, strict=True)):
            for option in STRUCTURE:
                if option in ours and theirs.get(option) != ours[option]:
                    raise InputError(
                        f"the state's group {i} has {option}={theirs.get(option)!r}, this optimizer's "
                        f"{ours[option]!r}: make the optimizer with the state's options"
                    )
            for key, p in zip(theirs["params"], ours["params"], strict=True):
                if found := state_dict["state"].get(key):
                    wanted = {name: entry.shape for name, entry in self.state_entries(ours, p).items()}
                    shapes = {
                        name: tuple(value.shape) if isinstance(value, Tensor) else type(value).__name__
                        for name, value in found.items()
                    }
                    if shapes != wanted:
                        raise InputError(
                            f"the state of parameter {key} has the shapes {shapes}, this optimizer's {wanted}: load "
                            "the state of the same model and options"
                        )


def flat(t: Tensor) -> Tensor:
    """A view with at least one dimension."""
    return t.unsqueeze(0) if t.ndim == 0 else t


def wide(p: Tensor) -> torch.dtype:
    """The type that a parameter's update is computed and its state kept in: float32, or float64 where it is."""
    return torch.promote_types(p.dtype, torch.float32)


def select(
    x: Float[Tensor, "m n"], basis: Basis, norm: int, weighted: bool
) -> tuple[Float[Tensor, "m n"], Float[Tensor, " n"]]:
    """x Q, and of these rows Σ|x q_j| or Σ(x q_j)², times ‖q_j‖₁ or 1 where weighted."""
    scores = basis.scores(x)
    energy = scores.abs().sum(0) if norm == 1 else scores.square().sum(0)
    return scores, energy * basis.l1_norms if weighted and norm == 1 else energy


def largest(energy: Float[Tensor, " n"], r: int) -> Int[Tensor, " r"]:
    """Where the r largest are, rising."""
    return energy.topk(r).indices.sort().values


@cache
def _compiled(function: Callable[..., Any]) -> Callable[..., Any]:
    compiled = torch.compile(function, fullgraph=True, dynamic=False)

    def call(*arguments: Any) -> Any:
        # the shapes of a model are finitely many: each may have its own compiled update
        with torch._dynamo.utils.disable_cache_limit():
            return compiled(*arguments)

    return call
