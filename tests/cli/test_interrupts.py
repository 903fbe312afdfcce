"""A command that is asked to end does so like one that is interrupted: it cleans up and says so in its exit code."""

from __future__ import annotations

import os
import signal
import subprocess
import sys

import pytest

WAIT = """
import importlib, sys, time
app = importlib.import_module("eckart.cli.app")
def wait():
    try:
        print("ready", flush=True)
        time.sleep(60)
    finally:
        print("written", flush=True)
app.app = lambda *args, **kwargs: wait()
sys.exit(app.main(["methods"]))
"""


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGHUP, 129)])
def test_signals_end_a_command_cleanly(number: int, code: int) -> None:
    process = subprocess.Popen(
        [sys.executable, "-c", WAIT], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert process.stdout is not None and process.stdout.readline() == "ready\n"
    process.send_signal(number)
    out, err = process.communicate(timeout=50)
    assert (process.returncode, out, err) == (code, "written\n", "eckart: interrupted\n")


def test_a_hang_up_that_is_ignored_stays_so() -> None:
    process = subprocess.Popen(
        [sys.executable, "-c", WAIT],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGHUP, signal.SIG_IGN),
    )
    assert process.stdout is not None and process.stdout.readline() == "ready\n"
    os.kill(process.pid, signal.SIGHUP)
    assert process.poll() is None
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=50)
    assert process.returncode == 143
