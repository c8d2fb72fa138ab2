"""Plain 3 x 3 convolutions, the encoder of nnU-Net, for trainings from random weights."""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from nnunet_din.network.containers import ModuleList
from nnunet_din.network.encoders.base import Encoder

#: Widths of the four stages by the encoder's name: those of the ConvNeXt of that size.
WIDTHS = {
    "plain_atto": (40, 80, 160, 320),
    "plain_femto": (48, 96, 192, 384),
    "plain_pico": (64, 128, 256, 512),
    "plain_nano": (80, 160, 320, 640),
    "plain_tiny": (96, 192, 384, 768),
    "plain_base": (128, 256, 512, 1024),
}
#: Slope of the LeakyReLU for negative values, as in nnU-Net.
SLOPE = 0.01


class PlainEncoder(Encoder):
    """Four stages of convolution, instance normalization and LeakyReLU, with the resolutions and widths of a ConvNeXt.

    ConvNeXt's blocks add little to their shortcuts at first, and without pretrained weights it takes them thousands of
    steps to change that. Here there are no shortcuts, every layer is normalized, and all learn at once
    (docs/results.md). It has less arithmetic, too.

    f_low is the stage after its first convolution, which pools, f_high after its second.

    Parameters
    ----------
    in_channels
        Channels of the image.
    name
        One of :data:`WIDTHS`, for example ``plain_atto`` with the widths of ``convnext_atto``.
    layer_scale, drop_path_rate
        Not options here: only their defaults (1e-6 or None, and 0) are accepted.
    checkpointing
        Keep only the input of each convolution for the backward pass, and compute the rest again there.
    stem_stride
        Stride of the first stage, 1 or 2.

    Raises
    ------
    ValueError
        If an option is set that has no meaning here, or is out of range.
    """

    stages: ModuleList[nn.Sequential]

    def __init__(
        self,
        in_channels: int,
        name: str = "plain_tiny",
        layer_scale: float | None = 1e-6,
        drop_path_rate: float = 0.0,
        checkpointing: bool = False,
        stem_stride: int = 1,
    ):
        super().__init__()
        if layer_scale not in (None, 1e-6):
            raise ValueError(f"layer_scale={layer_scale} has no meaning for encoder '{name}': leave it out.")
        if drop_path_rate:
            raise ValueError(f"drop_path_rate={drop_path_rate} has no meaning for encoder '{name}': leave it out.")
        self.stride = self.input_stride(name, stem_stride)
        self.name = name
        self.channels = WIDTHS[name]
        self.checkpointing = checkpointing
        strides = (stem_stride, 2, 2, 2)
        self.stages = ModuleList(
            nn.Sequential(convolution(d_in, d_out, stride), convolution(d_out, d_out))
            for (d_in, d_out), stride in zip(pairwise((in_channels, *self.channels)), strides, strict=True)
        )

    def forward(self, x: Tensor) -> list[tuple[Tensor, Tensor]]:
        """Encode, see :meth:`Encoder.forward`."""
        pairs = []
        for first, second in self.stages:
            f_low = self._keeping_input(first, x)
            x = self._keeping_input(second, f_low)
            pairs.append((f_low, x))
        return pairs

    def _keeping_input(self, layer: nn.Module, x: Tensor) -> Tensor:
        if self.checkpointing and self.training:
            return checkpoint(layer, x, use_reentrant=False, preserve_rng_state=False)
        return layer(x)


def convolution(d_in: int, d_out: int, stride: int = 1) -> nn.Sequential:
    """3 x 3 convolution, instance normalization, LeakyReLU; weights drawn for unit gain (He et al. 2015)."""
    conv = nn.Conv2d(d_in, d_out, kernel_size=3, stride=stride, padding=1)
    nn.init.kaiming_normal_(conv.weight, a=SLOPE)
    if conv.bias is not None:
        nn.init.zeros_(conv.bias)
    return nn.Sequential(conv, InstanceNorm(d_out, affine=True), nn.LeakyReLU(SLOPE, inplace=True))


class InstanceNorm(nn.InstanceNorm2d):
    """Instance normalization that takes maps of a single pixel, too, which torch's module refuses."""

    def forward(self, x: Tensor) -> Tensor:
        """Shape ``(N, d, H, W)`` -> same."""
        return torch.instance_norm(x, self.weight, self.bias, None, None, True, 0.0, self.eps, True)
