"""What a network costs: parameters, multiply-adds, and the memory of a training step, without computing anything."""

from __future__ import annotations

import copy
import weakref
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map_only
from torch.utils.flop_counter import FlopCounterMode

from nnunet_din.losses import AuxiliaryLoss, DINLoss
from nnunet_din.network.din import DualInteractionNetwork

#: Bytes per parameter of AdamW's two moments in fp32.
OPTIMIZER_BYTES = 8
#: What training may take of a device, in counted bytes: room for what the count does not see, workspaces, fragments and
#: the context of the device. Not measured on a GPU.
MEMORY_MARGIN = 1.15


def count_parameters(module: nn.Module) -> int:
    """Count the trainable values of a module."""
    return sum(p.numel() for p in module.parameters() if p.requires_grad)


def count_multiply_adds(network: nn.Module, input_shape: Sequence[int]) -> int:
    """Multiply-adds of one forward pass in convolutions, matrix products and attention (the paper's "GFLOPs", times
    1e9).
    """
    return multiply_adds_by_part(network, input_shape)[""]


def multiply_adds_by_part(network: nn.Module, input_shape: Sequence[int]) -> dict[str, int]:
    """Multiply-adds of one forward pass by direct child of the network, and in total under the empty name."""
    network = _on_meta(network).eval()
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        network(torch.empty(*input_shape, device="meta"))
    counts = {name: sum(flops.values()) // 2 for name, flops in counter.get_flop_counts().items()}
    prefix = f"{type(network).__name__}."
    # A list of modules is never called itself: its members are.
    children = {
        name: sum(
            count
            for path, count in counts.items()
            if path == prefix + name or (isinstance(child, nn.ModuleList) and path.rpartition(".")[0] == prefix + name)
        )
        for name, child in network.named_children()
    }
    return {"": counter.get_total_flops() // 2, **children}


def training_memory(network: nn.Module, input_shape: Sequence[int], half_precision: bool = False) -> int:
    """Bytes that the tensors of a training step hold at its peak: forward and backward pass, AdamW.

    Every tensor is followed from its making to its end, on the meta device, so that the number is exact up to what
    single operations need for themselves.

    Parameters
    ----------
    network
        Any network; it is neither run nor changed. A :class:`nnunet_din.network.DualInteractionNetwork` is counted as
        it is trained, with auxiliary heads and the loss of all outputs; of others, the loss is left out.
    input_shape
        Shape of the batch.
    half_precision
        Follow the casts of autocast on a GPU instead of fp32 throughout.
    """
    dtype = torch.bfloat16 if half_precision else None
    network = copy.deepcopy(network).to("meta").train()
    x = torch.empty(*input_shape, device="meta")
    target = torch.empty(0, device="meta")
    loss = None
    if isinstance(network, DualInteractionNetwork):
        with torch.device("meta"):
            network.add_auxiliary_heads()
            loss = AuxiliaryLoss(DINLoss())
            target = torch.empty(input_shape[0], 1, *input_shape[2:], dtype=torch.int16)
    parameters = [p for p in network.parameters() if p.requires_grad]
    with _LiveBytes([*parameters, x, target]) as live:
        with _AsOnDevices(dtype):
            output = network(x)
        value = output.sum() if loss is None else loss(output, target)
        del output
        with _AsOnDevices(dtype):
            _backward(value)
    return live.peak + OPTIMIZER_BYTES * sum(p.numel() for p in parameters)


def largest_batch(count: Callable[[int], int], budget: float, least: int = 2, most: int = 1024) -> int:
    """Find the largest batch from ``least`` to ``most`` that fits into ``budget`` bytes; ``least`` if none fits.

    The peak is the largest of several quantities that grow in proportion to the batch (weights and moments at the end
    of the backward pass, activations at its beginning), so that a line between two counts lies above it, and the batch
    where the line meets the budget fits.

    Parameters
    ----------
    count
        Bytes of a training step of so many images, see :func:`training_memory`.
    budget
        Bytes, without the margin of :data:`MEMORY_MARGIN`.
    least, most
        Bounds of the batch.
    """
    high = count(most)
    if high <= budget:
        return most
    while True:
        low = count(least)
        batch = least + int((most - least) * (budget - low) / (high - low))
        if batch <= least or count(batch) > budget:
            return least
        least = batch


def _backward(value: Tensor) -> None:
    """What ``value.backward()`` calls; itself, it suspends :class:`_AsOnDevices`, which recomputation needs."""
    torch.autograd.Variable._execution_engine.run_backward(
        (value,), (torch.ones_like(value),), False, False, (), allow_unreachable=True, accumulate_grad=True
    )


def _on_meta(network: nn.Module) -> nn.Module:
    if all(p.is_meta for p in network.parameters()):
        return network
    return copy.deepcopy(network).to("meta")


class _LiveBytes(TorchDispatchMode):
    """Sums the storages that are alive and keeps the largest sum."""

    def __init__(self, tensors: Sequence[Tensor]):
        super().__init__()
        self.now = self.peak = 0
        self._alive: set[int] = set()
        for tensor in tensors:
            self._count(tensor)

    def _count(self, tensor: Tensor) -> None:
        storage = tensor.untyped_storage()
        key, size = storage._cdata, storage.nbytes()
        if key not in self._alive:
            self._alive.add(key)
            self.now += size
            self.peak = max(self.peak, self.now)
            weakref.finalize(storage, self._release, key, size)

    def _release(self, key: int, size: int) -> None:
        self._alive.discard(key)
        self.now -= size

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        tree_map_only(Tensor, self._count, result)
        return result


class _AsOnDevices(TorchFunctionMode):
    """What GPUs do with the operations of a network, on tensors of the meta device, which does otherwise: attention
    without a matrix of weights in memory and, for a ``dtype`` of half precision, autocast's rules.
    """

    HALF = {
        torch.conv2d,
        torch.conv3d,
        torch.einsum,
        torch.bmm,
        torch.baddbmm,
        torch.matmul,
        Tensor.matmul,
        Tensor.__matmul__,
        F.linear,
        F.scaled_dot_product_attention,
    }
    FULL = {F.layer_norm, torch.layer_norm}

    def __init__(self, dtype: torch.dtype | None):
        super().__init__()
        self.dtype = dtype

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if self.dtype is not None and (func in self.HALF or func in self.FULL):
            dtype = self.dtype if func in self.HALF else torch.float32

            def cast(tensor: Tensor) -> Tensor:
                return tensor.to(dtype) if tensor.is_floating_point() else tensor

            args, kwargs = tree_map_only(Tensor, cast, (args, kwargs))
        if func is F.scaled_dot_product_attention:
            return _fused_attention(*args, **kwargs)
        return func(*args, **kwargs)


def _fused_attention(query: Tensor, key: Tensor, value: Tensor, attn_mask: Tensor | None = None, **options) -> Tensor:
    """``F.scaled_dot_product_attention`` by the kernel of GPUs: queries ``(N, heads, L, d)``, keys and values
    ``(N, heads, S, d)``, mask broadcast to ``(N, heads, L, S)``. Options change no memory.
    """
    if attn_mask is not None:  # the kernel adds it
        shape = (*query.shape[:-1], key.shape[-2])
        attn_mask = torch.empty(attn_mask.shape, dtype=query.dtype, device="meta").expand(shape)
    return torch.ops.aten._scaled_dot_product_efficient_attention(query, key, value, attn_mask, True)[0]
