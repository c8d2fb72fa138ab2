"""Operations that the parts of the network share."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import reduce
from typing import TypeVar

import torch
from timm.layers import LayerNorm2d
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from nnunet_din.dimensions import Convolution, channels_first, channels_last

#: Elements of the largest intermediate result of a slice (:func:`in_slices`): 8 MB in fp32, which a CPU's cache holds.
SLICE_ELEMENTS = 1 << 21

_Result = TypeVar("_Result", Tensor, tuple[Tensor, ...])


def in_graph() -> bool:
    """Whether torch is turning the network into a graph (export, ``torch.compile``, ``torch.jit.trace``).

    What depends on the size of an image by branches or by loops must then take the form that holds for every size.
    """
    return torch.compiler.is_compiling() or torch.jit.is_tracing()


def exporting() -> bool:
    """Whether torch is making a graph for other programs, which compute no gradients."""
    # torch < 2.7 has only the latter.
    is_exporting = getattr(torch.compiler, "is_exporting", torch.compiler.is_compiling)
    return is_exporting() or torch.jit.is_tracing()


def ceil_div(n: int, m: int) -> int:
    """N / m rounded up, of numbers that may be symbols of a graph."""
    return (n + m - 1) // m


class LayerNorm3d(nn.LayerNorm):
    """timm's LayerNorm2d for maps with three axes: along the channels of each voxel.

    Parameters
    ----------
    num_channels
        Channels d.
    eps
        Added to the variance.
    """

    def __init__(self, num_channels: int, eps: float = 1e-6):
        super().__init__(num_channels, eps=eps)

    def forward(self, x: Tensor) -> Tensor:
        """Shape ``(N, d, Z, H, W)`` -> same."""
        return channels_first(super().forward(channels_last(x)))


#: Number of axes -> LayerNorm along the channels of a map.
LAYER_NORMS: dict[int, type[LayerNorm2d] | type[LayerNorm3d]] = {2: LayerNorm2d, 3: LayerNorm3d}


def pointwise(x: Tensor, layer: Convolution | nn.Linear) -> Tensor:
    """Apply a 1 x 1 convolution or linear layer along the last axis: ``(..., d_in)`` -> ``(..., d_out)``."""
    return F.linear(x, layer.weight.flatten(1), layer.bias)


def classify(x: Tensor, layer: Convolution) -> Tensor:
    """Apply a 1 x 1 convolution to a map, ``(N, d, *size)`` -> ``(N, K, *size)``."""
    if x.ndim == 5 and x.device.type == "cpu" and not in_graph():
        # torch's convolution of volumes copies them first.
        return channels_first(pointwise(channels_last(x), layer))
    return layer(x)


def normalize(x: Tensor, layer: nn.LayerNorm) -> Tensor:
    """Apply a LayerNorm, one of maps as well, along the last axis of ``(..., d)``."""
    return F.layer_norm(x, layer.normalized_shape, layer.weight, layer.bias, layer.eps)


def recompute(function: Callable[..., Tensor], *inputs: Tensor) -> Tensor:
    """Call ``function(*inputs)`` and keep only ``inputs`` for the backward pass, which computes the rest again.

    Meant for cheap operations followed by one convolution or matrix product: torch stops computing again as soon as it
    has the product's inputs, so that the product itself is not repeated. ``function`` must not draw random numbers and
    must not change anything outside itself.
    """
    if not torch.is_grad_enabled() or exporting():
        return function(*inputs)
    return checkpoint(function, *inputs, use_reentrant=False, preserve_rng_state=False)


def pixelwise(
    functions: Sequence[Callable[[Tensor], Tensor]],
    f: Tensor,
    width: int,
    then: Callable[[Tensor], Tensor] | None = None,
) -> Tensor:
    """Apply ``functions`` one after another to every pixel of a map, and ``then`` to the map that results.

    For the backward pass only the input of each function is kept; ``then`` belongs to the last one. Without gradients
    a CPU computes the pixels in slices, see :func:`in_slices`.

    Parameters
    ----------
    functions
        Of pixels, ``(M, d_in)`` -> ``(M, d_out)``, see :func:`recompute`.
    f
        Map, ``(N, d, *size)``.
    width
        The largest number of channels in between.
    then
        Of a map, ``(N, d_out, *size)``; None: nothing.
    """
    n, _, *size = f.shape
    pixels = channels_last(f).flatten(0, -2)

    def as_map(x: Tensor) -> Tensor:
        x = channels_first(x.view(n, *size, -1))
        return x if then is None else then(x)

    def all_functions(x: Tensor) -> Tensor:
        return reduce(lambda y, function: function(y), functions, x)

    *first, last = functions
    if torch.is_grad_enabled() and not exporting():
        for function in first:
            pixels = recompute(function, pixels)
        return recompute(lambda x: as_map(last(x)), pixels)
    return as_map(in_slices(all_functions, pixels, dim=0, width=width))


def in_slices(function: Callable[..., _Result], *inputs: Tensor, dim: int, width: int) -> _Result:
    """Call ``function(*inputs)``, on a CPU without gradients in slices along ``dim``.

    What lies between the operations of ``function`` then stays in the cache and in memory that is already there: to
    fetch fresh pages from the system takes a CPU about as long as the arithmetic of a 1 x 1 convolution.

    Parameters
    ----------
    function
        Treats the entries along ``dim`` independently of each other; each of its results has as many.
    *inputs
        Tensors of equal length along ``dim``.
    width
        Elements of the largest intermediate result for each entry along ``dim``.
    """
    if torch.is_grad_enabled() or inputs[0].device.type != "cpu" or in_graph():
        return function(*inputs)
    if inputs[0].shape[dim] * width <= 2 * SLICE_ELEMENTS:
        return function(*inputs)
    slices = (x.split(max(1, SLICE_ELEMENTS // width), dim) for x in inputs)
    results = [function(*parts) for parts in zip(*slices, strict=True)]
    if isinstance(results[0], Tensor):
        return torch.cat(results, dim)
    return tuple(torch.cat(parts, dim) for parts in zip(*results, strict=True))
