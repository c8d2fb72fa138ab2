"""What the network needs of a fusion."""

from __future__ import annotations

from abc import ABC, abstractmethod

from torch import Tensor, nn


class Fusion(nn.Module, ABC):
    """Makes one feature map of those of all streams, at one scale.

    Attributes
    ----------
    needs_edges : bool
        Whether it uses f_low.
    one_encoder : bool
        Whether one encoder reads the concatenated inputs, in place of one encoder an input.
    """

    needs_edges: bool
    one_encoder: bool = False

    @abstractmethod
    def forward(self, *pairs: tuple[Tensor | None, Tensor]) -> Tensor:
        """Fuse ``(f_low, f_high)`` of every stream, each ``(N, d, *size)``, to ``(N, d, *size)``; without
        :attr:`needs_edges`, f_low may be None.
        """
