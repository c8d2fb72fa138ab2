"""Multi-scale boundary loss (DIN paper, eqs. 9 and 15)."""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from nnunet_din.losses.poolings import AVERAGE_POOLINGS, MAX_POOLINGS


def sobel_kernels(axes: int) -> Tensor:
    """Sobel kernels of eq. 15 along every axis, shape ``(axes, 1, 3, ...)``: (-1, 0, 1) along one axis and (1, 2, 1)
    along the others.
    """
    difference, smoothing = torch.tensor([-1.0, 0.0, 1.0]), torch.tensor([1.0, 2.0, 1.0])
    rows = ([difference if axis == along else smoothing for axis in range(axes)] for along in range(axes))
    return torch.stack([functools.reduce(lambda k, row: k[..., None] * row, row_of) for row_of in rows])[:, None]


def sobel(x: Tensor, kernels: Tensor) -> Tensor:
    """Sobel responses (eq. 15) of each channel along every axis: the horizontal and the vertical one of slices.

    The absolute weights of each kernel sum to 8 with two axes, and to 32 with three.

    Parameters
    ----------
    x
        Shape ``(N, K, *size)``, two or three axes. The border is continued by its own values, so that it is no edge.
    kernels
        Those of :func:`sobel_kernels`, once for each channel.

    Returns
    -------
    Tensor
        Shape ``(N, K * axes, *size)``: G_H and G_V of the first channel, then of the next.
    """
    axes = x.ndim - 2
    convolve = {2: F.conv2d, 3: F.conv3d}[axes]
    return convolve(F.pad(x, (1, 1) * axes, mode="replicate"), kernels, groups=x.shape[1])


class Scale(NamedTuple):
    """One scale of L_bnd.

    Attributes
    ----------
    factors : list of int
        Factor of the average pooling along each axis.
    kernels : Tensor
        Sobel kernels, once for each channel, divided by the number of responses: the loss is the sum of what they give.
    counts : Tensor or None
        Boolean, shape ``(N, 1, *pooled_size)``: responses that count. None: all.
    """

    factors: list[int]
    kernels: Tensor
    counts: Tensor | None


class MultiScaleBoundaryLoss(nn.Module):
    """L_bnd of eq. 9: the mean absolute difference of image gradients of prediction and truth, summed over scales.

    Pooling and Sobel filters are linear, so the gradients are taken once, of the difference of probabilities and truth.

    Parameters
    ----------
    scales
        Average-pooling factors; an image smaller than a factor skips that scale.
    normalized
        Whether the Sobel kernels are divided by the sum of their absolute weights, 8 with two axes and 32 with three,
        so that the response to a unit step is 1/2. False is the printed form, eight times as large; it can hold a young
        network at the background (see docs/method.md).
    pooled_axes
        Axes of the image that are pooled, 0 the first: ``(1, 2)`` where slices lie far apart. None: all.

    Raises
    ------
    ValueError
        If there is no scale, or one that is not a positive whole number; or if no axis is pooled.
    """

    def __init__(
        self, scales: Sequence[int] = (1, 2, 4), normalized: bool = True, pooled_axes: Sequence[int] | None = None
    ):
        super().__init__()
        if not scales or any(s < 1 or int(s) != s for s in scales):
            raise ValueError(f"scales must be positive whole numbers, got {scales}.")
        if pooled_axes is not None and not (pooled_axes and set(pooled_axes) <= {0, 1, 2}):
            raise ValueError(f"pooled_axes must name axes of the image, 0 to 2, got {pooled_axes}.")
        self.scales = tuple(int(s) for s in scales)
        self.normalized = normalized
        self.pooled_axes = None if pooled_axes is None else tuple(pooled_axes)
        for axes in (2, 3):
            kernels = sobel_kernels(axes)
            # A buffer moves to the device with the loss; a copy in every step would make the step wait.
            kernels = kernels / kernels[0].abs().sum() if normalized else kernels
            self.register_buffer(f"kernels_{axes}d", kernels, persistent=False)

    def forward(self, probabilities: Tensor, target: Tensor, valid: Tensor | None = None) -> Tensor:
        """Compute the loss.

        Parameters
        ----------
        probabilities
            Softmax (or sigmoid, for regions) of the logits, shape ``(N, K, *size)``, two or three axes, in [0, 1].
        target
            One-hot (or multi-hot) truth, same shape.
        valid
            Boolean, shape ``(N, 1, *size)``: pixels that count. A response whose Sobel window touches a pixel that does
            not is left out. None: all count.

        Returns
        -------
        Tensor
            Scalar, at least 0.
        """
        difference = probabilities - target
        return (self.gradient(difference.detach(), self.scales_of(target, difference.dtype, valid)) * difference).sum()

    def scales_of(self, target: Tensor, dtype: torch.dtype, valid: Tensor | None = None) -> list[Scale]:
        """Prepare the scales of maps in ``dtype`` for :meth:`gradient`; ``target`` and ``valid`` are those of
        :meth:`forward`.
        """
        n, channels, *size = target.shape
        axes = range(len(size))
        kernels = self.get_buffer(f"kernels_{len(axes)}d").to(target.device, dtype)
        kernels = kernels.repeat(channels, *[1] * (len(axes) + 1))
        scales = []
        for scale in self.scales:
            factors = [scale if self.pooled_axes is None or axis in self.pooled_axes else 1 for axis in axes]
            pooled = [edge // factor for edge, factor in zip(size, factors, strict=True)]
            if not all(pooled):
                continue
            counts = None if valid is None else untouched(valid, factors)
            pixels = n * math.prod(pooled) if counts is None else counts.sum().clamp_min(1)
            scales.append(Scale(factors, kernels / (pixels * channels * len(axes)), counts))
        return scales

    def gradient(self, difference: Tensor, scales: Sequence[Scale]) -> Tensor:
        """Compute the gradient with respect to the difference of probabilities and target, ``(N, K, *size)``.

        With the responses A d of the difference d, the loss is the sum of abs(A d) and its gradient A^T sign(A d),
        whose product with d is the loss again. So nothing but the gradient need be kept, where autograd would keep the
        responses: their plain ``abs`` under a checkpoint takes twice the memory, and 420 launches in place of 300.
        """
        gradients = (self._gradient(difference, scale) for scale in scales)
        return functools.reduce(Tensor.add_, gradients) if scales else torch.zeros_like(difference)

    @staticmethod
    @torch.enable_grad()
    def _gradient(difference: Tensor, scale: Scale) -> Tensor:
        d = difference.detach().requires_grad_()
        pooled = AVERAGE_POOLINGS[d.ndim - 2](d, scale.factors) if max(scale.factors) > 1 else d
        responses = sobel(pooled, scale.kernels)  # A d
        signs = responses.detach().sign_()
        if scale.counts is not None:
            signs *= scale.counts
        return torch.autograd.grad(responses, d, signs)[0]  # A^T sign(A d)


def untouched(valid: Tensor, factors: Sequence[int]) -> Tensor:
    """Pixels of the grid pooled by ``factors`` whose Sobel window holds valid pixels only; both ``(N, 1, *size)``."""
    max_pool = MAX_POOLINGS[len(factors)]
    invalid = max_pool((~valid).float(), factors)
    return max_pool(invalid, kernel_size=3, stride=1, padding=1) == 0
