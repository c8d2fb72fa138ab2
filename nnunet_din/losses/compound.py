"""The whole loss of DIN (paper, eq. 10)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from nnunet_din.losses.boundary import MultiScaleBoundaryLoss
from nnunet_din.losses.dice import SoftDiceLoss


class DINLoss(nn.Module):
    """L = alpha CE + beta Dice + L_bnd (eq. 10), computed in fp32 whatever the autocast state.

    Parameters
    ----------
    weight_ce, weight_dice
        The weights alpha and beta.
    weight_boundary
        Weight of L_bnd; 0 leaves it out.
    regions
        Whether the K channels are overlapping regions (sigmoid, binary cross-entropy) or exclusive classes (softmax).
    ignore_label
        Exclusive classes: the label whose pixels do not count, or None. Regions: anything but None says that the
        target's last channel marks those pixels, as in nnU-Net.
    batch_dice, normalized_sobel, pooled_axes
        See :class:`SoftDiceLoss` and :class:`MultiScaleBoundaryLoss`.

    Attributes
    ----------
    parts : dict of str to Tensor
        The terms of the last loss, without their weights and detached: ``ce``, ``dice`` and, if it counts,
        ``boundary``.
    """

    def __init__(
        self,
        weight_ce: float = 0.3,
        weight_dice: float = 0.7,
        weight_boundary: float = 1.0,
        regions: bool = False,
        ignore_label: int | None = None,
        batch_dice: bool = True,
        normalized_sobel: bool = True,
        pooled_axes: Sequence[int] | None = None,
    ):
        super().__init__()
        self.weight_ce = weight_ce
        self.weight_dice = weight_dice
        self.weight_boundary = weight_boundary
        self.regions = regions
        self.ignore_label = ignore_label
        self.dice = SoftDiceLoss(batch_dice)
        self.parts: dict[str, Tensor] = {}
        self.boundary = None
        if weight_boundary:
            self.boundary = MultiScaleBoundaryLoss(normalized=normalized_sobel, pooled_axes=pooled_axes)

    def forward(self, logits: Tensor, target: Tensor) -> Tensor:
        """Compute the loss.

        Parameters
        ----------
        logits
            Network output, shape ``(N, K, *size)``, two or three axes.
        target
            Exclusive classes: label map, shape ``(N, 1, *size)``. Regions: multi-hot, shape ``(N, K, *size)``, or K +
            1 with the ignore mask last.

        Returns
        -------
        Tensor
            Scalar, fp32 (fp64 for fp64 logits).
        """
        with torch.autocast(logits.device.type, enabled=False):
            logits = logits if logits.dtype == torch.float64 else logits.float()
            if self.regions:
                return self._regions(logits, target)
            return self._labels(logits, target[:, 0].long())

    def _labels(self, logits: Tensor, labels: Tensor) -> Tensor:
        valid = None
        cross_entropy = F.cross_entropy(
            logits, labels, reduction="none", ignore_index=_ignore_index(self.ignore_label)
        )  # eq. 7
        if self.ignore_label is not None:
            valid = (labels != self.ignore_label)[:, None]
            labels = labels.masked_fill(~valid[:, 0], 0)
        one_hot = torch.zeros_like(logits).scatter_(1, labels[:, None], 1)
        return self._total(_masked_mean(cross_entropy[:, None], valid), logits.softmax(1), one_hot, valid)

    def _regions(self, logits: Tensor, target: Tensor) -> Tensor:
        valid = None
        if self.ignore_label is not None:
            target, valid = target[:, :-1], ~target[:, -1:].bool()
        target = target.to(logits.dtype)
        cross_entropy = F.binary_cross_entropy_with_logits(logits, target, reduction="none")
        return self._total(_masked_mean(cross_entropy, valid), logits.sigmoid(), target, valid)

    def _total(self, cross_entropy: Tensor, probabilities: Tensor, one_hot: Tensor, valid: Tensor | None) -> Tensor:
        dice = self.dice(probabilities, one_hot, valid)
        loss = self.weight_ce * cross_entropy + self.weight_dice * dice
        self.parts = {"ce": cross_entropy.detach(), "dice": dice.detach()}
        if self.boundary is not None:
            boundary = self.boundary(probabilities, one_hot, valid)
            loss = loss + self.weight_boundary * boundary
            self.parts["boundary"] = boundary.detach()
        return loss


def _ignore_index(ignore_label: int | None) -> int:
    return -100 if ignore_label is None else ignore_label


def _masked_mean(x: Tensor, valid: Tensor | None) -> Tensor:
    """Mean over valid pixels, ``(N, K, *size)`` and ``(N, 1, *size)``; 0 if there are none."""
    if valid is None:
        return x.mean()
    return (x * valid).sum() / (valid.sum() * x.shape[1]).clamp_min(1)
