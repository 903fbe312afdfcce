# Written by `make docs`.
from eckart.adapters._adapt import adapt as adapt
from eckart.adapters._adapt import make_config as make_config
from eckart.adapters._adapted import AdaptedWeight as AdaptedWeight
from eckart.adapters._base import Adapter as Adapter
from eckart.adapters._base import LowRankAdapter as LowRankAdapter
from eckart.adapters._budget import Budget as Budget
from eckart.adapters._budget import parse_budget as parse_budget
from eckart.adapters._budget import saved_bytes as saved_bytes
from eckart.adapters._budget import solve_budget as solve_budget
from eckart.adapters._budget import target_shapes as target_shapes
from eckart.adapters._budget import trainable_parameters as trainable_parameters
from eckart.adapters._config import AdapterConfig as AdapterConfig
from eckart.adapters._export import export_lora as export_lora
from eckart.adapters._from_peft import from_peft as from_peft
from eckart.adapters._layers import LayerContext as LayerContext
from eckart.adapters._layers import LayerOp as LayerOp
from eckart.adapters._layers import LayerShape as LayerShape
from eckart.adapters._layers import Pool as Pool
from eckart.adapters._loading import load_adapted as load_adapted
from eckart.adapters._merging import merge_checkpoint as merge_checkpoint
from eckart.adapters._peft_layer import EckartLayer as EckartLayer
from eckart.adapters._prompts import InputSpace as InputSpace
from eckart.adapters._prompts import Prompt as Prompt
from eckart.adapters._prompts import PromptConfig as PromptConfig
from eckart.adapters._registry import ADAPTERS as ADAPTERS
from eckart.adapters._registry import PROMPTS as PROMPTS
from eckart.adapters._registry import get_config as get_config
from eckart.adapters._registry import load_plugins as load_plugins
from eckart.adapters._registry import register_adapter as register_adapter
from eckart.adapters._seams import Companion as Companion
from eckart.adapters._seams import Seam as Seam
from eckart.adapters._walk import lr_scales as lr_scales
from eckart.adapters._walk import regularization as regularization
from eckart.adapters._walk import walk as walk
from eckart.adapters.bone import BoneConfig as BoneConfig
from eckart.adapters.break_for_make import BreakForMakeConfig as BreakForMakeConfig
from eckart.adapters.dept import DePTConfig as DePTConfig
from eckart.adapters.flora_tucker import FLoRATuckerConfig as FLoRATuckerConfig
from eckart.adapters.intrinsic_dimension import IntrinsicDimensionConfig as IntrinsicDimensionConfig
from eckart.adapters.loldu import LoLDUConfig as LoLDUConfig
from eckart.adapters.lora import LoRAConfig as LoRAConfig
from eckart.adapters.lora_core import CoreLoRAConfig as CoreLoRAConfig
from eckart.adapters.mos import MoSConfig as MoSConfig
from eckart.adapters.nola import NOLAConfig as NOLAConfig
from eckart.adapters.randlora import RandLoRAConfig as RandLoRAConfig
from eckart.adapters.salt import SALTConfig as SALTConfig
from eckart.adapters.sara import SaRAConfig as SaRAConfig
from eckart.adapters.snell import SNELLConfig as SNELLConfig
from eckart.adapters.snella import SNELLAConfig as SNELLAConfig
from eckart.adapters.svfit import SVFitConfig as SVFitConfig

__all__ = [
    "ADAPTERS",
    "AdaptedWeight",
    "Adapter",
    "AdapterConfig",
    "BoneConfig",
    "BreakForMakeConfig",
    "Budget",
    "Companion",
    "CoreLoRAConfig",
    "DePTConfig",
    "EckartLayer",
    "FLoRATuckerConfig",
    "InputSpace",
    "IntrinsicDimensionConfig",
    "LayerContext",
    "LayerOp",
    "LayerShape",
    "LoLDUConfig",
    "LoRAConfig",
    "LowRankAdapter",
    "MoSConfig",
    "NOLAConfig",
    "PROMPTS",
    "Pool",
    "Prompt",
    "PromptConfig",
    "RandLoRAConfig",
    "SALTConfig",
    "SNELLAConfig",
    "SNELLConfig",
    "SVFitConfig",
    "SaRAConfig",
    "Seam",
    "adapt",
    "export_lora",
    "from_peft",
    "get_config",
    "load_adapted",
    "load_plugins",
    "lr_scales",
    "make_config",
    "merge_checkpoint",
    "parse_budget",
    "register_adapter",
    "regularization",
    "saved_bytes",
    "solve_budget",
    "target_shapes",
    "trainable_parameters",
    "walk",
]
