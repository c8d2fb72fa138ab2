"""Fusions that the paper compares DIFM with."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from nnunet_din.network.dimensions import convolution
from nnunet_din.network.fusion.base import Fusion
from nnunet_din.network.fusion.difm import DualInteractiveFusionModule
from nnunet_din.network.initialization import init_by_fan_in


class ConcatenationFusion(Fusion):
    """Concatenate the high-level features of all streams and reduce them by a convolution: layer fusion without
    DIFM, the paper's baseline (Table 3, first row) and Ours_concat (Table 5).

    Parameters
    ----------
    dim
        Channels d of the inputs and of the output.
    streams
        Number of streams.
    kernel_size
        Kernel size of the convolution along each axis.
    """

    needs_edges = False

    def __init__(self, dim: int, streams: int = 2, kernel_size: Sequence[int] = (3, 3)):
        super().__init__()
        self.conv = convolution(streams * dim, dim, kernel_size)
        self.apply(init_by_fan_in)

    def forward(self, *pairs: tuple[Tensor | None, Tensor]) -> Tensor:
        """Fuse ``(f_low, f_high)`` of every stream, each ``(N, d, *size)``, to ``(N, d, *size)``."""
        return self.conv(torch.cat([f_high for _, f_high in pairs], dim=1))


class InputFusion(DualInteractiveFusionModule):
    """DIFM with self-attention behind one encoder, which reads all versions of the image concatenated (Ours_IF)."""

    #: One encoder reads the concatenated inputs, in place of one encoder an input.
    one_encoder = True
