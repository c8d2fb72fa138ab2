"""Multi-scale boundary loss (DIN paper, eqs. 9 and 15)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F


def sobel(x: Tensor) -> Tensor:
    """Horizontal and vertical Sobel responses (eq. 15) of each channel.

    The kernels are separable, a difference along one axis and a weighted sum along the other; the absolute weights of
    each sum to 8.

    Parameters
    ----------
    x
        Shape ``(N, K, H, W)``. The border is continued by its own values, so that it is no edge.

    Returns
    -------
    Tensor
        Shape ``(N, K, 2, H, W)``.
    """
    padded = F.pad(x, (1, 1, 1, 1), mode="replicate")
    responses = [_smooth(_difference(padded, axis), across) for axis, across in ((2, 3), (3, 2))]  # G_H, G_V
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
        Divide the Sobel kernels by 8, so that the response to a unit step is 1/2. False is the printed form, eight
        times as large; it can hold a young network at the background (see docs/method.md).
    """

    def __init__(self, scales: Sequence[int] = (1, 2, 4), normalized: bool = True):
        super().__init__()
        if not scales or any(s < 1 or int(s) != s for s in scales):
            raise ValueError(f"scales must be positive whole numbers, got {scales}.")
        self.scales = tuple(int(s) for s in scales)
        self.normalized = normalized

    def forward(self, probabilities: Tensor, target: Tensor, valid: Tensor | None = None) -> Tensor:
        """Compute the loss.

        Parameters
        ----------
        probabilities
            Softmax (or sigmoid, for regions) of the logits, shape ``(N, K, H, W)``, in [0, 1].
        target
            One-hot (or multi-hot) truth, same shape.
        valid
            Boolean, shape ``(N, 1, H, W)``: pixels that count. A response whose Sobel window touches a pixel that does
            not is left out. None: all count.

        Returns
        -------
        Tensor
            Scalar, at least 0.
        """
        difference = probabilities - target.to(probabilities.dtype)
        if valid is not None:
            difference = difference * valid
        loss = difference.new_zeros(())
        for scale in self.scales:
            if min(difference.shape[-2:]) < scale:
                continue
            response = sobel(F.avg_pool2d(difference, scale) if scale > 1 else difference).abs()
            if valid is None:
                loss = loss + response.mean()
            else:
                counts = self._untouched(valid, scale)[:, :, None].to(response.dtype)
                n_responses = counts.sum() * response.shape[1] * response.shape[2]
                loss = loss + (response * counts).sum() / n_responses.clamp_min(1)
        return loss / 8 if self.normalized else loss

    @staticmethod
    def _untouched(valid: Tensor, scale: int) -> Tensor:
        """Pixels of the pooled grid whose 3 x 3 window holds valid pixels only."""
        invalid = 1.0 - valid.float()
        if scale > 1:
            invalid = F.max_pool2d(invalid, scale)
        return F.max_pool2d(invalid, kernel_size=3, stride=1, padding=1) == 0

    def extra_repr(self) -> str:
        return f"scales={self.scales}, normalized={self.normalized}"
