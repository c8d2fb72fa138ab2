"""Multi-scale boundary loss (DIN paper, eqs. 9 and 15)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from nnunet_din.dimensions import AVERAGE_POOLINGS, MAX_POOLINGS


def sobel(x: Tensor) -> Tensor:
    """Sobel responses (eq. 15) of each channel along every axis: the horizontal and the vertical one of slices.

    The kernels are separable, a difference along one axis and weighted sums along the others; the absolute weights of
    each sum to 8 with two axes, and to 32 with three.

    Parameters
    ----------
    x
        Shape ``(N, K, *size)``, two or three axes. The border is continued by its own values, so that it is no edge.

    Returns
    -------
    Tensor
        Shape ``(N, K, axes, *size)``.
    """
    axes = range(2, x.ndim)
    padded = F.pad(x, (1, 1) * len(axes), mode="replicate")
    responses = []
    for axis in axes:  # G_H, G_V
        response = _difference(padded, axis)
        for across in axes:
            if across != axis:
                response = _smooth(response, across)
        responses.append(response)
    return torch.stack(responses, dim=2)


def _difference(x: Tensor, axis: int) -> Tensor:
    """Apply the weights (-1, 0, 1) along an axis, which loses two pixels."""
    length = x.shape[axis] - 2
    return x.narrow(axis, 2, length) - x.narrow(axis, 0, length)


def _smooth(x: Tensor, axis: int) -> Tensor:
    """Apply the weights (1, 2, 1) along an axis, which loses two pixels."""
    pairs = x.narrow(axis, 0, x.shape[axis] - 1) + x.narrow(axis, 1, x.shape[axis] - 1)
    return pairs.narrow(axis, 0, pairs.shape[axis] - 1) + pairs.narrow(axis, 1, pairs.shape[axis] - 1)


class MultiScaleBoundaryLoss(nn.Module):
    """L_bnd of eq. 9: the mean absolute difference of image gradients of prediction and truth, summed over scales.

    Pooling and Sobel filters are linear, so the gradients are taken once, of the difference of probabilities and truth.

    Parameters
    ----------
    scales
        Average-pooling factors; an image smaller than a factor skips that scale.
    normalized
        Divide the Sobel kernels by the sum of their absolute weights, 8 with two axes and 32 with three, so that the
        response to a unit step is 1/2. False is the printed form, eight times as large; it can hold a young network at
        the background (see docs/method.md).
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
        difference = probabilities - target.to(probabilities.dtype)
        if valid is not None:
            difference = difference * valid
        size = difference.shape[2:]
        pooled_axes = range(len(size)) if self.pooled_axes is None else self.pooled_axes
        loss = difference.new_zeros(())
        for scale in self.scales:
            factors = [scale if axis in pooled_axes else 1 for axis in range(len(size))]
            if any(edge < factor for edge, factor in zip(size, factors, strict=True)):
                continue
            response = sobel(AVERAGE_POOLINGS[len(size)](difference, factors) if scale > 1 else difference).abs()
            if valid is None:
                loss = loss + response.mean()
            else:
                counts = self._untouched(valid, factors)[:, :, None].to(response.dtype)
                n_responses = counts.sum() * response.shape[1] * response.shape[2]
                loss = loss + (response * counts).sum() / n_responses.clamp_min(1)
        return loss / (2 * 4 ** (len(size) - 1)) if self.normalized else loss

    @staticmethod
    def _untouched(valid: Tensor, factors: Sequence[int]) -> Tensor:
        """Pixels of the pooled grid whose Sobel window holds valid pixels only."""
        max_pool = MAX_POOLINGS[len(factors)]
        invalid = 1.0 - valid.float()
        if max(factors) > 1:
            invalid = max_pool(invalid, factors)
        return max_pool(invalid, kernel_size=3, stride=1, padding=1) == 0

    def extra_repr(self) -> str:
        return f"scales={self.scales}, normalized={self.normalized}, pooled_axes={self.pooled_axes}"
