"""Decoders by the names they have in the plans: from the fused levels to logits."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from torch import nn

from nnunet_din.data.names import check_known
from nnunet_din.network.alternatives.emcad import EMCADHead
from nnunet_din.network.decoders.segformer import SegFormerHead

#: Name in the plans -> class, called with (in_channels, num_classes, channels, kernel_size=...).
DECODERS: dict[str, Callable[..., nn.Module]] = {
    "segformer": SegFormerHead,
    "emcad": EMCADHead,  # Tables 11 and 12
}


def build_decoder(
    name: str, in_channels: Sequence[int], num_classes: int, channels: int, kernel_size: Sequence[int] = (3, 3)
) -> nn.Module:
    """Build the decoder called ``name``.

    Parameters
    ----------
    name
        A key of :data:`DECODERS`.
    in_channels, num_classes, channels
        Channels of the levels and of the logits, and the decoder's width.
    kernel_size
        Kernel size of its convolutions along each axis.

    Raises
    ------
    ValueError
        If the name is not known, the message lists those that are; if there are no channels; or if the decoder has no
        such kernels.
    """
    check_known("decoder", name, DECODERS)
    if channels < 1:
        raise ValueError(f"decoder_channels must be at least 1, got {channels}.")
    return DECODERS[name](in_channels, num_classes, channels, kernel_size=kernel_size)
