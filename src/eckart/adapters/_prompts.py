"""The contract of a prompt: input embeddings and their mask in, longer ones out, before a frozen model reads them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Literal

import torch
from jaxtyping import Float, Int, Shaped
from torch import Tensor, nn

from eckart.adapters._method import MethodConfig
from eckart.errors import InputError
from eckart.linalg.random import seeded_generator


@dataclass
class PromptConfig(MethodConfig):
    """Options that every prompt has. A method adds its own, says how it fits a budget and how to build its prompt.

    Args:
        num_virtual_tokens: how many vectors m stand before those of the input; 0 for none.
        max_length: how many tokens s an input has at most, without them.
        prompt_tuning_init: the vectors start as embeddings of tokens drawn from the vocabulary ("SAMPLE_VOCAB"), as
            those of a text ("TEXT"), or normal ("RANDOM").
        prompt_tuning_init_text: the text, repeated or cut to m tokens.
        tokenizer_name_or_path: the tokenizer that reads it.

    Raises:
        InputError: an option outside its range, or a text without a tokenizer.
    """

    num_virtual_tokens: int | None = None
    max_length: int | None = None
    prompt_tuning_init: Literal["SAMPLE_VOCAB", "TEXT", "RANDOM"] = "SAMPLE_VOCAB"
    prompt_tuning_init_text: str | None = None
    tokenizer_name_or_path: str | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.prompt_tuning_init not in ("SAMPLE_VOCAB", "TEXT", "RANDOM"):
            raise InputError(
                f"prompt_tuning_init is {self.prompt_tuning_init!r}: give SAMPLE_VOCAB, TEXT or RANDOM"
            )
        for name in ("prompt_tuning_init_text", "tokenizer_name_or_path"):
            if (getattr(self, name) is not None) != (self.prompt_tuning_init == "TEXT"):
                raise InputError(
                    f"{name} is {getattr(self, name)!r} and prompt_tuning_init {self.prompt_tuning_init!r}: a text "
                    "and its tokenizer go with 'TEXT'"
                )

    @classmethod
    def for_task(cls, *, target_modules: str | list[str], max_length: int) -> dict[str, Any]:
        return {"max_length": max_length}

    def fitted(self, space: InputSpace, limit: int | None = None) -> PromptConfig:
        """A copy in which every size that was left open is set.

        Args:
            space: of the model's input.
            limit: numbers to train at most; the method's own when None.

        Raises:
            InputError: sizes that the model has no room for, or a limit below the smallest count.
        """
        raise NotImplementedError

    def trainable_parameters(self, space: InputSpace) -> int:
        """How many numbers train, once every size is set."""
        raise NotImplementedError

    def build(self, embedding: Float[Tensor, "tokens d"], space: InputSpace) -> Prompt:
        """The prompt, once every size is set.

        Args:
            embedding: the frozen input embeddings, never modified.
            space: of the model's input.
        """
        raise NotImplementedError

    def initial_vectors(self, embedding: Float[Tensor, "tokens d"]) -> Float[Tensor, "m d"]:
        """Where the vectors start, in float32 or better."""
        m, (tokens, width) = self.num_virtual_tokens or 0, embedding.shape
        dtype = torch.promote_types(embedding.dtype, torch.float32)
        generator = seeded_generator("prompt", self.seed)
        if self.prompt_tuning_init == "RANDOM":
            return torch.randn(m, width, generator=generator).to(embedding.device, dtype)
        if self.prompt_tuning_init == "TEXT":
            rows = self._text_tokens(m)
        else:
            rows = torch.randint(tokens, (m,), generator=generator)
        return embedding[rows.to(embedding.device)].to(dtype, copy=True)

    def _text_tokens(self, count: int) -> Int[Tensor, " m"]:
        from transformers import AutoTokenizer

        tokenizer = AutoTokenizer.from_pretrained(self.tokenizer_name_or_path)
        tokens = torch.tensor(tokenizer(self.prompt_tuning_init_text)["input_ids"], dtype=torch.long)
        if not len(tokens):
            raise InputError(
                f"prompt_tuning_init_text is {self.prompt_tuning_init_text!r}, of which no token is made: give words"
            )
        return tokens.repeat(-(-count // len(tokens)))[:count]


@dataclass(frozen=True)
class InputSpace:
    """What a prompt learns of the model it is for.

    Args:
        width: d, numbers in an embedding.
        positions: how many positions the model has; None where it has no limit.
    """

    width: int
    positions: int | None

    def check(self, config: PromptConfig) -> None:
        """Refuse a prompt that leaves no room for the input.

        Raises:
            InputError: m + s is more than the positions there are.
        """
        m, s = config.num_virtual_tokens or 0, config.max_length or 0
        if self.positions is not None and m + s > self.positions:
            raise InputError(
                f"num_virtual_tokens ({m}) and max_length ({s}) come to {m + s} positions, of which this model has "
                f"{self.positions}: give fewer virtual tokens or a smaller max_length"
            )


class Prompt(nn.Module):
    """Lengthens the input of a frozen model. Parameters are flat attributes and train, in float32 or better."""

    lr_scale: Mapping[str, float] = MappingProxyType({})  # factors on the learning rate, by parameter name
    num_virtual_tokens: int = 0

    def forward(
        self,
        embeddings: Float[Tensor, "b n d"],
        mask: Shaped[Tensor, "b n"] | None = None,
        given: int | None = None,
    ) -> tuple[Float[Tensor, "b mn d"], Shaped[Tensor, "b mn"] | None]:
        """The input that the model gets: embeddings and mask with m positions before them.

        Args:
            embeddings: of the input's tokens.
            mask: 1 where a token is real, 0 where it is padding; None where all are real.
            given: how many of the tokens were given, where the rest was generated; all when None.

        Raises:
            InputError: more tokens than the prompt is for.
        """
        raise NotImplementedError

    def randomize(self) -> None:
        """Move every parameter to a random point near its start (``init_weights=False``)."""
        with torch.no_grad():
            for parameter in self.parameters():
                parameter.add_(torch.randn_like(parameter), alpha=0.1)
