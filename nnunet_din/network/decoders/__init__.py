"""Decoders by the names they have in the plans: from the fused levels to logits."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from torch import nn

from nnunet_din.network.decoders.emcad import EMCADHead
from nnunet_din.network.decoders.segformer import SegFormerHead

#: Name in the plans -> class, called with (in_channels, num_classes, channels).
DECODERS: dict[str, Callable[..., nn.Module]] = {
    "segformer": SegFormerHead,
    "emcad": EMCADHead,  # Tables 11 and 12
}


def build_decoder(name: str, in_channels: Sequence[int], num_classes: int, channels: int) -> nn.Module:
    """Build the decoder called ``name``.

    Raises
    ------
    ValueError
        If the name is not known; the message lists those that are.
    """
    if name not in DECODERS:
        raise ValueError(f"Unknown decoder '{name}'. Known decoders: {', '.join(sorted(DECODERS))}.")
    return DECODERS[name](in_channels, num_classes, channels)
