"""PELA: factorise, then train the small model on its pre-training data with the large one as teacher.

    r = ⌊in·out / (c (in + out))⌋          W_1 W_0 = the best rank-r W
    L = L_task + α L_fd + β L_logit + γ L_wp
    L_fd    mean over blocks of MSE(h_s, h_t)
    L_wp    mean over layers of (max_ij |W_1 W_0 − W_t|_ij − ε)²

Source: Guo, Wang & Kankanhalli, CVPR 2024, arXiv:2310.10700.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn

from eckart.compression._census import Outline, find_blocks, in_mode, weight_matrix
from eckart.compression._layers import FactorizedLinear
from eckart.compression._method import FactorCompressor
from eckart.compression.svd import truncated
from eckart.errors import InputError
from eckart.linalg.moments import Moments
from eckart.linalg.whitened import Factors

Perturbation = Literal["paper", "hinge", "fro"]


@dataclass
class PELA(FactorCompressor):
    """PELA: the truncated SVD, and ``steps`` of training with the dense model as teacher.

    Args:
        steps: optimiser steps over the calibration data; 0 leaves the truncated SVD.
        lr: AdamW's rate.
        weight_decay: AdamW's.
        alpha: weight of the feature distillation.
        beta: weight of the logits' distillation.
        gamma: weight of the cap on the weights' drift.
        epsilon: ε of the cap.
        wp: "paper" as above, "hinge" (max(0, m − ε))², "fro" the squared Frobenius norm in place of (m − ε)².

    Raises:
        InputError: an option outside its range.
    """

    steps: int = 0
    lr: float = 1e-4
    weight_decay: float = 0.02
    alpha: float = 1.0
    beta: float = 0.0
    gamma: float = 1.0
    epsilon: float = 1e-3
    wp: Perturbation = "paper"
    teacher: nn.Module | None = field(default=None, init=False, repr=False, compare=False)

    slug: ClassVar[str] = "pela"
    calibrated: ClassVar[bool] = False

    def __post_init__(self) -> None:
        super().__post_init__()
        self.multiple_of = self.multiple_of or 1
        if self.steps < 0 or self.lr <= 0:
            raise InputError(f"steps is {self.steps} and lr {self.lr}: give steps ≥ 0 and a rate above 0")
        if min(self.alpha, self.beta, self.gamma, self.epsilon) < 0:
            raise InputError("alpha, beta, gamma and epsilon are weights: give none below 0")
        if self.wp not in ("paper", "hinge", "fro"):
            raise InputError(f"wp is {self.wp!r}: give paper, hinge or fro")

    def check(self, outline: Outline) -> None:
        super().check(outline)
        if self.steps and self.alpha and not outline.chained:
            raise InputError(
                f"alpha is {self.alpha}: {type(outline.model).__name__} has no one list of blocks whose features could "
                "be distilled: give alpha=0"
            )

    def plan(self, outline: Outline, ratio: float | None, influence: Sequence[float]) -> None:
        super().plan(outline, ratio, influence)
        self.teacher = copy.deepcopy(outline.model) if self.steps else None

    def factors(
        self,
        weight: Float[Tensor, "out in"],
        bias: Float[Tensor, " out"] | None,
        rank: int,
        moments: Moments | None,
    ) -> Factors:
        return truncated(weight, bias, rank)

    def train(
        self, model: nn.Module, batches: Sequence[Any], progress: Callable[[int, int], None]
    ) -> list[float]:
        """The intermediate training of a model that `compress` has factorised; the loss of each step. Frozen factors
        train in it too.

        Raises:
            FloatingPointError: a loss that is NaN.
        """
        assert self.teacher is not None
        factors = [p for m in model.modules() if isinstance(m, FactorizedLinear) for p in m.parameters()]
        frozen = [parameter for parameter in factors if not parameter.requires_grad]
        for parameter in frozen:
            parameter.requires_grad_(True)
        distill = Distillation(model, self.teacher, self.alpha, self.beta, self.gamma, self.epsilon, self.wp)
        optimizer = torch.optim.AdamW(model.parameters(), self.lr, weight_decay=self.weight_decay)
        losses: list[float] = []
        with in_mode(model, True):
            for step in range(self.steps):
                loss = distill(batches[step % len(batches)])
                if not bool(torch.isfinite(loss)):
                    raise FloatingPointError(
                        f"the loss of step {step} is {float(loss.detach())}: lower lr ({self.lr})"
                    )
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                losses.append(float(loss.detach()))
                progress(step + 1, self.steps)
        if not all(bool(torch.isfinite(parameter).all()) for parameter in factors):
            raise FloatingPointError(
                f"the last step made the factors NaN or infinite: lower lr ({self.lr}), or train in a wider type"
            )
        optimizer.zero_grad()
        for parameter in frozen:
            parameter.requires_grad_(False)
        self.teacher = None
        return losses


class Distillation:
    """L_task + α L_fd + β L_logit + γ L_wp of a small model and its teacher.

    Args:
        student: a model with factorised layers.
        teacher: the dense model, which is frozen and put into eval mode here.
        alpha, beta, gamma, epsilon, wp: as in `PELA`.
        features: names of the modules whose outputs are the features; the blocks of the model if not given.

    Raises:
        InputError: no block is found and no features are named.
    """

    def __init__(
        self,
        student: nn.Module,
        teacher: nn.Module,
        alpha: float = 1.0,
        beta: float = 0.0,
        gamma: float = 1.0,
        epsilon: float = 1e-3,
        wp: Perturbation = "paper",
        features: Sequence[str] | None = None,
    ) -> None:
        self.student, self.teacher = student, teacher.eval().requires_grad_(False)
        self.alpha, self.beta, self.gamma, self.epsilon, self.wp = alpha, beta, gamma, epsilon, wp
        self.features = list(features) if features is not None else list(find_blocks(teacher))
        if not self.features and alpha:
            raise InputError(
                f"{type(teacher).__name__} has no list of blocks: name the modules in features, or alpha=0"
            )
        self.pairs = {
            name: module for name, module in student.named_modules() if isinstance(module, FactorizedLinear)
        }

    def __call__(self, batch: Any) -> Tensor:
        """The loss of one batch: a mapping of model inputs (with "labels" for the task), or a tensor."""
        parts = self.parts(batch)
        return (
            parts["task"] + self.alpha * parts["fd"] + self.beta * parts["logit"] + self.gamma * parts["wp"]
        )

    def parts(self, batch: Any) -> dict[str, Tensor]:
        """The four losses, before their weights."""
        task, logits, hidden = self._run(self.student, batch)
        with torch.no_grad():
            _, teacher_logits, teacher_hidden = self._run(self.teacher, batch)
        zero = logits.new_zeros(())
        mse = nn.functional.mse_loss
        distances = [mse(s, t) for s, t in zip(hidden, teacher_hidden, strict=True)]
        return {
            "task": zero if task is None else task,
            "fd": torch.stack(distances).mean() if self.alpha and distances else zero,
            "logit": mse(logits, teacher_logits),
            "wp": self.weight_perturbation() if self.gamma and self.pairs else zero,
        }

    def weight_perturbation(self) -> Tensor:
        """L_wp: the mean over the factorised layers."""
        losses = []
        for name, pair in self.pairs.items():
            frozen = weight_matrix(self.teacher.get_submodule(name))
            losses.append(drift(pair.A.weight, pair.B.weight, frozen, self.epsilon, self.wp))
        return torch.stack(losses).mean()

    def _run(self, model: nn.Module, batch: Any) -> tuple[Tensor | None, Tensor, list[Tensor]]:
        seen: list[Tensor] = []

        def keep(_: nn.Module, __: Any, output: Any) -> None:
            seen.append(output[0] if isinstance(output, tuple) else output)

        handles = [model.get_submodule(name).register_forward_hook(keep) for name in self.features]
        try:
            if isinstance(batch, Mapping):
                output = model(**batch)
            else:
                output = model(batch[0] if isinstance(batch, tuple | list) else batch)
        finally:
            for handle in handles:
                handle.remove()
        if isinstance(output, Tensor):
            return None, output, seen
        logits = getattr(output, "logits", None)
        return getattr(output, "loss", None), output[0] if logits is None else logits, seen


def drift(
    first: Float[Tensor, "r in"],
    second: Float[Tensor, "out r"],
    frozen: Float[Tensor, "out in"],
    epsilon: float,
    kind: Perturbation = "paper",
) -> Tensor:
    """(max_ij |W_1 W_0 − W_t|_ij − ε)², by the one entry that its gradient reaches.

    The largest entry is found without a graph and then formed again from one row of W_1 and one column of W_0, so
    that no (out, in) array is kept for the backward pass.

    Args:
        first: W_0.
        second: W_1.
        frozen: W_t of the teacher.
        epsilon: ε.
        kind: as in `PELA`.
    """
    if kind == "fro":
        return (second @ first - frozen).square().sum()
    with torch.no_grad():
        place = int((second @ first - frozen).abs().argmax())
        row, column = divmod(place, frozen.shape[1])
    largest = (second[row] @ first[:, column] - frozen[row, column]).abs()
    excess = largest - epsilon
    return (excess.clamp_min(0) if kind == "hinge" else excess).square()
