"""RandLoRA's random bases, and the scaling of one by two diagonals with a backward pass that keeps only its inputs."""

from __future__ import annotations

import math
from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor

BasisLaw = Literal["uniform", "normal", "sparse", "very-sparse"]


def random_bases(
    seed: int, law: BasisLaw, small: tuple[int, int, int], large: tuple[int, int, int]
) -> tuple[Float[Tensor, "r nA D_min"], Float[Tensor, "D_max N r"]]:
    """Two random bases of unit standard deviation, the same numbers as PEFT's RandLoRA draws on a CPU.

    Args:
        seed: of a Mersenne Twister; PEFT's ``projection_prng_key``.
        law: ``"uniform"`` (in bfloat16, as PEFT draws and scales them), ``"normal"`` (ours), ``"sparse"`` (±1 with
            probability 1/6 each) or ``"very-sparse"`` (1/(2√D_min) each).
        small: shape of A.
        large: shape of B.
    """
    generator = torch.Generator().manual_seed(seed)
    (_, _, d_min), (d_max, n, r) = small, large
    if law == "normal":
        a, b = torch.randn(small, generator=generator), torch.randn(large, generator=generator)
    elif law == "uniform":
        a = torch.empty(small, dtype=torch.bfloat16).uniform_(
            -(d_min**-0.5), d_min**-0.5, generator=generator
        )
        # one basis after another
        b = torch.empty(n, d_max, r, dtype=torch.bfloat16).uniform_(-(r**-0.5), r**-0.5, generator=generator)
        b = b.transpose(0, 1).contiguous()
    else:
        tail = 1 / (2 * (3 if law == "sparse" else math.sqrt(d_min)))
        u, v = torch.rand(small, generator=generator), torch.rand(large, generator=generator)
        a, b = ((t > 1 - tail).float() - (t < tail).float() for t in (u, v))
    return _standardised(a), _standardised(b)


def _standardised(t: Tensor) -> Tensor:
    spread = t.std() if t.numel() > 1 else t.new_zeros(())
    return t / spread if spread > 0 else t


class ScaledProduct(torch.autograd.Function):
    """a · λ · γ, broadcast. Only the three are kept for the backward pass; a is frozen."""

    @staticmethod
    def forward(ctx: Any, a: Tensor, lam: Tensor, gamma: Tensor) -> Tensor:
        """The product, in the broadcast shape."""
        ctx.save_for_backward(a, lam, gamma)
        return (a * lam).mul_(gamma)

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[None, Tensor, Tensor]:
        """Gradients for λ and γ, summed over the axes along which they were broadcast."""
        return None, *_scaling_gradients(g, *ctx.saved_tensors)


class ScaledLinear(torch.autograd.Function):
    """``x Ā`` or ``x Āᵀ`` with Ā = a · λ · γ, its first two axes flattened; Ā is not kept but formed again."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, a: Tensor, lam: Tensor, gamma: Tensor, transposed: bool
    ) -> Float[Tensor, "... features"]:
        """x through Ā, or through Āᵀ where ``transposed``."""
        ctx.save_for_backward(x, a, lam, gamma)
        scaled = (a * lam).mul_(gamma)
        ctx.transposed, ctx.shape = transposed, scaled.shape
        flat = scaled.flatten(0, 1).to(x.dtype)
        return x @ (flat.t() if transposed else flat)

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, None, Tensor, Tensor, None]:
        """Gradients for x, λ and γ."""
        x, a, lam, gamma = ctx.saved_tensors
        grad_x = None
        if ctx.needs_input_grad[0]:
            scaled = (a * lam).mul_(gamma).flatten(0, 1).to(g.dtype)
            grad_x = (g @ (scaled if ctx.transposed else scaled.t())).to(x.dtype)
        rows, columns = (t.reshape(-1, t.shape[-1]) for t in ((g, x) if ctx.transposed else (x, g)))
        outer = (rows.to(g.dtype).t() @ columns.to(g.dtype)).view(ctx.shape).to(a.dtype)
        return grad_x, None, *_scaling_gradients(outer, a, lam, gamma), None


def _scaling_gradients(g: Tensor, a: Tensor, lam: Tensor, gamma: Tensor) -> tuple[Tensor, Tensor]:
    g = g * a
    return (g * gamma).sum_to_size(lam.shape), (g * lam).sum_to_size(gamma.shape)
