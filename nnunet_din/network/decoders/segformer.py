"""SegFormer's MLP decoder as DIN uses it (paper, section 9.2, eq. 14), at a fraction of the arithmetic.

As printed, the decoder brings every level to D channels (a linear layer), resizes it to full resolution, concatenates,
and applies a 3 x 3 convolution. All of these are linear, so they can be reordered without changing the function::

    conv3x3(concat_i U_i(W_i x_i + b_i)) = sum_i sum_(dy,dx) S_dy S_dx U_i((C_i[dy,dx] W_i) x_i) + bias map

with U_i the bilinear resize, S a shift by one pixel with zero fill, and C_i[dy,dx] the kernel's slice for level i. The
small products C_i[dy,dx] W_i are composed once per step and applied at the level's own low resolution; resize and
shift together are products with small fixed matrices, one an axis. A level at full resolution is one 3 x 3 convolution
with the composed kernel. A third axis adds its offsets dz.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from nnunet_din.network.containers import ModuleList
from nnunet_din.network.dimensions import BATCH_NORMS, channels_first, channels_last, convolution, convolve
from nnunet_din.network.initialization import init_by_fan_in
from nnunet_din.network.resize import resize_and_shift_matrix


class SegFormerHead(nn.Module):
    """All-MLP decoder: levels to D channels, resized to the first level, fused by a 3 x 3 convolution, classified.

    Parameters
    ----------
    in_channels
        Channels d_i of the levels, highest resolution first.
    num_classes
        Channels K of the logits.
    channels
        Width D of the decoder.
    kernel_size
        Kernel size of the fusing convolution, 1 or 3 along each axis.

    Raises
    ------
    ValueError
        If a kernel has another size.
    """

    def __init__(
        self, in_channels: Sequence[int], num_classes: int, channels: int = 768, kernel_size: Sequence[int] = (3, 3)
    ):
        super().__init__()
        if not set(kernel_size) <= {1, 3}:
            raise ValueError(f"The kernel of the SegFormer head must be 1 or 3 along each axis, got {kernel_size}.")
        point = (1,) * len(kernel_size)
        self.linear = ModuleList(convolution(d, channels, point) for d in in_channels)
        self.fuse = convolution(len(in_channels) * channels, channels, kernel_size, bias=False)
        self.norm = BATCH_NORMS[len(kernel_size)](channels)
        self.classifier = convolution(channels, num_classes, point)
        self.apply(init_by_fan_in)

    def forward(self, features: Sequence[Tensor]) -> Tensor:
        """Decode the levels ``(N, d_i, *size_i)`` to logits ``(N, K, *size_0)``."""
        weights = [layer.weight.flatten(1) for layer in self.linear]
        biases = [layer.bias for layer in self.linear if layer.bias is not None]  # all have one
        y = fuse_levels(features, weights, biases, self.fuse.weight)
        return self.classifier(F.relu(self.norm(y), inplace=True))  # eq. 14


def fuse_levels(
    features: Sequence[Tensor], weights: Sequence[Tensor], biases: Sequence[Tensor], kernel: Tensor
) -> Tensor:
    """Linear layers, linear resize (``align_corners=False``), concatenation and convolution (zero padding), reordered.

    Parameters
    ----------
    features
        Levels x_i, ``(N, d_i, *size_i)`` with two or three axes of any sizes; the result has the size of the first.
    weights, biases
        W_i, ``(D, d_i)``, and b_i, ``(D,)``.
    kernel
        Kernel of the fusing convolution, ``(D, levels * D, ...)``, with 1 or 3 taps along each axis.

    Returns
    -------
    Tensor
        Shape ``(N, D, *size_0)``.
    """
    size, slices = features[0].shape[2:], kernel.chunk(len(features), dim=1)  # C_i, (D, D, *taps)
    # The linear layers' biases pass through the zero-padded convolution: their map is lower at the border.
    bias = torch.stack([c.movedim(1, -1) @ b for c, b in zip(slices, biases, strict=True)]).sum(0)
    y = convolve(kernel.new_ones(1, 1, *size), bias[:, None])
    for x, weight, c in zip(features, weights, slices, strict=True):
        composed = torch.einsum("ok...,kd->od...", c, weight)  # C_i[dy,dx] W_i
        if x.shape[2:] == size:
            y = y + convolve(x, composed)
        else:
            y = y + channels_first(convolve_resized(channels_last(x), composed.movedim((0, 1), (-1, -2)), size))
    return y


def convolve_resized(x: Tensor, kernel: Tensor, size: Sequence[int]) -> Tensor:
    """``conv(resize(x, size))``, where the kernel meets the map while that is small.

    Resize and shift along an axis are one matrix for all taps; the axes follow one another.

    Parameters
    ----------
    x
        Map with the channels last, ``(N, *size_i, d)``.
    kernel
        Shape ``(*taps, d, D)``.
    size
        Size of the result, ``(N, *size, D)``.
    """
    matrix = resize_and_shift_matrix(x.shape[1], size[0], x, len(kernel))  # (size[0], taps, size_i[0])
    if len(size) == 1:
        # The taps of a pixel lie beside each other, as in memory.
        columns = (x @ kernel.movedim(0, 1).flatten(1)).unflatten(2, (len(kernel), -1)).flatten(1, 2)
        return torch.bmm(matrix.transpose(1, 2).flatten(1).expand(x.shape[0], -1, -1), columns)
    rows = (convolve_resized(x.flatten(0, 1), taps, size[1:]) for taps in kernel)
    products = torch.cat([row.unflatten(0, x.shape[:2]).flatten(2) for row in rows], dim=1)
    return torch.bmm(matrix.flatten(1).expand(x.shape[0], -1, -1), products).unflatten(2, (*size[1:], -1))
