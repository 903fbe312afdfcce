"""What the structured layers cost against the dense one: time, memory, and the accounting of a 7B model.

    python benchmarks/structured_layers.py [--width 768] [--tokens 512,2048] [--r 128] [--seconds 6]

Forward and backward of one layer, the arms taking turns within one process; medians of the time of one thread. Kept is
what a forward pass keeps beside the parameters and its input. The last table is the memory of training LLaMA-7B by
`eckart.jobs.pretrain.memory.predicted`, which runs the model with tensors that hold nothing; the same sum is checked
against measured bytes at a size that fits.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from _harness import interleave, save, table
from torch import Tensor, nn

import eckart
from eckart.jobs.pretrain.architectures import config_of
from eckart.jobs.pretrain.memory import held_bytes, kept_bytes, measured, predicted
from eckart.layers import LOSTLinear, LowRankLinear, SLTrainLinear


def arms(width: int, r: int) -> dict[str, nn.Module]:
    linear = nn.Linear(width, width, bias=False)
    return {
        "dense": linear,
        "low-rank": LowRankLinear.from_linear(linear, 0, r=r),
        "sltrain, auto": SLTrainLinear.from_linear(linear, 0, r=r, sparsity=0.03),
        "sltrain, dense route": SLTrainLinear.from_linear(linear, 0, r=r, sparsity=0.03, route="dense"),
        "sltrain, factored route": SLTrainLinear.from_linear(linear, 0, r=r, sparsity=0.03, route="factored"),
        "lost, identity": LOSTLinear.from_linear(linear, 0, r=r, activation="identity"),
        "lost, silu": LOSTLinear.from_linear(linear, 0, r=r),
    }


def train_step(layer: nn.Module, x: Tensor, g: Tensor) -> None:
    layer.zero_grad()
    x.grad = None
    layer(x).backward(g)


def layer_formula(name: str, width: int, r: int) -> int:
    """Bytes of parameters and buffers."""
    nnz, columns = int(0.03 * width * width), max(1, int(0.05 * width))
    if name == "dense":
        return 4 * width * width
    if name == "low-rank":
        return 4 * 2 * r * width
    return 4 * 2 * r * width + (8 * nnz + 8 if name.startswith("sltrain") else 4 * columns * (width + 1))


def layers(width: int, r: int, tokens: int, seconds: float) -> list[dict[str, Any]]:
    torch.manual_seed(0)
    x, g = torch.randn(tokens, width, requires_grad=True), torch.randn(tokens, width)
    made = arms(width, r)
    steps: dict[str, Callable[[], None]] = {name: partial(train_step, m, x, g) for name, m in made.items()}
    times = interleave(steps, seconds, clock=time.thread_time)
    found = []
    for name, layer in made.items():
        kept = kept_bytes(layer, lambda layer=layer: layer(x)) - 4 * x.numel()
        found.append(
            {
                "table": "layer",
                "tokens": tokens,
                "arm": name,
                "ms": 1e3 * times[name],
                "x dense": times[name] / times["dense"],
                "bytes": held_bytes(layer),
                "formula": layer_formula(name, width, r),
                "kept bytes": kept,
            }
        )
    return found


def model_of(arch: str, method: str, dtype: torch.dtype, device: str, **options: Any) -> nn.Module:
    from transformers import AutoModelForCausalLM

    config = config_of(arch, 32_000 if arch == "llama-7b" else 512, 256, 1)
    with torch.device(device):
        model = AutoModelForCausalLM.from_config(config, dtype=dtype)
    return model if method == "full" else eckart.convert(model, method, **options)


def accounting() -> list[dict[str, Any]]:
    found = []
    for name, method, optimizer, per_layer, options in (
        ("full, Adam", "full", "adamw", False, {}),
        ("full, 8-bit Adam per layer", "full", "adamw-8bit", True, {}),
        ("low-rank, Adam", "low-rank", "adamw", False, {"r": 1024}),
        ("sltrain, Adam", "sltrain", "adamw", False, {"r": 1024, "sparsity": 0.05}),
        ("sltrain, 8-bit Adam per layer", "sltrain", "adamw-8bit", True, {"r": 1024, "sparsity": 0.05}),
    ):
        model = model_of("llama-7b", method, torch.bfloat16, "meta", **options)
        memory = predicted(model, optimizer, batch=1, length=256, per_layer=per_layer)
        found.append({"table": "7B", "arm": name, **{k: v / 1e9 for k, v in memory.to_dict().items()}})
    for row in found:
        row["saved"] = 1 - row["total"] / found[0]["total"]
    return found


def checked() -> list[dict[str, Any]]:
    found = []
    for method, options in (("full", {}), ("sltrain", {"r": 32, "sparsity": 0.05}), ("lost", {"r": 32})):
        torch.manual_seed(0)
        model = model_of("llama-2m", method, torch.float32, "cpu", **options)
        optimizer = torch.optim.AdamW(model.parameters())
        ids = torch.randint(0, 512, (4, 128))
        model(input_ids=ids, labels=ids).loss.backward()
        optimizer.step()
        sides = {
            "predicted": predicted(model, "adamw", batch=4, length=128),
            "measured": measured(model, optimizer, ids),
        }
        found += [{"table": "2M", "arm": method, "side": k, **v.to_dict()} for k, v in sides.items()]
    return found


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--width", type=int, default=768)
    parser.add_argument("--tokens", default="512,2048")
    parser.add_argument("--r", type=int, default=128)
    parser.add_argument("--seconds", type=float, default=6.0, help="for each number of tokens")
    options = parser.parse_args()
    torch.set_num_threads(1)
    timed = [
        row
        for tokens in map(int, options.tokens.split(","))
        for row in layers(options.width, options.r, tokens, options.seconds)
    ]
    table(timed)
    small, large = checked(), accounting()
    table(small)
    table(large)
    save("structured_layers", [*timed, *small, *large])


if __name__ == "__main__":
    main()
