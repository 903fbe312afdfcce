"""Published protocols that a comparison can follow: what they say, what is done here, and results in their columns.

The MetaMathQA board of PEFT: huggingface/peft, method_comparison/MetaMathQA (see `eckart.tasks.kinds.metamath` for the
files and commits that this follows), and method_comparison/processing.py at commit 0006753 for its columns.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from eckart.errors import InputError
from eckart.files import atomic_write
from eckart.jobs.compare.presets import EMBEDDED, OWN, QUICK, Preset
from eckart.tasks.options import sized

if TYPE_CHECKING:
    import pandas as pd

    from eckart.tasks.options import TaskOptions

METAMATH = "metamath"
SOURCE = "https://github.com/huggingface/peft/tree/main/method_comparison/MetaMathQA"
PRESET = Preset(
    steps=5000, seeds=5, trials=3, batch_size=4, max_length=768, validation=50, test=None, time=None
)
TASK: dict[str, Any] = {"dtype": "bf16", "metric": "exact_match"}
BOARD = "metamath.csv"
LAST_STEPS = 250
"""Steps over which the board takes the mean of the training loss."""
_SAME = "the same"
METAMATH_SAYS: dict[str, tuple[str, str]] = {
    "model": ("meta-llama/Llama-3.2-3B", ""),
    "data": ("", ""),
    "train": ("meta-math/MetaMathQA: query, response, at most 1,300 letters together", ""),
    "validation": ("50 of openai/gsm8k's train split", ""),
    "test": ("openai/gsm8k's test split, 1,319", ""),
    "prompt": ("Question: {query} Think step by step.\\nAnswer:", _SAME),
    "loss": ("every token of question and answer", _SAME),
    "end of an answer": ("where the batch is padded: eos", "always: eos"),
    "batches": ("by length within 20 batches", "by length within 16 batches"),
    "methods": ("PEFT's, each in configurations of its own", ""),
    "size": ("each its own; LoRA rank 32 on q_proj and v_proj, 9,175,040 numbers", ""),
    "precision": ("bfloat16, adapters in float32", ""),
    "steps": ("5,000", ""),
    "step": ("4 examples", ""),
    "longest example": ("768 tokens", ""),
    "learning rate": ("each its own; LoRA 1e-4", ""),
    "seeds": ("0", ""),
    "optimiser": ("AdamW, weight decay 0.1, gradients cut to norm 1", _SAME),
    "schedule": ("cosine to 0 after a warm-up over a tenth of the steps", _SAME),
    "generation": ("greedy, at most 300 new tokens, 800 in all", "greedy, at most 300 new tokens"),
    "score": ("exact match of what follows 'The answer is' or '####', numbers as numbers", _SAME),
    "evaluated": ("every 250 steps", "after each tuning run"),
    "source": (SOURCE, ""),
}
"""What the board does, and what is done here where no option says it."""


def settle(
    quick: bool,
    data: str | None,
    asked: Mapping[str, int | str | None],
    options: TaskOptions,
) -> tuple[Preset, dict[str, int], TaskOptions]:
    """What a comparison spends, and the options of its task, where the caller does not say.

    Args:
        quick: a first impression.
        data: as it is given.
        asked: steps, seeds, batch_size and max_length, None where nothing is said.
        options: of the task.

    Raises:
        InputError: a recipe without data.
    """
    recipe = options.get("recipe")
    preset = _preset(quick, data, recipe)
    said: Any = options if recipe is None else {**TASK, **options}
    size, chosen = sized(asked["batch_size"], preset.batch_size, said)
    spent: dict[str, Any] = {name: value or getattr(preset, name) for name, value in asked.items()}
    return preset, {**spent, "batch_size": size}, chosen


def _preset(quick: bool, data: str | None, recipe: str | None) -> Preset:
    """What a comparison spends.

    Raises:
        InputError: a recipe without data.
    """
    if recipe is None:
        return QUICK if quick else EMBEDDED if data is None else OWN
    if data is None:
        raise InputError(
            f"--recipe {recipe} needs --data: a directory with train (MetaMathQA: query, response), validation and "
            "test (GSM8K: question, answer)"
        )
    return QUICK if quick else PRESET


def foretold(about: Mapping[str, Any]) -> list[tuple[str, str, str]]:
    """What a comparison will do, beside what the recipe says: name, there, here.

    Args:
        about: model, data, methods, budget, steps, seeds, batch_size, max_length, learning_rates, trials, limits, and
            the options of the task.
    """
    told = _here(about)
    if about.get("recipe") != METAMATH:
        return [(name, "", here) for name, here in told.items()]
    for part, words in (("train", " by the same rule"), ("validation", ""), ("test", "")):
        most = f", at most {about['limits'][part]:,}" if part in about["limits"] else ""
        told[part] = f"the {part} split{words}{most}"
    return [(name, theirs, told.get(name, ours)) for name, (theirs, ours) in METAMATH_SAYS.items()]


def _here(about: Mapping[str, Any]) -> dict[str, str]:
    """What every comparison has to say of itself beforehand."""
    rates, parts = about["learning_rates"], about.get("gradient_accumulation", 1)
    if rates is None:
        rates = f"{about['trials']} of each method's own, and further ones where the best is at an end"
    elif not isinstance(rates, Mapping):
        rates = ", ".join(f"{rate:g}" for rate in rates)
    return {
        "model": about["model"] or "the built-in one",
        "data": about["data"] or "the built-in ones",
        "methods": str(about["methods"]),
        "size": f"{about['budget']} for every method",
        "precision": f"{about.get('dtype', 'fp32')}, adapters in fp32",
        "steps": f"{about['steps']:,}; tuning runs half as many",
        "step": f"{about['batch_size']} examples" + ("" if parts == 1 else f", in {parts} parts"),
        "longest example": f"{about['max_length']:,} tokens",
        "learning rate": f"the best on the validation split for every method, of {rates}",
        "seeds": ", ".join(map(str, range(about["seeds"]))),
    }


def board(results: pd.DataFrame, curves: pd.DataFrame, about: Mapping[str, Any]) -> pd.DataFrame:
    """The finished final runs in the columns of PEFT's board, and beside them seed, learning rate and budget.

    Args:
        results: as ``results.csv``.
        curves: as ``curves.csv``.
        about: what ``compare.json`` says.
    """
    import pandas as pd

    done = results[(results["stage"] == "final") & (results["status"] == "complete") & (results["steps"] > 0)]
    losses = curves[curves["split"] == "train"]
    rows = []
    for row in done.to_dict("records"):
        mine = losses[losses["run_id"] == row["run_id"]]
        late = mine[mine["step"] > row["steps"] - LAST_STEPS]
        rows.append(
            {
                "experiment_name": f"{row['method']}/{about['task']['model']}-seed{row['seed']:.0f}",
                "peft_type": row["method"].upper(),
                "total_time": row["seconds"],
                "train_time": row["steps"] * row["step_seconds"],
                "test_accuracy": row["score"],
                "train_loss": late["loss"].mean(),
                "accelerator_memory_max": 1e6 * row["peak_memory_mb"],
                "file_size": row["saved_bytes"],
                "num_trainable_params": row["trainable_parameters"],
                "created_at": about["started"],
                "task_name": "MetaMathQA",
                "model_id": about["task"]["model"],
                "train_samples": row["steps"] * about["options"]["batch_size"],
                "seed": row["seed"],
                "lr": row["lr"],
                "budget": row["budget"],
            }
        )
    return pd.DataFrame(rows)


def write_board(directory: Path, results: pd.DataFrame) -> None:
    """Write the results of a comparison by the recipe in its board's columns."""
    import pandas as pd

    about = json.loads((directory / "compare.json").read_text(encoding="utf-8"))
    with atomic_write(directory / BOARD) as path:
        board(results, pd.read_csv(directory / "curves.csv"), about).to_csv(path, index=False)
