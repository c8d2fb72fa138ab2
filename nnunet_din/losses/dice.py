"""Soft Dice loss over the whole batch (DIN paper, eq. 8)."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class SoftDiceLoss(nn.Module):
    """1 - soft Dice, averaged over all classes, background included (eq. 8).

    Parameters
    ----------
    batch_dice
        Sum over the pixels of the whole batch, of all processes under DDP, before dividing (eq. 8 as printed); False:
        per image.
    smooth
        Added to numerator and denominator: a class absent from both truth and prediction costs nothing.
    """

    def __init__(self, batch_dice: bool = True, smooth: float = 1e-5):
        super().__init__()
        self.batch_dice = batch_dice
        self.smooth = smooth

    def forward(self, probabilities: Tensor, target: Tensor, valid: Tensor | None = None) -> Tensor:
        """Compute the loss: probabilities and one-hot target ``(N, K, *size)``, valid pixels ``(N, 1, *size)`` or None;
        scalar in [0, 1].
        """
        target = target.to(probabilities.dtype)
        if valid is not None:
            probabilities, target = probabilities * valid, target * valid
        axes = tuple(range(2, target.ndim))
        if self.batch_dice:
            axes = (0, *axes)
        intersection = (probabilities * target).sum(axes)
        total = probabilities.sum(axes) + target.sum(axes)
        if self.batch_dice:
            intersection, total = _sum_over_processes(intersection), _sum_over_processes(total)
        return 1 - ((2 * intersection + self.smooth) / (total + self.smooth)).mean()


def _sum_over_processes(x: Tensor) -> Tensor:
    """Sum over the processes of a DDP training, differentiably; elsewhere this is the identity."""
    if (
        torch.distributed.is_available()
        and torch.distributed.is_initialized()
        and torch.distributed.get_world_size() > 1
    ):
        from torch.distributed.nn.functional import all_reduce

        return all_reduce(x)
    return x
