"""The least networks that have every part: an encoder with few channels, known beside those of the package."""

from __future__ import annotations

import torch

from nnunet_din.network import DualInteractionNetwork
from nnunet_din.network.encoders import ENCODERS
from nnunet_din.network.encoders.plain import WIDTHS, PlainEncoder

WIDTHS["plain_tiniest"] = (8, 8, 16, 16)
ENCODERS["plain_tiniest"] = PlainEncoder

#: Voxels of equal edges; and slices that lie far apart, of which rows and columns are pooled first.
ISOTROPIC = {"strides": [[2, 2, 2]] * 4}
IN_PLANE_FIRST = {
    "strides": [[1, 2, 2], [1, 2, 2], [2, 2, 2], [2, 2, 2]],
    "kernel_sizes": [[1, 3, 3], [3, 3, 3], [3, 3, 3], [3, 3, 3]],
}


def tiny(channels: int = 1, classes: int = 3, seed: int = 0, **options) -> DualInteractionNetwork:
    """Build the least network, with these options instead of its own."""
    torch.manual_seed(seed)
    options = {"encoder": "plain_tiniest", "decoder_channels": 8, **options}
    return DualInteractionNetwork(channels, classes, **options)


def without_gradient(tensors) -> list[str]:
    """Names of those of ``(name, tensor)`` that wait for a gradient and have none, or one that is 0 or not finite."""
    return [
        name
        for name, tensor in tensors
        if tensor.requires_grad and (tensor.grad is None or not tensor.grad.isfinite().all() or not tensor.grad.any())
    ]
