"""Estimators as files: a JSON tree of what is plain and a safetensors file of what is an array. Nothing is pickled."""

from __future__ import annotations

import dataclasses
import json
import math
import os
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from scipy import sparse

from eckart.errors import InputError
from eckart.files import atomic_directory

FORMAT = 1
TREE, ARRAYS = "estimator.json", "arrays.safetensors"
E = TypeVar("E")


def save(estimator: Any, path: str | os.PathLike[str], *, overwrite: bool = False) -> None:
    """Write an estimator to a new directory; see `RecoveryEstimator.save`."""
    arrays: dict[str, torch.Tensor] = {}
    values = {name: value for name, value in vars(estimator).items() if name != "callback"}
    tree = {
        "format": FORMAT,
        "estimator": type(estimator).__name__,
        "values": {name: _pack(value, name, arrays) for name, value in values.items()},
    }
    with atomic_directory(path, overwrite=overwrite) as folder:
        (folder / TREE).write_text(json.dumps(tree, indent=1) + "\n", encoding="utf-8")
        save_file(arrays, folder / ARRAYS)


def load(kind: type[E], path: str | os.PathLike[str]) -> E:
    """Read an estimator from a directory; see `RecoveryEstimator.load`."""
    folder = Path(path)
    try:
        tree = json.loads((folder / TREE).read_text(encoding="utf-8"))
        arrays = load_file(folder / ARRAYS)
        name, values = tree["estimator"], tree["values"]
    except (OSError, ValueError, KeyError, TypeError, SafetensorError) as error:
        raise InputError(f"{folder} holds no saved estimator: {type(error).__name__}: {error}") from None
    if tree.get("format") != FORMAT:
        raise InputError(f"{folder} has format {tree.get('format')!r}, this version reads {FORMAT}")
    if name != kind.__name__:
        raise InputError(f"{folder} holds a {name}: read it with {name}.load")
    states = {state.__name__: state for state in getattr(kind, "_states", ())}
    try:
        values = {key: _unpack(value, arrays, states) for key, value in values.items()}
    except (KeyError, TypeError, AttributeError) as error:
        raise InputError(f"{folder} is damaged: {type(error).__name__}: {error}") from None
    estimator = kind.__new__(kind)
    estimator.__dict__.update(values, callback=None)
    return estimator


def _pack(value: Any, name: str, arrays: dict[str, torch.Tensor]) -> Any:
    if value is None or isinstance(value, bool | int | str):
        return value
    if isinstance(value, np.generic):
        return _pack(value.item(), name, arrays)
    if isinstance(value, float):
        return value if math.isfinite(value) else {"float": repr(value)}
    if isinstance(value, np.random.RandomState):
        return {"random": _pack(value.get_state(legacy=False), name, arrays)}
    if sparse.issparse(value):
        rows = value.tocsr()
        return {"csr": _pack([rows.data, rows.indices, rows.indptr, rows.shape], name, arrays)}
    if isinstance(value, np.ndarray) and value.dtype.kind in "OUS":
        return {"objects": [_pack(item, f"{name}.{i}", arrays) for i, item in enumerate(value.tolist())]}
    if isinstance(value, np.ndarray | torch.Tensor):
        tensor = torch.as_tensor(np.array(value)) if isinstance(value, np.ndarray) else value.cpu()
        arrays[name] = tensor.contiguous().clone()
        return {"array" if isinstance(value, np.ndarray) else "tensor": name}
    if isinstance(value, dict):
        return {"dict": [[key, _pack(item, f"{name}.{key}", arrays)] for key, item in value.items()]}
    if isinstance(value, list | tuple):
        items = [_pack(item, f"{name}.{i}", arrays) for i, item in enumerate(value)]
        return {type(value).__name__: items} if type(value) in (list, tuple) else {"tuple": items}
    if dataclasses.is_dataclass(value):
        fields = {f.name: getattr(value, f.name) for f in dataclasses.fields(value)}
        return {"state": type(value).__name__, "of": _pack(fields, name, arrays)}
    if isinstance(value, torch.device):
        return str(value)
    if isinstance(value, torch.dtype):
        return {"dtype": str(value).removeprefix("torch.")}
    raise InputError(
        f"{name} is a {type(value).__name__}, which no file can hold: give plain values or arrays"
    )


def _unpack(value: Any, arrays: dict[str, torch.Tensor], states: dict[str, type]) -> Any:
    if not isinstance(value, dict):
        return value
    if "state" in value:
        return states[value["state"]](**_unpack(value["of"], arrays, states))
    ((kind, held),) = value.items()
    if kind == "random":
        random = np.random.RandomState()
        random.set_state(_unpack(held, arrays, states))
        return random
    if kind == "csr":
        data, indices, indptr, shape = _unpack(held, arrays, states)
        return sparse.csr_matrix((data, indices, indptr), shape)
    if kind == "float":
        return float(held)
    if kind == "array":
        return arrays[held].numpy()
    if kind == "tensor":
        return arrays[held]
    if kind == "dtype":
        return getattr(torch, held)
    if kind == "dict":
        return {key: _unpack(item, arrays, states) for key, item in held}
    items = [_unpack(item, arrays, states) for item in held]
    if kind == "objects":
        objects = np.empty(len(items), dtype=object)
        objects[:] = items
        return objects
    return tuple(items) if kind == "tuple" else items
