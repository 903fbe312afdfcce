"""Spectron: training of factors W = B A with orthogonal steps whose size bounds the step of W itself.

    M_A ← μ M_A + G_A     M_B ← μ M_B + G_B     ρ = η / (σ(A) + σ(B) + 1)
    A ← (1 − ηλ) A − ρ NS(M_A)                  B ← (1 − ηλ) B − ρ NS(M_B)

    A (r, in)   B (out, r)   σ: largest singular value, by a power iteration whose vector is kept from step to step
    NS: five Newton–Schulz steps towards U Vᵀ, singular values about 1

ΔW = ΔB A + B ΔA + ΔB ΔA then has a spectral norm of about η at most where η ≤ 1: orthogonalisation and renormalisation
by the factors' current norms.

Source: Janson, Oyallon & Belilovsky, "Stabilizing Native Low-Rank LLM Pretraining", 2026, arXiv:2602.12429. Only its
abstract and summaries were at hand: the bound is the paper's, the form of ρ, μ and the scale of NS are ours.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.optim import Optimizer

from eckart.errors import InputError
from eckart.optim._adamw import Adam, adamw_update, number
from eckart.optim._layout import is_sharded
from eckart.optim._options import check_options
from eckart.optim.trion import newton_schulz


class Spectron(Optimizer):
    """Momentum on pairs of factors, orthogonalised, with a step that bounds that of their product; AdamW elsewhere.

    Args:
        model: a module whose low-rank layers hold ``lora_A`` and ``lora_B``; its other parameters get AdamW.
        lr: η, about the spectral norm of a step of each B A.
        momentum: μ.
        weight_decay: λ, of factors and of other matrices.
        ns_steps: Newton–Schulz steps.
        adamw_scale: what is left to AdamW learns at this times η.
        betas, eps: of that AdamW.

    Raises:
        InputError: an option out of its range, or a model without factors that train.

    Source: Janson, Oyallon & Belilovsky, 2026, arXiv:2602.12429.
    """

    def __init__(
        self,
        model: nn.Module,
        lr: float = 0.02,
        *,
        momentum: float = 0.95,
        weight_decay: float = 0.0,
        ns_steps: int = 5,
        adamw_scale: float = 0.15,
        betas: tuple[float, float] = (0.9, 0.95),
        eps: float = 1e-10,
    ) -> None:
        if not isinstance(model, nn.Module):
            raise InputError(
                f"model is a {type(model).__name__}: give the model itself, its factors go in pairs"
            )
        options = {k: v for k, v in locals().items() if k not in ("self", "model", "__class__")}
        check_options({**options, "rank": None, "rank_ratio": None, "low_rank": False})
        pairs = [
            (m.lora_A, m.lora_B) for m in model.modules() if hasattr(m, "lora_A") and hasattr(m, "lora_B")
        ]
        factors: list[Any] = [p for pair in pairs for p in pair if p.requires_grad]
        if not factors or len(factors) < 2 * len(pairs):
            raise InputError(
                "the model has no pairs lora_A and lora_B that both train: convert it to 'low-rank' first"
            )
        if any(is_sharded(p) for p in factors):
            raise InputError("the factors are shards of FSDP2: Spectron needs them whole, use DDP")
        taken = {id(p) for p in factors}
        rest = [p for p in model.parameters() if p.requires_grad and id(p) not in taken]
        groups = [
            {"params": factors, "low_rank": True},
            {"params": [p for p in rest if p.ndim > 1], "low_rank": False},
            {"params": [p for p in rest if p.ndim < 2], "low_rank": False, "weight_decay": 0.0},
        ]
        super().__init__([group for group in groups if group["params"]], options)

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """One update of every pair and parameter that has a gradient."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            if group["low_rank"]:
                for a, b in zip(group["params"][::2], group["params"][1::2], strict=True):
                    if a.grad is not None and b.grad is not None:
                        self._pair(group, a, b)
            else:
                for p in group["params"]:
                    if p.grad is not None:
                        self._adamw(group, p)
        return loss

    def _pair(self, group: dict[str, Any], a: Tensor, b: Tensor) -> None:
        lr = float(group["lr"])
        rho = lr / (self._norm(a) + self._norm(b) + 1)
        for p in (a, b):
            assert p.grad is not None
            momentum = self.state[p].setdefault("momentum_buffer", torch.zeros_like(p, dtype=torch.float32))
            momentum.mul_(group["momentum"]).add_(p.grad)
            p.mul_(1 - lr * group["weight_decay"]).sub_(rho * newton_schulz(momentum, group["ns_steps"]))

    def _norm(self, p: Float[Tensor, "m n"]) -> Float[Tensor, ""]:
        """σ(p), from below; one power iteration a step, ten at the first."""
        state = self.state[p]
        rounds = 1
        if "vector" not in state:
            rounds = 10
            generator = torch.Generator().manual_seed(p.shape[1])
            state["vector"] = torch.randn(p.shape[1], generator=generator).to(p.device)
        wide = p.float()
        for _ in range(rounds):
            v = wide.mT @ (wide @ state["vector"])
            state["vector"].copy_(v / v.norm().clamp_min(torch.finfo(v.dtype).tiny))
        norm: Tensor = torch.linalg.vector_norm(wide @ state["vector"])
        return norm.double()

    def _adamw(self, group: dict[str, Any], p: Tensor) -> None:
        state = self.state[p]
        if not state:
            state["step"] = torch.zeros(())
            state |= {name: torch.zeros_like(p, dtype=torch.float32) for name in ("m", "v")}
        state["step"] += 1
        assert p.grad is not None
        lr = float(group["lr"]) * group["adamw_scale"]
        adam = Adam.at(group, int(state["step"]))
        decay = number(1 - lr * group["weight_decay"])
        adamw_update(p, p.grad, state["m"], state["v"], adam, number(lr), decay)
