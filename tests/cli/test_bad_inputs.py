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

from eckart.adapters._registry import ADAPTERS, PROMPTS
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
                ("--steps", "--batch-size", "--save-every", "--validate-every", "--max-length"), COUNT
            ),
            **dict.fromkeys(("--lr", "--head-lr"), POSITIVE),
            "--seed": SEED,
            "--budget": BUDGET,
            "--target-modules": PATTERN,
            "--data": PATH,
            "--model": MODEL,
            "--method": ("lorra", "", "lora,bone", "LoRA!", "all"),
            "--kind": ("text", "", "auto,causal-lm"),
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
            **dict.fromkeys(("--steps", "--seeds", "--batch-size", "--max-length"), COUNT),
            "--time": ("soon", "0s", "-1m", "nan"),
            **dict.fromkeys(("--max-memory", "--max-bytes"), ("lots", "0MB", "-1")),
            "--max-step-time": ("fast", "0", "2s"),
            "--budget": BUDGET,
            "--target-modules": PATTERN,
            "--data": PATH,
            "--model": MODEL,
            "--methods": ("lorra", "lora,bonne", "lora;bone"),
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
                    yield f"{slug}({name}={value!r})", lambda k=kind, n=name, v=value: k(**{n: v})


@pytest.mark.parametrize("make", [pytest.param(make, id=name) for name, make in constructors()])
def test_a_constructor_refuses_it(make: Callable[[], Any]) -> None:
    with pytest.raises(InputError) as caught:
        make()
    assert "\n" not in str(caught.value)
