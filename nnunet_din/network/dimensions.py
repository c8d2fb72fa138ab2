"""What torch has once for every number of axes of an image, under one name.

Sizes, kernels and strides are one number an axis, as in nnU-Net's plans, and so say how many axes there are: rows and
columns, or slices, rows and columns.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeAlias

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class NoVolumesError(ValueError):
    """A part of the network has a form for images with two axes only."""


Convolution: TypeAlias = nn.Conv2d | nn.Conv3d

#: Number of axes -> layer.
CONVOLUTIONS: dict[int, type[Convolution]] = {2: nn.Conv2d, 3: nn.Conv3d}
BATCH_NORMS: dict[int, type[nn.BatchNorm2d] | type[nn.BatchNorm3d]] = {2: nn.BatchNorm2d, 3: nn.BatchNorm3d}
#: Number of axes -> memory format with the channels of a map last.
CHANNELS_LAST = {2: torch.channels_last, 3: torch.channels_last_3d}


def convolution(
    d_in: int,
    d_out: int,
    kernel_size: Sequence[int],
    stride: int | Sequence[int] = 1,
    groups: int = 1,
    bias: bool = True,
) -> Convolution:
    """Convolution along as many axes as the kernel has.

    Zero padding keeps the size of a map where the kernel is odd and the stride 1. There is none along an axis where
    the kernel is even, as in the pooling by a kernel of the stride's size.

    Parameters
    ----------
    d_in, d_out
        Channels before and after.
    kernel_size
        Edge along each axis.
    stride
        One for all axes, or one an axis.
    groups, bias
        See :class:`torch.nn.Conv2d`.
    """
    kernel_size = tuple(kernel_size)
    stride = stride if isinstance(stride, int) else tuple(stride)
    layer = CONVOLUTIONS[len(kernel_size)]
    padding = same_padding(kernel_size)
    return layer(d_in, d_out, kernel_size, stride, padding, groups=groups, bias=bias)  # type: ignore[arg-type]


def same_padding(kernel_size: Sequence[int]) -> tuple[int, ...]:
    """Zeros on either side along each axis with which an odd kernel keeps the size; none for an even one."""
    return tuple(k // 2 if k % 2 else 0 for k in kernel_size)


def convolve(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """Convolve a map ``(N, d_in, *size)`` with an odd kernel ``(d_out, d_in, *kernel)`` and zero padding."""
    function = {4: F.conv2d, 5: F.conv3d}[x.ndim]
    return function(x, weight, bias, padding=same_padding(weight.shape[2:]))


def resize(x: Tensor, size: Sequence[int]) -> Tensor:
    """Resize a map ``(N, d, *size)`` linearly along every axis (``align_corners=False``)."""
    mode = {4: "bilinear", 5: "trilinear"}[x.ndim]
    return F.interpolate(x, size=tuple(size), mode=mode, align_corners=False)


def channels_last(x: Tensor) -> Tensor:
    """Map ``(N, d, *size)`` -> view ``(N, *size, d)``."""
    return x.movedim(1, -1)


def channels_first(x: Tensor) -> Tensor:
    """View ``(N, *size, d)`` -> map ``(N, d, *size)``."""
    return x.movedim(-1, 1)
