"""Models and data sets by name: a directory here, or files of the Hugging Face hub."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from eckart.errors import InputError, first_line


def is_path(name: str | Path) -> bool:
    """Whether a name can only be a path, and none on the hub."""
    text = str(name)
    return text.startswith((".", "/", "~")) or text.count("/") > 1 or text.endswith(".safetensors")


def full_name(name: str | None) -> str | None:
    """A name that means the same from anywhere: of a directory here its absolute path, of the hub as it is."""
    if name is not None and (is_path(name) or Path(name).expanduser().is_dir()):
        return str(Path(name).expanduser().resolve())
    return name


def local_directory(name: str | Path, patterns: Sequence[str], argument: str = "") -> Path:
    """A directory that holds a model's files: itself, or what `download` brings.

    Args:
        name: a directory, or a name on the hub.
        patterns: of the names of the files wanted, such as ``"*.safetensors"``.
        argument: what the user gave it as, such as ``"--model"``, for the message.

    Raises:
        InputError: neither a directory nor to be had from the hub.
    """
    directory = Path(name).expanduser()
    if directory.is_dir():
        return directory
    shown = f"{argument} {name}".strip()
    if is_path(name):
        raise InputError(f"{shown}: no such directory")
    return download(str(name), patterns, shown)


def download(name: str, patterns: Sequence[str], shown: str, *, kind: str = "model") -> Path:
    """The files at the top of a repository of the hub that fit the patterns, from its cache where they are there.

    Args:
        name: of the repository.
        patterns: of the names of the files wanted.
        shown: what the message calls it.
        kind: ``"model"`` or ``"dataset"``.

    Raises:
        InputError: the hub has no such repository or cannot be reached.
    """
    import huggingface_hub

    try:
        found = huggingface_hub.snapshot_download(
            name, repo_type=kind, allow_patterns=list(patterns), ignore_patterns=["*/*"]
        )
    except (OSError, ValueError, huggingface_hub.errors.HfHubHTTPError) as error:
        raise InputError(
            f"{shown} is neither a directory nor found on the hub, which needs network ({first_line(error)}): "
            "check the name"
        ) from None
    return Path(found)
