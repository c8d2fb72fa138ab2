"""A loss of several outputs of one network."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from nnunet_din.dimensions import resize


class AuxiliaryLoss(nn.Module):
    """The weighted mean of the loss of the segmentation and those of the auxiliary outputs.

    Auxiliary outputs are resized to the target, which keeps thin structures that a target of their resolution would
    lose. What lies between their logits and their loss is computed again in the backward pass, so that they take
    hardly any memory.

    Parameters
    ----------
    loss
        Loss of one output, called with (logits, target).
    weight
        Weight of each auxiliary output, at least 0; the segmentation has 1.

    Attributes
    ----------
    parts : dict of str to Tensor
        Those of the segmentation's last loss, if it has any, and ``auxiliary``: the mean of the others' losses.
    """

    def __init__(self, loss: nn.Module, weight: float = 0.5):
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
            Of the segmentation, see :class:`DINLoss`; or a sequence that begins with it, as nnU-Net hands it over.

        Returns
        -------
        Tensor
            Scalar.
        """
        if not isinstance(target, Tensor):
            target = target[0]
        segmentation, *auxiliary = outputs
        total = self.loss(segmentation, target)
        # Now: the other outputs go through the same loss.
        self.parts = dict(getattr(self.loss, "parts", {}))
        losses = [
            checkpoint(self._resized, logits, target, use_reentrant=False, preserve_rng_state=False)
            for logits in auxiliary
        ]
        for loss in losses:
            total = total + self.weight * loss
        if losses:
            self.parts["auxiliary"] = torch.stack([loss.detach() for loss in losses]).mean()
        return total / (1 + self.weight * len(auxiliary))

    def _resized(self, logits: Tensor, target: Tensor) -> Tensor:
        return self.loss(resize(_at_least_fp32(logits), target.shape[2:]), target)


def _at_least_fp32(x: Tensor) -> Tensor:
    return x.to(torch.promote_types(x.dtype, torch.float32))
