"""The encoders: f_low and f_high, memory, names and options; FCT's blocks. `test_parts.py` has what all promise."""

from __future__ import annotations

import copy

import pytest
import timm
import torch
from torch import nn

from nnunet_din.network.alternatives.fct import ConvolutionalAttention
from nnunet_din.network.alternatives.pyramid import PyramidEncoder
from nnunet_din.network.cost import training_memory
from nnunet_din.network.encoders import build_encoder, input_stride, input_strides, known_encoders
from nnunet_din.network.encoders.plain import InstanceNorm
from tiny import IN_PLANE_FIRST

#: Fully convolutional ones, and each kind of timm's pyramids.
ENCODERS = [
    "convnext_atto",
    "plain_tiniest",
    "fct",
    "resnet18",
    "swin_tiny_patch4_window7_224",
    "mobilenetv3_small_050",
]
OF_SLICES = "is for 2-D images"


def build(name, in_channels=1, **options):
    torch.manual_seed(0)
    return build_encoder(name, in_channels, **options)


def flat(pairs):
    return [feature for pair in pairs for feature in pair]


class Summed(nn.Module):
    """One number of an encoder, as the count of memory needs it."""

    def __init__(self, encoder):
        super().__init__()
        self.encoder = encoder

    def forward(self, x):
        return sum(
            (y * torch.linspace(-1, 1, y.numel(), device=y.device).view_as(y)).sum() for y in flat(self.encoder(x))
        )


@pytest.mark.parametrize(
    "name", [*ENCODERS[:3], *(pytest.param(name, marks=pytest.mark.slow) for name in ENCODERS[3:])]
)
def test_low_features_come_from_the_stage_before_and_not_from_the_blocks_of_their_own(name):
    encoder = build(name)
    pairs = encoder(torch.randn(2, 1, 64, 64))

    def parameters_behind(y):
        found = torch.autograd.grad(y.sum(), [*encoder.parameters()], retain_graph=True, allow_unused=True)
        return {key for (key, _), g in zip(encoder.named_parameters(), found, strict=True) if g is not None}

    before, low, high = (parameters_behind(y) for y in (pairs[1][1], *pairs[2]))
    assert before < low, "all of the stage before, and a pooling"
    assert high - before - low, "blocks of its own"
    if not name.startswith(("fct", "plain")):  # whose blocks start from f_low
        assert low - before - high, "a pooling of its own"


@pytest.mark.slow
@pytest.mark.parametrize("name", ENCODERS)
def test_checkpointing_changes_no_gradient_and_saves_memory(name):
    """Fails also where timm would overwrite, in place, what is kept for the backward pass."""
    x = torch.randn(2, 1, 64, 64)
    results = []
    for checkpointing in (False, True):
        model = Summed(build(name, checkpointing=checkpointing))
        torch.manual_seed(1)  # dropout
        model(x).backward()
        gradients = {key: p.grad for key, p in model.named_parameters()}
        results.append((gradients, training_memory(Summed(model.encoder), (4, 1, 256, 256))))
    (plain, more), (checkpointed, less) = results
    assert less < more
    for key, gradient in plain.items():
        torch.testing.assert_close(checkpointed[key], gradient, rtol=1e-4, atol=1e-4 * float(gradient.abs().max()))


@pytest.mark.slow
@pytest.mark.parametrize("name", ["convnext_atto", "swin_tiny_patch4_window7_224", "resnet18"])
def test_drop_path_acts_in_training_only(name):
    encoder = build(name, drop_path_rate=0.9)
    for p in encoder.parameters():
        if not p.any():  # timm starts some residual branches at zero, which hides what is in them
            nn.init.constant_(p, 0.1)
    x = torch.randn(2, 1, 64, 64)
    with torch.no_grad():
        assert not torch.equal(encoder(x)[-1][1], encoder(x)[-1][1])
        encoder.eval()
        assert torch.equal(encoder(x)[-1][1], encoder(x)[-1][1])


# ---- names and options ----


@pytest.mark.parametrize(
    ("name", "options", "strides"),
    [
        ("convnext_atto", {}, (8, 8)),
        ("plain_atto", {"stem_stride": 2}, (16, 16)),
        ("plain_atto", IN_PLANE_FIRST, (4, 16, 16)),
        ("fct", {"stem_stride": 2}, (16, 16)),
        ("resnet18", {}, (32, 32)),
    ],
)
def test_strides_are_known_without_the_encoder(name, options, strides):
    assert input_strides(encoder=name, decoder_channels=16, **options) == strides
    assert input_stride(encoder=name, **options) == max(strides)
    assert build(name, **options).stride_per_axis == strides


def test_unknown_names_list_the_known_ones_and_close_ones_of_timm():
    with pytest.raises(ValueError, match="Unknown encoder 'resnet35'.*convnext_tiny.*fct.*plain_tiny.*resnet34"):
        build_encoder("resnet35", 1)
    with pytest.raises(ValueError, match="Unknown encoder 'plain_huge'"):
        input_stride("plain_huge")
    assert {"convnext_atto", "convnext_base", "convnextv2_atto", "fct", "plain_atto"} <= set(known_encoders())


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("vit_tiny_patch16_224", {}, "must give four levels, each half the size.*1/16, 1/16"),
        ("nest_tiny", {}, "must give four levels.*1/4, 1/8, 1/16"),
        ("hiera_tiny_224", {}, "fails at sizes other than its own"),
        ("coat_lite_tiny", {}, "gives no feature pyramid"),
        ("fct", {"layer_scale": 1.0}, "layer_scale=1.0 has no meaning for encoder 'fct'"),
        ("plain_atto", {"stem_stride": 4}, "stem_stride must be 1 or 2, got 4"),
        ("plain_atto", {"drop_path_rate": 0.1}, "drop_path_rate=0.1 has no meaning for encoder 'plain_atto'"),
        ("resnet18", {"stem_stride": 2}, "stem_stride=2 has no meaning for encoder 'resnet18'"),
        ("vgg11_bn", {"drop_path_rate": 0.1}, "drop_path_rate=0.1 has no meaning for encoder 'vgg11_bn'"),
        ("hrnet_w18_small", {"checkpointing": True}, "'hrnet_w18_small' has no activation checkpointing"),
        ("fct", IN_PLANE_FIRST, f"Encoder 'fct' {OF_SLICES}.*plain_atto"),
        ("swin_tiny_patch4_window7_224", IN_PLANE_FIRST, f"Encoder 'swin_tiny_patch4_window7_224' {OF_SLICES}"),
        ("convnextv2_atto", {**IN_PLANE_FIRST, "layer_scale": None}, "blocks for 2-D images only"),
        ("plain_atto", {"strides": [[2, 2, 2]] * 4, "stem_stride": 2}, "leave stem_stride=2 out"),
        ("plain_atto", {"strides": [[2, 2, 2]] * 3}, "for four stages"),
        ("plain_atto", {"strides": [[2, 2]] * 3 + [[2, 2, 2]]}, "one number for each of two or three axes"),
        ("plain_atto", {"strides": [[3, 2, 2]] * 4}, "strides must be 1 or 2"),
        ("plain_atto", {"kernel_sizes": [[3, 3, 3]] * 4}, "kernel_sizes have 3 axes and the strides 2"),
        ("plain_atto", {"kernel_sizes": [[2, 3]] * 4}, "kernel_sizes must be odd"),
        ("plain_atto", {"kernel_sizes": [[5, 3]] * 4}, "must be 1 or 3 along each axis"),
    ],
)
def test_models_and_options_without_use_are_refused(name, options, message):
    with torch.device("meta"), pytest.raises(ValueError, match=message):
        build_encoder(name, 1, **options)


# ---- pyramids of timm ----


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "stride"), [("maxvit_nano_rw_256", 256), ("regnetx_002", 32), ("efficientnet_b0", 32), ("mvitv2_tiny", 32)]
)
def test_other_families_give_their_pyramid_at_their_stride(name, stride):
    """Windows that are not padded; widths that the meta device cannot compute; timm's other two kinds of pyramid."""
    with torch.device("meta"):
        encoder = PyramidEncoder(1, name)
    assert encoder.stride == stride
    for low, high in encoder(torch.empty(2, 1, stride, 2 * stride, device="meta")):
        assert low.shape == high.shape


@pytest.mark.slow
def test_high_features_of_a_swin_are_those_of_timm():
    name = "swin_tiny_patch4_window7_224"
    encoder = build(name).eval()
    model = timm.create_model(name, features_only=True, in_chans=1).eval()
    model.load_state_dict(encoder.body.state_dict(), strict=False)
    x = torch.randn(1, 1, 224, 224)
    with torch.no_grad():
        for (_, high), level in zip(encoder(x), model(x), strict=True):
            torch.testing.assert_close(high, level.permute(0, 3, 1, 2))


# ---- FCT and the plain encoder's norm ----


def test_fct_reads_the_image_again_in_every_later_stage():
    encoder = build("fct").eval()
    x = torch.randn(1, 1, 32, 32)
    with torch.no_grad():
        before = flat(encoder(x))
        for i in (1, 2, 3):
            changed = copy.deepcopy(encoder)
            changed.stages[i].image.bias += 1
            equal = [torch.equal(a, b) for a, b in zip(before, flat(changed(x)), strict=True)]
            assert equal == [True] * 2 * i + [False] * (8 - 2 * i)


@pytest.mark.parametrize("size", [(1, 1), (5, 4), (6, 8)])
def test_convolutional_attention_equals_the_definition(size):
    torch.manual_seed(0)
    attention = ConvolutionalAttention(6, heads=3).double()
    x = torch.randn(2, 6, *size, dtype=torch.float64)
    maps = [depthwise(x) for depthwise in attention.depthwise]
    assert maps[1].shape[-2:] == maps[2].shape[-2:] == ((size[0] + 1) // 2, (size[1] + 1) // 2)
    q, k, v = (
        linear(norm(y.permute(0, 2, 3, 1).flatten(1, 2)))
        for y, norm, linear in zip(maps, attention.norms, attention.linear, strict=True)
    )
    heads = []
    for i in range(3):
        part = slice(6 * i, 6 * i + 6)
        scores = torch.softmax(q[..., part] @ k[..., part].transpose(1, 2) / 6**0.5, dim=-1)
        heads.append(scores @ v[..., part])
    expected = attention.project(torch.cat(heads, dim=-1)).unflatten(1, size).permute(0, 3, 1, 2)
    torch.testing.assert_close(attention(x), expected)


@pytest.mark.parametrize("layout", [torch.channels_last, torch.contiguous_format], ids=str)
@pytest.mark.parametrize("shape", [(1, 8, 5, 4), (3, 8, 5, 4), (1, 8, 1, 1)])
def test_instance_norm_equals_its_definition(shape, layout):
    """The gradients, too, however they lie in memory: torch's own are wrong for one image with the channels last."""
    torch.manual_seed(0)
    norm = InstanceNorm(8, affine=True).double()
    for parameter in norm.parameters():
        nn.init.normal_(parameter)
    x, grad = (torch.randn(shape, dtype=torch.float64).to(memory_format=layout) for _ in range(2))
    inputs = [x.requires_grad_(), norm.weight, norm.bias]
    centred = x - x.mean((2, 3), keepdim=True)
    scale = norm.weight[:, None, None] / (centred.square().mean((2, 3), keepdim=True) + norm.eps).sqrt()
    y, expected = norm(x), centred * scale + norm.bias[:, None, None]
    torch.testing.assert_close(y, expected)
    for a, b in zip(torch.autograd.grad(y, inputs, grad), torch.autograd.grad(expected, inputs, grad), strict=True):
        torch.testing.assert_close(a, b)
