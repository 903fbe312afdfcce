# Written by `make docs`.
from eckart.training._base import RULES as RULES
from eckart.training._base import Rule as Rule
from eckart.training._base import get_rule as get_rule
from eckart.training._base import register_rule as register_rule

__all__ = [
    "RULES",
    "Rule",
    "get_rule",
    "register_rule",
]
