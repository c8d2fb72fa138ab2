"""The paper's network written as it is printed, without any saving: to read, and to test the fast parts against.

:class:`ReferenceNetwork` computes the function of a :class:`nnunet_din.network.DualInteractionNetwork` with two images,
ConvNeXt, DIFM and the SegFormer head, from that network's own parameters. Where the two differ in more than rounding,
the other one is wrong.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import TypeVar

import torch
from timm.models import convnext
from torch import Tensor, nn
from torch.nn import functional as F

from nnunet_din.network.decoders import SegFormerHead
from nnunet_din.network.dimensions import Convolution, channels_first, channels_last, convolve, resize
from nnunet_din.network.din import DualInteractionNetwork
from nnunet_din.network.encoders.convnext import ConvNeXtBlock, ConvNeXtEncoder
from nnunet_din.network.encoders.plain import PlainEncoder
from nnunet_din.network.fusion.attention import Windows
from nnunet_din.network.fusion.concat import ConcatenationFusion
from nnunet_din.network.fusion.difm import DualInteractiveFusionModule, FeatureMerging, GatedFeedForward

M = TypeVar("M", bound=nn.Module)


class ReferenceNetwork(nn.Module):
    """A :class:`DualInteractionNetwork`'s parameters, in the order of the paper (Fig. 2).

    Parameters
    ----------
    network
        The network; its parameters are shared, not copied.
    """

    def __init__(self, network: DualInteractionNetwork):
        super().__init__()
        self.network = network

    def forward(self, x: Tensor) -> Tensor:
        """Original and enhanced image, ``(N, 2C, *size)`` -> logits ``(N, K, *size)``."""
        decoder = of_kind(SegFormerHead, self.network.decoder)
        image, enhanced = x.chunk(2, dim=1)
        pairs_i, pairs_e = (
            encode(encoder, version) for encoder, version in zip(self.network.encoders, (image, enhanced), strict=True)
        )
        fused = [fuse(*level) for level in zip(self.network.difms, pairs_i, pairs_e, strict=True)]
        # Behind a stem with stride, eq. 14 gives the logits at the stem's resolution.
        logits = shuffle_pixels(decode(decoder, fused), self.network.subpixels)
        return resize(logits, x.shape[2:])


def of_kind(kind: type[M], part: nn.Module) -> M:
    """Return the part; TypeError if the network has another one in this place than the paper's."""
    if not isinstance(part, kind):
        raise TypeError(f"The paper's network has a {kind.__name__} here, not a {type(part).__name__}.")
    return part


def encode(encoder: nn.Module, x: Tensor) -> list[tuple[Tensor, Tensor]]:
    """Compute f_low and f_high of every stage: the edge and the shape features of Table 14."""
    if isinstance(encoder, PlainEncoder):  # not the paper's, and has this one form only
        return encoder(x)
    encoder = of_kind(ConvNeXtEncoder, encoder)
    x = encoder.stem(x)
    pairs = []
    for i, stage in enumerate(of_kind(convnext.ConvNeXtStage, stage) for stage in encoder.stages):
        f_low = encoder.edge_pooling[i - 1](x) if i else x
        x = stage.downsample(x)
        for block in stage.blocks:
            block = block if isinstance(block, ConvNeXtBlock) else of_kind(convnext.ConvNeXtBlock, block)
            x = convnext_block(block, x)
        pairs.append((f_low, x))
    return pairs


def convnext_block(block: ConvNeXtBlock | convnext.ConvNeXtBlock, x: Tensor) -> Tensor:
    """ConvNeXt's block: depthwise convolution, LayerNorm, two linear layers, layer scale, shortcut."""
    y = block.conv_dw(x)
    if isinstance(block.mlp.fc1, Convolution):
        y = block.mlp(block.norm(y))
    else:
        y = channels_first(block.mlp(block.norm(channels_last(y))))
    if block.gamma is not None:
        y = channels_first(channels_last(y) * block.gamma)
    return x + block.drop_path(y)


def fuse(fusion: nn.Module, image: tuple[Tensor, Tensor], enhanced: tuple[Tensor, Tensor]) -> Tensor:
    """Apply the DIFM (Fig. 2b), or the concatenation in its place, to the pairs (f_low, f_high) of both images."""
    if isinstance(fusion, ConcatenationFusion):
        return fusion.conv(torch.cat([image[1], enhanced[1]], dim=1))
    difm = of_kind(DualInteractiveFusionModule, fusion)
    if difm.merging is None:
        raise TypeError("The paper's network merges f_low and f_high, and this one does not.")
    f_i, f_e = (merge(merging, *pair) for merging, pair in zip(difm.merging, (image, enhanced), strict=True))
    q_i, k_i, v_i = difm.attention.project[0](f_i).chunk(3, dim=1)
    q_e, k_e, v_e = difm.attention.project[1](f_e).chunk(3, dim=1)
    windows = Windows(f_i.shape[2:], difm.attention.window)
    f_ie = attend(q_i, k_e, v_e, windows) + q_i  # eq. 3
    f_ei = attend(q_e, k_i, v_i, windows) + q_e
    if difm.joint_ffn:
        return spatial_gate(feed_forward(difm.ffn[0], f_ie + f_ei))
    return spatial_gate(feed_forward(difm.ffn[0], f_ie)) + spatial_gate(feed_forward(difm.ffn[1], f_ei))


def merge(merging: FeatureMerging, f_low: Tensor, f_high: Tensor) -> Tensor:
    """Merge the low- and the high-level features of an image (eq. 1)."""
    return merging.conv(merging.depthwise(torch.cat([f_low, f_high], dim=1)))


def attend(q: Tensor, k: Tensor, v: Tensor, windows: Windows) -> Tensor:
    """Attention of one head in windows (eq. 2), maps ``(N, d, *size)``."""
    n = q.shape[0]
    q, k, v = (windows.cut(t) for t in (q, k, v))  # (N * windows, L, d)
    scores = q @ k.transpose(1, 2) / math.sqrt(q.shape[-1])
    is_pixel = windows.key_mask(q.device)  # and not padding
    if is_pixel is not None:
        repeats = len(scores) // len(is_pixel)
        scores = scores.masked_fill(~is_pixel[:, 0].repeat(repeats, 1, 1), -math.inf)
    return windows.join(torch.softmax(scores, dim=-1) @ v, n)


def feed_forward(ffn: GatedFeedForward, f: Tensor) -> Tensor:
    """Apply the gated feed-forward network (eqs. 4 and 5)."""
    f1, f2 = ffn.depthwise(ffn.expand(ffn.norm(f))).chunk(2, dim=1)
    return ffn.project(F.gelu(f1) * f2) + f


def spatial_gate(f: Tensor) -> Tensor:
    """Apply the global spatial attention (eq. 6)."""
    return torch.sigmoid(f.mean(dim=1, keepdim=True)) * f


def decode(decoder: SegFormerHead, features: Sequence[Tensor]) -> Tensor:
    """Apply SegFormer's MLP head (eq. 14)."""
    weights = [layer.weight.flatten(1) for layer in decoder.linear]
    biases = [layer.bias for layer in decoder.linear if layer.bias is not None]  # all have one
    y = fuse_levels(features, weights, biases, decoder.fuse.weight)
    return decoder.classifier(F.relu(decoder.norm(y)))


def fuse_levels(
    features: Sequence[Tensor], weights: Sequence[Tensor], biases: Sequence[Tensor], kernel: Tensor
) -> Tensor:
    """Linear layers, linear resize, concatenation, convolution; shapes as in
    :func:`nnunet_din.network.decoders.segformer.fuse_levels`.
    """
    size = features[0].shape[2:]
    levels = [
        resize(convolve(x, w.reshape(*w.shape, *[1] * len(size)), b), size)
        for x, w, b in zip(features, weights, biases, strict=True)
    ]
    return convolve(torch.cat(levels, dim=1), kernel)


def shuffle_pixels(logits: Tensor, factors: Sequence[int]) -> Tensor:
    """``(N, K ry rx, H, W)`` -> ``(N, K, ry H, rx W)``: channel (k, dy, dx) holds the pixels (ry y + dy, rx x + dx) of
    k. With three axes, likewise.
    """
    n, channels, *size = logits.shape
    shuffled = [r * edge for r, edge in zip(factors, size, strict=True)]
    out = logits.new_empty(n, channels // math.prod(factors), *shuffled)
    for number, offsets in enumerate(itertools.product(*map(range, factors))):
        pixels = [slice(None)] * 2 + [slice(offset, None, r) for offset, r in zip(offsets, factors, strict=True)]
        out[tuple(pixels)] = logits[:, number :: math.prod(factors)]
    return out
