"""Operations that the parts of the network share."""

from __future__ import annotations

from collections.abc import Callable

import torch
from timm.layers import LayerNorm2d
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from nnunet_din.network.dimensions import Convolution, channels_first, channels_last


def exporting() -> bool:
    """Whether torch is making a graph for other programs, which compute no gradients."""
    # torch < 2.7 has only the latter.
    is_exporting = getattr(torch.compiler, "is_exporting", torch.compiler.is_compiling)
    return is_exporting()


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
