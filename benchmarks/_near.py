"""Which tests are enough for a source file, first those that are likely to notice a change of it.

A file's own test is always the first; beside it stand those of this table, by the file's stem, or else those of "*",
and the room's defaults.
"""

from __future__ import annotations

from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
SKIPPED = ("__init__.py", "_files.py", "_rows.py")
"""Names that are exported, and files that the tests of commands alone run."""
COMPLETION = "recovery/test_defaults recovery/test_completion recovery/test_ranking"
TABLE = "recovery/test_defaults recovery/test_table recovery/test_subgm"
PROMPTS = "adapters/test_dept"
S4D = "layers/test_s4d"
MAESTRO = "layers/test_maestro"
SLICED = "compression/test_modegpt compression/test_saving"
NEAR: dict[str, dict[str, str]] = {
    "linalg": {
        "columns": "layers/test_lost",
        "completion": "linalg/test_completion_maths recovery/test_completion recovery/test_ranking",
        "factored_descent": "linalg/test_descents recovery/test_matrix_sensing_gd",
        "heads": "linalg/test_head_maths",
        "operators": "recovery/test_operators linalg/test_descents",
        "ordered": MAESTRO,
        "pruned": "compression/test_loram",
        "random": "linalg/test_random",
        "regression": "linalg/test_completion_maths recovery/test_completion",
        "sparse": "layers/test_sltrain",
        "streaming": "linalg/test_streaming_maths recovery/test_streaming",
        "subgradient": "recovery/test_subgm linalg/test_descents",
    },
    "recovery": {
        "*": COMPLETION,
        "_base": "recovery/test_contract recovery/test_defaults",
        "_measured": TABLE,
        "_sensing": "recovery/test_matrix_sensing_gd recovery/test_subgm recovery/test_contract",
        "_stream": "recovery/test_defaults recovery/test_streaming",
        "_table": TABLE,
        "hidden": "recovery/test_defaults recovery/test_ranking",
        "matrix_sensing_gd": "recovery/test_defaults",
        "streaming": "recovery/test_defaults",
        "subgm": TABLE,
    },
    "metrics": {
        "*": "metrics/test_spectral_metrics metrics/test_geometry metrics/test_hidden_states"
        " metrics/test_matrix_nuclear_norm",
        "accumulated": "metrics/test_accumulated",
    },
    "layers": {
        "*": "layers/test_layer_defaults layers/test_convert",
        "_cutting": MAESTRO,
        "_layer": f"{S4D} layers/test_s4d_model",
        "_maestro": MAESTRO,
        "_quantizer": MAESTRO,
        "_recurrence": S4D,
        "_state_space": S4D,
        "maestro": MAESTRO,
        "ordered_dropout": MAESTRO,
        "relora": "layers/test_relora",
        "s4d": f"{S4D} layers/test_layer_defaults",
        "s4d_config": "layers/test_s4d_model",
        "s4d_trainer": "layers/test_s4d_model",
    },
    "adapters": {
        "*": "adapters/test_engine",
        "_budget": "adapters/test_budget",
        "_census": "adapters/test_census",
        "_checkpoint": "adapters/test_peft_contract adapters/test_rehearsal adapters/test_engine",
        "_config": "adapters/test_engine adapters/test_bad_input adapters/test_budget",
        "_diagonal": "adapters/test_svfit adapters/test_loldu",
        "_export": "adapters/test_save_as_lora adapters/test_from_peft adapters/test_merging",
        "_loading": "adapters/test_merging adapters/test_peft_contract",
        "_method": "adapters/test_engine adapters/test_bad_input",
        "_peft": "adapters/test_engine adapters/test_peft_contract adapters/test_seams",
        "_peft_files": "adapters/test_from_peft adapters/test_peft_contract",
        "_peft_types": "adapters/test_from_peft adapters/test_peft_contract",
        "_prompt_layer": PROMPTS,
        "_prompt_tuner": PROMPTS,
        "_prompts": PROMPTS,
        "lora_core": "adapters/test_engine training/test_increlora training/test_triadaptlora",
    },
    "training": {
        "*": "training/test_rule",
        "_combinations": "training/test_combinations",
        "_gradients": "training/test_lora_ggpo training/test_allora training/test_sara_selection",
        "_growth": "training/test_increlora training/test_triadaptlora",
        "_grown": "training/test_increlora training/test_triadaptlora",
        "_steps": "training/test_increlora training/test_allora",
        "lora_mgpo": "training/test_lora_ggpo",
    },
    "optim": {
        "*": "optim/test_optimizers optim/test_dct_adamw optim/test_trion",
        "per_layer": "",
        "spectron": "optim/test_optimizers",
        "together": "optim/test_optimizers tasks/test_task_optimizers",
    },
    "compression": {
        "*": "compression/test_compress compression/test_compression_bad_input",
        "_allocation": "compression/test_modegpt",
        "_convolutions": "compression/test_trp",
        "_kinds": "compression/test_saving",
        "_layers": "compression/test_factors compression/test_saving compression/test_lord compression/test_compress",
        "_loram_files": "compression/test_loram",
        "_method": "compression/test_lord compression/test_compress compression/test_compression_bad_input",
        "_padding": SLICED,
        "_quantizer": SLICED,
        "_saving": "compression/test_saving",
        "_sliced": SLICED,
        "_sliced_config": SLICED,
        "loram": "",
        "modegpt": "",
        "svd": "compression/test_lord",
        "trp": "",
        "welore": "",
    },
    "federated": {
        "*": "federated/test_strategies federated/test_rounds",
        "_products": "federated/test_strategies",
        "_sums": "federated/test_products federated/test_strategies",
        "flower": "",
        "lora_fair": "federated/test_strategies",
        "partition": "",
        "robust": "",
        "state": "federated/test_rounds federated/test_strategies",
    },
}
EVERY_METHOD = {"adapters": "adapters/test_properties"}
"""Tests that run for each method: after all others a method's file has its own of them, what is shared LoRA's."""


def near(room: str, stem: str) -> list[list[str]]:
    """What pytest is given, run by run, until one fails."""
    table = NEAR[room]
    names = [f"{room}/test_{stem.strip('_')}", *table.get(stem, table.get("*", "")).split()]
    names += [f"{room}/{path.stem}" for path in sorted((ROOT / "tests" / room).glob("test_*_defaults.py"))]
    files = [f"tests/{name}.py" for name in dict.fromkeys(names) if (ROOT / f"tests/{name}.py").exists()]
    runs = [files]
    if room in EVERY_METHOD:
        slug = "lora" if stem.startswith("_") else stem.replace("_", "-")
        runs.append([f"tests/{EVERY_METHOD[room]}.py", "-k", slug])
    return runs
