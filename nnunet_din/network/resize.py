"""Resizing along one axis as a product with a matrix, and the pixel shuffle."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F


def resize_and_shift_matrix(n_in: int, n_out: int, like: Tensor, taps: int = 3) -> Tensor:
    """Linear resize U from ``n_in`` to ``n_out`` pixels, followed by the shifts S_-1, S_0, S_1 of a 3-tap kernel; or
    by none, where the kernel has one tap.

    Shape ``(n_out, taps, n_in)``, device and dtype of ``like``: ``[:, t]`` is S_(t-1) U, whose row p is row p + t - 1
    of U, or 0 outside.
    """
    dtype = torch.float64 if like.dtype == torch.float64 else torch.float32
    pixels, read = (torch.arange(n, device=like.device, dtype=dtype) for n in (n_out, n_in))
    source = ((pixels + 0.5) * (n_in / n_out) - 0.5).clamp(0, n_in - 1)  # where pixel p of the result lies
    resize = (1 - (source[:, None] - read).abs()).clamp(min=0)  # U, (n_out, n_in)
    padded = F.pad(resize, (0, 0, taps // 2, taps // 2))
    return torch.stack([padded[t : t + n_out] for t in range(taps)], dim=1).to(like.dtype)


def shuffle_pixels(x: Tensor, factors: Sequence[int]) -> Tensor:
    """Pixel shuffle (Shi et al.: CVPR 2016) by a factor of its own along each axis.

    Shape ``(N, K * prod(factors), *size)`` -> ``(N, K, *(factors * size))``. Channel (k, ry, rx) holds the pixels
    (factor y + ry, factor x + rx) of k.
    """
    axes, size = len(factors), x.shape[2:]
    x = x.unflatten(1, (-1, *factors))  # (N, K, *factors, *size)
    pairs = [axis for i in range(axes) for axis in (2 + axes + i, 2 + i)]
    x = x.permute(0, 1, *pairs)
    return x.reshape(*x.shape[:2], *(n * r for n, r in zip(size, factors, strict=True)))
