"""Training steps on a device for `gpu.py`: time over the frozen floor, peak memory, and whether the host waits."""

from __future__ import annotations

import gc
import statistics
import time
import warnings
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import peft
import torch
import transformers
from step_time import PEFT_ONLY, RIVALS, VARIANTS
from torch import nn

import eckart
from eckart.adapters import AdaptedWeight, make_config, solve_budget
from eckart.jobs.compare.peft_methods import peft_config
from eckart.training import Rule

TARGETS = r".*\.(q_proj|k_proj|v_proj|o_proj|gate_proj|up_proj|down_proj)"
BUDGET = 0.005
"""Share of the model's numbers; the tiny stack needs more for one direction a layer."""
SMALL_BUDGET = 0.1
Wrap = Callable[[nn.Module, int], nn.Module]
Rows = list[dict[str, Any]]


def llama(width: int, depth: int, device: torch.device) -> nn.Module:
    """The blocks of a Llama of random numbers in bfloat16, on given embeddings, frozen."""
    config = transformers.LlamaConfig(
        hidden_size=width,
        intermediate_size=11 * width // 4 // 8 * 8,
        num_hidden_layers=depth,
        num_attention_heads=max(width // 128, 2),
        vocab_size=64,
        use_cache=False,
    )
    torch.manual_seed(0)
    with device:
        return transformers.LlamaModel(config).to(torch.bfloat16).requires_grad_(False).train()


def ours(slug: str, **options: Any) -> Wrap:
    """An adapter of this library at a budget."""
    if slug == "dept":  # acts before the blocks, not on layers
        return lambda model, budget: eckart.adapt(model, slug, budget=budget)
    return lambda model, budget: eckart.adapt(model, slug, budget=budget, target_modules=TARGETS, **options)


def rival(slug: str) -> Wrap:
    """PEFT's layer of the same kind, at the rank that ours has."""

    def wrap(model: nn.Module, budget: int) -> nn.Module:
        r = solve_budget(model, make_config(slug, target_modules=TARGETS), budget).r
        return peft.get_peft_model(model, RIVALS[slug](target_modules=TARGETS, r=r))

    return wrap


def peft_only(name: str) -> Wrap:
    """A method that only PEFT has, at the budget."""
    return lambda model, budget: peft.get_peft_model(
        model, peft_config(f"peft:{name}", model, budget, TARGETS, [])[0]
    )


def arms() -> dict[str, Wrap]:
    """Every registered adapter, those with a rival first, and PEFT's own beside them."""
    found: dict[str, Wrap] = {}
    for slug in RIVALS:
        found |= {slug: ours(slug), f"peft {slug}": rival(slug)}
    found |= {m.slug: ours(m.slug) for m in eckart.methods("adapters") if m.slug not in RIVALS}
    found |= {name: ours(slug, **options) for name, (slug, options) in VARIANTS.items()}
    return found | {f"peft {name}": peft_only(name) for name in PEFT_ONLY}


def stepper(
    model: nn.Module,
    width: int,
    tokens: int,
    device: torch.device,
    rule: Callable[[torch.Tensor], Rule] | None = None,
) -> Callable[[], None]:
    """Forward, backward through every layer and AdamW; the input asks for its gradient, so that the floor has one."""
    length = min(tokens, 2048)
    x = torch.randn(tokens // length, length, width, device=device, dtype=torch.bfloat16, requires_grad=True)
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=1e-4, fused=device.type == "cuda") if trained else None
    if rule is not None and optimizer is not None:
        rule(x.detach()).attach(model, optimizer, steps=10**6)

    def step() -> None:
        if optimizer is not None:
            optimizer.zero_grad()
        x.grad = None
        model(inputs_embeds=x).last_hidden_state.square().mean().backward()
        if optimizer is not None:
            optimizer.step()

    return step


def seconds(step: Callable[[], None], device: torch.device) -> float:
    """Time of one step, on a GPU by its own events."""
    if device.type != "cuda":
        before = time.perf_counter()
        step()
        return time.perf_counter() - before
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    start.record()
    step()
    end.record()
    end.synchronize()
    return start.elapsed_time(end) / 1e3


def peak(step: Callable[[], None], device: torch.device) -> float | None:
    """MiB that a step needs beyond what is there before it; None on a CPU (`peak_memory.py` measures that)."""
    if device.type != "cuda":
        return None
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    step()
    torch.cuda.synchronize()
    return (torch.cuda.max_memory_allocated() - before) / 2**20


def waits(step: Callable[[], None], device: torch.device) -> str:
    """What a warmed step waits for: "nothing", or the error of PyTorch's check and its line."""
    if device.type != "cuda":
        return "not measured"
    torch.cuda.set_sync_debug_mode("error")
    try:
        step()
    except RuntimeError as error:
        frame = error.__traceback__
        while frame is not None and frame.tb_next is not None:
            frame = frame.tb_next
        where = (
            f"{frame.tb_frame.f_code.co_filename.rpartition('/src/')[2]}:{frame.tb_lineno}" if frame else ""
        )
        return f"{str(error).splitlines()[0]} {where}"
    finally:
        torch.cuda.set_sync_debug_mode("default")
    return "nothing"


def set_route(model: nn.Module, route: str) -> bool:
    """Ask every adapted layer for a route; False where there is none to ask."""
    found = [layer for layer in model.modules() if isinstance(layer, AdaptedWeight)]
    for layer in found:
        for config in layer.configs.values():
            config.route = route
    return bool(found)


def measure_arm(
    wrap: Wrap,
    width: int,
    depth: int,
    tokens: tuple[int, ...],
    rounds: int,
    device: torch.device,
    compiled: bool,
) -> Rows:
    """Build one arm beside the floor and let the two take turns, for each number of tokens and each route."""
    warnings.filterwarnings("ignore")
    gc.collect()
    floor, base = llama(width, depth, device), llama(width, depth, device)
    budget = int((BUDGET if width > 64 else SMALL_BUDGET) * sum(p.numel() for p in base.parameters()))
    before = time.perf_counter()
    model = wrap(base, budget).train()
    if device.type == "cuda":
        torch.cuda.synchronize()
    build = time.perf_counter() - before
    rows: Rows = []
    for route in ("factored", "folded") if set_route(model, "auto") else ("",):
        set_route(model, route)
        for count in tokens:
            run, still = (torch.compile(m, dynamic=False) if compiled else m for m in (model, floor))
            step, plain = (stepper(m, width, count, device) for m in (run, still))
            for warmed in (plain, step, plain, step):
                warmed()
            held, waited = peak(step, device), waits(step, device)
            times = [(seconds(plain, device), seconds(step, device)) for _ in range(rounds)]
            floor_time, own = (statistics.median(column) for column in zip(*times, strict=True))
            rows.append(
                {
                    "width": width,
                    "tokens": count,
                    "route": route,
                    "compiled": compiled,
                    "numbers": sum(p.numel() for p in model.parameters() if p.requires_grad),
                    "build s": build,
                    "ms": 1e3 * own,
                    "x frozen floor": own / floor_time,
                    "peak MiB": held,
                    "waits for": waited,
                }
            )
    return rows


def steps(device: torch.device, small: bool, compiled: bool) -> Iterator[tuple[str, Callable[[], Rows]]]:
    """Every arm at each width, the narrow stack first; compiled for the fewer tokens alone."""
    sizes = ((64, 2, (16, 32)),) if small else ((2048, 4, (2048, 16384)), (4096, 4, (2048, 16384)))
    for width, depth, counts in sizes:
        tokens = counts[:1] if compiled else counts
        for name, wrap in arms().items():
            part = partial(measure_arm, wrap, width, depth, tokens, 3 if small else 7, device, compiled)
            yield f"{name}, width {width}", part
