"""Tokens per second of compressed models against the dense one, prefill and generation with a cache; their bytes.

Layers have the shapes that a method gives them at a ratio, every block alike, and numbers drawn at random, which no
kernel minds. All models live in one process and take turns, on one thread and its own clock; memory is that of a fresh
process that loads one model from disk. The dense model takes part a second time with the weights of its blocks by
columns, as second factors lie. Needs a dense model:

    python benchmarks/compression_speed.py --model smollm2
"""

from __future__ import annotations

import argparse
import copy
import gc
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from _harness import held_mib, interleave, save, table
from torch import Tensor, nn
from torch.profiler import ProfilerActivity, profile
from transformers import AutoModelForCausalLM

from eckart.compression import FactorizedLinear, LoRD, MoDeGPT, WhitenedSVD
from eckart.compression._census import census, matrix_shape
from eckart.compression._layout import by_columns
from eckart.compression._saving import mark
from eckart.compression._sliced import convert, take_widths
from eckart.layers._replacing import install
from eckart.tasks.pretrained import find_model

ARMS = {
    "modegpt": lambda: MoDeGPT(epsilon=1e9),
    "modegpt, multiple_of=8": lambda: MoDeGPT(epsilon=1e9, multiple_of=8),
    "whitened-svd": WhitenedSVD,
    "lord": LoRD,
}
PROMPT, ANSWER, PREFILL = 16, 32, 256


def shrunk(place: str, method: Any, ratio: float) -> tuple[Any, float]:
    """A model of the shapes that a method makes, and the share of the layers' parameters that is gone."""
    torch.manual_seed(0)
    model: Any = AutoModelForCausalLM.from_pretrained(place, dtype=torch.float32)
    outline = census(model, method.kinds)
    method.check(outline)
    method.plan(outline, ratio, [0.0] * len(outline.blocks))
    before = sum(p.numel() for p in model.parameters())
    if isinstance(method, MoDeGPT):
        widths = [{**width._asdict(), "o_bias": False} for width in method._widths.values()]
        take_widths(model, widths)
        convert(model, widths)
    else:
        specs = {}
        for name, rank in method._planned.items():
            out, features = matrix_shape(outline.layers[name])
            layer = FactorizedLinear(features, out, rank, bias=isinstance(method, LoRD))
            install(model, name, layer)
            specs[name] = layer.spec
        mark(model, method.slug, specs)
    gone = before - sum(p.numel() for p in model.parameters())
    return model.eval(), gone / outline.parameters


def laid_by_columns(model: Any) -> Any:
    """The same model, the weights of its blocks by columns."""
    found = copy.deepcopy(model)
    for layer in found.model.layers.modules():
        if isinstance(layer, nn.Linear):
            by_columns(layer.weight)
    return found


def prefill(model: Any, ids: Tensor) -> Callable[[], None]:
    @torch.inference_mode()
    def step() -> None:
        model(ids, use_cache=False, logits_to_keep=1)

    return step


def generation(model: Any, ids: Tensor) -> Callable[[], None]:
    mask = torch.ones_like(ids)
    some = {"max_new_tokens": ANSWER, "min_new_tokens": ANSWER, "do_sample": False, "pad_token_id": 0}

    @torch.inference_mode()
    def step() -> None:
        model.generate(ids, attention_mask=mask, **some)

    return step


def works(model: Any) -> dict[str, tuple[Callable[[], None], int]]:
    """What is timed, and how many tokens it takes in or makes."""
    ids = torch.randint(1000, 2000, (1, PREFILL), generator=torch.Generator().manual_seed(0))
    return {
        "prefill": (prefill(model, ids), PREFILL),
        "generation": (generation(model, ids[:, :PROMPT]), ANSWER),
    }


def in_products(step: Callable[[], None]) -> float:
    """The share of a step that is spent in products of matrices."""
    with profile(activities=[ProfilerActivity.CPU]) as seen:
        step()
    times = {found.key: found.self_cpu_time_total for found in seen.key_averages()}
    return sum(times.get(f"aten::{name}", 0.0) for name in ("mm", "addmm")) / sum(times.values())


def memory(place: str) -> dict[str, float]:
    """MiB that a model and its work take, at most, beyond what the process held before; to be called in a fresh one."""
    before = held_mib("VmRSS")
    model = AutoModelForCausalLM.from_pretrained(place, dtype=torch.float32).eval()
    gc.collect()
    Path("/proc/self/clear_refs").write_text("5")  # sets the mark to what is held now
    found = {}
    for what, (step, _) in works(model).items():
        step()
        found[what] = held_mib("VmHWM") - before
    return found


def in_fresh_process(model: Any) -> dict[str, float]:
    """`memory` of a model, which goes by way of the disk."""
    with tempfile.TemporaryDirectory() as place:
        model.save_pretrained(place)
        words = [sys.executable, __file__, "--worker", place]
        told = subprocess.run(words, check=True, capture_output=True, text=True)
    found: dict[str, float] = json.loads(told.stdout.splitlines()[-1])
    return found


def compared(models: dict[str, tuple[Any, float]], seconds: float) -> list[dict[str, Any]]:
    """The rows of models that take turns."""
    held = {name: in_fresh_process(model) for name, (model, _) in models.items()}
    rows = []
    for what in ("prefill", "generation"):
        work = {name: works(model)[what] for name, (model, _) in models.items()}
        steps = {name: step for name, (step, _) in work.items()}
        medians = interleave(steps, seconds, warm_up=1, clock=time.thread_time)
        for name, (model, gone) in models.items():
            size = sum(p.numel() * p.element_size() for p in model.parameters()) / 1e6
            row = {
                "arm": name,
                "what": what,
                "removed": gone,
                "weight MB": size,
                "peak MiB": held[name][what],
            }
            row |= {"peak x dense": held[name][what] / held["dense"][what]}
            row |= {"tokens/s": work[name][1] / medians[name], "x dense": medians["dense"] / medians[name]}
            rows.append(row | {"in products": in_products(steps[name])})
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="smollm2", help="directory of a language model, or smollm2")
    parser.add_argument("--seconds", type=float, default=20.0, help="of each measurement")
    parser.add_argument("--ratios", default="0.1,0.2,0.3,0.4")
    parser.add_argument("--worker", metavar="DIR", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    if arguments.worker:
        print(json.dumps(memory(arguments.worker)))
        return
    place = str(find_model(arguments.model, "causal-lm").directory)
    dense = AutoModelForCausalLM.from_pretrained(place, dtype=torch.float32).eval()
    whole = {"dense": (dense, 0.0), "dense, by columns": (laid_by_columns(dense), 0.0)}
    rows: list[dict[str, Any]] = []
    for ratio in map(float, arguments.ratios.split(",")):
        models = whole | {n: shrunk(place, make(), ratio) for n, make in ARMS.items()}
        rows += [{"ratio": ratio, **row} for row in compared(models, arguments.seconds)]
        save("compression_speed", rows)
    table(rows)


if __name__ == "__main__":
    main()
