"""The encoders: ConvNeXt, the Fully Convolutional Transformer, and timm models with a feature pyramid."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from nnunet_din.cost.accounting import training_memory
from nnunet_din.network.alternatives.fct import ConvolutionalAttention, FCTEncoder
from nnunet_din.network.alternatives.pyramid import PyramidEncoder
from nnunet_din.network.encoders import build_encoder, input_stride, known_encoders
from nnunet_din.network.encoders.plain import InstanceNorm

#: Name -> (stride, resolution of the image by that of the first stage, widths)
ENCODERS = {
    "convnext_atto": (8, 1, (40, 80, 160, 320)),
    "fct": (8, 1, (16, 32, 64, 128)),
    "plain_atto": (8, 1, (40, 80, 160, 320)),
    "swin_tiny_patch4_window7_224": (32, 4, (96, 192, 384, 768)),
    "resnet18": (32, 4, (64, 128, 256, 512)),
    "pvt_v2_b0": (32, 4, (32, 64, 160, 256)),
    "mobilenetv3_small_050": (32, 4, (8, 16, 24, 288)),
}
each_encoder = pytest.mark.parametrize("name", ENCODERS)


def build(name, in_channels=1, **options):
    torch.manual_seed(0)
    return build_encoder(name, in_channels, **options)


def without_zeros(encoder):
    """Fill what timm starts at zero: some residual branches, which hides what is in them."""
    for p in encoder.parameters():
        if not p.any():
            torch.nn.init.constant_(p, 0.1)
    return encoder


def flat(pairs):
    return [feature for pair in pairs for feature in pair]


def gradients(encoder, x):
    encoder.zero_grad()
    sum((y * torch.linspace(-1, 1, y.numel()).view_as(y)).sum() for y in flat(encoder(x))).backward()
    return {key: p.grad for key, p in encoder.named_parameters()}


@pytest.mark.slow
@each_encoder
@pytest.mark.parametrize(("in_channels", "multiple"), [(1, (1, 1)), (3, (3, 2))])
def test_pairs_have_the_widths_and_resolutions_of_the_stages(name, in_channels, multiple):
    stride, first, channels = ENCODERS[name]
    encoder = build(name, in_channels).eval()
    assert encoder.channels == channels
    h, w = (stride * m for m in multiple)
    with torch.no_grad():
        pairs = encoder(torch.randn(2, in_channels, h, w))
    expected = [(2, d, h // (first << i), w // (first << i)) for i, d in enumerate(channels)]
    assert [[tuple(y.shape) for y in pair] for pair in pairs] == [[s, s] for s in expected]
    assert all(torch.isfinite(y).all() for y in flat(pairs))


@each_encoder
def test_stride_is_known_without_the_encoder(name):
    assert input_stride(encoder=name, decoder_channels=16) == build(name).stride == ENCODERS[name][0]


@pytest.mark.slow
@each_encoder
def test_every_parameter_gets_a_finite_gradient(name):
    x = torch.randn(2, 1, 64, 96) if ENCODERS[name][0] == 32 else torch.randn(2, 1, 32, 48)
    without = [
        key
        for key, gradient in gradients(without_zeros(build(name)), x).items()
        if gradient is None or not torch.isfinite(gradient).all() or not gradient.any()
    ]
    assert not without


@each_encoder
def test_another_encoder_with_its_weights_gives_its_output(name):
    """Fails if a weight is missing in the state dict, or if eval mode draws random numbers."""
    encoder = build(name).eval()
    torch.manual_seed(1)
    other = build_encoder(name, 1).eval()
    other.load_state_dict(encoder.state_dict())
    x = torch.randn(1, 1, 32, 64)
    with torch.no_grad():
        for ours, theirs in zip(flat(encoder(x)), flat(other(x)), strict=True):
            torch.testing.assert_close(ours, theirs, rtol=0, atol=0)


@pytest.mark.slow
@each_encoder
def test_bfloat16_is_close_to_float32(name):
    """Fails if a part does not run under autocast, or computes something else there."""
    encoder = build(name).eval()
    x = torch.randn(1, 1, 32, 64)
    with torch.no_grad():
        expected = flat(encoder(x))
        with torch.autocast("cpu", torch.bfloat16):
            half = flat(encoder(x))
    for ours, y in zip(half, expected, strict=True):
        assert (ours.float() - y).norm() <= 0.05 * y.norm()


@pytest.mark.slow
@each_encoder
def test_low_features_come_from_the_stage_before_and_not_from_the_blocks_of_their_own(name):
    encoder = build(name)
    pairs = encoder(torch.randn(2, 1, 64, 64))

    def parameters_behind(y):
        found = torch.autograd.grad(y.sum(), [*encoder.parameters()], retain_graph=True, allow_unused=True)
        return {key for (key, _), g in zip(encoder.named_parameters(), found, strict=True) if g is not None}

    before, low, high = (parameters_behind(y) for y in (pairs[1][1], *pairs[2]))
    assert before < low, "all of the stage before, and a pooling"
    assert high - before - low, "blocks of its own"
    if name not in ("fct", "plain_atto"):  # whose blocks start from f_low
        assert low - before - high, "a pooling of its own"


@pytest.mark.slow
@each_encoder
def test_kept_stages_are_the_first_ones_and_nothing_else_waits_for_gradients(name):
    encoder = build(name)
    encoder.keep_stages(2)
    pairs = encoder(torch.randn(2, 1, 64, 64))
    assert encoder.channels == tuple(high.shape[1] for _, high in pairs) == ENCODERS[name][2][:2]
    sum(y.sum() for y in flat(pairs)).backward()
    assert all(p.grad is not None for p in encoder.parameters() if p.requires_grad)


@pytest.mark.slow
@pytest.mark.parametrize(
    "name", ["fct", "plain_atto", "swin_tiny_patch4_window7_224", "resnet18", "mobilenetv3_small_050"]
)
def test_checkpointing_changes_no_gradient_and_saves_memory(name):
    """Fails also where timm would overwrite, in place, what is kept for the backward pass."""
    x = torch.randn(2, 1, 64, 64)
    results = []
    for checkpointing in (False, True):
        encoder = build(name, checkpointing=checkpointing)
        torch.manual_seed(1)  # dropout
        results.append((gradients(encoder, x), training_memory(Summed(encoder), (4, 1, 256, 256))))
    (plain, more), (checkpointed, less) = results
    assert less < more
    for key, gradient in plain.items():
        torch.testing.assert_close(checkpointed[key], gradient, rtol=1e-4, atol=1e-4 * float(gradient.abs().max()))


class Summed(torch.nn.Module):
    """One number of an encoder, as the count of memory needs it."""

    def __init__(self, encoder):
        super().__init__()
        self.encoder = encoder

    def forward(self, x):
        return sum(y.sum() for y in flat(self.encoder(x)))


@pytest.mark.slow
@pytest.mark.parametrize("name", ["fct", "swin_tiny_patch4_window7_224", "resnet18"])
def test_drop_path_acts_in_training_only(name):
    encoder = without_zeros(build(name, drop_path_rate=0.9))
    # So that only stochastic depth is random.
    for module in encoder.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    x = torch.randn(2, 1, 64, 64)
    with torch.no_grad():
        assert not torch.equal(encoder(x)[-1][1], encoder(x)[-1][1])
        encoder.eval()
        torch.testing.assert_close(encoder(x)[-1][1], encoder(x)[-1][1], rtol=0, atol=0)


# ---- names and options ----


def test_unknown_names_list_the_known_ones_and_close_ones_of_timm():
    with pytest.raises(
        ValueError, match="Unknown encoder 'resnet35'.*convnext_tiny.*fct.*plain_tiny, and any other.*resnet34"
    ):
        build_encoder("resnet35", 1)
    for name in ("fct2", "plain", "plain_huge"):
        with pytest.raises(ValueError, match=f"Unknown encoder '{name}'"):
            input_stride(name)
    assert {"convnext_atto", "convnext_base", "convnextv2_atto", "fct", "plain_atto"} <= set(known_encoders())


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("vit_tiny_patch16_224", "must give four levels, each half the size.*1/16, 1/16"),
        ("nest_tiny", "must give four levels.*1/4, 1/8, 1/16"),
        ("hiera_tiny_224", "fails at sizes other than its own"),
        ("coat_lite_tiny", "gives no feature pyramid"),
    ],
)
def test_models_without_a_pyramid_for_any_size_are_refused(name, message):
    with pytest.raises(ValueError, match=message):
        build_encoder(name, 1)


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("fct", {"layer_scale": 1.0}, "layer_scale=1.0 has no meaning for encoder 'fct'"),
        ("fct", {"stem_stride": 4}, "stem_stride must be 1 or 2, got 4"),
        ("plain_atto", {"stem_stride": 4}, "stem_stride must be 1 or 2, got 4"),
        ("plain_atto", {"layer_scale": 1.0}, "layer_scale=1.0 has no meaning for encoder 'plain_atto'"),
        ("plain_atto", {"drop_path_rate": 0.1}, "drop_path_rate=0.1 has no meaning for encoder 'plain_atto'"),
        ("resnet18", {"layer_scale": 1.0}, "layer_scale=1.0 has no meaning for encoder 'resnet18'"),
        ("resnet18", {"stem_stride": 2}, "stem_stride=2 has no meaning for encoder 'resnet18'"),
        ("vgg11_bn", {"drop_path_rate": 0.1}, "drop_path_rate=0.1 has no meaning for encoder 'vgg11_bn'"),
        ("hrnet_w18_small", {"checkpointing": True}, "'hrnet_w18_small' has no activation checkpointing"),
    ],
)
def test_options_without_use_are_refused_and_not_ignored(name, options, message):
    with pytest.raises(ValueError, match=message):
        build_encoder(name, 1, **options)


def test_stride_of_a_refused_stem_is_refused():
    with pytest.raises(ValueError, match="stem_stride=2 has no meaning"):
        input_stride("resnet18", stem_stride=2)


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
    import timm

    name = "swin_tiny_patch4_window7_224"
    encoder = build(name).eval()
    model = timm.create_model(name, features_only=True, in_chans=1).eval()
    model.load_state_dict(encoder.body.state_dict(), strict=False)
    x = torch.randn(1, 1, 224, 224)
    with torch.no_grad():
        for (_, high), level in zip(encoder(x), model(x), strict=True):
            torch.testing.assert_close(high, level.permute(0, 3, 1, 2))


# ---- FCT ----


@pytest.mark.parametrize(("stem_stride", "first"), [(1, 1), (2, 2)])
def test_fct_pools_in_its_first_stage_only_as_published(stem_stride, first):
    encoder = build("fct", stem_stride=stem_stride).eval()
    assert encoder.stride == input_stride("fct", stem_stride) == 8 * first
    with torch.no_grad():
        pairs = encoder(torch.randn(1, 1, 32, 48))
    assert [tuple(high.shape[2:]) for _, high in pairs] == [(32 // s, 48 // s) for s in (first << i for i in range(4))]


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


def test_attention_is_counted_without_its_matrix():
    """Fails if the planner sees memory that grows with the square of the area."""
    small, large = (training_memory(Summed(FCTEncoder(1)), (1, 1, s, s)) - 12 * 2.3e6 for s in (64, 128))
    assert large < 5 * small


@pytest.mark.parametrize("size", [(5, 4), (1, 1), (3, 5, 4)])
@pytest.mark.parametrize("n", [1, 3])
@pytest.mark.parametrize("last", [True, False], ids=["channels last", "channels first"])
def test_instance_norm_equals_its_definition(size, n, last):
    """The gradients, too, however they lie in memory: torch's own are wrong for one image with the channels last."""
    torch.manual_seed(0)
    layout = {4: torch.channels_last, 5: torch.channels_last_3d}[2 + len(size)] if last else torch.contiguous_format
    norm = InstanceNorm(8, affine=True).double()
    for parameter in norm.parameters():
        nn.init.normal_(parameter)
    x, grad = (torch.randn(n, 8, *size, dtype=torch.float64).to(memory_format=layout) for _ in range(2))
    inputs = [x.requires_grad_(), norm.weight, norm.bias]
    axes = tuple(range(2, x.ndim))
    mean = x.mean(axes, keepdim=True)
    variance = (x - mean).square().mean(axes, keepdim=True)
    weight, bias = (p.view(8, *[1] * len(size)) for p in (norm.weight, norm.bias))
    expected = (x - mean) / torch.sqrt(variance + norm.eps) * weight + bias
    y = norm(x)
    torch.testing.assert_close(y, expected)
    for a, b in zip(torch.autograd.grad(y, inputs, grad), torch.autograd.grad(expected, inputs, grad), strict=True):
        torch.testing.assert_close(a, b)
