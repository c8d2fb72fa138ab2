"""Dual interactive fusion module (DIN paper, section 3.1, Fig. 2b-d)."""

from __future__ import annotations

from collections.abc import Sequence
from functools import reduce

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from nnunet_din.data.names import check_known
from nnunet_din.network.containers import ModuleList
from nnunet_din.network.dimensions import convolution
from nnunet_din.network.fusion.attention import CrossAttention
from nnunet_din.network.fusion.base import Fusion
from nnunet_din.network.initialization import init_by_fan_in
from nnunet_din.network.ops import LAYER_NORMS, recompute

#: How a part of DIFM looks at the neighbours of a pixel: by a convolution of all channels, as the paper does; by one of
#: each channel and one of the pixel; not at all.
CONVOLUTION_KINDS = ("dense", "depthwise", "pointwise")


class FeatureMerging(nn.Module):
    """Merge low- and high-level features of one image by a convolution (eq. 1): 2d -> d channels.

    Parameters
    ----------
    dim
        Channels d.
    kernel_size
        Kernel size of the convolution along each axis.
    kind
        One of :data:`CONVOLUTION_KINDS`.
    """

    def __init__(self, dim: int, kernel_size: Sequence[int] = (3, 3), kind: str = "dense"):
        super().__init__()
        self.depthwise = depthwise(2 * dim, kernel_size, kind)
        self.conv = convolution(2 * dim, dim, dense_kernel(kernel_size, kind))

    def forward(self, f_low: Tensor, f_high: Tensor) -> Tensor:
        """Merge two maps ``(N, d, *size)`` to one of the same shape."""
        return recompute(lambda *pair: self.conv(self.depthwise(torch.cat(pair, dim=1))), f_low, f_high)


class GatedFeedForward(nn.Module):
    """Gated feed-forward network (eqs. 4 and 5).

    Parameters
    ----------
    dim
        Channels d.
    expansion
        Each of the two chunks has ``expansion * d`` channels.
    kernel_size
        Kernel size, along each axis, of the convolution that looks at neighbours.
    kind
        One of :data:`CONVOLUTION_KINDS`. "dense" is the last convolution, as in the paper; "depthwise" stands in front
        of the gate, as in Restormer (Zamir et al.: CVPR 2022).
    """

    def __init__(self, dim: int, expansion: int = 2, kernel_size: Sequence[int] = (3, 3), kind: str = "dense"):
        super().__init__()
        self.norm = LAYER_NORMS[len(kernel_size)](dim)
        self.expand = convolution(dim, 2 * expansion * dim, [1] * len(kernel_size))
        self.depthwise = depthwise(2 * expansion * dim, kernel_size, kind)
        self.project = convolution(expansion * dim, dim, dense_kernel(kernel_size, kind))

    def forward(self, f: Tensor) -> Tensor:
        """Apply the module to a map ``(N, d, *size)``; the result has the same shape."""
        return recompute(self._gated, f) + f  # eq. 5

    def _gated(self, f: Tensor) -> Tensor:
        f1, f2 = self.depthwise(self.expand(self.norm(f))).chunk(2, dim=1)  # eq. 4
        return self.project(F.gelu(f1) * f2)


def depthwise(channels: int, kernel_size: Sequence[int], kind: str) -> nn.Module:
    """Convolution of each channel by itself, where the kind has one."""
    check_known("kind of convolution", kind, CONVOLUTION_KINDS)
    return convolution(channels, channels, kernel_size, groups=channels) if kind == "depthwise" else nn.Identity()


def dense_kernel(kernel_size: Sequence[int], kind: str) -> Sequence[int]:
    """Kernel of the convolution of all channels."""
    return kernel_size if kind == "dense" else [1] * len(kernel_size)


def global_spatial_attention(f: Tensor) -> Tensor:
    """Gate each pixel by the sigmoid of its mean over channels (eq. 6); shape ``(N, d, *size)`` -> same."""
    return torch.sigmoid(f.mean(dim=1, keepdim=True)) * f


class DualInteractiveFusionModule(Fusion):
    """Fuse the features of the original and the enhanced image at one scale; or those of any number of streams.

    It needs only the pairs (f_low, f_high) of the encoders, and their width.

    Parameters
    ----------
    dim
        Channels d of the inputs and of the output.
    streams
        Number of streams: 2 in the paper. With 1, attention is self-attention.
    feature_merging
        Whether f_low and f_high are merged (eq. 1); without it, f_high alone counts.
    spatial_attention
        Whether global spatial attention gates the result (eq. 6).
    queries, window_size, num_heads
        See :class:`CrossAttention`.
    ffn_expansion
        See :class:`GatedFeedForward`.
    attention
        See :class:`CrossAttention`.
    kernel_size
        Kernel size of the merging's and the feed-forward network's convolutions along each axis.
    merging_convolution, ffn_convolution
        Kind of convolution by which the two look at neighbours (:data:`CONVOLUTION_KINDS`).
    joint_ffn
        Whether the directions are added in front of one feed-forward network and gate, and not behind one for each.
    """

    def __init__(
        self,
        dim: int,
        streams: int = 2,
        feature_merging: bool = True,
        spatial_attention: bool = True,
        queries: Sequence[int] | None = None,
        window_size: int | Sequence[int] = 7,
        num_heads: int = 1,
        ffn_expansion: int = 2,
        attention: str = "window",
        kernel_size: Sequence[int] = (3, 3),
        merging_convolution: str = "dense",
        ffn_convolution: str = "dense",
        joint_ffn: bool = False,
    ):
        super().__init__()
        self.needs_edges = feature_merging
        self.spatial_attention = spatial_attention
        self.joint_ffn = joint_ffn
        self.merging = None
        if feature_merging:
            self.merging = ModuleList(FeatureMerging(dim, kernel_size, merging_convolution) for _ in range(streams))
        self.attention = CrossAttention(dim, streams, queries, window_size, num_heads, attention, kernel_size)
        results = 1 if joint_ffn else len(self.attention.queries)
        self.ffn = ModuleList(
            GatedFeedForward(dim, ffn_expansion, kernel_size, ffn_convolution) for _ in range(results)
        )
        self.apply(init_by_fan_in)

    def forward(self, *pairs: tuple[Tensor | None, Tensor]) -> Tensor:
        """Fuse ``(f_low, f_high)`` of every stream, each ``(N, d, *size)``, to F_IE + F_EI, ``(N, d, *size)``."""
        streams = [f_high for _, f_high in pairs]
        if self.merging is not None:
            streams = [merge(*pair) for merge, pair in zip(self.merging, pairs, strict=True)]
        directions = self.attention(streams)
        if self.joint_ffn:
            directions = [reduce(torch.add, directions)]
        results = [ffn(f) for ffn, f in zip(self.ffn, directions, strict=True)]
        if self.spatial_attention:
            results = [global_spatial_attention(f) for f in results]
        return reduce(torch.add, results)
