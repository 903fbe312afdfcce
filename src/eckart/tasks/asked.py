"""What can be refused of a model, data and a task before either is loaded."""

from __future__ import annotations

from eckart.data.read import check_source
from eckart.tasks.options import TaskOptions, check_alone, memory_of
from eckart.tasks.pretrained import find_model


def check_asked(model: str | None, data: str | None, batch_size: int, options: TaskOptions) -> None:
    """Refuse a model or data that are not there, what a task of the user's own brings itself, and a batch that its
    parts do not divide.

    Args:
        model: as it was given.
        data: likewise.
        batch_size: examples in a step.
        options: of the task.

    Raises:
        InputError: naming what is wrong.
    """
    memory_of(options).part(batch_size)
    if (own := options.get("task")) is not None:
        check_alone(own, model=model, data=data)
    elif model is not None or data is None:  # else the data tell which one is meant
        find_model(model, options.get("kind", "auto"))
    check_source(data)
