"""The faces of the rooms: every listed name can be had, is typed, and is loaded only when it is asked for."""

from __future__ import annotations

import subprocess
import sys
from importlib import import_module
from pathlib import Path

import pytest

import eckart
from eckart.errors import InputError
from eckart.face import lazy

ROOT = Path(__file__).resolve().parents[1]
USE = """
from eckart import InputError, adapt, compare, methods
from eckart.adapters import LoRAConfig, RandLoRAConfig
from eckart.layers import S4D
from eckart.metrics import MatrixNuclearNorm, matrix_nuclear_norm
from eckart.recovery import MatrixCompletion
import eckart

reveal_type(LoRAConfig(r=4).r)
reveal_type(eckart.compare)
reveal_type(eckart.adapters.walk)
LoRAConfig(r="four")
eckart.nothing
"""


def test_mypy_knows_the_names_and_their_types(tmp_path: Path) -> None:
    (tmp_path / "use.py").write_text(USE)
    # the cache is that of `make types`
    shared = ["--config-file", ROOT / "pyproject.toml", "--cache-dir", ROOT / ".mypy_cache"]
    command = [sys.executable, "-m", "mypy", *shared, "use.py"]
    told = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True).stdout
    lines = [line.replace("builtins.", "") for line in told.splitlines() if line.startswith("use.py")]
    assert "int | None" in lines[0]
    assert "def (model: str | None =" in lines[1] and "storage: str | None =" in lines[1]
    assert "AdaptedWeight" in lines[2]
    assert 'incompatible type "str"' in lines[3]
    assert 'has no attribute "nothing"' in lines[4]
    assert len([line for line in lines if "error" in line]) == 2


@pytest.mark.parametrize(
    "room", [name for name in eckart.__all__ if hasattr(getattr(eckart, name), "__path__")]
)
def test_a_face_lists_what_it_has(room: str) -> None:
    module = import_module(f"eckart.{room}")
    for name in getattr(module, "__all__", ()):
        assert getattr(module, name) is not None
    assert set(dir(module)) >= set(getattr(module, "__all__", ()))


def test_names_are_loaded_once_and_on_demand(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "roomy").mkdir()
    (tmp_path / "roomy" / "__init__.py").write_text(
        "from typing import TYPE_CHECKING\n"
        "from eckart.face import lazy\n"
        "if TYPE_CHECKING:\n    from roomy.inner import value as value, other\n"
        "__all__ = ['other', 'value']\n"
        "__getattr__, __dir__ = lazy(__name__)\n"
    )
    (tmp_path / "roomy" / "inner.py").write_text("value, other = [1], [2]\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    roomy = import_module("roomy")
    assert "roomy.inner" not in sys.modules
    assert roomy.value == [1]
    assert "value" in vars(roomy) and "other" not in vars(roomy)
    assert dir(roomy) == ["other", "value"]
    with pytest.raises(AttributeError, match="module 'roomy' has no attribute 'third'"):
        roomy.third  # noqa: B018
    needy, _ = lazy("roomy", {"no_such_package": "demo"})
    with pytest.raises(InputError, match="needs the extra 'demo'"):
        needy("value")
