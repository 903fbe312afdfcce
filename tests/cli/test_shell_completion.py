"""Shell completion: the scripts that bash and zsh load, and what they are answered."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from eckart.cli import main

PROGRAM = "import sys; from eckart.cli import main; sys.exit(main())"


@pytest.fixture
def path(tmp_path: Path) -> str:
    """A PATH on which `eckart` is this tree's."""
    program = tmp_path / "bin" / "eckart"
    program.parent.mkdir()
    program.write_text(f"#!{sys.executable}\n{PROGRAM}\n")
    program.chmod(0o755)
    return f"{program.parent}{os.pathsep}{os.environ['PATH']}"


Answer = Callable[..., str]
Bash = Callable[..., list[str]]


@pytest.fixture
def answer(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Answer:
    """What `eckart` says when a shell asks it."""

    def ask(**environment: str) -> str:
        with monkeypatch.context() as patch:
            for name, value in environment.items():
                patch.setenv(name, value)
            with pytest.raises(SystemExit) as end:
                main([])
        said = capsys.readouterr()
        assert (end.value.code, said.err) == (0, "")
        return said.out

    return ask


@pytest.fixture
def bash(answer: Answer) -> Bash:
    """What bash is offered for the last of some words."""

    def offered(*words: str) -> list[str]:
        line, last = " ".join(words), str(len(words) - 1)
        return answer(_ECKART_COMPLETE="complete_bash", COMP_WORDS=line, COMP_CWORD=last).split()

    return offered


def test_the_scripts_of_bash_and_zsh_ask_the_program(answer: Answer) -> None:
    script = answer(_ECKART_COMPLETE="source_bash")
    assert "complete -o default -F _eckart_completion eckart" in script
    assert "_ECKART_COMPLETE=complete_bash" in script
    script = answer(_ECKART_COMPLETE="source_zsh")
    assert script.strip().startswith("#compdef eckart")
    assert "_ECKART_COMPLETE=complete_zsh" in script and "compdef _eckart_completion eckart" in script


def test_commands_options_and_names_are_offered(bash: Bash) -> None:
    assert bash("eckart", "me") == ["methods", "measure", "merge"]
    assert bash("eckart", "recover", "") == ["complete", "eigenvector"]
    assert bash("eckart", "compare", "compression", "--rat") == ["--ratio"]
    assert bash("eckart", "measure", "intrinsic-dimension", "--projection", "sp") == ["sparse"]
    assert bash("eckart", "adapt", "--see") == ["--seed"]
    assert {"--json", "--config", "--debug", "--overwrite"} <= set(bash("eckart", "merge", "--"))
    assert bash("eckart", "adapt", "--method", "s") == ["salt", "sara", "snell", "snella", "svfit"]
    assert bash("eckart", "compare", "--methods", "lora,sv") == ["lora,svfit"]
    assert bash("eckart", "compare", "--methods", "h") == ["head-only"]
    assert bash("eckart", "adapt", "--kind", "ca") == ["causal-lm"]
    assert bash("eckart", "methods", "--family", "r") == ["recovery"]
    assert bash("eckart", "measure", "--split", "t") == ["train", "test"]
    assert bash("eckart", "measure", "--metrics", "stable_rank,nu") == ["stable_rank,nuclear_norm"]


def test_zsh_is_answered_with_descriptions(answer: Answer) -> None:
    offered = answer(_ECKART_COMPLETE="complete_zsh", _TYPER_COMPLETE_ARGS="eckart mer")
    assert offered.startswith('_arguments \'*: :(("merge":"Add an adapter to the weights')


def test_bash_completes(path: str) -> None:
    code = (
        'eval "$(_ECKART_COMPLETE=source_bash eckart)"; COMP_WORDS=(eckart adapt --method sv); COMP_CWORD=3; '
        '_eckart_completion eckart; printf "%s\\n" "${COMPREPLY[@]}"'
    )
    done = subprocess.run(
        ["bash", "--norc", "-c", code], env={**os.environ, "PATH": path}, capture_output=True, text=True
    )
    assert (done.stdout, done.stderr) == ("svfit\n", "")


@pytest.mark.skipif(shutil.which("zsh") is None, reason="zsh is not installed")
def test_zsh_loads_the_script(path: str) -> None:
    code = (
        'autoload -Uz compinit; compinit -D -u; eval "$(_ECKART_COMPLETE=source_zsh eckart)"; '
        "print $_comps[eckart]; words=(eckart adapt --method sv); CURRENT=4; "
        '_arguments() { print -r -- "$@" }; _eckart_completion'
    )
    done = subprocess.run(
        ["zsh", "-f", "-c", code], env={**os.environ, "PATH": path}, capture_output=True, text=True
    )
    assert done.stderr == ""
    assert done.stdout.splitlines()[0] == "_eckart_completion"
    assert "svfit" in done.stdout


@pytest.mark.parametrize("shell", ["bash", "zsh"])
def test_installing_writes_the_script_of_the_shell_that_asks(tmp_path: Path, path: str, shell: str) -> None:
    if shutil.which(shell) is None:
        pytest.skip(f"{shell} is not installed")
    home = tmp_path / "home"
    home.mkdir()
    done = subprocess.run(
        [shell, "-c", "eckart --install-completion; exit $?"],
        env={**os.environ, "PATH": path, "HOME": str(home)},
        capture_output=True,
        text=True,
    )
    assert (done.returncode, done.stderr) == (0, "")
    script = {"bash": ".bash_completions/eckart.sh", "zsh": ".zfunc/_eckart"}[shell]
    assert f"complete_{shell}" in (home / script).read_text()
