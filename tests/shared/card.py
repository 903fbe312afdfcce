"""A make-believe accelerator, on which operations have shapes and a device but no numbers.

It holds what a GPU holds code to: tensors of two devices do not meet, and the host neither reads a number of the card
nor copies to or from it. The device is PyTorch's "privateuse1", which a process can take once and never gives back: use
it in a process of its own.
"""

from __future__ import annotations

import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.utils import backend_registration
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

NAME = "card"
READS = "_local_scalar_dense", "_linalg_check_errors", "_linalg_svd", "nonzero", "masked_select", "_unique"
"""Operations that wait for the card; a decomposition waits to learn whether it converged."""


class _Module(backend_registration._DummyBackendModule):
    def get_amp_supported_dtype(self) -> list[torch.dtype]:
        return [torch.float16, torch.bfloat16]


def install() -> None:
    """Take the device."""
    backend_registration._setup_privateuseone_for_python_backend(NAME, _Module())


class Card(TorchDispatchMode):
    """Runs operations on the card, and notes in `found` those on which a GPU would stop or fail."""

    def __init__(self) -> None:
        super().__init__()
        self.mode = FakeTensorMode(allow_non_fake_inputs=True)
        self.device = torch.device(NAME, 0)
        self.found: list[str] = []
        self.read = 1  # what the host reads wherever it reads a number

    def tensor(self, t: Tensor) -> Tensor:
        """A tensor of the same shape and dtype on the card."""
        with torch.no_grad():
            meta = torch.empty_strided(t.shape, t.stride(), dtype=t.dtype, device="meta")
        return FakeTensor(self.mode, meta, self.device)

    def move(self, module: nn.Module) -> nn.Module:
        """What ``module.to("cuda")`` moves: parameters and buffers, and nothing that is hidden elsewhere."""
        return module._apply(self.tensor)

    @contextmanager
    def running(self) -> Iterator[None]:
        """Operations in here run on the card."""
        with self.mode, self, torch.autograd.set_multithreading_enabled(False):
            yield

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        name, given = func.name().removeprefix("aten::"), _tensors((args, kwargs))
        on_card = any(t.device.type == NAME for t in given)
        if any(name.startswith(read) for read in READS) and on_card:
            self.note(f"{name} waits for the card")
        if name.startswith("_local_scalar_dense"):
            kind = given[0].dtype
            return False if kind == torch.bool else float(self.read) if kind.is_floating_point else self.read
        try:
            result = func(*args, **kwargs)
        except NotImplementedError:  # FakeTensor hands a few operations to the backend's own kernels
            result = self._through_meta(func, args, kwargs)
        except Exception as error:  # an error inside a backward pass ends the process: this line is its trace
            self.note(f"{name}: {error}")
            print("\n".join(self.found), flush=True)
            raise
        copied = {t.device.type for t in (*given, *_tensors(result))} >= {NAME, "cpu"}
        if copied and any(part in name for part in ("copy", "_to")):
            self.note(f"{name} copies between host and card")
        generator = kwargs.get("generator")
        if generator is not None and any(t.device.type != generator.device.type for t in _tensors(result)):
            self.note(f"{name} draws on the card with a generator of the host")
        return result

    def _through_meta(self, func: Any, args: Any, kwargs: Any) -> Any:
        def there(t: Any) -> Any:
            if isinstance(t, FakeTensor):
                return torch.empty_strided(t.shape, t.stride(), dtype=t.dtype, device="meta")
            return t

        with torch._C._DisableTorchDispatch():
            found = func(*tree_map(there, args), **tree_map(there, kwargs))
        return tree_map(lambda t: self.tensor(t) if isinstance(t, Tensor) else t, found)

    def note(self, what: str) -> None:
        """Keep one finding with the line of the library it comes from."""
        frames = [f for f in traceback.extract_stack() if "/src/eckart/" in f.filename]
        where = f" at {frames[-1].filename.split('/src/')[-1]}:{frames[-1].lineno}" if frames else ""
        self.found.append(what + where)


def _tensors(tree: Any) -> list[Tensor]:
    return [leaf for leaf in tree_leaves(tree) if isinstance(leaf, Tensor)]
