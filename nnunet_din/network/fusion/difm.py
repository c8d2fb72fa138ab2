"""Dual interactive fusion module (DIN paper, section 3.1, Fig. 2b-d)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from nnunet_din.dimensions import convolution
from nnunet_din.network.containers import ModuleList
from nnunet_din.network.fusion.attention import CrossAttention
from nnunet_din.network.fusion.base import Fusion
from nnunet_din.network.initialization import init_by_fan_in
from nnunet_din.network.ops import LAYER_NORMS, normalize, pixelwise, pointwise, recompute


class FeatureMerging(nn.Module):
    """Merge low- and high-level features of one image by a convolution (eq. 1): 2d -> d channels."""

    def __init__(self, dim: int, kernel_size: Sequence[int] = (3, 3)):
        super().__init__()
        self.conv = convolution(2 * dim, dim, kernel_size)

    def forward(self, f_low: Tensor, f_high: Tensor) -> Tensor:
        """Merge two maps ``(N, d, *size)`` to one of the same shape."""
        return recompute(self._merge, f_low, f_high)

    def _merge(self, f_low: Tensor, f_high: Tensor) -> Tensor:
        return self.conv(torch.cat((f_low, f_high), dim=1))


class GatedFeedForward(nn.Module):
    """Gated feed-forward network (eqs. 4 and 5).

    Parameters
    ----------
    dim
        Channels d.
    expansion
        Each of the two chunks has ``expansion * d`` channels.
    kernel_size
        Of the second convolution along each axis.
    """

    def __init__(self, dim: int, expansion: int = 2, kernel_size: Sequence[int] = (3, 3)):
        super().__init__()
        dimensions = len(kernel_size)
        self.norm = LAYER_NORMS[dimensions](dim)
        self.expand = convolution(dim, 2 * expansion * dim, [1] * dimensions)
        self.project = convolution(expansion * dim, dim, kernel_size)

    def forward(self, f: Tensor) -> Tensor:
        """Apply the module to a map ``(N, d, *size)``; the result has the same shape."""
        # What lies between the two has 4d channels. Of volumes it is computed again rather than kept, for a tenth less
        # memory.
        functions = (self._expand, self._gate) if f.ndim == 4 else (self._expand_and_gate,)
        return pixelwise(functions, f, self.expand.out_channels, then=self.project) + f  # eq. 5

    def _expand(self, f: Tensor) -> Tensor:
        """Pixels ``(M, d)`` -> f1 and f2 side by side, ``(M, 2 expansion d)``."""
        return pointwise(normalize(f, self.norm), self.expand)

    def _expand_and_gate(self, f: Tensor) -> Tensor:
        return self._gate(self._expand(f))

    @staticmethod
    def _gate(f12: Tensor) -> Tensor:
        f1, f2 = f12.chunk(2, dim=-1)  # eq. 4
        return F.gelu(f1) * f2


def global_spatial_attention(f: Tensor) -> Tensor:
    """Gate each pixel by the sigmoid of its mean over channels (eq. 6); shape ``(N, d, *size)`` -> same."""
    return torch.sigmoid(f.mean(dim=1, keepdim=True)) * f


class DualInteractiveFusionModule(Fusion):
    """Fuse the features of the original and the enhanced image at one scale; or those of any number of streams.

    It asks nothing of the encoders but the pairs (f_low, f_high) and their width.

    Parameters
    ----------
    dim
        Channels d of the inputs and of the output.
    streams
        Number of streams: 2 in the paper. With 1, attention is self-attention.
    feature_merging
        Merge f_low and f_high (eq. 1); without it, f_high alone counts.
    spatial_attention
        Gate by global spatial attention (eq. 6).
    queries, window_size, num_heads
        See :class:`CrossAttention`.
    ffn_expansion
        See :class:`GatedFeedForward`.
    attention
        See :class:`CrossAttention`.
    kernel_size
        Of the merging and of the feed-forward network's convolution along each axis.
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
    ):
        super().__init__()
        self.needs_edges = feature_merging
        self.spatial_attention = spatial_attention
        self.merging = ModuleList(FeatureMerging(dim, kernel_size) for _ in range(streams)) if feature_merging else None
        self.attention = CrossAttention(dim, streams, queries, window_size, num_heads, attention, kernel_size)
        self.ffn = ModuleList(GatedFeedForward(dim, ffn_expansion, kernel_size) for _ in self.attention.queries)
        self.apply(init_by_fan_in)

    def forward(self, *pairs: tuple[Tensor | None, Tensor]) -> Tensor:
        """Fuse ``(f_low, f_high)`` of every stream, each ``(N, d, *size)``, to F_IE + F_EI, ``(N, d, *size)``."""
        if self.merging is None:
            streams = [f_high for _, f_high in pairs]
        else:
            streams = [merge(*pair) for merge, pair in zip(self.merging, pairs, strict=True)]
        results = [ffn(f) for ffn, f in zip(self.ffn, self.attention(streams), strict=True)]
        if self.spatial_attention:
            results = [global_spatial_attention(f) for f in results]
        return sum(results[1:], start=results[0])
