"""What every method of this room has, whether it adapts layers or the input: its facts, its seed, its checkpoint."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, ClassVar, Literal, cast, get_type_hints

from peft import LoraConfig, PeftConfig, PeftType
from torch import Tensor

from eckart.adapters._checkpoint import read_outline
from eckart.arguments import check_number, hint
from eckart.errors import InputError

_KINDS: Mapping[Any, Literal["bool", "int", "float"]] = {bool: "bool", int: "int", float: "float"}


@cache
def _plain_options(config: type[MethodConfig]) -> dict[str, Literal["bool", "int", "float"]]:
    """The fields that hold one number or boolean, or None, with its type."""
    hints = get_type_hints(config)
    kinds = {option.name: hints[option.name] for option in dataclasses.fields(config)}
    plain = {
        name: next((_KINDS[t] for t in _KINDS if kind in (t, t | None)), None) for name, kind in kinds.items()
    }
    return {name: kind for name, kind in plain.items() if kind is not None}


def option_names(config: type[MethodConfig]) -> set[str]:
    """The options that a config is given by name."""
    return {option.name for option in dataclasses.fields(config) if option.init}


@dataclass
class MethodConfig(PeftConfig):
    """Options that every method has.

    Args:
        modules_to_save: further modules trained in full and saved, such as a classification head.
        seed: every random number of the method follows from it.
        init_weights: False starts from random non-zero values, for tests.

    Raises:
        InputError: an option outside its range.
    """

    modules_to_save: list[str] | None = None
    seed: int = 0
    init_weights: bool = True

    checkpoint = cast("dict[str, Tensor] | None", None)  # no field: set on a config that is read from one

    peft_kind: ClassVar[PeftType]

    # What the registry tells of the method.
    slug: ClassVar[str] = ""
    title: ClassVar[str] = ""
    family: ClassVar[str] = "adapters"
    paper: ClassVar[str] = ""
    arxiv: ClassVar[str] = ""
    aliases: ClassVar[tuple[str, ...]] = ()
    knob: ClassVar[str] = "r"
    trains: ClassVar[str] = ""
    saves: ClassVar[str] = ""
    learning_rates: ClassVar[tuple[float, ...]] = (3e-4, 1e-3, 3e-3)

    def __new__(cls, *args: Any, **options: Any) -> Any:
        """Refuse options of others; those that nobody has are left to Python.

        Raises:
            InputError: an option that another method or PEFT's own LoRA has, and this method has not.
        """
        cls.check_names(options, elsewhere=True)
        return super().__new__(cls)

    @classmethod
    def check_names(cls, options: Iterable[str], *, elsewhere: bool) -> None:
        """Refuse options that the method has not.

        Args:
            options: their names.
            elsewhere: only those that another method or PEFT's own LoRA has.

        Raises:
            InputError: naming the option and what there is.
        """
        from eckart.adapters._registry import ADAPTERS, PROMPTS

        known = option_names(cls)
        for name in options:
            if name in known:
                continue
            others = [slug for slug, other in {**ADAPTERS, **PROMPTS}.items() if name in option_names(other)]
            has = f"it has {', '.join(sorted(known))}"
            if name in LoraConfig.__dataclass_fields__ and not others:
                raise InputError(
                    f"{cls.slug} has no option {name!r}, which only PEFT's own LoraConfig has: {has}"
                )
            if others or not elsewhere:
                raise InputError(f"{cls.slug} has no option {name!r}: {hint(name, known, has)}")

    def __post_init__(self) -> None:
        super().__post_init__()  # type: ignore[no-untyped-call]
        self.peft_type = type(self).peft_kind
        self._check_numbers()

    def _check_numbers(self) -> None:
        """Hold the options that are plain numbers or booleans to their types and ranges; NumPy's become Python's."""
        for name, kind in _plain_options(type(self)).items():  # type: ignore[arg-type]  # mypy takes the hash of the instances
            if (value := getattr(self, name)) is not None:
                setattr(self, name, check_number(name, value, kind))

    @classmethod
    def for_task(cls, *, target_modules: str | list[str], max_length: int) -> dict[str, Any]:
        """The options that a task decides.

        Args:
            target_modules: the layers to adapt.
            max_length: tokens of an example at most.
        """
        raise NotImplementedError

    def solved_options(self) -> dict[str, Any]:
        """The options that a budget sets, by name."""
        return {self.knob: getattr(self, self.knob)}

    @property
    def kept_whole(self) -> Collection[str]:
        """Names of tensors that are read from a checkpoint before it is loaded, and not only their shapes."""
        return ()

    @classmethod
    def from_pretrained(
        cls,
        pretrained_model_name_or_path: str | os.PathLike[str],
        subfolder: str | None = None,
        **kwargs: Any,
    ) -> PeftConfig:
        """PEFT's loading, which for a local checkpoint also reads its weights, so that a damaged or foreign one is
        refused before the model is touched.

        Raises:
            InputError: the weights are missing or damaged.
        """
        config: PeftConfig = super().from_pretrained(str(pretrained_model_name_or_path), subfolder, **kwargs)
        directory = Path(pretrained_model_name_or_path, subfolder or "")
        if directory.is_dir() and isinstance(config, MethodConfig):
            config.checkpoint = read_outline(directory, config.kept_whole)
        return config
