"""Operations that the parts of the network share."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint


def pointwise(x: Tensor, layer: nn.Conv2d | nn.Linear) -> Tensor:
    """Apply a 1 x 1 convolution or linear layer along the last axis: ``(..., d_in)`` -> ``(..., d_out)``."""
    return F.linear(x, layer.weight.flatten(1), layer.bias)


def normalize(x: Tensor, layer: nn.LayerNorm) -> Tensor:
    """Apply a LayerNorm, of timm's two-dimensional kind as well, along the last axis of ``(..., d)``."""
    return F.layer_norm(x, layer.normalized_shape, layer.weight, layer.bias, layer.eps)


def gelu_(x: Tensor) -> Tensor:
    """GELU; in place where no gradient is asked for, so do not use ``x`` afterwards."""
    return F.gelu(x) if torch.is_grad_enabled() else torch.ops.aten.gelu_(x)


def recompute(function: Callable[..., Tensor], *inputs: Tensor) -> Tensor:
    """Call ``function(*inputs)`` and keep only ``inputs`` for the backward pass, which computes the rest again.

    Meant for cheap operations followed by one convolution or matrix product: torch stops computing again as soon as it
    has the product's inputs, so that the product itself is not repeated. ``function`` must not draw random numbers and
    must not change anything outside itself.
    """
    if not torch.is_grad_enabled():
        return function(*inputs)
    return checkpoint(function, *inputs, use_reentrant=False, preserve_rng_state=False)
