"""`eckart adapt --loram`: the base is pruned, a LoRA trained on it, and the LoRA put back into the whole base."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Subset

from eckart.compression import loram
from eckart.compression._loram_files import save_pruning
from eckart.extras import require
from eckart.jobs.adapt.loram_options import LoRAM, check_loram
from eckart.tasks.heads import load_base
from eckart.tasks.pretrained import find_model
from eckart.tasks.scoring import evaluate, scoring_batch
from eckart.tasks.trainer import Recipe, make_trainer
from eckart.tensors import load_state, save_state

if TYPE_CHECKING:
    from peft import PeftModel

    from eckart.tasks.task import Task

ALIGNED, PRUNING = "aligned.safetensors", "pruning.safetensors"
BATCHES = 8
"""Batches of training data that the Taylor criterion sees."""


class PrunedBase:
    """The base of a task, pruned in place: until `recover` reads the whole one again, only the small one is in memory.

    Args:
        options: how to prune.
        task: whose model is pruned.
        job: the run, with its model, batch size and seed.
        directory: of the run.

    Raises:
        InputError: a task, method or model that LoRAM does not fit; the model is as it was.
    """

    def __init__(self, options: LoRAM, task: Task, job: Any, directory: Path) -> None:
        check_loram(options, job.method, task.kind)
        self.options, self.task, self.job, self.directory = options, task, job, directory
        batches = self._batches() if options.criterion == "taylor" else None
        model = task.base.model
        self.large_parameters = _count(model)
        self.pruning = loram.choose(model, options.ratio, options.criterion, batches=batches, seed=job.seed)
        loram.prune_model(model, self.pruning)

    def _batches(self) -> Iterator[Mapping[str, Tensor]]:
        train, size = self.task.train, self.job.batch_size
        first = Subset(train, range(min(len(train), BATCHES * size)))  # type: ignore[arg-type]
        return iter(DataLoader(first, batch_size=size, collate_fn=self.task.collator))

    def changes(self) -> bool:
        """Whether anything is to be done before training."""
        return bool(self.options.align or self.options.int8)

    def change(self) -> None:
        """Align the small model, or read it where the directory holds it aligned, and quantise it."""
        model, path = self.task.base.model, self.directory / ALIGNED
        if self.options.align and path.is_file():
            model.load_state_dict(load_state(path, "the aligned model")[0], strict=False)
        elif self.options.align:
            self._align()
            tied = set(getattr(model, "all_tied_weights_keys", None) or ())
            state = {name: value for name, value in model.state_dict().items() if name not in tied}
            save_state(path, state, self.options.align)
        if self.options.int8:
            quantise(model)

    def _align(self) -> None:
        """Train all of it but the output head."""
        model, options, job = self.task.base.model, self.options, self.job
        for parameter in model.get_output_embeddings().parameters():
            parameter.requires_grad_(False)
        recipe = Recipe(options.align, job.batch_size, options.align_lr, options.align_lr, job.seed)
        make_trainer(model, self.task, recipe).train()
        model.cpu().eval().requires_grad_(True)

    def recover(self, trained: PeftModel) -> tuple[PeftModel, dict[str, Any]]:
        """The whole model with the adapter of the small one, and what metrics.json says of it.

        Args:
            trained: the small model with its adapter.
        """
        from peft import get_peft_model

        task, job = self.task, self.job
        size = scoring_batch(task, job.batch_size)
        told = {
            **dataclasses.asdict(self.options),
            "large_parameters": self.large_parameters,
            "small_parameters": _count(task.base.model),
            "test_of_the_small": dataclasses.asdict(evaluate(trained, task, task.test, size)),
        }
        config: Any = dataclasses.replace(cast(Any, trained.peft_config["default"]))
        large = load_base(find_model(job.model), task.kind, task.form.outputs(), task.form.config()).fresh(
            job.seed
        )
        whole: Any = get_peft_model(large, config)
        loram.recover_into(whole, trained, self.pruning)
        whole.to(next(trained.parameters()).device)
        with whole.disable_adapter():
            told["test_without_adapter"] = dataclasses.asdict(evaluate(whole, task, task.test, size))
        save_pruning(self.pruning, self.directory / PRUNING)
        validation = dataclasses.asdict(evaluate(whole, task, task.validation, size))
        return whole, {"loram": told, "validation": validation}


def quantise(model: torch.nn.Module) -> None:
    """The projections of all blocks in eight bits, in place; tied embeddings and norms stay."""
    torchao = require("torchao.quantization", extra="quant")
    endings = tuple(loram.PROJECTIONS)
    torchao.quantize_(
        model,
        torchao.Int8WeightOnlyConfig(),
        filter_fn=lambda module, name: isinstance(module, torch.nn.Linear) and name.endswith(endings),
    )


def _count(model: torch.nn.Module) -> int:
    return sum(p.numel() for p in model.parameters())
