"""Multi-scale boundary loss (DIN paper, eqs. 9 and 15)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from nnunet_din.dimensions import AVERAGE_POOLINGS, MAX_POOLINGS

#: Elements of the maps that a CPU filters at once: its cache holds them and all that lies between.
CHUNK_ELEMENTS = 1 << 17


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
    return torch.stack(_responses(_continue_border(x), range(2, x.ndim)), dim=2)  # G_H, G_V


class SobelSum(torch.autograd.Function):
    """Sum of all absolute Sobel responses, ``(sobel(x).abs() * weight[:, :, None]).sum()``.

    ``SobelSum.apply(x, weight)`` with ``x`` of shape ``(N, K, *size)`` and ``weight`` of shape ``(N, 1, *size)``, which
    gets no gradient, or None: 1 for every pixel.

    What comes after the sum only scales its gradient. So the gradient is computed beside the value: no response is kept
    for the backward pass, and a CPU filters a few channels at a time, which stay in its cache.
    """

    @staticmethod
    def forward(ctx, x: Tensor, weight: Tensor | None) -> Tensor:
        """Sum, and compute the gradient if somebody will ask for it."""
        gradient = torch.empty_like(x, memory_format=torch.contiguous_format) if ctx.needs_input_grad[0] else None
        n, channels = x.shape[:2]
        images, at_once = [slice(n)], channels
        if x.device.type == "cpu":
            images, at_once = [slice(i, i + 1) for i in range(n)], max(1, CHUNK_ELEMENTS // x[0, 0].numel())
        total = x.new_zeros(())
        for image in images:
            for first in range(0, channels, at_once):
                chunk = (image, slice(first, first + at_once))
                total += _sobel_sum(
                    x[chunk],
                    None if weight is None else weight[image],
                    None if gradient is None else gradient[chunk],
                )
        if gradient is not None:
            ctx.save_for_backward(gradient)
        return total

    @staticmethod
    @once_differentiable
    def backward(ctx, grad: Tensor) -> tuple[Tensor, None]:
        """Scale the gradient."""
        (gradient,) = ctx.saved_tensors
        return grad * gradient, None


def _sobel_sum(x: Tensor, weight: Tensor | None, gradient: Tensor | None) -> Tensor:
    """The sum for maps ``(N, K, *size)``; its gradient goes into ``gradient``, if that is given."""
    axes = range(2, x.ndim)
    responses = _responses(_continue_border(x), axes)
    weighted = (response.abs() if weight is None else response.abs() * weight for response in responses)
    total = torch.stack([response.sum() for response in weighted]).sum()
    if gradient is None:
        return total
    signs = [response.sign_() if weight is None else response.sign_() * weight for response in responses]
    back = _fold_border(_transposed([F.pad(sign, (2, 2) * len(axes)) for sign in signs], axes), axes)
    gradient.copy_(back)
    return total


def _continue_border(x: Tensor) -> Tensor:
    """Continue a map ``(N, K, *size)`` by one pixel on every side, by its own values."""
    return F.pad(x, (1, 1) * (x.ndim - 2), mode="replicate")


def _fold_border(x: Tensor, axes: Sequence[int]) -> Tensor:
    """The transpose of :func:`_continue_border`; overwrites ``x``."""
    for axis in axes:
        last = x.shape[axis] - 1
        x.narrow(axis, 1, 1).add_(x.narrow(axis, 0, 1))
        x.narrow(axis, last - 1, 1).add_(x.narrow(axis, last, 1))
        x = x.narrow(axis, 1, last - 1)
    return x


def _responses(x: Tensor, axes: Sequence[int]) -> list[Tensor]:
    """Apply the Sobel kernels along every axis; what they share is computed once."""
    along, *across = axes
    response = _difference(x, along)
    for axis in across:
        response = _smooth(response, axis)
    return [response, *(_responses(_smooth(x, along), across) if across else [])]


def _transposed(responses: Sequence[Tensor], axes: Sequence[int]) -> Tensor:
    """The transpose of :func:`_responses`, of responses that are surrounded by two zeros on every side.

    So surrounded, the transpose of smoothing is smoothing, and that of the difference its negative.
    """
    along, *across = axes
    x = responses[0]
    for axis in across:
        x = _smooth(x, axis)
    x = _difference(x, along).neg_()
    return x.add_(_smooth(_transposed(responses[1:], across), along)) if across else x


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
            pooled = AVERAGE_POOLINGS[len(size)](difference, factors) if scale > 1 else difference
            if valid is None:
                loss = loss + SobelSum.apply(pooled, None) / (pooled.numel() * len(size))
            else:
                counts = self._untouched(valid, factors).to(pooled.dtype)
                n_responses = counts.sum() * pooled.shape[1] * len(size)
                loss = loss + SobelSum.apply(pooled, counts) / n_responses.clamp_min(1)
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
