"""SegFormer's MLP decoder as DIN uses it (paper, section 9.2, eq. 14), at a fraction of the arithmetic.

As printed, the decoder brings every level to D channels (a linear layer), resizes it to full resolution, concatenates,
and applies a 3 x 3 convolution. All of these are linear, so they can be reordered without changing the function::

    conv3x3(concat_i U_i(W_i x_i + b_i)) = sum_i sum_(dy,dx) S_dy S_dx U_i((C_i[dy,dx] W_i) x_i) + bias map

with U_i the bilinear resize, S a shift by one pixel with zero fill, and C_i[dy,dx] the kernel's slice for level i. The
small products C_i[dy,dx] W_i are composed once per step and applied as one 1 x 1 convolution at the level's own low
resolution; resize and shift together are products with small fixed matrices, one an axis. A level at full resolution
is one 3 x 3 convolution with the composed kernel.

A third axis adds its offsets dz to the sum, and one more product.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from nnunet_din.dimensions import BATCH_NORMS, channels_first, channels_last, convolution, convolve
from nnunet_din.network.containers import ModuleList
from nnunet_din.network.initialization import init_by_fan_in
from nnunet_din.network.ops import SLICE_ELEMENTS, classify, in_graph, in_slices
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
    kernel_size
        Of the fusing convolution, 1 or 3 along each axis.

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
        if self.training or y.device.type != "cpu" or in_graph():
            return self._classify(y)
        # Images one above the other: then slices, too, are adjacent in memory, and nothing copies them.
        rows = channels_first(channels_last(y).flatten(0, 1)[None])
        rows = in_slices(self._classify, rows, dim=2, width=rows[:, :, 0].numel())
        return channels_first(channels_last(rows)[0].unflatten(0, y.shape[:3:2]))

    def _classify(self, y: Tensor) -> Tensor:
        return classify(F.relu(self.norm(y), inplace=True), self.classifier)  # eq. 14

    def literal_multiply_adds(self, size: Sequence[int], levels: Sequence[Sequence[int]] | None = None) -> int:
        """Multiply-adds for one image in the printed order.

        Parameters
        ----------
        size
            Of the result, and of the first level.
        levels
            Sizes of the levels. None: each has half the edges of the one before.
        """
        pixels, channels = math.prod(size), self.fuse.out_channels
        shrinking = 2 ** len(size)
        of_levels = [
            pixels // shrinking**i if levels is None else math.prod(levels[i]) for i in range(len(self.linear))
        ]
        linear = sum(layer.weight.numel() * p for layer, p in zip(self.linear, of_levels, strict=True))
        return linear + pixels * (self.fuse.weight.numel() + channels * self.classifier.out_channels)


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
    n, size = features[0].shape[0], features[0].shape[2:]
    slices = kernel.chunk(len(features), dim=1)  # C_i, (D, D, taps of each axis)
    full, low = [], []
    for x, weight, c in zip(features, weights, slices, strict=True):
        if x.shape[2:] == size:
            full.append(convolve(x, torch.einsum("ok...,kd->od...", c, weight)))  # kernel C_i[dy,dx] W_i
        else:
            low.append((channels_last(x), _last_tap_behind_d(torch.einsum("ok...,kd->...do", c, weight))))
    # The linear layers' biases pass through the zero-padded convolution: a level of one pixel, lower at the border.
    # By products with vectors: of an einsum the gradient is a batched product of single columns and rows, which torch
    # 2.14 compiles on a GPU, even in eager mode.
    parts = [c.movedim(1, -1) @ b for c, b in zip(slices, biases, strict=True)]
    taps = sum(parts[1:], start=parts[0]).movedim(0, -1).unsqueeze(-2)
    ones = taps.new_ones([1] * kernel.ndim).expand(n, *[-1] * (kernel.ndim - 1))
    low.append((ones, _last_tap_behind_d(taps)))
    y = channels_last(sum(full[1:], start=full[0])).flatten(2)  # (N, H, W D)
    if y.device.type != "cpu" or in_graph():
        y = _add_levels(y, low, size)
    elif torch.is_grad_enabled():
        y = _add_levels(None, low, size).add_(y)
    else:
        for x, composed in low:
            _add_level_(y, x, composed, size)
    return channels_first(y.unflatten(2, (*size[1:], -1)))


def _last_tap_behind_d(composed: Tensor) -> Tensor:
    """Kernel ``(dy, dx, d, D)`` -> ``(dy, d, dx, D)``, in three dimensions ``(dz, dy, d, dx, D)``."""
    return composed.transpose(-3, -2).contiguous()


def _add_levels(y: Tensor | None, low: Sequence[tuple[Tensor, Tensor]], size: Sequence[int]) -> Tensor:
    """Add the levels ``(N, h, w, d)``, each with its composed kernel ``(3, d, 3, D)``, to ``y``, ``(N, H, W D)``, or
    to nothing.

    With three axes, ``(N, z, h, w, d)``, ``(3, 3, d, 3, D)`` and ``(N, Z, H W D)``.
    """
    if len(size) == 2:
        return _add_products(y, *zip(*_products_along_y(low, size), strict=True))
    # One offset dz after the other: what lies in between is a good part of y for each of them.
    for x, composed in low:
        for dz, composed_of_slices in enumerate(composed):
            planes = _resize_and_shift_planes(x, composed_of_slices, size)
            along_z = resize_and_shift_matrix(x.shape[1], size[0], planes, len(composed))[:, dz]
            y = _add_products(y, [along_z], [planes])
    assert y is not None
    return y


def _products_along_y(low: Sequence[tuple[Tensor, Tensor]], size: Sequence[int]) -> list[tuple[Tensor, Tensor]]:
    """For each level and each vertical tap, the matrix that resizes and shifts along y, and what it is applied to."""
    products = []
    for x, composed in low:
        along_y = resize_and_shift_matrix(x.shape[1], size[0], x, len(composed))
        products += [
            (along_y[:, dy], _resize_and_shift_columns(x, composed_of_rows, size[1]))
            for dy, composed_of_rows in enumerate(composed)
        ]
    return products


def _add_products(y: Tensor | None, matrices: Sequence[Tensor], xs: Sequence[Tensor]) -> Tensor:
    """``y + sum_i matrix_i @ x_i``, of matrices that resize and shift along an axis."""
    if xs[0].device.type != "cpu" or in_graph():
        matrix = torch.cat([*matrices], dim=1).expand(xs[0].shape[0], -1, -1)  # len() would be a constant in a trace
        x = torch.cat([*xs], dim=1)
        return torch.bmm(matrix, x) if y is None else torch.baddbmm(y, matrix, x)
    # The matrices are banded: on a CPU it pays to leave the zeros out.
    blocks = [band_of_resize(matrix.shape[1], len(matrix)) for matrix in matrices]
    return BandedProducts.apply(y, matrices, blocks, *xs)


def _add_level_(y: Tensor, x: Tensor, composed: Tensor, size: Sequence[int]) -> None:
    """What :func:`_add_levels` does, for one level, in ``y`` itself, a few rows (slices) of the level at a time: what
    lies in between stays in the cache.
    """
    h, taps = x.shape[1], len(composed)
    along = resize_and_shift_matrix(h, size[0], y, taps)
    step = max(1, SLICE_ELEMENTS // (taps * y[:, 0].numel()))
    for top in range(0, h, step):
        matrix = along[:, :, top : top + step]
        reached = matrix.flatten(1).any(dim=1).nonzero()
        if not len(reached):  # rows that the resize skips
            continue
        begin, end = int(reached[0]), int(reached[-1]) + 1
        part, matrix = x[:, top : top + step], matrix[begin:end]
        if len(size) == 2:
            products = [(matrix[:, dy], _resize_and_shift_columns(part, c, size[1])) for dy, c in enumerate(composed)]
        else:
            products = [(matrix[:, dz], _resize_and_shift_planes(part, c, size)) for dz, c in enumerate(composed)]
        for block, resized in products:
            y[:, begin:end].baddbmm_(block.expand(len(y), -1, -1), resized)


def _resize_and_shift_planes(x: Tensor, composed: Tensor, size: Sequence[int]) -> Tensor:
    """Apply the composed kernel of one offset dz; resize and shift every slice along y and x.

    Shapes ``(N, z, h, w, d)`` and ``(3, d, 3, D)`` -> ``(N, z, H W D)``.
    """
    return _add_levels(None, [(x.flatten(0, 1), composed)], size[1:]).reshape(*x.shape[:2], -1)


def _resize_and_shift_columns(x: Tensor, composed: Tensor, width: int) -> Tensor:
    """Apply the composed kernel of one offset dy; sum over the three horizontal taps, each resized to ``width`` and
    shifted by its offset.

    Shapes ``(N, h, w, d)`` and ``(d, 3, D)`` -> ``(N, h, width * D)``.
    """
    n, h, w, _ = x.shape
    columns, channels = composed.shape[1:]
    z = (x @ composed.flatten(1)).reshape(n * h, w * columns, channels)  # dx beside w, as in memory
    along_x = resize_and_shift_matrix(w, width, z, columns).transpose(1, 2).flatten(1)  # columns (w, dx)
    return torch.bmm(along_x.expand(n * h, -1, -1), z).reshape(n, h, width * channels)
