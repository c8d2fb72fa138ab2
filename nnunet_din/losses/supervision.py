"""A loss of several outputs of one network."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from nnunet_din.losses.compound import DINLoss


class AuxiliaryLoss(nn.Module):
    """The weighted mean of the loss of the segmentation and those of the auxiliary outputs.

    Each output is compared with the truth at its own resolution. That truth is the share of each class in a pixel, in
    which thin structures stay that a choice of one class would lose.

    Parameters
    ----------
    loss
        Loss of one output.
    weight
        Weight of each auxiliary output, at least 0; the segmentation has 1.

    Attributes
    ----------
    parts : dict of str to Tensor
        Parts of the segmentation's last loss, and ``auxiliary``: the mean of the others' losses.
    """

    def __init__(self, loss: DINLoss, weight: float = 0.5):
        super().__init__()
        if weight < 0:
            raise ValueError(f"The weight of the auxiliary outputs must not be negative, got {weight}.")
        self.loss = loss
        self.weight = weight
        self.parts: dict[str, Tensor] = {}

    def forward(self, outputs: Sequence[Tensor], target: Tensor | Sequence[Tensor]) -> Tensor:
        """Compute the loss.

        Parameters
        ----------
        outputs
            Logits: those of the segmentation, ``(N, K, *size)``, then the auxiliary ones, ``(N, K, *size_i)``.
        target
            Truth of the segmentation, see :class:`DINLoss`; or a sequence that begins with it, as nnU-Net passes it.

        Returns
        -------
        Tensor
            Scalar.
        """
        losses = self.loss.of_outputs(outputs, target if isinstance(target, Tensor) else target[0])
        self.parts = dict(self.loss.parts)
        if len(losses) == 1:
            return losses[0]
        auxiliary = losses[1:].mean()
        self.parts["auxiliary"] = auxiliary.detach()
        weight = self.weight * (len(losses) - 1)
        return torch.lerp(losses[0], auxiliary, weight / (1 + weight))
