"""The registry: every method is found here by its slug, and nothing else in the tree names it."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable
from importlib.metadata import entry_points
from typing import TypeVar

from eckart.adapters._config import AdapterConfig
from eckart.adapters._method import MethodConfig
from eckart.adapters._prompts import PromptConfig
from eckart.arguments import method_hint
from eckart.errors import InputError, first_line

ADAPTERS: dict[str, type[AdapterConfig]] = {}
PROMPTS: dict[str, type[PromptConfig]] = {}
_ALIASES: dict[str, str] = {}
C = TypeVar("C", bound=type[MethodConfig])


def register_adapter(
    slug: str,
    *,
    title: str,
    paper: str,
    arxiv: str,
    trains: str,
    saves: str,
    aliases: Iterable[str] = (),
) -> Callable[[C], C]:
    """Class decorator that makes a config dataclass a method of this library and a type of PEFT's.

    Args:
        slug: the method's name on the command line and in the registry.
        title: its name as its authors write it.
        paper: authors and year.
        arxiv: the arXiv id.
        trains: what trains, in a few words.
        saves: what a checkpoint holds, in a few words.
        aliases: other names by which it is known.

    Raises:
        InputError: a slug or an alias that another method has.
    """

    def decorate(config: C) -> C:
        from eckart.adapters._peft_types import register_peft_type

        if taken := {slug, *aliases} & {*ADAPTERS, *PROMPTS, *_ALIASES}:
            raise InputError(
                f"method {min(taken)!r} is registered already: choose another slug for {config.__name__}"
            )

        config.slug, config.title, config.paper, config.arxiv = slug, title, paper, arxiv
        config.trains, config.saves, config.aliases = trains, saves, tuple(aliases)
        register_peft_type(config)
        if issubclass(config, PromptConfig):
            PROMPTS[slug] = config
        elif issubclass(config, AdapterConfig):
            ADAPTERS[slug] = config
        _ALIASES.update(dict.fromkeys(config.aliases, slug))
        return config

    return decorate


def load_plugins() -> None:
    """Import the methods of other packages: what they name under the entry-point group ``eckart.adapters``. One that
    cannot be imported is left out with a warning."""
    for entry in entry_points(group="eckart.adapters"):
        try:
            entry.load()
        except Exception as error:
            warnings.warn(f"the methods of {entry.value} are left out: {first_line(error)}", stacklevel=2)


def get_config(method: str) -> type[AdapterConfig] | type[PromptConfig]:
    """The config class of a method, by slug or alias.

    Raises:
        InputError: no such method; names the nearest.
    """
    slug = method.strip().lower().replace("_", "-")
    slug = _ALIASES.get(slug, slug)
    known: dict[str, type[AdapterConfig] | type[PromptConfig]] = {**ADAPTERS, **PROMPTS}
    if slug not in known:
        hint = method_hint(slug, [*known, *_ALIASES])
        raise InputError(f"unknown method {method!r}: {hint} Known: {', '.join(sorted(known))}")
    return known[slug]
