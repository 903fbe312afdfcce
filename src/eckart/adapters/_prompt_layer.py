"""The layer that holds the prompts of a model: hooks on the module of it that reads its input."""

from __future__ import annotations

import inspect
from typing import Any, cast

import torch
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import Tensor, nn

from eckart.adapters._prompts import InputSpace, Prompt, PromptConfig
from eckart.errors import InputError

NAME = "input_prompt"
"""What the layer is called in the model that it is put into; PEFT passes by the layers whose name has our prefix."""
_UNSUITED = ("assistant_model", "prompt_lookup_num_tokens", "assistant_early_exit", "prefill_chunk_size")
"""Ways of generating that count the positions of the cache by the tokens of the text."""


def input_reader(model: nn.Module) -> tuple[nn.Module, nn.Module | None]:
    """The module of a model that takes token ids and hidden states come out of, and the decoder that reads these where
    it is an encoder's.

    Raises:
        InputError: the model does not take input embeddings in place of token ids.
    """
    decoder = None
    if getattr(getattr(model, "config", None), "is_encoder_decoder", False):
        reader, decoder = cast(Any, model).get_encoder(), cast(Any, model).get_decoder()
    else:
        reader = getattr(model, getattr(model, "base_model_prefix", "") or "", model)
    takes = inspect.signature(reader.forward).parameters
    weight = getattr(getattr(reader, "get_input_embeddings", lambda: None)(), "weight", None)
    if not {"input_ids", "inputs_embeds"} <= set(takes) or weight is None or weight.dim() != 2:
        raise InputError(
            f"{type(model).__name__} does not take inputs_embeds in place of input_ids, before which a prompt could "
            "stand: give a transformers model of text, or a method that adapts layers"
        )
    return reader, decoder


def input_space(model: nn.Module) -> InputSpace:
    """What a prompt has to know of a model.

    Raises:
        InputError: as `input_reader`.
    """
    reader, _ = input_reader(model)
    positions = getattr(getattr(reader, "config", None), "max_position_embeddings", None)
    for name, module in reader.named_modules():
        numbered = isinstance(module, nn.Embedding) and name.endswith("position_embeddings")
        if positions is not None and numbered and module.padding_idx is not None:
            positions -= module.padding_idx + 1  # RoBERTa's numbers begin behind that of padding
    return InputSpace(cast(Any, reader).get_input_embeddings().weight.shape[1], positions)


class PromptLayer(nn.Module, BaseTunerLayer):
    """The prompts of a model, of which one acts. The model's reader gets a longer input, and the positions that were
    added are cut from the hidden states that it returns, so that heads, labels and losses meet only the text's own.

    Attributes:
        given: how many tokens of the input were given, while some are being generated; None otherwise.
    """

    adapter_layer_names = ("eckart_adapters",)
    other_param_names = ("configs",)

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        reader, decoder = input_reader(model)
        self._model = (model,)  # no submodule of its own
        self.eckart_adapters = nn.ModuleDict()
        self.configs: dict[str, PromptConfig] = {}
        self._disable_adapters = False
        self.merged_adapters: list[str] = []
        self.given: int | None = None
        self._added = 0
        self._names = tuple(inspect.signature(reader.forward).parameters)
        self._handles = [reader.register_forward_pre_hook(self.lengthen, with_kwargs=True)]
        if decoder is None:
            self._handles.append(reader.register_forward_hook(self.cut))
        else:
            self._handles.append(decoder.register_forward_pre_hook(self.lengthen_mask, with_kwargs=True))
        if hasattr(model, "generate"):
            vars(model)["generate"] = self.generate

    def adapter(self, name: str) -> Prompt:
        """The prompt of a name."""
        return cast(Prompt, self.eckart_adapters[name])

    def set_adapter(self, adapter_names: str | list[str], inference_mode: bool = False) -> None:
        """Choose the prompt that acts.

        Raises:
            InputError: several of them.
        """
        names = [adapter_names] if isinstance(adapter_names, str) else adapter_names
        if len(ours := [name for name in names if name in self.eckart_adapters]) > 1:
            raise InputError(
                f"adapters {', '.join(ours)} are prompts, of which one acts at a time: choose one"
            )
        super().set_adapter(adapter_names, inference_mode=inference_mode)

    @property
    def active(self) -> Prompt | None:
        """The prompt that acts; None where none does."""
        names = () if self._disable_adapters else self.active_adapters
        return next((self.adapter(name) for name in names if name in self.eckart_adapters), None)

    def merge(self, safe_merge: bool = False, adapter_names: list[str] | None = None) -> None:
        """Refuse: there is no weight to merge into.

        Raises:
            InputError: always.
        """
        raise InputError(
            "a prompt changes the input and no weight, so that it cannot be merged: keep the adapter"
        )

    def release(self) -> None:
        """Take the hooks off the model."""
        for handle in self._handles:
            handle.remove()
        vars(self._model[0]).pop("generate", None)

    def generate(self, inputs: Tensor | None = None, *args: Any, **kwargs: Any) -> Any:
        """As the model's own, with the prompt before the text and nothing added to what is generated.

        Raises:
            InputError: a way of generating that takes the positions of the cache for those of the text.
        """
        model: Any = self._model[0]
        if self.active is not None:
            settings = kwargs.get("generation_config") or getattr(model, "generation_config", None)
            for name in _UNSUITED:
                if kwargs.get(name, getattr(settings, name, None)) is not None:
                    raise InputError(f"{name} is given, which cannot go with a prompt: leave it out")
            cache = kwargs.get("past_key_values")
            if cache is not None and cache.get_seq_length():
                raise InputError("past_key_values holds tokens, which cannot go with a prompt: leave it out")
        text = inputs if inputs is not None else kwargs.get("input_ids", kwargs.get("inputs_embeds"))
        self.given = None if text is None else text.shape[1]
        try:
            return type(model).generate(model, inputs, *args, **kwargs)
        finally:
            self.given = None

    def lengthen(
        self, reader: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
        """Hook before the reader: at the first positions of a text the longer input, later only its numbering."""
        self._added, prompt = 0, self.active
        if prompt is None:
            return None
        named = dict(zip(self._names, args, strict=False)) | kwargs
        mask, cache = named.get("attention_mask"), named.get("past_key_values")
        if getattr(cache, "is_compileable", False) or (mask is not None and mask.dim() != 2):
            raise InputError(
                "a prompt needs an attention_mask (batch, tokens) and a cache that grows: give no mask of more "
                "dimensions and no static cache"
            )
        m = prompt.num_virtual_tokens
        for name in ("position_ids", "cache_position"):
            if named.get(name) is not None:
                named[name] = named[name] + m
        if cache is not None and cache.get_seq_length():
            if mask is not None:
                named["attention_mask"] = _ones_before(mask, m)
            return (), named
        ids, embeddings = named.pop("input_ids", None), named.get("inputs_embeds")
        if (ids is None) == (embeddings is None):
            return None  # the model itself says what is wrong
        if embeddings is None:
            embeddings = cast(Any, reader).get_input_embeddings()(ids)
        named["inputs_embeds"], named["attention_mask"] = prompt(embeddings, mask, self.given)
        for name in ("position_ids", "cache_position"):
            if (places := named.get(name)) is not None:
                first = torch.arange(m, dtype=places.dtype, device=places.device)
                named[name] = torch.cat([first.expand(*places.shape[:-1], m), places], -1)
        if (kinds := named.get("token_type_ids")) is not None:
            named["token_type_ids"] = torch.cat([kinds.new_zeros(len(kinds), m), kinds], 1)
        self._added = m
        return (), named

    def cut(self, reader: nn.Module, args: tuple[Any, ...], output: Any) -> Any:
        """Hook behind a reader whose hidden states heads take: without the positions that were added."""
        added, self._added = self._added, 0
        if not added:
            return None
        if isinstance(output, tuple):
            return (output[0][:, added:], *output[1:])
        if getattr(output, "last_hidden_state", None) is not None:
            output.last_hidden_state = output.last_hidden_state[:, added:]
        if getattr(output, "hidden_states", None) is not None:
            output.hidden_states = tuple(states[:, added:] for states in output.hidden_states)
        return output

    def lengthen_mask(
        self, decoder: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
        """Hook before a decoder: the mask of its encoder's states, where these are longer by the prompt."""
        mask, states = kwargs.get("encoder_attention_mask"), kwargs.get("encoder_hidden_states")
        prompt = self.active
        if prompt is None or mask is None or states is None or mask.dim() != 2:
            return None
        missing = states.shape[1] - mask.shape[1]
        if missing != prompt.num_virtual_tokens:
            return None
        return args, {**kwargs, "encoder_attention_mask": _ones_before(mask, missing)}


def _ones_before(mask: Tensor, count: int) -> Tensor:
    return torch.cat([mask.new_ones(len(mask), count), mask], 1)
