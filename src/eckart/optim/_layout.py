"""How a parameter, whole or a shard of FSDP2's, is laid out for an update that works along its longer side."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor


def is_sharded(tensor: Tensor) -> bool:
    """Whether it is a DTensor."""
    return hasattr(tensor, "placements")


def local(tensor: Any) -> Tensor:
    """This process's part of a DTensor, or the tensor itself."""
    part: Tensor = tensor.to_local() if is_sharded(tensor) else tensor
    return part


@dataclass(frozen=True)
class Layout:
    """A parameter read as a matrix P (R, C), and its view M (max, n) = P, or Pᵀ where R < C, with n = min(R, C).

    A DTensor is redistributed so that its shards are rows of M: selections, projections and moments then need no other
    process, sums over the rows one of n numbers.

    Attributes:
        rows, columns: R and C.
        mesh: of the DTensor, or None.
        placements: of P by rows of M.
        own: of the parameter.
    """

    rows: int
    columns: int
    mesh: Any = None
    placements: Any = None
    own: Any = None

    @classmethod
    def of(cls, p: Tensor) -> Layout:
        """The layout of a parameter of two or more dimensions; all but the first are one."""
        rows = p.shape[0]
        columns = p.numel() // max(rows, 1)
        if not is_sharded(p):
            return cls(rows, columns)
        from torch.distributed.tensor import Replicate, Shard

        sharded: Any = p
        along = Shard(1 if rows < columns else 0)
        placements = tuple(along if place.is_shard() else Replicate() for place in sharded.placements)
        return cls(rows, columns, sharded.device_mesh, placements, sharded.placements)

    @property
    def left(self) -> bool:
        """Whether M = Pᵀ."""
        return self.rows < self.columns

    @property
    def n(self) -> int:
        """The shorter side."""
        return min(self.rows, self.columns)

    def matrix(self, tensor: Tensor) -> Float[Tensor, "m n"]:
        """This process's rows of M, from the parameter's gradient."""
        flat: Any = tensor.flatten(1)
        if self.mesh is not None:
            flat = flat.redistribute(placements=self.placements).to_local()
        part: Tensor = flat.mT if self.left else flat
        return part

    def zeros(
        self, shape: tuple[int, ...], dtype: torch.dtype, by_rows: bool, device: torch.device
    ) -> Tensor:
        """A tensor of state; with ``by_rows`` each process holds that of its rows of M."""
        if self.mesh is None or not by_rows:
            return torch.zeros(shape, dtype=dtype, device=device)
        from torch.distributed.tensor import zeros

        made: Tensor = zeros(*shape, dtype=dtype, device_mesh=self.mesh, placements=self.placements)
        return made

    def reduced(self, part: Tensor, how: str = "sum") -> Tensor:
        """What the processes' parts add up to, or their "min" or "max"."""
        if self.mesh is None:
            return part
        from torch.distributed.tensor import DTensor, Partial, Replicate

        partial = tuple(Partial(how) if place.is_shard() else Replicate() for place in self.placements)
        return DTensor.from_local(part, self.mesh, partial, run_check=False).full_tensor()

    def gathered(self, part: Float[Tensor, "m k"]) -> Float[Tensor, "max k"]:
        """All rows, from every process's."""
        if self.mesh is None:
            return part
        whole: Tensor = self._whole(part, part.shape[1]).full_tensor()
        return whole.mT if self.left else whole

    def scattered(self, whole: Float[Tensor, "max k"]) -> Float[Tensor, "m k"]:
        """This process's rows of what all processes hold."""
        if self.mesh is None:
            return whole
        from torch.distributed.tensor import DTensor, Replicate

        stored = whole.mT if self.left else whole
        everywhere = DTensor.from_local(stored, self.mesh, [Replicate()] * self.mesh.ndim, run_check=False)
        part: Tensor = everywhere.redistribute(placements=self.placements).to_local()
        return part.mT if self.left else part

    def parameter_part(self, update: Float[Tensor, "m n"], p: Tensor) -> Tensor:
        """An update of M's rows as one of the part of the parameter that this process holds, in its shape."""
        if self.mesh is None:
            return (update.mT if self.left else update).reshape(p.shape)
        placed = self._whole(update, self.n).redistribute(placements=self.own).to_local()
        shaped: Tensor = placed.reshape(local(p).shape)
        return shaped

    def _whole(self, part: Tensor, columns: int) -> Any:
        """The DTensor of which ``part`` is this process's rows, stored as P is."""
        from torch.distributed.tensor import DTensor

        shape = torch.Size((columns, self.columns) if self.left else (self.rows, columns))
        stored = (part.mT if self.left else part).contiguous()
        return DTensor.from_local(
            stored, self.mesh, self.placements, run_check=False, shape=shape, stride=(shape[1], 1)
        )
