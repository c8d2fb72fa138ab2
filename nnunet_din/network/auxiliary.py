"""Additional outputs that DIN has in training only."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from nnunet_din.network.containers import ModuleList
from nnunet_din.network.dimensions import convolution
from nnunet_din.network.initialization import init_by_fan_in


class AuxiliaryHeads(nn.Module):
    """A 1 x 1 classifier for each level.

    Parameters
    ----------
    in_channels
        Channels d_i of the levels.
    num_classes
        Channels K of the logits.
    dimensions
        Number of axes of the levels.
    """

    def __init__(self, in_channels: Sequence[int], num_classes: int, dimensions: int = 2):
        super().__init__()
        # nnU-Net's fine-tuning takes every entry from the pretrained weights but those with this name.
        self.seg_layers = ModuleList(convolution(d, num_classes, [1] * dimensions) for d in in_channels)
        self.apply(init_by_fan_in)

    def forward(self, features: Sequence[Tensor]) -> list[Tensor]:
        """Classify the levels ``(N, d_i, *size_i)``: logits ``(N, K, *size_i)``."""
        return [layer(x) for layer, x in zip(self.seg_layers, features, strict=True)]
