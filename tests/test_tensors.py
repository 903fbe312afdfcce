"""Safetensors files: whole and finite, or refused by name."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from eckart.errors import InputError
from eckart.tensors import read_finite


def test_tensors_come_one_by_one_as_they_are(tmp_path: Path) -> None:
    tensors = {
        "b": torch.tensor([1e300, -1e300], dtype=torch.float64),
        "a": torch.arange(6).view(2, 3),
        "bytes": torch.ones(3, dtype=torch.uint8),
        "eight": torch.ones(2, 2).to(torch.float8_e4m3fn),
        "half": torch.full((2,), 3e4, dtype=torch.float16),
    }
    save_file(tensors, tmp_path / "t.safetensors")
    found = dict(read_finite(tmp_path / "t.safetensors", "model"))
    assert found.keys() == tensors.keys()
    assert all(found[name].dtype == tensor.dtype for name, tensor in tensors.items())
    assert all(torch.equal(found[name].double(), tensor.double()) for name, tensor in tensors.items())


@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float8_e5m2])
def test_one_number_that_is_not_finite(tmp_path: Path, value: float, dtype: torch.dtype) -> None:
    broken = torch.zeros(3, 4)
    broken[2, 3] = value
    save_file({"a": torch.ones(2), "b.weight": broken.to(dtype)}, tmp_path / "t.safetensors")
    with pytest.raises(InputError, match=r"^--model x: tensor b\.weight in t\.safetensors holds NaN or Inf"):
        list(read_finite(tmp_path / "t.safetensors", "--model x"))


def test_damage(tmp_path: Path) -> None:
    path = tmp_path / "t.safetensors"
    save_file({"a": torch.ones(50)}, path)
    whole = path.read_bytes()
    for content in (whole[:-4], whole[:20], b"", b"\xff" * 40):
        path.write_bytes(content)
        with pytest.raises(
            InputError, match=r"^model: t\.safetensors is damaged, truncated or corrupt \(.+\)"
        ):
            list(read_finite(path, "model"))
    with pytest.raises(InputError, match=r"u\.safetensors is damaged"):
        list(read_finite(tmp_path / "u.safetensors", "model"))
