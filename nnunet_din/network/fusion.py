"""How the streams of the encoders become one at each scale: DIFM and what the paper compares it with (Table 5)."""

from __future__ import annotations

import inspect

import torch
from torch import Tensor, nn

from nnunet_din.network.difm import DualInteractiveFusionModule
from nnunet_din.network.initialization import init_by_fan_in


class ConcatenationFusion(nn.Module):
    """Concatenate the high-level features of all streams and reduce them by a 3 x 3 convolution: layer fusion without
    DIFM, the paper's baseline (Table 3, first row) and Ours_concat (Table 5).

    Parameters
    ----------
    dim
        Channels d of the inputs and of the output.
    streams
        Number of streams.
    """

    needs_edges = False

    def __init__(self, dim: int, streams: int = 2):
        super().__init__()
        self.conv = nn.Conv2d(streams * dim, dim, kernel_size=3, padding=1)
        self.apply(init_by_fan_in)

    def forward(self, *pairs: tuple[Tensor, Tensor]) -> Tensor:
        """Fuse ``(f_low, f_high)`` of every stream, each ``(N, d, H, W)``, to ``(N, d, H, W)``."""
        return self.conv(torch.cat([f_high for _, f_high in pairs], dim=1))


class InputFusion(DualInteractiveFusionModule):
    """DIFM with self-attention behind one encoder, which reads all versions of the image concatenated (Ours_IF)."""

    #: One encoder reads the concatenated inputs, in place of one encoder an input.
    one_encoder = True


#: Name in the plans -> class, called with (dim, streams, **options); ``needs_edges`` says whether it uses f_low.
FUSIONS: dict[str, type[nn.Module]] = {
    "difm": DualInteractiveFusionModule,
    "concat": ConcatenationFusion,
    "input": InputFusion,
}


def get_fusion(name: str) -> type[nn.Module]:
    """The fusion called ``name``.

    Raises
    ------
    ValueError
        If the name is not known; the message lists those that are.
    """
    if name not in FUSIONS:
        raise ValueError(f"Unknown fusion '{name}'. Known fusions: {', '.join(sorted(FUSIONS))}.")
    return FUSIONS[name]


def build_fusion(name: str, dim: int, streams: int, **options) -> nn.Module:
    """Build the fusion called ``name`` for one scale.

    Raises
    ------
    ValueError
        If the name or an option is not known.
    """
    fusion = get_fusion(name)
    known = [option for option in inspect.signature(fusion).parameters if option not in ("dim", "streams")]
    unknown = sorted(set(options) - set(known))
    if unknown:
        raise ValueError(
            f"The network has no option {', '.join(unknown)} with fusion '{name}', which takes "
            f"{', '.join(known) or 'none of its own'}."
        )
    return fusion(dim, streams, **options)
