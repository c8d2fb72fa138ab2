"""SegFormer's MLP decoder as DIN uses it (paper, section 9.2, eq. 14), at a fraction of the arithmetic.

As printed, the decoder brings every level to D channels (a linear layer), resizes it to full resolution, concatenates,
and applies a 3 x 3 convolution. All of these are linear, so they can be reordered without changing the function::

    conv3x3(concat_i U_i(W_i x_i + b_i)) = sum_i sum_(dy,dx) S_dy S_dx U_i((C_i[dy,dx] W_i) x_i) + bias map

with U_i the bilinear resize, S a shift by one pixel with zero fill, and C_i[dy,dx] the kernel's slice for level i. The
small products C_i[dy,dx] W_i are composed once per step and applied as one 1 x 1 convolution at the level's own low
resolution; resize and shift together are two products with small fixed matrices. A level at full resolution is one 3 x
3 convolution with the composed kernel.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from nnunet_din.network.containers import ModuleList
from nnunet_din.network.initialization import init_by_fan_in
from nnunet_din.network.ops import SLICE_ELEMENTS, in_graph, in_slices
from nnunet_din.network.resize import BandedProducts, band_of_resize, resize_and_shift_matrix


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
    """

    def __init__(self, in_channels: Sequence[int], num_classes: int, channels: int = 768):
        super().__init__()
        self.linear = ModuleList(nn.Conv2d(d, channels, kernel_size=1) for d in in_channels)
        self.fuse = nn.Conv2d(len(in_channels) * channels, channels, kernel_size=3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(channels)
        self.classifier = nn.Conv2d(channels, num_classes, kernel_size=1)
        self.apply(init_by_fan_in)

    def forward(self, features: Sequence[Tensor]) -> Tensor:
        """Decode the levels ``(N, d_i, H_i, W_i)`` to logits ``(N, K, H_0, W_0)``."""
        weights = [layer.weight.flatten(1) for layer in self.linear]
        biases = [layer.bias for layer in self.linear if layer.bias is not None]  # all have one
        y = fuse_levels(features, weights, biases, self.fuse.weight)
        if self.training:
            return self._classify(y)
        return in_slices(self._classify, y, dim=2, width=y[:, :, 0].numel())

    def _classify(self, y: Tensor) -> Tensor:
        return self.classifier(F.relu(self.norm(y), inplace=True))  # eq. 14

    def literal_multiply_adds(self, size: Sequence[int]) -> int:
        """Multiply-adds for one image of ``(H, W)`` in the printed order, each level half the size of the last."""
        pixels, channels = math.prod(size), self.fuse.out_channels
        linear = sum(layer.weight.numel() * pixels // 4**i for i, layer in enumerate(self.linear))
        return linear + pixels * (self.fuse.weight.numel() + channels * self.classifier.out_channels)


def fuse_levels(
    features: Sequence[Tensor], weights: Sequence[Tensor], biases: Sequence[Tensor], kernel: Tensor
) -> Tensor:
    """Linear layers, bilinear resize (``align_corners=False``), concatenation and 3 x 3 convolution (zero padding),
    reordered.

    Parameters
    ----------
    features
        Levels x_i, ``(N, d_i, H_i, W_i)``, any sizes; the result has the size of the first.
    weights, biases
        W_i, ``(D, d_i)``, and b_i, ``(D,)``.
    kernel
        Kernel of the fusing convolution, ``(D, levels * D, 3, 3)``.

    Returns
    -------
    Tensor
        Shape ``(N, D, H_0, W_0)``.
    """
    n, size = features[0].shape[0], features[0].shape[-2:]
    slices = kernel.chunk(len(features), dim=1)  # C_i, (D, D, 3, 3)
    full, low = [], []
    for x, weight, c in zip(features, weights, slices, strict=True):
        if x.shape[-2:] == size:
            full.append(F.conv2d(x, torch.einsum("okyx,kd->odyx", c, weight), padding=1))  # kernel C_i[dy,dx] W_i
        else:
            composed = torch.einsum("okyx,kd->ydxo", c, weight).flatten(2)  # (3, d, 3 D)
            low.append((x.permute(0, 2, 3, 1), composed))
    # The linear layers' biases pass through the zero-padded convolution: a level of one pixel, lower at the border.
    parts = [torch.einsum("okyx,k->yxo", c, b) for c, b in zip(slices, biases, strict=True)]
    taps = sum(parts[1:], start=parts[0])
    low.append((taps.new_ones(1, 1, 1, 1).expand(n, -1, -1, -1), taps.flatten(1)[:, None]))
    y = sum(full[1:], start=full[0]).permute(0, 2, 3, 1).flatten(2)  # (N, H, W D)
    if y.device.type == "cpu" and not torch.is_grad_enabled() and not in_graph():
        for x, composed in low:
            _add_level_(y, x, composed, size)
    else:
        y = _add_levels(y, low, size)
    return y.unflatten(2, (size[1], -1)).permute(0, 3, 1, 2)


def _add_levels(y: Tensor, low: Sequence[tuple[Tensor, Tensor]], size: Sequence[int]) -> Tensor:
    """Add the levels ``(N, h, w, d)``, each with its composed kernel ``(3, d, 3 D)``, to ``y``, ``(N, H, W D)``."""
    heights = [x.shape[1] for x, _ in low]
    rows = [_resize_and_shift_columns(x, composed, size[1]) for x, composed in low]
    along_y = [resize_and_shift_matrix(h, size[0], y).flatten(1) for h in heights]  # columns (dy, h)
    if y.device.type != "cpu" or in_graph():
        return torch.baddbmm(y, torch.cat(along_y, dim=1).expand(y.shape[0], -1, -1), torch.cat(rows, dim=1))
    # The matrices are banded: on a CPU it pays to leave the zeros out.
    blocks = [
        [
            (top, end, dy * h + left, dy * h + right)
            for top, end, left, right in band_of_resize(h, size[0])
            for dy in range(3)
        ]
        for h in heights
    ]
    return BandedProducts.apply(y, along_y, blocks, *rows)


def _add_level_(y: Tensor, x: Tensor, composed: Tensor, size: Sequence[int]) -> None:
    """What :func:`_add_levels` does, for one level, in ``y`` itself, a few rows of the level at a time: what lies in
    between stays in the cache.
    """
    h = x.shape[1]
    along_y = resize_and_shift_matrix(h, size[0], y)
    step = max(1, SLICE_ELEMENTS // (3 * len(x) * size[1] * composed.shape[-1] // 3))
    for top in range(0, h, step):
        matrix = along_y[:, :, top : top + step]
        reached = matrix.flatten(1).any(dim=1).nonzero()
        if not len(reached):  # rows that the resize skips
            continue
        begin, end = int(reached[0]), int(reached[-1]) + 1
        rows = _resize_and_shift_columns(x[:, top : top + step], composed, size[1])
        y[:, begin:end].baddbmm_(matrix[begin:end].flatten(1).expand(len(y), -1, -1), rows)


def _resize_and_shift_columns(x: Tensor, composed: Tensor, width: int) -> Tensor:
    """Apply the composed kernel; sum over the three horizontal taps, each resized to ``width`` and shifted by its
    offset.

    Shapes ``(N, h, w, d)`` and ``(3, d, 3 D)``, taps dy, and dx before D, -> ``(N, 3 h, width * D)``.
    """
    n, h, w, _ = x.shape
    z = x.flatten(1, 2)[:, None] @ composed  # (N, 3, h w, 3 D)
    along_x = resize_and_shift_matrix(w, width, z).transpose(1, 2).flatten(1)  # columns (w, dx), as z in memory
    z = z.reshape(n * 3 * h, 3 * w, composed.shape[-1] // 3)
    return torch.bmm(along_x.expand(z.shape[0], -1, -1), z).reshape(n, 3 * h, width * z.shape[-1])
