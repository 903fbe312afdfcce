"""Frozen tensors that follow from a weight, such as its singular vectors, kept for the next adapter of an equal one."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Hashable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar

import torch
from jaxtyping import Float, Int
from torch import Tensor

from eckart.linalg.svd import basis_digest, leading_svd

_SHARE = 4
"""By default a quarter of the memory that is free at first may be taken."""


class Kept:
    """What weights were decomposed into, in host memory: the first that come stay, until the limit is reached.

    What is kept on a CPU is the very tensors that the adapters hold, so that nothing is there twice; one that was
    written to is made anew. A weight is told by all its bytes: the six numbers of a checkpoint's check are the same for
    many a weight of which two numbers are exchanged.

    Args:
        limit: bytes; a quarter of the memory that is free now when None.
    """

    def __init__(self, limit: int | None = None) -> None:
        if limit is None:
            import psutil

            limit = psutil.virtual_memory().available // _SHARE
        self.limit, self.taken = limit, 0
        self._found: dict[Hashable, tuple[tuple[Tensor, ...], list[int]]] = {}

    @contextmanager
    def in_use(self) -> Iterator[None]:
        """Adapters that are built meanwhile take what is kept, and keep what they make."""
        token = _IN_USE.set(self)
        try:
            yield
        finally:
            _IN_USE.reset(token)

    def get(self, key: Hashable) -> tuple[Tensor, ...] | None:
        """What is kept of a key, unless it was changed since."""
        tensors, versions = self._found.get(key, ((), []))
        return tensors if versions and [t._version for t in tensors] == versions else None

    def put(self, key: Hashable, tensors: tuple[Tensor, ...]) -> None:
        """Keep some tensors, where there is room for them."""
        size = sum(t.numel() * t.element_size() for t in tensors)
        if key not in self._found and self.taken + size <= self.limit:
            self.taken += size
            self._found[key] = tensors, [t._version for t in tensors]


_IN_USE: ContextVar[Kept | None] = ContextVar("kept", default=None)


def kept(
    weight: Float[Tensor, "out in"], make: Callable[[], tuple[Tensor, ...]], *what: Hashable, shared: bool
) -> tuple[Tensor, ...]:
    """``make()``, or what it once gave for an equal weight where a `Kept` is in use.

    Args:
        weight: what the tensors follow from, and nothing else beside ``what``.
        make: makes them: on the weight's device, owned by nobody else.
        what: tells this decomposition from others.
        shared: False for buffers that are saved, into which a checkpoint is read.
    """
    store = _IN_USE.get()
    if store is None or not shared:
        return make()
    content = weight.detach().cpu().contiguous().view(torch.uint8).numpy()
    key = (hashlib.sha256(content.data).digest(), weight.dtype, weight.shape, weight.device.type, *what)
    if (found := store.get(key)) is None:
        made = make()
        store.put(key, tuple(t.cpu() for t in made))
        return made
    return tuple(t.to(weight.device) for t in found)


def frozen_svd(
    weight: Float[Tensor, "out in"], r: int, *, shared: bool
) -> tuple[Float[Tensor, "out r"], Float[Tensor, " r"], Float[Tensor, "r in"], Int[Tensor, " 2"]]:
    """U, S and Vh of the r leading singular values, at least in float32, and their `basis_digest`.

    Args:
        weight: the frozen matrix.
        r: at most min(out, in).
        shared: as of `kept`.
    """
    dtype = torch.promote_types(weight.dtype, torch.float32)

    def make() -> tuple[Tensor, ...]:
        svd = leading_svd(weight, r)
        digest = basis_digest(svd.U, svd.Vh)
        return *(own(t, dtype, weight.device) for t in svd), digest.to(weight.device)

    u, s, vh, digest = kept(weight, make, "svd", r, shared=shared)
    return u, s, vh, digest


def own(tensor: Tensor, dtype: torch.dtype, device: torch.device) -> Tensor:
    """A contiguous copy that keeps nothing else alive."""
    return tensor.to(device, dtype).clone(memory_format=torch.contiguous_format)
