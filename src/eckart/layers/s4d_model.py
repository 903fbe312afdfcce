"""S4D as a transformers model, for tokens and for signals: backbone and classifier.

Importing this module makes them known to `AutoConfig`, `AutoModel` and `AutoModelForSequenceClassification`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import cast

import torch
from jaxtyping import Bool, Float, Inexact, Integer, Shaped
from torch import Tensor, nn
from transformers import AutoConfig, AutoModel, AutoModelForSequenceClassification, PreTrainedModel
from transformers import initialization as init
from transformers.modeling_outputs import SequenceClassifierOutput
from transformers.utils.generic import ModelOutput, can_return_tuple

from eckart.errors import InputError
from eckart.layers.s4d import S4D, S4DBlock, S4DKernel
from eckart.layers.s4d_config import S4DConfig

LayerStates = Sequence[Inexact[Tensor, "batch h n"]]
INTEGERS = (torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64)


@dataclass
class S4DOutput(ModelOutput):
    """What the backbone gives: last hidden states, the states to go on from, the hidden states of all layers."""

    last_hidden_state: Float[Tensor, "batch length h"] | None = None
    states: tuple[Inexact[Tensor, "batch h n"], ...] | None = None
    hidden_states: tuple[Float[Tensor, "batch length h"], ...] | None = None


class S4DPreTrainedModel(PreTrainedModel):
    """What the backbone and its heads share: how weights start, load and stay precise."""

    config: S4DConfig
    config_class = S4DConfig
    base_model_prefix = "s4d"
    _input_embed_layer = "embeddings"
    supports_gradient_checkpointing = True
    _no_split_modules = ["S4DBlock"]  # noqa: RUF012
    _keep_in_fp32_modules_strict = ["kernel"]  # noqa: RUF012

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        """Draw what this module itself holds, but for what was loaded: transformers has marked that."""
        if isinstance(module, S4D | S4DKernel):
            layer = self.config.block().layer
            start = layer if isinstance(module, S4D) else layer.kernel
            for name, parameter in module.named_parameters(recurse=False):
                init.copy_(parameter, start.get_parameter(name))
        elif isinstance(module, nn.Linear | nn.Embedding | nn.LayerNorm | nn.RMSNorm):
            module.reset_parameters()


class S4DModel(S4DPreTrainedModel):
    """An encoder of tokens or numbers, residual S4D blocks, and a last norm."""

    def __init__(self, config: S4DConfig) -> None:
        config.check()
        super().__init__(config)
        width, tokens = config.hidden_size, config.vocab_size
        self.main_input_name = "input_values" if tokens is None else "input_ids"
        encoder = nn.Linear(config.num_channels, width) if tokens is None else nn.Embedding(tokens, width)
        self.embeddings: nn.Module = encoder
        self.layers = nn.ModuleList(config.block() for _ in range(config.num_hidden_layers))
        self.norm = type(config.block().norm)(width) if config.prenorm else nn.Identity()
        self.gradient_checkpointing = False
        self.post_init()  # type: ignore[no-untyped-call]

    @can_return_tuple  # type: ignore[untyped-decorator]
    def forward(
        self,
        input_ids: Integer[Tensor, "batch length"] | None = None,
        attention_mask: Shaped[Tensor, "batch length"] | None = None,
        input_values: Float[Tensor, "batch length ..."] | None = None,
        states: LayerStates | None = None,
        use_cache: bool = False,
        output_hidden_states: bool | None = None,
        rate: float = 1.0,
    ) -> S4DOutput:
        """All hidden states in one pass.

        Args:
            input_ids: tokens, where the model has a ``vocab_size``.
            attention_mask: 1 at real steps, 0 at the padding, which is on the right.
            input_values: numbers, where it has none: one or ``num_channels`` at each step.
            states: from an earlier call, to go on from where it ended.
            use_cache: give the states after the last step.
            output_hidden_states: give what goes into each block too, and what comes out of the last norm.
            rate: how much longer a step is than in training: 2 for a signal sampled half as often.

        Raises:
            InputError: input of another kind or shape, padding on the left, a sequence above ``max_position``.
        """
        tokens, limit = self.config.vocab_size, self.config.max_position
        inputs, other = (input_values, input_ids) if tokens is None else (input_ids, input_values)
        if inputs is None or other is not None:
            raise InputError(f"give {self.main_input_name} alone: this model has vocab_size={tokens}")
        hidden = self._embed(inputs)
        if hidden.shape[1] == 0:
            raise InputError(f"{self.main_input_name} has no time step: give a sequence of at least one")
        if limit is not None and (length := hidden.shape[1]) > limit:
            raise InputError(
                f"{self.main_input_name} has length {length}, above max_position={limit}: cut it"
            )
        mask = _valid(attention_mask, hidden)
        if use_cache and mask is not None and not bool(mask.all()):
            raise InputError("use_cache=True with padding in attention_mask: give rows of one length")
        seen, after = [hidden], []
        for layer, state in self._layers_with(states):
            if use_cache:
                hidden, reached = layer.forward_with_state(hidden, state, rate)
                after.append(reached)
            else:
                run = partial(layer, rate=rate, mask=mask)
                if self.gradient_checkpointing and self.training:
                    run = partial(self._gradient_checkpointing_func, run)
                hidden = run(hidden, state)
            seen.append(hidden)
        seen[-1] = hidden = self.norm(hidden)
        wanted = self.config.output_hidden_states if output_hidden_states is None else output_hidden_states
        return S4DOutput(hidden, tuple(after) if use_cache else None, tuple(seen) if wanted else None)

    def initial_state(self, batch: int) -> LayerStates:
        """The states before the first step: zeros, one tensor for each block.

        Raises:
            InputError: the model is bidirectional.
        """
        return tuple(layer.initial_state(batch) for layer, _ in self._layers_with(None))

    def step(
        self, inputs: Shaped[Tensor, "batch ..."], states: LayerStates, rate: float = 1.0
    ) -> tuple[Float[Tensor, "batch h"], LayerStates]:
        """One time step: the last hidden state that `forward` would give there, and the states after it.

        Args:
            inputs: a token for each row, or its number or numbers.
            states: `initial_state`, or those of the step before or of `forward` with ``use_cache``.
            rate: as in `forward`.

        Raises:
            InputError: inputs of another kind or shape, states of other layers or of another batch.
        """
        if inputs.dim() > (2 if self.config.vocab_size is None else 1):
            raise InputError(
                f"inputs has shape {tuple(inputs.shape)}: give one time step, a token or numbers"
            )
        hidden, after = self._embed(inputs.unsqueeze(1))[:, 0], []
        for layer, state in self._layers_with(states):
            hidden, reached = layer.step(hidden, cast(Tensor, state), rate)
            after.append(reached)
        return self.norm(hidden), tuple(after)

    def _embed(self, inputs: Tensor) -> Tensor:
        tokens, channels, shape = self.config.vocab_size, self.config.num_channels, tuple(inputs.shape)
        if tokens is None:
            inputs = inputs.unsqueeze(-1) if inputs.dim() == 2 else inputs
            if inputs.dim() != 3 or inputs.shape[-1] != channels or inputs.is_complex():
                raise InputError(
                    f"input_values is {inputs.dtype} of shape {shape}: give (batch, length, {channels}), real"
                )
        elif inputs.dim() != 2 or inputs.dtype not in INTEGERS:
            raise InputError(f"input_ids is {inputs.dtype} of shape {shape}: give integers (batch, length)")
        inputs = inputs.to(self.dtype if tokens is None else torch.long)
        if (
            tokens is not None
            and not torch.compiler.is_compiling()
            and bool(((inputs < 0) | (inputs >= tokens)).any())
        ):
            low, high = int(inputs.min()), int(inputs.max())
            raise InputError(f"input_ids runs from {low} to {high}: vocab_size={tokens} has 0 … {tokens - 1}")
        return cast(Tensor, self.embeddings(inputs))

    def _layers_with(self, states: LayerStates | None) -> list[tuple[S4DBlock, Tensor | None]]:
        layers = cast(list[S4DBlock], list(self.layers))
        if states is not None and len(states) != len(layers):
            raise InputError(f"states has {len(states)} entries: give one for each of {len(layers)} layers")
        return [(layer, states[i] if states is not None else None) for i, layer in enumerate(layers)]


class S4DForSequenceClassification(S4DPreTrainedModel):
    """The backbone, one vector for the sequence, and a linear classifier or regression."""

    def __init__(self, config: S4DConfig) -> None:
        super().__init__(config)
        self.s4d = S4DModel(config)
        self.main_input_name = self.s4d.main_input_name
        self.classifier = nn.Linear(config.hidden_size, cast(int, config.num_labels))
        self.post_init()  # type: ignore[no-untyped-call]

    @can_return_tuple  # type: ignore[untyped-decorator]
    def forward(
        self,
        input_ids: Integer[Tensor, "batch length"] | None = None,
        attention_mask: Shaped[Tensor, "batch length"] | None = None,
        input_values: Float[Tensor, "batch length ..."] | None = None,
        labels: Shaped[Tensor, "batch ..."] | None = None,
        output_hidden_states: bool | None = None,
        rate: float = 1.0,
    ) -> SequenceClassifierOutput:
        """Logits, and the loss where labels are given: squared error, cross entropy or binary cross entropy, by
        ``problem_type`` or else by the labels. The rest is as in `S4DModel.forward`.
        """
        outputs = self.s4d(
            input_ids,
            attention_mask,
            input_values,
            output_hidden_states=output_hidden_states,
            rate=rate,
            return_dict=True,
        )
        logits = self.classifier(_pool(outputs.last_hidden_state, attention_mask, self.config.pooling))
        loss = None
        if labels is not None:
            loss = self.loss_function(labels=labels, pooled_logits=logits, config=self.config)
        return SequenceClassifierOutput(loss=loss, logits=logits, hidden_states=outputs.hidden_states)


def _valid(
    attention_mask: Tensor | None, hidden: Float[Tensor, "batch length h"]
) -> Bool[Tensor, "batch length"] | None:
    if attention_mask is None:
        return None
    if (shape := attention_mask.shape) != hidden.shape[:2]:
        raise InputError(f"attention_mask has shape {tuple(shape)}: give {tuple(hidden.shape[:2])}")
    mask = attention_mask.to(torch.bool)
    right = mask[:, :1].all() & (mask[:, 1:] <= mask[:, :-1]).all()
    if not torch.compiler.is_compiling() and not bool(right):
        raise InputError(
            "attention_mask has padding before a real step, or a row without one: pad on the right (padding_side)"
        )
    return mask


def _pool(hidden: Tensor, attention_mask: Tensor | None, pooling: str) -> Float[Tensor, "batch h"]:
    if attention_mask is None:
        return hidden.mean(1) if pooling == "mean" else hidden[:, -1]
    mask = attention_mask.to(torch.bool)
    if pooling == "mean":
        return hidden.masked_fill(~mask.unsqueeze(-1), 0).sum(1) / mask.sum(1, keepdim=True)
    return hidden[torch.arange(len(hidden), device=hidden.device), mask.sum(1) - 1]


AutoConfig.register("s4d", S4DConfig)
AutoModel.register(S4DConfig, S4DModel)
AutoModelForSequenceClassification.register(S4DConfig, S4DForSequenceClassification)
