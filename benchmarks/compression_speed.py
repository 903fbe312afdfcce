"""Tokens per second of compressed models against the dense one: prefill, and generation with a cache.

Layers have the shapes that a method gives them at a ratio, every block alike, and numbers drawn at random, which no
kernel minds. All models live in one process and take turns, on one thread and its own clock. Needs a dense model:

    python benchmarks/compression_speed.py --model smollm2
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from typing import Any

import torch
from _harness import interleave, save, table
from torch import Tensor
from transformers import AutoModelForCausalLM

from eckart.compression import FactorizedLinear, LoRD, MoDeGPT, WhitenedSVD
from eckart.compression._census import census, install, matrix_shape
from eckart.compression._sliced import convert, take_widths
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
        for name, rank in method._planned.items():
            out, features = matrix_shape(outline.layers[name])
            install(model, name, FactorizedLinear(features, out, rank, bias=isinstance(method, LoRD)))
    gone = before - sum(p.numel() for p in model.parameters())
    return model.eval(), gone / outline.parameters


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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="smollm2", help="directory of a language model, or smollm2")
    parser.add_argument("--seconds", type=float, default=20.0, help="of each measurement")
    parser.add_argument("--ratios", default="0.1,0.2,0.3,0.4")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    place = str(find_model(arguments.model, "causal-lm").directory)
    dense = AutoModelForCausalLM.from_pretrained(place, dtype=torch.float32).eval()
    ids = torch.randint(1000, 2000, (1, PREFILL), generator=torch.Generator().manual_seed(0))
    rows: list[dict[str, Any]] = []
    for ratio in map(float, arguments.ratios.split(",")):
        models = {"dense": (dense, 0.0)} | {n: shrunk(place, make(), ratio) for n, make in ARMS.items()}
        for what, make, tokens in (
            ("prefill", lambda m: prefill(m, ids), PREFILL),
            ("generation", lambda m: generation(m, ids[:, :PROMPT]), ANSWER),
        ):
            steps = {name: make(model) for name, (model, _) in models.items()}
            medians = interleave(steps, arguments.seconds, warm_up=1, clock=time.thread_time)
            for name, seconds in medians.items():
                model, gone = models[name]
                size = sum(p.numel() * p.element_size() for p in model.parameters()) / 1e6
                rows.append(
                    {"arm": name, "ratio": ratio, "what": what, "removed": gone, "weight MB": size}
                    | {"tokens/s": tokens / seconds, "x dense": medians["dense"] / seconds}
                )
        save("compression_speed", rows)
    table(rows)


if __name__ == "__main__":
    main()
