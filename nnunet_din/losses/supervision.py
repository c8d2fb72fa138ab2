"""A loss of several outputs of one network."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn


class AuxiliaryLoss(nn.Module):
    """A loss of the segmentation and of the auxiliary outputs, all at the resolution of the target: the weighted mean.

    Parameters
    ----------
    loss
        Loss of one output, called with (logits, target).
    weight
        Weight of each auxiliary output; the segmentation has 1.
    """

    def __init__(self, loss: nn.Module, weight: float = 0.5):
        super().__init__()
        if weight < 0:
            raise ValueError(f"The weight of the auxiliary outputs must not be negative, got {weight}.")
        self.loss = loss
        self.weight = weight

    def forward(self, outputs: Sequence[Tensor], target: Tensor | Sequence[Tensor]) -> Tensor:
        """Compute the loss.

        Parameters
        ----------
        outputs
            Logits, the segmentation first, see :class:`nnunet_din.network.DualInteractionNetwork`.
        target
            Of every output; or a sequence that begins with it, as nnU-Net hands it over.

        Returns
        -------
        Tensor
            Scalar.
        """
        if not isinstance(target, Tensor):
            target = target[0]
        segmentation, *auxiliary = outputs
        total = self.loss(segmentation, target) + self.weight * sum(self.loss(output, target) for output in auxiliary)
        return total / (1 + self.weight * len(auxiliary))
