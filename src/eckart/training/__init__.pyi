# Written by `make docs`.
from eckart.training._base import RULES as RULES
from eckart.training._base import Rule as Rule
from eckart.training._base import get_rule as get_rule
from eckart.training._base import register_rule as register_rule
from eckart.training._combinations import Combination as Combination
from eckart.training._combinations import combinations as combinations
from eckart.training._combinations import options_for as options_for
from eckart.training.allora import ALLoRA as ALLoRA
from eckart.training.diffora import DiffoRA as DiffoRA
from eckart.training.increlora import IncreLoRA as IncreLoRA
from eckart.training.lora_ggpo import LoRAGGPO as LoRAGGPO
from eckart.training.lora_mgpo import LoRAMGPO as LoRAMGPO
from eckart.training.sara_selection import SaRASelection as SaRASelection
from eckart.training.snella_allocation import SNELLAAllocation as SNELLAAllocation
from eckart.training.triadaptlora import TriAdaptLoRA as TriAdaptLoRA

__all__ = [
    "ALLoRA",
    "Combination",
    "DiffoRA",
    "IncreLoRA",
    "LoRAGGPO",
    "LoRAMGPO",
    "RULES",
    "Rule",
    "SNELLAAllocation",
    "SaRASelection",
    "TriAdaptLoRA",
    "combinations",
    "get_rule",
    "options_for",
    "register_rule",
]
