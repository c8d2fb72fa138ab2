"""The encoder of the Fully Convolutional Transformer (Tragakis, Kaul, Murray-Smith, Husmeier: The Fully Convolutional
Transformer for Medical Image Segmentation, WACV 2023, arXiv:2206.00566).

From the paper: widths and heads per stage, depthwise convolutional projections, the wide-focus module, the pyramid of
the image. Where it is silent, or the authors' two programs (TensorFlow, PyTorch) differ:

- Keys and values are strided by 2 (TensorFlow program), and a fused kernel never writes the attention matrix out. The
  published network does not attend at full resolution either: each of its stages pools before it attends.
- Each head is as wide as its stage (TensorFlow program): the 12 heads of stage 4 do not divide its 128 channels.
- Three branches of dilation 1, 2 and 3 in the wide focus, no activation behind the attention's 3 x 3 convolution
  (PyTorch program); no ReLU and no bias in the depthwise projections (TensorFlow program).
- No bias for the keys, which the softmax would cancel, and none in a LayerNorm that a linear layer with one follows.
- No LayerNorm on the image itself: over the channels of an image with one channel it would give zero.
"""

from __future__ import annotations

import torch
from timm.layers import DropPath, LayerNorm2d
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from nnunet_din.network.containers import ModuleList
from nnunet_din.network.encoders.base import Encoder


class FCTEncoder(Encoder):
    """Four stages of the Fully Convolutional Transformer, at 1, 1/2, 1/4 and 1/8 of the image.

    The published network pools in every stage, so that its four stages stand at 1/2 to 1/16. To give DIN the pyramid of
    the paper's ConvNeXt, the first stage does not pool with ``stem_stride`` 1; with 2 it does, and all is as published.
    Attention in the first stage costs the square of the image's area: 40 G multiply-adds at 224 x 224 with
    ``stem_stride`` 1, a sixteenth of it with 2.

    Parameters
    ----------
    in_channels
        Channels of the image.
    name
        ``fct``.
    layer_scale
        Not an option here: only the default (1e-6, or None) is accepted.
    drop_path_rate
        Stochastic depth of the last stage; it grows linearly from 0 in the first.
    checkpointing
        Whether only the input of each stage is kept for the backward pass, which computes the stage again.
    stem_stride
        1, or 2 for the published resolutions.

    Attributes
    ----------
    channels : tuple of int
        Widths of the four stages.
    stride_per_axis : tuple of int
        Each edge of the input must be a multiple of the axis' number.

    Raises
    ------
    ValueError
        If ``stem_stride`` is neither 1 nor 2, or ``layer_scale`` is set.
    """

    #: Widths and attention heads per stage, as in the paper.
    WIDTHS = (16, 32, 64, 128)
    HEADS = (2, 4, 8, 12)

    stages: ModuleList[Stage]

    def __init__(
        self,
        in_channels: int,
        name: str = "fct",
        layer_scale: float | None = 1e-6,
        drop_path_rate: float = 0.0,
        checkpointing: bool = False,
        stem_stride: int = 1,
    ):
        super().__init__()
        self.refuse(name, layer_scale=layer_scale)
        self.stride_per_axis = self.input_strides(name, stem_stride)
        self.name = name
        self.channels = self.WIDTHS
        self.checkpointing = checkpointing
        stages = zip((0, *self.WIDTHS), self.WIDTHS, self.HEADS, (stem_stride, 2, 2, 2), strict=False)
        self.stages = ModuleList(
            Stage(in_channels, d_in, d, heads, pool, drop_path_rate * i / 3)
            for i, (d_in, d, heads, pool) in enumerate(stages)
        )
        self.apply(_init)

    def forward(self, x: Tensor) -> list[tuple[Tensor, Tensor]]:
        """Encode, see :meth:`Encoder.forward`. f_low are the features after pooling, which enter the stage's
        transformer, and f_high is the stage's output.
        """
        pairs, features = [], None
        for stage in self.stages:
            if self.checkpointing and self.training:
                f_low, features = checkpoint(stage, x, features, use_reentrant=False)
            else:
                f_low, features = stage(x, features)
            pairs.append((f_low, features))
            x = F.avg_pool2d(x, stage.pool)
        return pairs


class Stage(nn.Module):
    """LayerNorm, the image of the same size beside it, two 3 x 3 convolutions, max pooling; then a transformer.

    Parameters
    ----------
    in_channels
        Channels of the image.
    dim_in
        Channels of the features before; 0 for the first stage, which has none.
    dim
        Channels d of the stage.
    heads
        Attention heads.
    pool
        Factor of the max pooling.
    drop_path_rate
        Stochastic depth of both branches of the transformer.
    """

    def __init__(self, in_channels: int, dim_in: int, dim: int, heads: int, pool: int, drop_path_rate: float):
        super().__init__()
        self.pool = pool
        if dim_in:
            self.norm = LayerNorm2d(dim_in, eps=1e-5)
            self.image = nn.Conv2d(in_channels, dim_in, kernel_size=3, padding=1)
        self.conv1 = nn.Conv2d(2 * dim_in or in_channels, dim, kernel_size=3, padding=1)
        self.conv2 = nn.Conv2d(dim, dim, kernel_size=3, padding=1)
        self.dropout = nn.Dropout(0.3)
        self.attention = ConvolutionalAttention(dim, heads)
        self.mix = nn.Conv2d(dim, dim, kernel_size=3, padding=1)
        self.mix_norm = LayerNorm2d(dim, eps=1e-5)
        self.wide_focus = WideFocus(dim)
        self.drop_path = DropPath(drop_path_rate)

    def forward(self, image: Tensor, features: Tensor | None) -> tuple[Tensor, Tensor]:
        """``(N, C, h, w)`` and ``(N, d_in, h, w)`` -> pooled features and output, ``(N, d, h / pool, w / pool)``."""
        x = image
        if features is not None:
            x = torch.cat([F.relu(self.image(image)), self.norm(features)], dim=1)
        x = F.relu(self.conv2(F.relu(self.conv1(x))))
        f_low = F.max_pool2d(self.dropout(x), self.pool)
        x = f_low + self.drop_path(self.mix(self.attention(f_low)))
        return f_low, x + self.drop_path(self.wide_focus(self.mix_norm(x)))


class ConvolutionalAttention(nn.Module):
    """Every pixel attends to all pixels of a map of half the size; Q, K and V come from depthwise convolutions.

    Parameters
    ----------
    dim
        Channels d.
    heads
        Heads, each with d channels.
    """

    def __init__(self, dim: int, heads: int):
        super().__init__()
        self.heads = heads
        self.depthwise = nn.ModuleList(
            nn.Conv2d(dim, dim, kernel_size=3, stride=stride, padding=1, groups=dim, bias=False) for stride in (1, 2, 2)
        )
        self.norms = nn.ModuleList(nn.LayerNorm(dim, bias=False) for _ in range(3))
        self.linear = nn.ModuleList(nn.Linear(dim, heads * dim, bias=bias) for bias in (True, False, True))
        self.project = nn.Linear(heads * dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        """Apply the module to a map ``(N, d, h, w)``; the result has the same shape."""
        q, k, v = (
            linear(norm(depthwise(x).flatten(2).transpose(1, 2))).unflatten(2, (self.heads, -1)).transpose(1, 2)
            for depthwise, norm, linear in zip(self.depthwise, self.norms, self.linear, strict=True)
        )  # (N, heads, pixels, d)
        y = self.project(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))
        return y.transpose(1, 2).unflatten(2, x.shape[-2:])


class WideFocus(nn.Module):
    """Three 3 x 3 convolutions of dilation 1, 2 and 3 side by side, summed, and one more.

    Parameters
    ----------
    dim
        Channels d.
    """

    def __init__(self, dim: int):
        super().__init__()
        self.branches = nn.ModuleList(
            nn.Conv2d(dim, dim, kernel_size=3, padding=dilation, dilation=dilation) for dilation in (1, 2, 3)
        )
        self.fuse = nn.Conv2d(dim, dim, kernel_size=3, padding=1)
        self.dropout = nn.Dropout(0.1)

    def forward(self, x: Tensor) -> Tensor:
        """Apply the module to a map ``(N, d, h, w)``; the result has the same shape."""
        y = sum(self.dropout(F.gelu(branch(x))) for branch in self.branches)
        return self.dropout(F.gelu(self.fuse(y)))


def _init(module: nn.Module) -> None:
    if isinstance(module, nn.Conv2d):
        nn.init.kaiming_normal_(module.weight)
    elif isinstance(module, nn.Linear):
        nn.init.xavier_uniform_(module.weight)
    if isinstance(module, nn.Conv2d | nn.Linear) and module.bias is not None:
        nn.init.zeros_(module.bias)
