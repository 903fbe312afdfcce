"""A table of bad values over the options of every command and of public constructors: each is refused in one line.

The commands run one after another in one process, and none of them may leave a file.
"""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.utils._param_validation import Interval

import eckart
from eckart.adapters._registry import ADAPTERS, PROMPTS
from eckart.arguments import RANGES, plain_options
from eckart.compression._asked import COMPRESSORS
from eckart.errors import InputError

RUN = """
import contextlib, io, json, os, sys
from eckart.cli import main
for line in sys.stdin.read().splitlines():
    words = json.loads(line)
    with contextlib.redirect_stdout(io.StringIO()) as out, contextlib.redirect_stderr(io.StringIO()) as err:
        code = main(words)
    print(json.dumps([code, out.getvalue(), err.getvalue(), os.listdir()]))
"""

COUNT = ("0", "-1", "1.5", "nan", "inf", "1e3", "many", "", "99999999999")
SEED = ("-1", "1.5", "nan", "4294967296", "one", "")
POSITIVE = ("0", "-1", "nan", "inf", "-inf", "fast", "")
SHARE = ("1", "-0.1", "nan", "inf", "2", "half", "")
BUDGET = ("0", "0%", "-1", "-5%", "1e400", "nan", "inf", "much", "5 percent", "1TB", "%", "0x10")
PATTERN = ("(", "[a", "*", "a)(", "(?P<a")
PATH = ("none.csv", "./none", "/none/none.json", "../none.npz")
MODEL = ("./none", "/none/none", "none.safetensors")
ADAPT, COMPARE = ("adapt", "--output", "x"), ("compare", "--output", "x")
MEASURE, COMPLETE = ("measure", "--output", "x"), ("recover", "complete", "none.csv", "--output", "x")
OPTIONS: tuple[tuple[tuple[str, ...], dict[str, tuple[str, ...]]], ...] = (
    (
        ADAPT,
        {
            **dict.fromkeys(
                ("--steps", "--batch-size", "--save-every", "--validate-every", "--max-length", "--patience"),
                COUNT,
            ),
            **dict.fromkeys(("--lr", "--head-lr"), POSITIVE),
            "--seed": SEED,
            "--budget": BUDGET,
            "--target-modules": PATTERN,
            "--data": PATH,
            "--model": MODEL,
            "--method": ("lorra", "", "lora,bone", "LoRA!", "all"),
            "--kind": ("text", "", "auto,causal-lm"),
            "--dtype": ("half", "", "float32"),
            "--quantize": ("int2", "", "8"),
            "--gradient-accumulation": (*COUNT, "auto,2", "AUTO"),
            "--generate": ("-1", "1.5", "many", "nan"),
            "--keep": ("first", "", "best,last"),
            "--report-to": ("tensorbord", "", "x,wandb"),
            "--push-to-hub": ("a/b/c", "", "-x", "me/mine"),
            "--extract": ("words", ""),
            "--class-weights": ("even", ""),
            "--also": ("none.txt", ""),
            "--task": ("none.py:task", "task.py", ""),
            "--limit": ("train", "train=0", "train=-1", "train=many", "dev=3", "=3", "train=1.5"),
            "--option": (
                *(f"r={value}" for value in ("0", "-1", "2.5", "nan", "inf", "many", "true", "1e10")),
                *(f"lora_alpha={value}" for value in ("0", "-1", "nan", "inf", "much", "true")),
                *(f"dropout={value}" for value in ("1", "-0.1", "nan", "inf", "much", "true")),
                *(
                    "rank=3",
                    "r",
                    "=3",
                    "seed=1",
                    "target_modules=q",
                    "use_rslora=2",
                    "route=fast",
                    "peft_type=LORA",
                ),
                *("exclude_modules=(", "layers_pattern=["),
            ),
        },
    ),
    (
        COMPARE,
        {
            **dict.fromkeys(("--steps", "--seeds", "--batch-size", "--max-length", "--workers"), COUNT),
            "--time": ("soon", "0s", "-1m", "nan"),
            **dict.fromkeys(("--max-memory", "--max-bytes"), ("lots", "0MB", "-1")),
            "--max-step-time": ("fast", "0", "2s"),
            "--recipe": ("gsm8k", "", "metamath"),
            "--budget": BUDGET,
            "--target-modules": PATTERN,
            "--data": PATH,
            "--model": MODEL,
            "--methods": ("lorra", "lora,bonne", "lora;bone", "lora@none", "lora@", "@muon"),
            "--optimizer": ("none", ""),
            "--lr": ("fast", "lora=", "0", "-1", "nan", "1e-3,inf", "lora=0"),
            "--limit": ("train", "train=0", "dev=3"),
        },
    ),
    (
        MEASURE,
        {
            "--limit": (*COUNT, "1"),
            "--max-length": (*COUNT, "1"),
            "--batch-size": COUNT,
            "--skip-first": ("-1", "255", "1.5", "many", "nan"),
            "--metrics": ("stable_rnk", "", "stable_rank,"),
            "--layers": ("first", "", "1,", "1.5", "a,b"),
            "--split": ("dev", "", "train,test"),
            "--data": PATH,
            "--model": MODEL,
        },
    ),
    (("inspect",), {"--energy": (*SHARE, "0")}),
    (("export", "none", "--output", "x"), {"--r": COUNT}),
    (("methods",), {"--family": ("adaptors", "")}),
    (
        ("compare", "compression", "--output", "x"),
        {
            "--steps": tuple(value for value in COUNT if value != "0"),
            **dict.fromkeys(("--seeds", "--calibration", "--batch-size"), COUNT),
            "--ratio": ("0", *SHARE),
            "--budget": ("much", "1TB"),
            "--methods": ("", "lora", "svd,none"),
            "--max-bytes": ("0", "much"),
            "--time": ("0", "soon"),
        },
    ),
    (
        ("measure", "intrinsic-dimension", "--output", "x"),
        {
            **dict.fromkeys(("--steps", "--seeds", "--batch-size", "--max-length"), COUNT),
            "--dimensions": ("", "0", "-1", "1.5", "many", "1,,2"),
            "--share": ("0", "1.1", "nan", "-1", "half"),
            "--of": ("loss", ""),
            "--projection": ("other", ""),
            "--structure": ("other", ""),
            "--lr": ("fast", "0", "nan", "lora=1"),
            "--data": PATH,
            "--model": MODEL,
        },
    ),
    (
        COMPLETE,
        {
            "--rank": COUNT,
            "--seed": SEED,
            "--test-share": SHARE,
            "--encoding": ("latin-0", "", "hex"),
            "--sep": ("",),
            "--columns": ("", "a,,b", "a,a"),
            "--option": ("reg", "=1"),
        },
    ),
    (
        ("recover", "eigenvector", "none.npy"),
        {"--components": COUNT, "--width": COUNT, "--seed": SEED, "--dtype": ("int8", "", "float16")},
    ),
)
COMMANDS = [
    [*base, f"{name}={value}"] for base, options in OPTIONS for name in options for value in options[name]
]


@pytest.fixture(scope="module")
def refused(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What each command said, all in one process without network."""
    lines = [json.dumps(words) for words in COMMANDS]
    done = subprocess.run(
        [sys.executable, "-c", RUN],
        input="\n".join(lines),
        cwd=tmp_path_factory.mktemp("empty"),
        env={**os.environ, "HF_HUB_OFFLINE": "1"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return dict(zip(lines, map(json.loads, done.stdout.splitlines()), strict=True))


def test_the_table_is_long_enough() -> None:
    assert len(COMMANDS) >= 300
    assert len({json.dumps(words) for words in COMMANDS}) == len(COMMANDS)


@pytest.mark.parametrize("words", COMMANDS, ids=lambda words: " ".join(words))
def test_a_command_refuses_it(refused: dict[str, Any], words: list[str]) -> None:
    code, out, err, files = refused[json.dumps(words)]
    assert (code, out, files) == (2, "", []), err
    assert err.startswith("eckart: error: ") and err.count("\n") == 1
    assert "Traceback" not in err


def shown(value: Any) -> str:
    """A value as numpy 2 writes it; before, its numbers looked like Python's."""
    return f"np.{type(value).__name__}({value})" if isinstance(value, np.generic) else repr(value)


def constructors() -> Iterator[tuple[str, Callable[[], Any]]]:
    """Options of every adapter's config that no number of theirs may be."""
    bad = {
        "r": (0, -1, 2.5, math.nan, math.inf, "many", True, np.float64(2.5), 2**31),
        "dropout": (1, -0.1, math.nan, math.inf, "much", True),
        "lora_alpha": (0, -1, math.nan, math.inf, "much", True),
        "seed": (-1, 1.5, math.nan, "one", 2**32),
        "target_modules": ("(", "[a"),
        "rank_pattern": ({"(": 2}, {"a": 0}, {"a": 2.5}, {"a": math.nan}),
    }
    for slug, kind in sorted([*ADAPTERS.items(), *PROMPTS.items()]):
        for name, values in bad.items():
            for value in values:
                if name in kind.__dataclass_fields__:
                    yield f"{slug}({name}={shown(value)})", lambda k=kind, n=name, v=value: k(**{n: v})


BAD = {
    "int": (0, -1, 1.5, math.nan, math.inf, "many", True, (), 2**31, np.float64(2.5)),
    "float": (-1, math.nan, -math.inf, "many", True, (), np.float64("nan")),
    "bool": (2, -1, 0.5, math.nan, "yes", ()),
}
"""By the type of an option: no number of these is in the range of any."""
HIDDEN = torch.randn(2, 6, 4, generator=torch.Generator().manual_seed(0))


def public() -> Iterator[tuple[str, Callable[..., Any], dict[str, Any], Callable[..., Any]]]:
    """What is public and takes options: its name, what has them, what else it needs, and how to call it."""
    from eckart.federated._registry import STRATEGIES
    from eckart.training._base import RULES

    for name in ("DCTAdamW", "Trion", "GaLore"):
        kind = getattr(eckart.optim, name)
        needs = {"params": [torch.nn.Parameter(torch.zeros(8, 6))], "rank": 2}
        yield name, kind.__init__, needs, kind
    for name in ("S4D", "S4DBlock"):
        yield name, getattr(eckart.layers, name).__init__, {"d_model": 4}, getattr(eckart.layers, name)
    yield "S4DConfig", eckart.layers.S4DConfig.__init__, {}, eckart.layers.S4DConfig
    for name in ("SLTrainLinear", "LOSTLinear", "LowRankLinear"):
        kind = getattr(eckart.layers, name)
        yield name, kind.__init__, {"in_features": 8, "out_features": 6, "r": 2}, kind
    for name in eckart.metrics.__all__:
        thing = getattr(eckart.metrics, name)
        if isinstance(thing, type):
            yield name, thing.__init__, {"p": 2.0} if name == "SchattenNorm" else {}, thing
        elif callable(thing) and plain_options(thing):
            yield (
                name,
                thing,
                {"p": 2.0} if name == "schatten_norm" else {},
                lambda f=thing, **o: f(HIDDEN, **o),
            )
    compressors = {slug: eckart.compression.compressor(slug) for slug in COMPRESSORS}
    for room in (compressors, STRATEGIES, RULES):
        for slug, kind in sorted(room.items()):
            yield slug, kind.__init__, {}, kind


def further() -> Iterator[tuple[str, Callable[[], Any]]]:
    """Bad values for each number and boolean that anything public takes."""
    for name, function, needs, make in public():
        for option, (kind, _) in plain_options(function).items():
            for value in BAD[kind]:
                low = RANGES[option].low if option in RANGES else -math.inf
                high = RANGES[option].high if option in RANGES else 2**31 - 1
                if (
                    isinstance(value, int)
                    and not isinstance(value, bool)
                    and kind != "bool"
                    and low <= value <= high
                ):
                    continue  # only what has a range says where it ends
                given = {**needs, option: value}
                yield f"{name}({option}={shown(value)})", lambda m=make, g=given: m(**g)


def estimators() -> Iterator[tuple[str, Callable[[], Any]]]:
    """Bad values for each hyper-parameter of the estimators, which are refused when they are fitted."""
    table = np.random.default_rng(0).random((8, 6))
    holes = np.where(np.eye(8, 6) > 0, np.nan, table)
    data = {
        "MatrixCompletion": (holes,),
        "RobustLowRank": (table,),
        "StreamingPCA": (table,),
        "MatrixSensingGD": (np.random.default_rng(0).random((20, 3, 3)), np.ones(20)),
    }
    for name, fitted in data.items():
        kind = getattr(eckart.recovery, name)
        for option, allowed in kind._parameter_constraints.items():
            if option in ("device", "callback", "verbose", "random_state") or not hasattr(kind(), option):
                continue
            numeric = any(isinstance(one, Interval) for one in allowed)
            for value in (-1, math.nan, "many", True, ()) if numeric else (2.5, -1, "many", math.nan):
                if (
                    (value == -1 and option == "n_jobs")
                    or (value == () and option == "eta")
                    or (isinstance(value, bool) and "boolean" in allowed)
                ):
                    continue
                yield (
                    f"{name}({option}={shown(value)})",
                    lambda k=kind, o=option, v=value, f=fitted: k(**{o: v}).fit(*f),
                )


TABLE = [*constructors(), *further(), *estimators()]


def test_the_table_covers_every_room() -> None:
    assert len(TABLE) >= 1000
    assert len({name for name, _ in TABLE}) == len(TABLE)


@pytest.mark.parametrize("make", [pytest.param(make, id=name) for name, make in TABLE])
def test_a_constructor_refuses_it(make: Callable[[], Any]) -> None:
    with pytest.raises(InputError) as caught:
        make()
    assert "\n" not in str(caught.value)
