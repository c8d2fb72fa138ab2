"""EMCAD as a decoder of DIN (Rahman, Munir, Marculescu: EMCAD: Efficient Multi-scale Convolutional Attention Decoding
for Medical Image Segmentation, CVPR 2024, arXiv:2405.06880); the DIN paper's Tables 11 and 12.

Equation numbers here are those of EMCAD's paper. Where it is silent, or DIN asks for something else:

- The paper expands by 2. The authors' decoder expands by 6 unless it is told otherwise, and the DIN paper's count
  speaks for 6: it prints 20.72 M parameters, here are 18.11 M on the same widths, and 6.64 M with 2. The missing 2.61 M
  seem to be no part of EMCAD: for the MLP decoder as well the paper prints 2.55 M more than it has.
- The gate works with half the channels, in as many groups (which gives the paper's 11.01 K for three gates). A shortcut
  leads around the multi-scale convolution. The shuffle has as many groups as the level has channels. Up-sampling
  repeats the nearest pixel. Weights are drawn from N(0, 0.02^2), biases are 0. All this is the authors' program.
- ReLU6 in the multi-scale convolution and ReLU elsewhere (eqs. 1 to 9); a spatial attention for each level (eq. 3; the
  program shares one).
- Only the last stage has a segmentation head. EMCAD trains with one at each stage and segments with the last; DIN has
  a single output.
- No bias in convolutions that a BatchNorm follows, which would cancel it.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from itertools import pairwise

import torch
from timm.layers import create_conv2d
from torch import Tensor, nn
from torch.nn import functional as F

from nnunet_din.network.alternatives import init_normal
from nnunet_din.network.dimensions import NoVolumesError

#: Kernel sizes of the multi-scale depthwise convolution (the paper's ablation, Table 5).
KERNEL_SIZES = (1, 3, 5)


class EMCADHead(nn.Module):
    """From the lowest resolution to the highest: attention and multi-scale convolutions on each level, up-sampling,
    the next level added through a gate.

    Parameters
    ----------
    in_channels
        Channels d_i of the levels, highest resolution first. All but the last must be even.
    num_classes
        Channels K of the logits.
    channels
        Not used: EMCAD decodes each level in its own width. It is here because every decoder is called with it.
    expansion
        Inner width of the multi-scale convolutions by that of the level: 2 in EMCAD's paper, 6 here for DIN's
        comparison, see above.
    kernel_size
        Not an option here: only 3 x 3 is accepted.

    Raises
    ------
    ValueError
        If the channels of a level with a gate are odd, or the kernels are of another size.
    """

    def __init__(
        self,
        in_channels: Sequence[int],
        num_classes: int,
        channels: int | None = None,
        expansion: int = 6,
        kernel_size: Sequence[int] = (3, 3),
    ):
        super().__init__()
        if tuple(kernel_size) != (3, 3):
            raise NoVolumesError("Decoder 'emcad' is for 2-D images and kernels of 3 x 3 only: use 'segformer'.")
        if odd := [d for d in in_channels[:-1] if d % 2]:
            raise ValueError(
                f"Decoder 'emcad' halves the channels of a level in its gate and cannot halve {odd[0]}: use an encoder "
                "with even widths or another decoder."
            )
        self.up = nn.ModuleList(UpConvolution(d_in, d_out) for d_out, d_in in pairwise(in_channels))
        self.gates = nn.ModuleList(AttentionGate(d) for d in in_channels[:-1])
        self.refine = nn.ModuleList(multi_scale_attention(d, expansion) for d in in_channels)
        self.classifier = nn.Conv2d(in_channels[0], num_classes, kernel_size=1)
        self.apply(init_normal)

    def forward(self, features: Sequence[Tensor]) -> Tensor:
        """Decode the levels ``(N, d_i, H_i, W_i)`` to logits ``(N, K, H_0, W_0)``.

        In training, BatchNorm needs more than one value for each channel: a level of 1 x 1 pixel more than one image.
        """
        y = self.refine[-1](features[-1])
        for i in reversed(range(len(self.up))):
            g = self.up[i](y, features[i].shape[-2:])
            y = self.refine[i](g + self.gates[i](g, features[i]))
        return self.classifier(y)  # SH, eq. 10


def multi_scale_attention(dim: int, expansion: int) -> nn.Sequential:
    """MSCAM: channel attention, spatial attention, multi-scale convolution, one after the other (eq. 3).

    Parameters
    ----------
    dim
        Channels d.
    expansion
        See :class:`MultiScaleConvolution`.
    """
    return nn.Sequential(
        OrderedDict(
            channel_attention=ChannelAttention(dim),
            spatial_attention=SpatialAttention(),
            convolution=MultiScaleConvolution(dim, expansion),
        )
    )


class ChannelAttention(nn.Module):
    """CAB: weigh each channel by its maximum and its mean over the image (eq. 7).

    The two share their layers. Nothing is normalized: there is one value for each channel and image.

    Parameters
    ----------
    dim
        Channels d.
    reduction
        Quotient of d and the channels in between, of which there is at least one.
    """

    def __init__(self, dim: int, reduction: int = 16):
        super().__init__()
        hidden = max(1, dim // reduction)
        self.reduce = create_conv2d(dim, hidden, 1)  # C_1
        self.restore = create_conv2d(hidden, dim, 1)  # C_2

    def forward(self, x: Tensor) -> Tensor:
        """Apply the module to a map ``(N, d, H, W)``; the result has the same shape."""
        pooled = x.amax(dim=(2, 3), keepdim=True), x.mean(dim=(2, 3), keepdim=True)  # P_m, P_a: (N, d, 1, 1)
        largest, average = (self.restore(F.relu(self.reduce(p))) for p in pooled)
        return torch.sigmoid(largest + average) * x  # eq. 7


class SpatialAttention(nn.Module):
    """SAB: weigh each pixel by a 7 x 7 convolution on the maximum and the mean of its channels (eq. 8)."""

    def __init__(self):
        super().__init__()
        self.conv = create_conv2d(2, 1, kernel_size=7)

    def forward(self, x: Tensor) -> Tensor:
        """Apply the module to a map ``(N, d, H, W)``; the result has the same shape."""
        pooled = torch.cat([x.amax(dim=1, keepdim=True), x.mean(dim=1, keepdim=True)], dim=1)  # (N, 2, H, W)
        return torch.sigmoid(self.conv(pooled)) * x  # eq. 8


class MultiScaleConvolution(nn.Module):
    """MSCB: an inverted residual block with depthwise convolutions of several sizes and a channel shuffle (eq. 4).

    Parameters
    ----------
    dim
        Channels d.
    expansion
        Inner channels by d, e.
    """

    def __init__(self, dim: int, expansion: int):
        super().__init__()
        self.expand = create_conv2d(dim, expansion * dim, 1)  # PWC_1
        self.expand_norm = nn.BatchNorm2d(expansion * dim)
        self.depthwise = MultiScaleDepthwise(expansion * dim)
        self.project = create_conv2d(expansion * dim, dim, 1)  # PWC_2
        self.project_norm = nn.BatchNorm2d(dim)

    def forward(self, x: Tensor) -> Tensor:
        """Apply the module to a map ``(N, d, H, W)``; the result has the same shape."""
        y = self.depthwise(F.relu6(self.expand_norm(self.expand(x)), inplace=True))  # (N, e d, H, W)
        y = F.channel_shuffle(y, groups=x.shape[1])  # Zhang et al.: ShuffleNet, CVPR 2018
        return x + self.project_norm(self.project(y))  # eq. 4


class MultiScaleDepthwise(nn.Module):
    """MSDC: the sum of depthwise convolutions of size 1, 3 and 5 side by side (eq. 5).

    Parameters
    ----------
    dim
        Channels d.
    """

    def __init__(self, dim: int):
        super().__init__()
        self.convs = nn.ModuleList(create_conv2d(dim, dim, k, groups=dim) for k in KERNEL_SIZES)
        self.norms = nn.ModuleList(nn.BatchNorm2d(dim) for _ in KERNEL_SIZES)

    def forward(self, x: Tensor) -> Tensor:
        """Apply the module to a map ``(N, d, H, W)``; the result has the same shape."""
        parts = zip(self.convs, self.norms, strict=True)
        one, three, five = (F.relu6(norm(conv(x)), inplace=True) for conv, norm in parts)
        return one + three + five  # eq. 5


class AttentionGate(nn.Module):
    """LGAG: weigh each pixel of a level by what grouped 3 x 3 convolutions see there and in the decoded features (eqs.
    1 and 2).

    Parameters
    ----------
    dim
        Channels d of both, even.
    """

    def __init__(self, dim: int):
        super().__init__()
        hidden = dim // 2
        self.conv_g = create_conv2d(dim, hidden, kernel_size=3, groups=hidden)  # GC_g
        self.conv_x = create_conv2d(dim, hidden, kernel_size=3, groups=hidden)  # GC_x
        self.norm_g = nn.BatchNorm2d(hidden)
        self.norm_x = nn.BatchNorm2d(hidden)
        self.weigh = create_conv2d(hidden, 1, 1)  # C
        self.weigh_norm = nn.BatchNorm2d(1)

    def forward(self, g: Tensor, x: Tensor) -> Tensor:
        """Weigh a level by the decoded features; both, and the result, have the shape ``(N, d, H, W)``."""
        q = F.relu(self.norm_g(self.conv_g(g)) + self.norm_x(self.conv_x(x)), inplace=True)  # eq. 1: (N, d / 2, H, W)
        return x * torch.sigmoid(self.weigh_norm(self.weigh(q)))  # eq. 2


class UpConvolution(nn.Module):
    """EUCB: up-sampling, a depthwise 3 x 3 convolution, and the channels of the next level (eq. 9).

    Parameters
    ----------
    dim_in, dim
        Channels before and after.
    """

    def __init__(self, dim_in: int, dim: int):
        super().__init__()
        self.depthwise = create_conv2d(dim_in, dim_in, kernel_size=3, groups=dim_in)
        self.norm = nn.BatchNorm2d(dim_in)
        self.pointwise = nn.Conv2d(dim_in, dim, kernel_size=1)

    def forward(self, x: Tensor, size: Sequence[int]) -> Tensor:
        """Shape ``(N, d_in, h, w)`` -> ``(N, d, *size)``; the paper's size is twice that of ``x``."""
        x = F.interpolate(x, size=tuple(size), mode="nearest-exact")
        return self.pointwise(F.relu(self.norm(self.depthwise(x)), inplace=True))  # eq. 9
