"""Soft Dice loss over the whole batch (DIN paper, eq. 8)."""

from __future__ import annotations

import torch
from torch import Tensor, distributed, nn


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
        if valid is not None:
            probabilities, target = probabilities * valid, target * valid
        return self.of_sums(self.sum(probabilities * target), self.sum(probabilities), self.sum(target))

    def sum(self, x: Tensor) -> Tensor:
        """Sum ``(N, K, *size)`` over the pixels of this process: ``(K,)``, or ``(N, K)`` per image."""
        return x.sum([axis for axis in range(x.ndim) if axis > 1 or (axis == 0 and self.batch_dice)])

    def of_sums(self, intersection: Tensor, volume: Tensor, true_volume: Tensor) -> Tensor:
        """Compute the loss from the sums (:meth:`sum`) of probabilities times target, probabilities and target, each
        of which may have a leading axis of several outputs; shape ``()`` or ``(outputs,)``.
        """
        total = volume + true_volume
        if self.batch_dice and distributed.is_available() and distributed.is_initialized():
            from torch.distributed.nn.functional import all_reduce  # torch without processes does not have it

            intersection, total = all_reduce(torch.stack([intersection, total]), group=distributed.group.WORLD)
        dice = (2 * intersection + self.smooth) / (total + self.smooth)
        return 1 - dice.mean(-1 if self.batch_dice else (-2, -1))
