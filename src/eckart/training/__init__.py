"""Rules that act while adapters train: they shape gradients, perturb weights, and grow or share out ranks."""

import importlib
import pkgutil

from eckart.training._base import RULES, Rule, get_rule, register_rule
from eckart.training._combinations import Combination, combinations, options_for

for _module in pkgutil.iter_modules(__path__):
    if not _module.name.startswith("_"):
        importlib.import_module(f"{__name__}.{_module.name}")

globals().update({rule.__name__: rule for rule in RULES.values()})

__all__ = [
    "RULES",
    "Combination",
    "Rule",
    "combinations",
    "get_rule",
    "options_for",
    "register_rule",
    *(rule.__name__ for rule in RULES.values()),
]
