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


def check_upload(name: str, argument: str) -> None:
    """Refuse a repository of the hub that nothing can be uploaded to, as far as that can be known before.

    Args:
        name: of the repository, with or without its owner.
        argument: what the user gave it as, such as ``"--push-to-hub"``, for the message.

    Raises:
        InputError: no name of a repository, no token, or a hub that is not reached or does not know the token.
    """
    import huggingface_hub
    from huggingface_hub.constants import is_offline_mode
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id  # type: ignore[attr-defined]

    shown, remedy = f"{argument} {name}", f"or leave {argument} out"
    try:
        validate_repo_id(name)
    except HFValidationError as error:
        raise InputError(f"{shown}: {first_line(error)}") from None
    if is_offline_mode():
        raise InputError(f"{shown}: HF_HUB_OFFLINE is set: unset it, {remedy}")
    if huggingface_hub.get_token() is None:
        raise InputError(f"{shown}: there is no token of the hub: log in with `hf auth login`, {remedy}")
    try:
        huggingface_hub.whoami()
    except Exception as error:  # those of the HTTP client differ from one version to the next
        raise InputError(
            f"{shown}: the hub is not reached or refuses the token ({first_line(error)}): log in again, {remedy}"
        ) from None


def upload(directory: Path, name: str, patterns: Sequence[str], argument: str) -> str:
    """Upload files of a directory to a repository of the hub, which is made where it is not there.

    Args:
        directory: where the files are.
        name: of the repository.
        patterns: of the names of the files.
        argument: what the user gave the name as, for the message.

    Returns:
        the address of the repository.

    Raises:
        ConnectionError: the hub does not take them; the directory is as it was.
    """
    import huggingface_hub

    api = huggingface_hub.HfApi()
    try:
        made = api.create_repo(name, exist_ok=True)
        api.upload_folder(repo_id=made.repo_id, folder_path=directory, allow_patterns=list(patterns))
    except Exception as error:  # as above
        raise ConnectionError(
            f"{argument} {name}: the hub does not take it ({first_line(error)}): {directory} is whole; give the same "
            "command with --resume to push it again"
        ) from error
    return str(made)
