"""PEFT's tuner for prompts."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, cast

from peft.utils.other import set_additional_trainable_modules
from torch import Tensor, nn

from eckart.adapters._census import PREFIX
from eckart.adapters._peft_files import CheckpointTuner
from eckart.adapters._prompt_layer import NAME, PromptLayer, input_reader, input_space
from eckart.adapters._prompts import Prompt, PromptConfig
from eckart.adapters._rehearsal import rehearse_prompt
from eckart.errors import InputError


class PromptTuner(CheckpointTuner):
    """Puts the prompt of one config before a model. It is built and checked before the model is touched."""

    prefix = PREFIX
    tuner_layer_cls = PromptLayer

    def inject_adapter(
        self,
        model: nn.Module,
        adapter_name: str,
        autocast_adapter_dtype: bool = True,
        low_cpu_mem_usage: bool = False,
        state_dict: dict[str, Tensor] | None = None,
    ) -> None:
        config = cast(PromptConfig, self.peft_config[adapter_name])
        reader, _ = input_reader(model)
        space = input_space(model)
        fitted = config.fitted(space)
        weight = cast(Any, reader).get_input_embeddings().weight.detach()
        if weight.is_meta:
            raise InputError("the input embeddings are on the meta device: load the base model first")
        if not weight.isfinite().all():
            raise InputError("the input embeddings hold NaN or Inf: repair the model first")
        prompt = fitted.build(weight, space)
        if not config.init_weights:
            prompt.randomize()
        if config.checkpoint is not None:
            rehearse_prompt(config, model, NAME, prompt)
            config.checkpoint = None
        vars(config).update(fitted.solved_options())
        self._place(model, adapter_name, prompt.to("meta") if low_cpu_mem_usage else prompt)

    def _place(self, model: nn.Module, adapter_name: str, prompt: Prompt) -> None:
        """Put a prompt into the model's layer of prompts, and into the state that PEFT expects of an adapter."""
        config, layer = self.peft_config[adapter_name], getattr(model, NAME, None)
        before = {} if layer is None else {p: p.requires_grad for p in model.parameters()}
        if layer is None:
            layer = PromptLayer(model)
            model.add_module(NAME, layer)
        layer.eckart_adapters[adapter_name] = prompt
        layer.configs[adapter_name] = cast(PromptConfig, config)
        self.targeted_module_names = [NAME]
        self.set_adapter(self.active_adapters, inference_mode=config.inference_mode)
        self._mark_only_adapters_as_trainable(model)
        set_additional_trainable_modules(
            model=model,
            peft_config=config,
            model_config=self.get_model_config(model),
            adapter_name=adapter_name,
            activate_adapter=adapter_name in self.active_adapters,
        )
        for parameter, requires_grad in before.items():
            parameter.requires_grad = requires_grad

    def _create_and_replace(self, *args: Any, **kwargs: Any) -> None:
        """A prompt replaces no layer."""

    @contextmanager
    def _enable_peft_forward_hooks(self, *args: Any, **kwargs: Any) -> Iterator[None]:
        """Refuse a mixed batch.

        Raises:
            InputError: ``adapter_names`` is given.
        """
        if kwargs.get("adapter_names") is not None:
            raise InputError("adapter_names is given, but a batch has one prompt: call set_adapter instead")
        yield

    def merge_adapter(self, *args: Any, **kwargs: Any) -> None:
        """Refuse, as `PromptLayer.merge`."""
        getattr(self.model, NAME).merge()

    def _unload_and_optionally_merge(self, merge: bool = True, *args: Any, **kwargs: Any) -> Any:
        layer: PromptLayer = getattr(self.model, NAME)
        if merge:
            layer.merge()
        layer.release()
        delattr(self.model, NAME)
        return super()._unload_and_optionally_merge(merge=False)

    @classmethod
    def _get_adapter_state_dict(
        cls,
        model: nn.Module,
        config: Any,
        adapter_name: str,
        state_dict: dict[str, Tensor],
        unwanted_adapter_names: Sequence[str],
    ) -> dict[str, Tensor]:
        """The tensors of the prompt alone: the layers of the model may have adapters of their own."""
        return {key: value for key, value in state_dict.items() if f".{NAME}." in f".{key}"}
