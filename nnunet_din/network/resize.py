"""Resizing along one axis as a product with a matrix, and products that leave out the zeros of such matrices."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

#: (first row, end row, first column, end column) of a block that holds what is not zero in its rows and columns.
Block = tuple[int, int, int, int]


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
    if len(factors) == 2 and factors[0] == factors[1]:
        return F.pixel_shuffle(x, factors[0])
    axes, size = len(factors), x.shape[2:]
    x = x.unflatten(1, (-1, *factors))  # (N, K, *factors, *size)
    pairs = [axis for i in range(axes) for axis in (2 + axes + i, 2 + i)]
    x = x.permute(0, 1, *pairs)
    return x.reshape(*x.shape[:2], *(n * r for n, r in zip(size, factors, strict=True)))


class BandedProducts(torch.autograd.Function):
    """``addend + sum_i matrix_i @ x_i``, computed on the blocks of the matrices that are not zero.

    ``BandedProducts.apply(addend, matrices, blocks, *xs)`` with ``addend`` of shape ``(B, n_out, F)`` or None,
    ``matrices`` of shape ``(n_out, n_i)``, which get no gradient, and ``xs`` of shape ``(B, n_i, F)``. The blocks of
    each matrix may overlap along columns; those of a group of rows follow each other. The result overwrites
    ``addend``.
    """

    @staticmethod
    def forward(
        ctx, addend: Tensor | None, matrices: Sequence[Tensor], blocks: Sequence[Sequence[Block]], *xs: Tensor
    ) -> Tensor:
        """Add the products of the blocks."""
        ctx.save_for_backward(*matrices)
        ctx.blocks, ctx.sizes = blocks, [x.shape[1] for x in xs]
        if addend is None:
            out = xs[0].new_empty(xs[0].shape[0], matrices[0].shape[0], xs[0].shape[2])
        else:
            out = addend
            ctx.mark_dirty(addend)
        written = set(range(out.shape[1]) if addend is not None else ())
        for matrix, x, blocks_of_x in zip(matrices, xs, blocks, strict=True):
            for top, bottom, left, right in blocks_of_x:
                block = matrix[top:bottom, left:right].expand(len(x), -1, -1)
                beta = int(top in written)  # 0: what is there does not count
                out[:, top:bottom].baddbmm_(block, x[:, left:right], beta=beta)
                written.add(top)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx, grad: Tensor) -> tuple[Tensor | None, ...]:
        """Multiply by the transposed blocks."""
        grads = []
        for matrix, size, blocks in zip(ctx.saved_tensors, ctx.sizes, ctx.blocks, strict=True):
            shape = (grad.shape[0], size, grad.shape[2])
            beta = int(len(blocks) > 1)  # 0: what is there does not count
            grad_x = grad.new_zeros(shape) if beta else grad.new_empty(shape)
            for top, bottom, left, right in blocks:
                block = matrix[top:bottom, left:right].T.expand(len(grad), -1, -1)
                grad_x[:, left:right].baddbmm_(block, grad[:, top:bottom], beta=beta)
            grads.append(grad_x)
        return grad if ctx.needs_input_grad[0] else None, None, None, *grads


def band_of_resize(n_in: int, n_out: int, rows: int = 16) -> list[Block]:
    """Blocks of :func:`resize_and_shift_matrix` for one of its taps, ``(n_out, n_in)``."""
    scale = n_in / n_out
    result = []
    for top in range(0, n_out, rows):
        bottom = min(top + rows, n_out)
        # Bilinear: pixel p reads floor(s) and floor(s) + 1 at s = (p + 1/2) scale - 1/2; the taps shift p by up to 1.
        left = int((top - 0.5) * scale - 0.5) - 1
        right = int((bottom + 0.5) * scale - 0.5) + 3
        result.append((top, bottom, max(left, 0), min(right, n_in)))
    return result
