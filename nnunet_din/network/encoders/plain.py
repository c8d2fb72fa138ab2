"""Plain convolutions, the encoder of nnU-Net, for trainings from random weights."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn

from nnunet_din.network.containers import ModuleList
from nnunet_din.network.dimensions import convolution
from nnunet_din.network.encoders.base import Encoder, OfStages, kernels_of_stages, strides_of_stages
from nnunet_din.network.ops import recompute

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
        Whether only the input of each convolution is kept for the backward pass, which computes the rest again.
    stem_stride
        Stride of the first stage, 1 or 2; for images with two axes.
    strides
        Strides of the first convolutions of the stages, 1 or 2 for each of two or three axes. None: ``stem_stride``,
        then 2.
    kernel_sizes
        Kernels of the stages, 1 or 3 for each axis. None: 3.

    Raises
    ------
    ValueError
        If an option is set that has no meaning here, or is out of range.
    """

    takes_strides = True
    learning_rate = 1e-3
    stages: ModuleList[nn.Sequential]

    def __init__(
        self,
        in_channels: int,
        name: str = "plain_tiny",
        layer_scale: float | None = 1e-6,
        drop_path_rate: float = 0.0,
        checkpointing: bool = False,
        stem_stride: int = 1,
        strides: OfStages | None = None,
        kernel_sizes: OfStages | None = None,
    ):
        super().__init__()
        self.refuse(name, layer_scale=layer_scale, drop_path_rate=drop_path_rate)
        self.stride_per_axis = self.input_strides(name, stem_stride, strides)
        self.name = name
        self.channels = WIDTHS[name]
        self.checkpointing = checkpointing
        strides = strides_of_stages(stem_stride, strides)
        kernels = kernels_of_stages(kernel_sizes, 3, len(self.stride_per_axis))
        if any(k not in (1, 3) for kernel in kernels for k in kernel):
            raise ValueError(f"kernel_sizes of encoder '{name}' must be 1 or 3 along each axis, got {kernel_sizes}.")
        widths = pairwise((in_channels, *self.channels))
        self.stages = ModuleList(
            nn.Sequential(layer(d_in, d_out, kernel, stride), layer(d_out, d_out, kernel))
            for (d_in, d_out), kernel, stride in zip(widths, kernels, strides, strict=True)
        )

    def forward(self, x: Tensor) -> list[tuple[Tensor, Tensor]]:
        """Encode, see :meth:`Encoder.forward`."""
        pairs = []
        for first, second in self.stages:
            f_low = recompute(first, x) if self.checkpointing else first(x)
            x = recompute(second, f_low) if self.checkpointing else second(f_low)
            pairs.append((f_low, x))
        return pairs


def layer(d_in: int, d_out: int, kernel_size: Sequence[int], stride: int | Sequence[int] = 1) -> nn.Sequential:
    """Convolution, instance normalization, LeakyReLU; weights drawn for unit gain (He et al. 2015)."""
    conv = convolution(d_in, d_out, kernel_size, stride)
    nn.init.kaiming_normal_(conv.weight, a=SLOPE)
    if conv.bias is not None:
        nn.init.zeros_(conv.bias)
    return nn.Sequential(conv, InstanceNorm(d_out, affine=True), nn.LeakyReLU(SLOPE, inplace=True))


class InstanceNorm(nn.InstanceNorm2d):
    """Instance normalization of maps with any number of axes, even of a single pixel, which torch's module refuses."""

    def forward(self, x: Tensor) -> Tensor:
        """Shape ``(N, d, *size)`` -> same."""
        if x.device.type == "cpu":
            # torch's instance_norm copies maps with the channels last. Its gradient for a batch of one is wrong there
            # if the gradient that comes back has the channels last (torch 2.15).
            return torch.group_norm(x, self.num_features, self.weight, self.bias, self.eps)
        # For group_norm, autocast on a GPU would make fp32 of half precision.
        return torch.instance_norm(x, self.weight, self.bias, None, None, True, 0.0, self.eps, True)
