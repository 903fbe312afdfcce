"""What is wrong with a command is said before torch, PEFT or transformers are loaded; so are help and lists.

All commands run one after another in a process of its own, which tells after each what it has loaded by then: modules,
not seconds, so that no busy machine makes a test fail.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from typing import NamedTuple

import pytest

HEAVY = ("torch", "peft", "transformers", "accelerate", "sklearn", "scipy", "optuna", "pandas", "pyarrow")
QUIET = ("--help", "--version", "adapt --help", "recover --help", "methods", "methods --json")
TELL = """
import contextlib, io, json, os, sys
from eckart.cli import main
for line in sys.stdin.read().splitlines():
    with contextlib.redirect_stdout(io.StringIO()) as out, contextlib.redirect_stderr(io.StringIO()) as err:
        code = main(line.split())
    print(json.dumps([code, out.getvalue(), err.getvalue(), [*sys.modules], os.listdir()]))
"""


class Told(NamedTuple):
    """What one command did, and what was loaded and written by then."""

    code: int
    out: str
    err: str
    modules: list[str]
    files: list[str]


REFUSED = {
    "adapt --output x --method lorra": "unknown method 'lorra': did you mean 'lora'?",
    "adapt --output x --option rank=3": "lora has no option 'rank': it has ",
    "adapt --output x --method bone --option varient=bat": "bone has no option 'varient': did you mean 'variant'?",
    "adapt --output x --method bone --option variant=bet": "variant is 'bet': give one of miss, mini, shard_out",
    "adapt --output x --option r=0": "r is 0: give a whole number of at least 1",
    "adapt --output x --option r=inf": "r is inf: give a whole number of at least 1",
    "adapt --output x --option dropout=much": "dropout is 'much': give a number",
    "adapt --output x --option use_rslora=2": "use_rslora is 2: give True or False",
    "adapt --output x --option seed=3": "option 'seed' is not one to give here: give seed itself",
    "adapt --output x --budget much": "budget 'much' is not understood",
    "adapt --output x --steps 0": "steps is 0: give at least 1",
    "adapt --output x --batch-size some": "--batch-size some: give a whole number from 1 to 2147483647, or auto",
    "adapt --output x --batch-size 0": "--batch-size 0: give a whole number from 1",
    "adapt --output x --quantize int3": "--quantize int3: choose int8, int4, nf4",
    "adapt --output x --validate-every 0": "validate_every is 0: give at least 1",
    "adapt --output x --lr nan": "lr is nan: give a positive number",
    "adapt --output x --head-lr -1": "head_lr is -1.0: give a positive number",
    "adapt --output x --kind images": "'--kind'",
    "adapt --output x --keep first": "'--keep'",
    "adapt --output x --patience 0": "patience is 0: give at least 1",
    "adapt --output x --report-to me": "--report-to me: choose of tensorboard, wandb, mlflow",
    "adapt --output x --push-to-hub a/b/c": "--push-to-hub a/b/c: ",
    "adapt --output x --push-to-hub me/mine": "--push-to-hub me/mine: HF_HUB_OFFLINE is set",
    "adapt --output x --limit dev=3": "--limit dev=3",
    "adapt --output x --resume": "--resume: x holds no run to go on with",
    "adapt --output x --model ./none": "--model ./none: no such directory",
    "adapt --output x --model none": "--model none is neither a directory nor found on the hub",
    "adapt --output x --data none.csv": "--data none.csv: no such file or directory",
    "adapt --output x --stpes 3": "--stpes",
    "adapt --output x --config none.yaml": "--config none.yaml cannot be read",
    "compress --output x --method zip": "method 'zip' is not known: known are afm, lord, modegpt",
    "compress --output x --method maestro": "method 'maestro' shrinks networks that were trained with ordered dropout",
    "compress --output x --method loram": "method 'loram' prunes the base of a LoRA while it trains: `eckart adapt",
    "compress --output x --ratio 1": "ratio is 1.0: give the share to remove, above 0 and below 1",
    "compress --output x --ratio nan": "ratio is nan: give the share to remove",
    "compress --output x --ratio 0.2 --budget 70%": "ratio (0.2) and budget (70%) are both given",
    "compress --output x --budget much": "budget 'much' is not understood",
    "compress --output x --ratio 0.2 --heal 3 --heal-method lorra": "unknown method 'lorra': did you mean 'lora'?",
    "compress --output x --ratio 0.2 --heal-lr 1e-4": "heal_lr is 0.0001 and heal is 0: nothing is healed",
    "compress --output x --ratio 0.2 --heal-method lora": "heal_method is 'lora' and heal is 0: nothing is healed",
    "compress --output x --ratio 0.2 --model ./none": "--model ./none: no such directory",
    "compare compression --ratio 0": "ratio is 0.0: give the share to remove",
    "compare --methods lora,bonne": "unknown method 'bonne': did you mean 'bone'?",
    "compare --budget much": "budget 'much' is not understood",
    "compare --steps 0": "steps is 0: give at least 1",
    "compare --dry-run --steps 0": "steps is 0: give at least 1",
    "compare --recipe metamath": "--recipe metamath needs --data",
    "compare --recipe gsm8k": "--recipe gsm8k: choose metamath",
    "compare --workers 0": "--workers 0: give a whole number from 1",
    "compare --batch-size auto --gradient-accumulation 2": "--batch-size auto beside --gradient-accumulation 2",
    "compare --time nan": "time is 'nan': give one such as 90s, 10m or 2h",
    "compare --lr fast": "--lr fast: write numbers",
    "compare --model ./none": "--model ./none: no such directory",
    "compare --data none.csv": "--data none.csv: no such file or directory",
    "inspect ./none": "--model ./none: no such directory",
    "inspect none.safetensors": "--model none.safetensors: no such directory",
    "inspect --energy 1": "energy is 1.0: give a share between 0 and 1",
    "measure --metrics stable_rnk": "unknown metric 'stable_rnk': did you mean 'stable_rank'?",
    "measure --split dev": "split is 'dev': choose train, validation, test",
    "measure --layers first": "--layers first: write all, last, or numbers",
    "measure --limit 1": "limit is 1: give at least 2 texts",
    "measure --skip-first 255": "skip_first is 255: give 0 to 254",
    "measure --batch-size 0": "batch_size is 0: give at least 1",
    "measure --model ./none": "--model ./none: no such directory",
    "measure --data none.csv": "--data none.csv: no such file or directory",
    "merge ./none --output x": "./none: no such directory",
    "merge none --output x": "none is neither a directory nor found on the hub",
    "merge . --output x": "adapter . has no adapter_config.json",
    "export none --output x": "none is neither a directory nor found on the hub",
    "export none --output x --r 0": "r is 0: give at least 1",
    "methods --family adaptors": "unknown family 'adaptors'",
    "recover complete none.csv --output x": "ratings none.csv cannot be read",
    "recover complete none.csv --output x --rank 0": "rank is 0: give at least 1",
    "recover complete none.csv --output x --test-share 1": "--test-share is 1.0: give a share in [0, 1)",
    "recover eigenvector none.npy": "rows none.npy cannot be read",
    "recover eigenvector - --dtype int8": "'--dtype'",
    "adpat": "No such command 'adpat'",
}


@pytest.fixture(scope="module")
def told(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Told]:
    """Every command of this file, run in one process without network."""
    lines = [*QUIET, *REFUSED]
    done = subprocess.run(
        [sys.executable, "-c", TELL],
        input="\n".join(lines),
        cwd=tmp_path_factory.mktemp("empty"),
        env={**os.environ, "HF_HUB_OFFLINE": "1"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    results = [Told(*json.loads(line)) for line in done.stdout.splitlines()]
    return dict(zip(lines, results, strict=True))


@pytest.mark.parametrize("words", QUIET)
def test_what_needs_no_model_loads_no_library(told: dict[str, Told], words: str) -> None:
    assert (told[words].code, told[words].err) == (0, "")
    assert told[words].out.strip()
    assert {*HEAVY, "numpy"}.isdisjoint(told[words].modules)


@pytest.mark.parametrize("words", REFUSED)
def test_bad_arguments_are_refused_before_anything_is_loaded(told: dict[str, Told], words: str) -> None:
    code, out, err, modules, files = told[words]
    assert (code, out, files) == (2, "", [])
    assert err.startswith("eckart: error: ") and err.count("\n") == 1
    assert REFUSED[words] in err
    assert set(HEAVY).isdisjoint(modules)
