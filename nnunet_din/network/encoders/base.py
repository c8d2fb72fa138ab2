"""What the network needs of an encoder."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence

from torch import Tensor, nn


class Encoder(nn.Module, ABC):
    """Stages of halving resolution, each with a low- and a high-level feature map.

    The methods here suit an encoder of four stages, the first at the resolution of the image or, behind a stem of
    stride 2, at half of it; others replace them.

    Attributes
    ----------
    name : str
        Name of the encoder in the plans.
    channels : tuple of int
        Channels of each stage.
    stride : int
        Height and width of the image must be multiples of this.
    stages : torch.nn.Sequential or torch.nn.ModuleList
        The stages' layers.
    """

    name: str
    channels: tuple[int, ...]
    stride: int
    stages: nn.Sequential | nn.ModuleList

    @staticmethod
    def input_stride(name: str, stem_stride: int = 1) -> int:
        """What :attr:`stride` will be, without building anything; ValueError if ``stem_stride`` is out of range."""
        if stem_stride not in (1, 2):
            raise ValueError(f"stem_stride must be 1 or 2, got {stem_stride}.")
        return 8 * stem_stride

    def keep_stages(self, count: int) -> None:
        """Leave out the stages after the first ``count``."""
        self.stages = self.stages[:count]
        self.channels = self.channels[:count]

    def leave_out_edges(self) -> None:
        """Drop the layers that only f_low needs, which some fusions do not use, and give None for it. Without such
        layers, nothing changes.
        """

    @abstractmethod
    def forward(self, x: Tensor) -> Sequence[tuple[Tensor | None, Tensor]]:
        """Encode a batch of images.

        Parameters
        ----------
        x
            Image, shape ``(N, C, H, W)``; H and W multiples of :attr:`stride`.

        Returns
        -------
        list of (Tensor, Tensor)
            Per stage ``(f_low, f_high)``, both ``(N, d_i, H_i, W_i)``.
        """
