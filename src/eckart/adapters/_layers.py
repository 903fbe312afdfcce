"""What an adapter needs to know about the layer it adapts: its shape, its kind and how it applies a weight.

Every supported layer is seen as one matrix ``W (out, in)`` with ``y = x Wᵀ``:

    nn.Linear              weight (out, in)
    transformers' Conv1D   weight stored (in, out), seen transposed
    nn.Conv1d/2d/3d        weight (out, in/groups, *kernel), seen as (out, in/groups · Π kernel)
    nn.Embedding           weight stored (num, dim), seen as (dim, num): one-hot rows times Wᵀ
"""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, TypeGuard, TypeVar, cast

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from eckart.adapters._checkpoint import check_dtype
from eckart.errors import InputError
from eckart.linalg.random import seeded_generator

if TYPE_CHECKING:
    from peft.utils.quantization_utils import QuantizationBackend
    from transformers.pytorch_utils import Conv1D

    SupportedLayer = nn.Linear | Conv1D | nn.Conv1d | nn.Conv2d | nn.Conv3d | nn.Embedding

Kind = Literal["linear", "conv", "embedding"]
M = TypeVar("M", bound=nn.Module)
_CONVOLUTIONS = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}


@dataclass(frozen=True)
class LayerShape:
    """Name, kind and canonical weight shape ``(out, in, *kernel)`` of a layer that is adapted; ``matrix()`` gives the
    frozen weight itself, for counts that depend on it. A matrix of a parameter has the parameter's name as ``stack``,
    and its number there behind that in its own name."""

    name: str
    kind: Kind
    weight: tuple[int, ...]
    frozen: FrozenWeight | None = field(default=None, compare=False, repr=False)
    stack: str = ""

    @property
    def target(self) -> str:
        """What is named to adapt it: the layer, or the parameter that the matrix is part of."""
        return self.stack or self.name

    @property
    def out_features(self) -> int:
        """Rows of the matrix."""
        return self.weight[0]

    @property
    def in_features(self) -> int:
        """Columns of the matrix: input channels times kernel elements."""
        return math.prod(self.weight[1:])

    @property
    def max_rank(self) -> int:
        """``min(out, in)``."""
        return min(self.out_features, self.in_features)

    def matrix(self) -> Float[Tensor, "out in"]:
        """The frozen weight.

        Raises:
            InputError: this shape stands for no layer, or one whose weight is of whole or complex numbers.
        """
        weight = self._layer()().detach()
        check_dtype(self.name, weight)
        return weight

    def bias(self) -> Float[Tensor, " out"] | None:
        """The frozen bias; None where the layer has none.

        Raises:
            InputError: this shape stands for no layer.
        """
        return self._layer().bias

    def _layer(self) -> FrozenWeight:
        if self.frozen is None:
            raise InputError(
                f"the weight of layer {self.name} is not known: take the shapes from target_shapes"
            )
        return self.frozen


@dataclass(frozen=True)
class LayerOp:
    """How a layer applies its weight: everything of its forward except the weight and the bias."""

    kind: Kind
    stored_transposed: bool = False
    groups: int = 1
    arguments: dict[str, Any] = field(default_factory=dict)
    padding_idx: int | None = None
    pad: tuple[tuple[int, ...], str] | None = None

    @property
    def channels(self) -> int:
        """The dimension of an input that holds its features."""
        return 1 if self.kind == "conv" else -1

    def to_matrix(self, stored: Tensor) -> Float[Tensor, "out in"]:
        """The stored weight as the matrix ``(out, in)`` (a view where possible)."""
        return stored.t() if self.stored_transposed else stored.reshape(stored.shape[0], -1)

    def to_stored(self, matrix: Float[Tensor, "out in"], like: torch.Size) -> Tensor:
        """A matrix ``(out, in)`` in the layout of the stored weight."""
        return (matrix.t() if self.stored_transposed else matrix).reshape(like)

    def apply(self, x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        """The layer's output for the canonical weight ``(out, in, *kernel)``."""
        if self.kind == "linear":
            return F.linear(x, weight, bias)
        if self.kind == "embedding":
            return F.embedding(x, weight.t())
        arguments = self.arguments
        if self.pad is not None:
            x = F.pad(x, self.pad[0], mode=self.pad[1])
        return _CONVOLUTIONS[weight.dim() - 2](x, weight, bias, groups=self.groups, **arguments)


def describe_layer(module: nn.Module, name: str) -> tuple[LayerShape, LayerOp] | None:
    """Shape and operation of a layer, or None when its type is not supported.

    Args:
        module: the frozen layer. Quantised linear layers count as linear.
        name: its dotted name in the model.
    """
    from transformers.pytorch_utils import Conv1D

    if isinstance(module, nn.Embedding):
        shape = (module.embedding_dim, module.num_embeddings)
        return LayerShape(name, "embedding", shape), LayerOp(
            "embedding", True, padding_idx=module.padding_idx
        )
    if isinstance(module, Conv1D):
        return LayerShape(name, "linear", tuple(reversed(module.weight.shape))), LayerOp("linear", True)
    if isinstance(module, nn.Conv1d | nn.Conv2d | nn.Conv3d):
        zeros = module.padding_mode == "zeros"
        arguments = {
            "stride": module.stride,
            "padding": module.padding if zeros else 0,
            "dilation": module.dilation,
        }
        pad = None if zeros else (tuple(module._reversed_padding_repeated_twice), module.padding_mode)
        weight = (module.out_channels, module.in_channels // module.groups, *module.kernel_size)
        return LayerShape(name, "conv", weight), LayerOp(
            "conv", groups=module.groups, arguments=arguments, pad=pad
        )
    if isinstance(module, nn.Linear) or is_quantised_linear(module):
        return LayerShape(name, "linear", (module.out_features, module.in_features)), LayerOp("linear")
    return None


def is_quantised_linear(module: nn.Module) -> TypeGuard[nn.Linear]:
    """Whether a module is a linear layer of a quantisation that PEFT knows."""
    if not hasattr(module, "in_features"):
        return False
    from peft.utils import resolve_quantization_backend

    backend = resolve_quantization_backend(module, get_apply_tensor_subclass=lambda: None)
    return backend is not None and backend.layer_type == "linear"


class Pool:
    """What the layers of one adapter have in common: their shapes, their shared modules, and the outputs of these.

    A shared module with a forward of its own is called once a forward pass of the model, before any layer. Its output,
    a tensor or a tuple of them, is kept until the backward pass ends, where activation checkpointing runs parts of the
    forward again and must see the same numbers.
    """

    def __init__(self, shapes: list[LayerShape]) -> None:
        self.shapes = shapes
        self._modules: dict[Hashable, list[nn.Module]] = {}
        self._outputs: dict[Hashable, Any] = {}
        self._depth = 0

    def module(self, key: Hashable, make: Callable[[], M]) -> tuple[M, bool]:
        """The shared module of this key and whether the caller made it and so must register it; see `Adapter.share`."""
        owner = key not in self._modules
        if owner:
            self._modules[key] = [make()]
        return cast(M, self._modules[key][0]), owner

    def output(self, module: nn.Module) -> Any:
        """What a shared module gives; see `Adapter.once`."""
        key = next(key for key, (shared,) in self._modules.items() if shared is module)
        known = key in self._outputs
        if known and not torch.compiler.is_compiling() and torch._C._current_graph_task_id() != -1:
            trained = [parameter for parameter in module.parameters() if parameter.requires_grad]
            outputs = _several(self._outputs[key])
            again = _Again.apply(module, len(outputs), *(o.detach() for o in outputs), *trained)  # type: ignore[no-untyped-call]
            return again if isinstance(self._outputs[key], tuple) else again[0]
        return self._outputs[key] if known and self._depth else module()

    @property
    def has_outputs(self) -> bool:
        """Whether a shared module has a forward of its own."""
        return any(_has_forward(module) for (module,) in self._modules.values())

    def enter(self, *_: Any) -> None:
        """A forward pass of the model begins; the outermost computes the outputs."""
        if not self._depth:
            called = ((key, module) for key, (module,) in self._modules.items() if _has_forward(module))
            self._outputs = {key: module() for key, module in called}
        self._depth += 1

    def leave(self, *_: Any) -> None:
        """It has ended."""
        self._depth -= 1

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_outputs": {}, "_depth": 0}


class _Again(torch.autograd.Function):
    """A known output of a shared module, for a part of the forward that runs again inside a backward pass. Reentrant
    checkpointing walks back from each such part on its own, through a graph that a first walk would have freed: here
    each walk makes its own."""

    @staticmethod
    def forward(ctx: Any, module: nn.Module, count: int, *tensors: Tensor) -> tuple[Tensor, ...]:
        ctx.module, ctx.count, ctx.trained = module, count, tensors[count:]
        return tuple(output.view_as(output) for output in tensors[:count])

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        with torch.enable_grad():
            found = torch.autograd.grad(_several(ctx.module()), ctx.trained, gradients)
        return None, None, *(None for _ in range(ctx.count)), *found


def _several(output: Tensor | tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    return output if isinstance(output, tuple) else (output,)


def _has_forward(module: nn.Module) -> bool:
    return type(module).forward is not nn.Module.forward


def whole(parameter: Tensor) -> Tensor:
    """A shared parameter as any layer can use it. FSDP2 gathers it only while the layer that owns it is called; for
    another layer it is gathered here, and its gradient is averaged over the processes as FSDP2 does."""
    if not hasattr(parameter, "full_tensor"):
        return parameter
    from torch.distributed.tensor import DTensor, Partial

    assert isinstance(parameter, DTensor)
    mesh = parameter.device_mesh
    gathered = parameter.full_tensor(grad_placements=[Partial()] * mesh.ndim)
    if gathered.requires_grad:
        gathered.register_hook(lambda gradient: gradient / mesh.size())
    return gathered


class FrozenWeight:
    """The frozen weight of a layer as a matrix, whether the layer is merged, quantised or neither.

    Attributes:
        module: the layer that holds it.
        original: the stored weight from before a merge; None while nothing is merged.
        original_bias: the bias from before it.
    """

    def __init__(self, module: SupportedLayer, op: LayerOp, backend: QuantizationBackend | None) -> None:
        self.module = module
        self.op = op
        self.backend = backend
        self.original: Tensor | None = None
        self.original_bias: nn.Parameter | None = None

    def __call__(self) -> Float[Tensor, "out in"]:
        """The matrix ``(out, in)``, a view of the stored weight where that is possible."""
        if self.original is not None and self.backend is not None:
            return self.op.to_matrix(self.original.dequantize())
        return self.op.to_matrix(self.stored if self.original is None else self.original)

    @property
    def bias(self) -> Tensor | None:
        """The bias, as it was before any merge."""
        bias: Tensor | None = getattr(self.module, "bias", None)
        return bias if self.original is None else self.original_bias

    @property
    def stored(self) -> Tensor:
        """The current weight in the layer's own layout, dequantised, and loaded where it is offloaded."""
        if self.backend is None:
            if self.module.weight.is_meta and hasattr(self.module, "_hf_hook"):
                from accelerate.utils import align_module_device  # type: ignore[import-untyped]

                with align_module_device(self.module):
                    return self.module.weight.detach()
            return self.module.weight
        return self.backend.get_base_weight(self.module)


@dataclass(frozen=True)
class LayerContext:
    """What `AdapterConfig.build` learns of the layer beside its weight.

    Attributes:
        shape: name, kind and canonical weight shape.
        op: how the layer applies a weight.
        seed: the config's seed.
        pool: state shared by all layers of this adapter.
        base_weight: call it for the frozen matrix ``(out, in)`` as it was before any merge, dequantised.
    """

    shape: LayerShape
    op: LayerOp
    seed: int
    pool: Pool
    base_weight: FrozenWeight

    def generator(self, *tag: object) -> torch.Generator:
        """A CPU generator that depends only on the seed, the layer's name and the tag."""
        return seeded_generator(self.seed, self.shape.name, *tag)
