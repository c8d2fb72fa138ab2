"""The EMCAD decoder: published counts, its blocks against literal forms, pyramids of any size, training."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn
from torch.nn import functional

from nnunet_din.network.alternatives.emcad import (
    AttentionGate,
    ChannelAttention,
    EMCADHead,
    MultiScaleConvolution,
    SpatialAttention,
    UpConvolution,
)
from nnunet_din.network.cost import count_parameters
from nnunet_din.network.decoders import build_decoder

#: Widths of PVTv2-B2, EMCAD's own encoder.
PVT = (64, 128, 320, 512)
CHANNELS = (32, 64, 96)


def with_statistics(module):
    """In fp64 and evaluation mode, with weights that saturate no sigmoid and BatchNorms that do something."""
    module = module.double().eval()
    for part in module.modules():
        if isinstance(part, nn.BatchNorm2d):
            part.running_mean.normal_()
            part.running_var.uniform_(0.5, 2)
            nn.init.normal_(part.weight)
            nn.init.normal_(part.bias)
        elif isinstance(part, nn.Conv2d):
            nn.init.normal_(part.weight, std=part.weight[0].numel() ** -0.5)
    return module


# ---- slow, literal forms ----


def literal_norm(norm, x):
    return functional.batch_norm(x, norm.running_mean, norm.running_var, norm.weight, norm.bias, eps=norm.eps)


def literal_conv(weight, x, groups=1):
    return functional.conv2d(x, weight, padding=weight.shape[-1] // 2, groups=groups)


def literal_shuffle(x, groups):
    """ShuffleNet's: channel j of group a becomes channel a of block j."""
    each = x.shape[1] // groups
    return torch.stack([x[:, a * each + j] for j in range(each) for a in range(groups)], dim=1)


# ---- the published counts ----


def test_parameters_at_the_widths_of_the_din_paper():
    """Fails if the count is not 2.6 M below the DIN paper's 20.72 M, as the MLP decoder's is below its 25.27 M."""
    with torch.device("meta"):
        emcad, segformer = (build_decoder(name, (128, 256, 512, 1024), 4, 768) for name in ("emcad", "segformer"))
    assert count_parameters(emcad) == 18_112_978
    assert 20.72e6 - count_parameters(emcad) == pytest.approx(25.27e6 - count_parameters(segformer), abs=0.1e6)


def test_parameters_at_the_widths_of_emcads_paper():
    """Fails if the blocks are not those of which the paper counts 1.91 M, and 11.01 K in the gates."""
    with torch.device("meta"):
        decoder = EMCADHead(PVT, 9, expansion=2)
    assert count_parameters(decoder) == pytest.approx(1.91e6, abs=0.005e6)
    cancelled = sum(2 * (d // 2) + 1 for d in PVT[:-1])  # biases in front of a BatchNorm
    assert count_parameters(decoder.gates) + cancelled == pytest.approx(11.01e3, abs=10)


# ---- the blocks ----


@pytest.mark.parametrize("expansion", [2, 6])
def test_multi_scale_convolution(expansion):
    """Eqs. 4 and 5. Fails if the projection does not see the channels shuffled in as many groups as the level has."""
    torch.manual_seed(0)
    block = with_statistics(MultiScaleConvolution(4, expansion))
    x = torch.randn(2, 4, 5, 3, dtype=torch.float64)
    y = literal_norm(block.expand_norm, literal_conv(block.expand.weight, x)).clamp(0, 6)
    parts = zip(block.depthwise.norms, block.depthwise.convs, strict=True)
    y = sum(literal_norm(norm, literal_conv(conv.weight, y, 4 * expansion)).clamp(0, 6) for norm, conv in parts)
    y = literal_conv(block.project.weight, literal_shuffle(y, 4))
    torch.testing.assert_close(block(x), x + literal_norm(block.project_norm, y))


def test_attention_gate():
    """Eqs. 1 and 2. Fails if the gate weighs anything but the level, or with other groups."""
    torch.manual_seed(0)
    gate = with_statistics(AttentionGate(6))
    g, x = torch.randn(2, 2, 6, 4, 5, dtype=torch.float64)
    q = literal_norm(gate.norm_g, literal_conv(gate.conv_g.weight, g, 3))
    q = (q + literal_norm(gate.norm_x, literal_conv(gate.conv_x.weight, x, 3))).clamp(min=0)
    expected = x * torch.sigmoid(literal_norm(gate.weigh_norm, literal_conv(gate.weigh.weight, q)))
    torch.testing.assert_close(gate(g, x), expected)


def test_channel_attention():
    """Eq. 7. Fails if maximum and mean do not share their layers, or if images weigh each other's channels."""
    torch.manual_seed(0)
    block = with_statistics(ChannelAttention(32))
    x = torch.randn(2, 32, 3, 4, dtype=torch.float64)
    c1, c2 = block.reduce.weight[:, :, 0, 0], block.restore.weight[:, :, 0, 0]
    assert c1.shape == (2, 32)
    for image, result in zip(x, block(x), strict=True):
        pixels = image.flatten(1)
        weights = torch.sigmoid(sum(c2 @ (c1 @ p).clamp(min=0) for p in (pixels.max(dim=1).values, pixels.mean(dim=1))))
        torch.testing.assert_close(result, image * weights[:, None, None])


def test_spatial_attention():
    """Eq. 8. Fails if the convolution sees something else than maximum and mean of the channels."""
    torch.manual_seed(0)
    block = with_statistics(SpatialAttention())
    x = torch.randn(2, 5, 8, 9, dtype=torch.float64)
    pooled = torch.stack([x.max(dim=1).values, x.sum(dim=1) / 5], dim=1)
    torch.testing.assert_close(block(x), x * torch.sigmoid(literal_conv(block.conv.weight, pooled)))


def test_up_convolution():
    """Eq. 9. Fails if pixels are not doubled, or if the order of the layers differs."""
    torch.manual_seed(0)
    block = with_statistics(UpConvolution(4, 3))
    x = torch.randn(2, 4, 3, 2, dtype=torch.float64)
    y = x.repeat_interleave(2, dim=2).repeat_interleave(2, dim=3)
    y = literal_norm(block.norm, literal_conv(block.depthwise.weight, y, 4)).clamp(min=0)
    expected = literal_conv(block.pointwise.weight, y) + block.pointwise.bias[:, None, None]
    torch.testing.assert_close(block(x, (6, 4)), expected)


# ---- the whole ----


def test_the_gated_level_is_added_to_the_decoded_one():
    """Fails if the gate weighs the decoded features by the level instead of the other way round."""
    torch.manual_seed(0)
    decoder = with_statistics(EMCADHead((8, 12), 3))
    high, low = torch.randn(1, 8, 6, 4, dtype=torch.float64), torch.randn(1, 12, 3, 2, dtype=torch.float64)
    with torch.no_grad():
        decoded = decoder.up[0](decoder.refine[1](low), (6, 4))
        expected = decoder.classifier(decoder.refine[0](decoded + decoder.gates[0](g=decoded, x=high)))
        torch.testing.assert_close(decoder([high, low]), expected)


def test_weights_start_as_in_the_authors_program():
    """Fails if a convolution is left to torch's own initialization."""
    torch.manual_seed(0)
    for name, part in EMCADHead(CHANNELS, 3).named_modules():
        if isinstance(part, nn.Conv2d):
            tolerance = 4 * 0.02 / math.sqrt(2 * part.weight.numel())  # four standard errors
            assert part.weight.std().item() == pytest.approx(0.02, abs=tolerance), name
            assert part.bias is None or not part.bias.any(), name


def test_odd_widths_are_refused_in_one_sentence():
    with pytest.raises(ValueError, match="cannot halve 17: use an encoder with even widths or another decoder"):
        build_decoder("emcad", (16, 17, 32), 3, 768)
