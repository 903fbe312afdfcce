"""A task of the user's own, from a file: ``my_task.py:task`` is a function that gives an `OwnTask`.

Whatever a PyTorch model is trained for can be adapted and compared so: diffusion, speech, a physical simulation.
"""

from __future__ import annotations

import hashlib
import importlib.util
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, Subset, default_collate
from transformers.utils.generic import ModelOutput

from eckart.data.read import Data
from eckart.data.splits import PARTS, Split, sample
from eckart.errors import InputError, first_line
from eckart.tasks.heads import Base
from eckart.tasks.kinds.kind import Encoded, Examples, Kind
from eckart.tasks.memory import fit
from eckart.tasks.metrics import Metric, Outcomes, by_name, column
from eckart.tasks.options import Memory, Words, own_file
from eckart.tasks.task import Task

Batch = Mapping[str, Tensor]
OWN = "own"


@dataclass(frozen=True)
class OwnTask:
    """What a task is: a model, examples, what is minimised and what is scored.

    Args:
        model: the pretrained model; it is copied for each run.
        train, validation, test: examples, each a dictionary of tensors or numbers.
        loss: of a model and a batch, what training minimises: one number.
        score: of a model and a batch, a score of each example, ``n`` numbers; it must not draw at random.
        metric: what the score is called.
        greater_is_better: its direction.
        collate: makes a batch of a list of examples; stacks them when None.
        target_modules: names of the layers that adapters are put on; all linear ones when None.
        head_modules: names of modules that are drawn anew and trained whole beside an adapter.
    """

    model: nn.Module
    train: Dataset[Any]
    validation: Dataset[Any]
    test: Dataset[Any]
    loss: Callable[[nn.Module, Batch], Tensor]
    score: Callable[[nn.Module, Batch], Tensor]
    metric: str = "score"
    greater_is_better: bool = False
    collate: Callable[[list[Any]], dict[str, Any]] | None = None
    target_modules: Sequence[str] | None = None
    head_modules: Sequence[str] = field(default_factory=tuple)


@dataclass
class Told(ModelOutput):
    """The loss of a batch; and of each example its score, where the model is not training."""

    loss: Tensor | None = None
    logits: Tensor | None = None


class OwnModel(nn.Module):
    """A model that gives its loss and scores, as those of `transformers` do."""

    def __init__(self, own: OwnTask) -> None:
        super().__init__()
        self.net, self.loss, self.score = own.model, own.loss, own.score

    def forward(self, **batch: Any) -> Told:
        """Loss of a batch, and outside training the scores of its examples."""
        loss = self.loss(self.net, batch)
        return Told(loss=loss, logits=None if self.training else self.score(self.net, batch))


@dataclass(frozen=True)
class OwnBase(Base):
    """A base whose adapters go where the user says."""

    targets: Sequence[str] | None = None

    def default_targets(self) -> str | list[str]:
        """The names that were given; all linear layers outside the head when there are none."""
        if self.targets is not None:
            return [f"net.{name}" for name in self.targets]
        return [
            name
            for name, module in self.model.named_modules()
            if isinstance(module, nn.Linear) and not self.is_head(f"{name}.")
        ]


class Own(Kind):
    """An outcome is the score itself."""

    name = OWN

    def __init__(self, data: Data, own: OwnTask) -> None:
        super().__init__(data, Words())
        self.collate = own.collate or default_collate
        self.metrics = by_name(Metric(own.metric, each=column(0), greater_is_better=own.greater_is_better))

    def outcomes(self, outputs: Any, batch: Mapping[str, Any]) -> Outcomes:
        """The score of each example."""
        scores: np.ndarray = outputs.logits.detach().double().cpu().numpy().reshape(-1, 1)
        return scores

    @torch.inference_mode()
    def trivial(self, train: Examples, test: Examples, model: Any) -> tuple[str, Outcomes]:
        """The model as it is given."""
        loader = DataLoader(test, batch_size=32, collate_fn=self.collate)
        return "model as given", np.concatenate([self.outcomes(model(**batch), batch) for batch in loader])

    def example(self, train: Examples, letters: int) -> str:
        """The names and shapes of the first example's tensors."""
        shown = (f"{name} {list(np.shape(value))}" for name, value in train[0].items())
        return ", ".join(shown)[: 4 * letters]


def load_own(
    source: str,
    *,
    max_length: int = 128,
    limits: Mapping[str, int] | None = None,
    seed: int = 0,
    memory: Memory | None = None,
) -> Task:
    """The task of a file, ``path/to/my_task.py:function``.

    Args:
        source: file and function.
        max_length: not used; of texts.
        limits: most examples of a split.
        seed: of the draw of these.
        memory: how small the base is made.

    Raises:
        InputError: no such file or function, or one that gives no `OwnTask`.
    """
    path, own = _called(source)
    chosen: dict[str, Examples] = {part: getattr(own, part) for part in PARTS}
    notes = []
    for part, number in (limits or {}).items():
        size = len(chosen[part])  # type: ignore[arg-type]
        if number < size:
            chosen[part] = Subset(chosen[part], sample(None, size, number, seed))
            notes.append(f"{part}: {number:,} of {size:,} examples")
    sizes = {part: range(len(chosen[part])) for part in PARTS}  # type: ignore[arg-type]
    data = Data(source, OWN, {part: Split(size) for part, size in sizes.items()}, notes=notes)
    model = OwnModel(own)
    heads = [f"net.{name}" for name in own.head_modules]
    fit(model, heads, memory or Memory(), source)
    sha = hashlib.sha256(path.read_bytes() + repr((sizes, seed)).encode())
    for name, tensor in model.state_dict().items():
        sha.update(name.encode() + tensor.detach().cpu().float().numpy().tobytes())
    form = Own(data, own)
    return Task.of(
        form,
        Encoded(chosen["train"], chosen["validation"], chosen["test"], form.collate, None),
        OwnBase(model.eval(), heads, own.target_modules),
        model=type(own.model).__name__,
        fingerprint=sha.hexdigest(),
        max_length=max_length,
        memory=memory or Memory(),
    )


def _called(source: str) -> tuple[Path, OwnTask]:
    path, name = own_file(source)
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
        found = getattr(module, name)()
    except Exception as error:  # whatever the user's file raises
        raise InputError(f"--task {source}: {type(error).__name__}: {first_line(error)}") from error
    if not isinstance(found, OwnTask):
        raise InputError(f"--task {source} gives a {type(found).__name__}: give an eckart.tasks.own.OwnTask")
    for part in PARTS:
        examples = getattr(found, part)
        if not len(examples) or not isinstance(examples[0], Mapping):
            raise InputError(f"--task {source}: {part} holds no examples that are dictionaries of tensors")
    for head in found.head_modules:
        if head not in cast(Any, dict(found.model.named_modules())):
            raise InputError(f"--task {source}: head_modules names {head}, which the model has not")
    return path, found
