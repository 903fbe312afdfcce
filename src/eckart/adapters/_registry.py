"""The registry: every method is found here by its slug, and nothing else in the tree names it."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterable
from typing import TypeVar

from eckart.adapters._base import AdapterConfig
from eckart.errors import InputError

ADAPTERS: dict[str, type[AdapterConfig]] = {}
_ALIASES: dict[str, str] = {}
C = TypeVar("C", bound=type[AdapterConfig])


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
    """

    def decorate(config: C) -> C:
        from eckart.adapters._peft import register_peft_type

        config.slug, config.title, config.paper, config.arxiv = slug, title, paper, arxiv
        config.trains, config.saves, config.aliases = trains, saves, tuple(aliases)
        register_peft_type(config)
        ADAPTERS[slug] = config
        _ALIASES.update(dict.fromkeys(config.aliases, slug))
        return config

    return decorate


def get_config(method: str) -> type[AdapterConfig]:
    """The config class of a method, by slug or alias.

    Raises:
        InputError: no such method; names the nearest.
    """
    slug = method.strip().lower().replace("_", "-")
    slug = _ALIASES.get(slug, slug)
    if slug not in ADAPTERS:
        near = difflib.get_close_matches(slug, [*ADAPTERS, *_ALIASES], n=1, cutoff=0.4)
        hint = f"did you mean {near[0]!r}?" if near else "see `eckart methods --family adapters`."
        raise InputError(f"unknown method {method!r}: {hint} Known: {', '.join(sorted(ADAPTERS))}")
    return ADAPTERS[slug]
