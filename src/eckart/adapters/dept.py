"""DePT: a short soft prompt and a low-rank update of the input embeddings (Shi & Lipani, 2024, arXiv:2309.05173).

    [P ; E[X] + ΔE],   ΔE = (lora_alpha / √r) A B

with P (m, d), A (s, r), B (r, d): row i of ΔE (s, d) is added to the i-th token of every input, whatever the token.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float, Shaped
from torch import Tensor, nn

from eckart.adapters._prompts import InputSpace, Prompt, PromptConfig
from eckart.adapters._registry import register_adapter
from eckart.errors import InputError
from eckart.linalg.random import seeded_generator

_LONG_PROMPT = 100
"""Vectors of the prompt whose count is kept where nothing else sets the size. No longer one is made unasked: each is a
position in every step."""
_SHARE = 0.4
"""Of a budget that goes into the prompt, as for the published (m, r) = (40, 45) of 100 vectors."""
_MAX_LENGTH = 256


@register_adapter(
    "dept",
    title="DePT",
    paper="Shi & Lipani, 2024",
    arxiv="2309.05173",
    trains="m vectors before the input, and A, B of what is added to its embeddings",
    saves="the vectors, A and B",
)
@dataclass
class DePTConfig(PromptConfig):
    """DePT: m soft vectors before the input, and a low-rank update of its embeddings, [P ; E[X] + (α/√r) A B].

    Args:
        r: rank of the update, at most min(s, d). None takes what the budget leaves: r = (N − m d)/(s + d) for N
            numbers, those of a prompt of 100 vectors when no budget is given.
        num_virtual_tokens: m; None takes 0.4 N/d, and where r can hold no more, up to 100.
        max_length: s; the shorter of 256 tokens and what the model has positions for when None.
        lora_alpha: α of the scale α/√r.
        padding_side: row i of the update meets token i from an input's first one ("right", as for inputs that are
            padded on the right), or from its last one ("left").
        offset_lr_scale: learning rate of A and B, as a part of that of P.

    Raises:
        InputError: an option outside its range.

    Source: Shi & Lipani, 2024, arXiv:2309.05173; scale and starts as in ZhengxiangShi/DePT. The rule for m is ours.
    """

    r: int | None = None
    lora_alpha: float = 8.0
    padding_side: Literal["right", "left"] = "right"
    offset_lr_scale: float = 1 / 60

    learning_rates: ClassVar[tuple[float, ...]] = (3e-2, 1e-1, 3e-1)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.padding_side not in ("right", "left"):
            raise InputError(f"padding_side is {self.padding_side!r}: give 'right' or 'left'")

    def fitted(self, space: InputSpace, limit: int | None = None) -> DePTConfig:
        width, positions = space.width, space.positions
        given, room = self.num_virtual_tokens, _MAX_LENGTH
        if positions is not None:
            room = min(room, positions // 2 if given is None else positions - given)
        if room < 1:
            raise InputError(
                f"num_virtual_tokens is {given}, which leaves no room for the input in the {positions} positions of "
                "this model: give fewer"
            )
        s = room if self.max_length is None else self.max_length
        space.check(replace(self, num_virtual_tokens=given or 0, max_length=s))
        most = min(s, width)
        if self.r is not None and self.r > most:
            raise InputError(
                f"r is {self.r}, more than min(max_length, width) = {most} of the {s} x {width} update: give at most "
                "that"
            )
        numbers = _LONG_PROMPT * width if limit is None else limit
        longest = _LONG_PROMPT if positions is None else min(_LONG_PROMPT, positions - s)
        m = min(round(_SHARE * numbers / width), longest) if given is None else given
        r = min((numbers - m * width) // (s + width), most) if self.r is None else self.r
        r = max(r, 1)
        if given is None and (limit is not None or self.r is None):
            m = min(max((numbers - r * (s + width)) // width, 0), longest)
        fitted = replace(self, num_virtual_tokens=m, max_length=s, r=r)
        if limit is not None and (least := fitted.trainable_parameters(space)) > limit:
            raise InputError(
                f"a budget of {limit:,} numbers cannot be met by dept: the smallest possible is {least:,}; raise it, "
                "or give a smaller max_length"
            )
        space.check(fitted)
        return fitted

    def solved_options(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in ("num_virtual_tokens", "max_length", "r")}

    def trainable_parameters(self, space: InputSpace) -> int:
        m, s, r = self.num_virtual_tokens or 0, self.max_length or 0, self.r or 0
        return m * space.width + r * (s + space.width)

    def build(self, embedding: Float[Tensor, "tokens d"], space: InputSpace) -> DePT:
        return DePT(embedding, self)


class DePT(Prompt):
    """``prompt_embedding (m, d)`` before the input, ``lora_embedding_A (s, r)`` and ``lora_embedding_B (r, d)`` added
    to it: A starts uniform within ±1/√r, B at zero."""

    def __init__(self, embedding: Float[Tensor, "tokens d"], config: DePTConfig) -> None:
        super().__init__()
        assert config.num_virtual_tokens is not None and config.max_length is not None
        self.num_virtual_tokens, self.max_length = config.num_virtual_tokens, config.max_length
        r, self.padding_side = config.r or 1, config.padding_side
        self.scale = config.lora_alpha / math.sqrt(r)
        vectors = config.initial_vectors(embedding)
        a = torch.rand(self.max_length, r, generator=seeded_generator("dept", config.seed))
        if self.num_virtual_tokens:
            self.prompt_embedding = nn.Parameter(vectors)
        self.lora_embedding_A = nn.Parameter(((2 * a - 1) / math.sqrt(r)).to(vectors))
        self.lora_embedding_B = nn.Parameter(vectors.new_zeros(r, embedding.shape[1]))
        self.lr_scale = dict.fromkeys(("lora_embedding_A", "lora_embedding_B"), config.offset_lr_scale)

    def offset(self) -> Float[Tensor, "s d"]:
        """ΔE = (lora_alpha / √r) A B, the same for all inputs."""
        return self.scale * (self.lora_embedding_A @ self.lora_embedding_B)

    def forward(
        self,
        embeddings: Float[Tensor, "b n d"],
        mask: Shaped[Tensor, "b n"] | None = None,
        given: int | None = None,
    ) -> tuple[Float[Tensor, "b mn d"], Shaped[Tensor, "b mn"] | None]:
        batch, length, _ = embeddings.shape
        given = length if given is None else min(given, length)
        if given > self.max_length:
            raise InputError(
                f"the input has {given} tokens and the prompt was made for {self.max_length}: cut the input, or train "
                "with a larger max_length"
            )
        moved = embeddings[:, :given] + self._rows(mask, given)
        parts = [moved.to(embeddings.dtype), embeddings[:, given:]]
        if self.num_virtual_tokens:
            parts.insert(0, self.prompt_embedding.to(embeddings.dtype).expand(batch, -1, -1))
            mask = (
                None if mask is None else torch.cat([mask.new_ones(batch, self.num_virtual_tokens), mask], 1)
            )
        return torch.cat(parts, 1), mask

    def _rows(self, mask: Shaped[Tensor, "b n"] | None, length: int) -> Float[Tensor, "... length d"]:
        """What is added to each of the first tokens of a batch; rows at padding are of no effect and of any value."""
        offset, right = self.offset(), self.padding_side == "right"
        if mask is None:
            return offset[:length] if right else offset[self.max_length - length :]
        real = (mask[:, :length] != 0).int()
        places = torch.arange(length, device=mask.device)
        if right:
            rows = (places - real.argmax(1, keepdim=True)).clamp(min=0)
        else:
            after = real.flip(1).argmax(1, keepdim=True)
            rows = (places + after + self.max_length - length).clamp(max=self.max_length - 1)
        return F.embedding(rows, offset)
