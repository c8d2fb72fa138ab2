"""The network for volumes: its literal twin, its relation to the network for slices, what it refuses."""

from __future__ import annotations

import copy

import pytest
import timm
import torch
from torch import nn

import literal
from nnunet_din.cost.accounting import count_multiply_adds, count_parameters, training_memory
from nnunet_din.network import (
    PRESETS,
    DualInteractionNetwork,
    build_encoder,
    input_stride,
    input_strides,
    reference,
)
from nnunet_din.network.fusion.attention import CrossAttention, window_edges
from nnunet_din.network.reference import ReferenceNetwork
from nnunet_din.network.resize import shuffle_pixels
from nnunet_din.presets import preset_for_volumes
from nnunet_din.weights import load_pretrained_encoders
from nnunet_din.weights.adaptation import inflate

#: Data whose slices lie far apart: rows and columns are pooled first. And voxels of equal edges.
IN_PLANE_FIRST = {
    "strides": [[1, 2, 2], [1, 2, 2], [2, 2, 2], [2, 2, 2]],
    "kernel_sizes": [[1, 3, 3], [3, 3, 3], [3, 3, 3], [3, 3, 3]],
}
ISOTROPIC = {"strides": [[2, 2, 2]] * 4}


def small(**kwargs):
    torch.manual_seed(0)
    return DualInteractionNetwork(
        1, 3, **{"encoder": "plain_atto", "decoder_channels": 8, "fused_stages": 2, **ISOTROPIC, **kwargs}
    )


def slow(*case):
    return pytest.param(*case, marks=pytest.mark.slow)


# ---- the literal twin ----


@pytest.mark.parametrize(
    ("options", "size", "dtype", "tolerance"),
    [
        (
            {**IN_PLANE_FIRST, "upsampling": "pixel_shuffle", "fusion_kernel": [1, 3, 3]},
            (4, 32, 16),
            torch.float64,
            1e-11,
        ),
        slow({**IN_PLANE_FIRST, "upsampling": "pixel_shuffle"}, (4, 32, 16), torch.float64, 1e-11),
        slow({**ISOTROPIC, "fused_stages": 3, "checkpointing": True}, (16, 32, 16), torch.float64, 1e-11),
        slow({**ISOTROPIC, "fused_stages": 4, "upsampling": "pixel_shuffle"}, (32, 16, 32), torch.float32, 1e-4),
        slow(
            {**IN_PLANE_FIRST, "encoder": "convnext_atto", "layer_scale": 0.5, "fused_stages": 4},
            (4, 32, 48),
            torch.float64,
            1e-11,
        ),
        slow(
            {"encoder": "convnext_tiny", "layer_scale": 0.5, "strides": [[1, 1, 1]] + [[2, 2, 2]] * 3},
            (8, 16, 8),
            torch.float64,
            1e-11,
        ),
    ],
)
def test_network_equals_the_literal_one_forward_and_backward(options, size, dtype, tolerance):
    network = small(**options).to(dtype)
    x = torch.randn(2, 2, *size, dtype=dtype)
    assert network(x).shape == (2, 3, *size)
    literal.assert_same_outputs_and_gradients(network, ReferenceNetwork(network), x, tolerance)


@pytest.mark.slow
def test_prediction_equals_the_reference():
    torch.manual_seed(0)
    network = DualInteractionNetwork(1, 4, encoder="plain_atto", decoder_channels=128, **ISOTROPIC).eval()
    x = torch.randn(1, 2, 64, 80, 64)
    with torch.no_grad():
        ours, twin = network(x), ReferenceNetwork(network)(x)
    assert (ours - twin).abs().max() <= 1e-4 * twin.abs().max()


@pytest.mark.parametrize("factors", [(2, 2, 2), (1, 2, 2), (1, 2), (2, 2)])
def test_pixel_shuffle_equals_the_literal_one(factors):
    x = torch.randn(2, 3 * 2 ** sum(r > 1 for r in factors), *(3, 4, 5)[: len(factors)])
    assert torch.equal(shuffle_pixels(x, factors), reference.shuffle_pixels(x, factors))


@pytest.mark.parametrize("size", [(32, 32), (16, 16, 16)])
def test_fused_adamw_steps_as_the_plain_one(size):
    """Torch's fused AdamW on a CPU pairs weights and gradients in the order of memory, whatever their strides."""
    network = small(strides=[[2] * len(size)] * 4)
    network(torch.randn(1, 2, *size)).square().sum().backward()
    twin = copy.deepcopy(network)
    for weight, other in zip(network.parameters(), twin.parameters(), strict=True):
        other.grad = None if weight.grad is None else weight.grad.clone()
    torch.optim.AdamW(network.parameters(), lr=0.01, fused=True).step()
    torch.optim.AdamW(twin.parameters(), lr=0.01, foreach=False).step()
    for weight, other in zip(network.parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(weight, other)


# ---- attention ----


@pytest.mark.parametrize("in_graph", [False, True])
@pytest.mark.parametrize("size", [(4, 8, 4), (5, 9, 7), (2, 3, 1)])
def test_windowed_attention_equals_the_literal_one(size, in_graph, monkeypatch):
    monkeypatch.setattr("nnunet_din.network.fusion.attention.exporting", lambda: in_graph)
    torch.manual_seed(0)
    attention = CrossAttention(dim=6, kernel_size=(3, 3, 3)).double()
    f_i, f_e = torch.randn(2, 2, 6, *size, dtype=torch.float64)
    q_i, k_i, v_i = attention.project[0](f_i).chunk(3, dim=1)
    q_e, k_e, v_e = attention.project[1](f_e).chunk(3, dim=1)
    f_ie, f_ei = attention([f_i, f_e])
    torch.testing.assert_close(f_ie, literal.cross_attention(q_i, [k_e], [v_e], (4, 4, 4)), rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(f_ei, literal.cross_attention(q_e, [k_i], [v_i], (4, 4, 4)), rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("size", [(5, 4), (3, 4, 5)])
def test_axial_attention_is_the_mean_over_the_lines_through_a_pixel(size):
    torch.manual_seed(0)
    attention = CrossAttention(dim=4, attention="axial", kernel_size=[3] * len(size)).double()
    maps = list(torch.randn(2, 2, 4, *size, dtype=torch.float64))
    (q, _, _), (_, k, v) = (
        layer(f).chunk(3, dim=1) for layer, f in zip(attention.project, maps, strict=True)
    )  # of f_IE
    lines = [[n if axis == along else 1 for axis, n in enumerate(size)] for along in range(len(size))]
    expected = sum(literal.cross_attention(q, [k], [v], line) for line in lines) / len(size)
    torch.testing.assert_close(attention(maps)[0], expected, rtol=1e-10, atol=1e-10)
    with pytest.raises(ValueError, match=r"Unknown attention 'lines'. Known: window, axial."):
        CrossAttention(dim=4, attention="lines")


def test_windows_hold_about_as_many_pixels_with_three_axes_as_with_two():
    assert window_edges(7, (3, 3)) == (7, 7)
    assert window_edges(7, (3, 3, 3)) == (4, 4, 4)
    assert window_edges(7, (1, 3, 3)) == (1, 7, 7)
    assert window_edges([2, 5, 5], (3, 3, 3)) == (2, 5, 5)
    with pytest.raises(ValueError, match="must be one number, or 3, one for each axis"):
        window_edges([7, 7], (3, 3, 3))
    with pytest.raises(ValueError, match="at least 1, got 0"):
        window_edges(0, (3, 3, 3))


# ---- the network for slices in the one for volumes ----


def test_inflated_kernels_stand_in_the_middle():
    weight = torch.rand(2, 3, 3, 3)
    for planes, expected in {1: [1], 2: [0.5, 0.5], 3: [0, 1, 0], 4: [0, 0.5, 0.5, 0]}.items():
        torch.testing.assert_close(
            inflate(weight, planes), weight[:, :, None] * torch.tensor(expected)[:, None, None], rtol=0, atol=0
        )


def inflated(encoder, of_slices):
    """Give an encoder the weights of one for slices."""
    own = encoder.state_dict()
    weights = {
        key: inflate(value, own[key].shape[2]) if value.ndim < own[key].ndim else value
        for key, value in of_slices.state_dict().items()
    }
    encoder.load_state_dict(weights)
    return encoder


FLAT = [[1, 2, 2]] * 4


@pytest.mark.parametrize(
    ("name", "strides", "across"),
    [
        ("convnext_atto", [[1, 1, 1], *FLAT[1:]], 1),
        ("convnext_atto", FLAT, 5),
        ("plain_atto", FLAT, 1),
        ("plain_atto", FLAT, 3),
        ("convnext_atto", ISOTROPIC["strides"], 3),
        ("plain_atto", ISOTROPIC["strides"], 3),
    ],
)
def test_inflated_weights_give_the_features_of_slices(name, strides, across):
    """Slice by slice where slices are not pooled; and where they are, of a volume of equal slices, as there are for the
    instance normalization, which looks at all of them.
    """
    torch.manual_seed(0)
    of_slices = build_encoder(name, 1, strides=[stride[1:] for stride in strides])
    edge = 7 if name.startswith("convnext") else 3
    volume = inflated(build_encoder(name, 1, strides=strides, kernel_sizes=[[across, edge, edge]] * 4), of_slices)
    assert {key: p.ndim for key, p in volume.named_parameters()}.keys() == of_slices.state_dict().keys()
    pooled, equal = strides == ISOTROPIC["strides"], name == "plain_atto"
    depth = 16 if pooled else 3
    x = torch.randn(1, 1, 1 if pooled or equal else depth, 16, 32, dtype=torch.float64).expand(-1, -1, depth, -1, -1)
    with torch.no_grad():
        for features, flat in zip(volume.double()(x), of_slices.double()(x[0].transpose(0, 1)), strict=True):
            for y, expected in zip(features, flat, strict=True):
                torch.testing.assert_close(y, expected.transpose(0, 1)[None, :, : y.shape[2]], rtol=1e-9, atol=1e-9)


def test_pretrained_weights_are_inflated(tmp_path):
    torch.manual_seed(1)
    torch.save(timm.create_model("convnext_atto").state_dict(), tmp_path / "weights.pth")
    options = {"encoder": "convnext_atto", "layer_scale": 1.0}
    strides = [[1, 1, 1]] + [[1, 2, 2]] * 3
    of_slices, of_volumes = small(**options, strides=None), small(**options, strides=strides)
    for network in (of_slices, of_volumes):
        report = load_pretrained_encoders(network, tmp_path / "weights.pth")
        assert all(key.startswith(("edge_pooling", "stem.1")) for key in report.not_in_file) and not report.mismatched
    assert "stages.0.blocks.0.conv_dw.weight: (40, 1, 7, 7), (40, 1, 7, 7, 7)" in str(report)
    x = torch.randn(1, 1, 2, 16, 16)
    with torch.no_grad():
        pairs = zip(of_volumes.encoders[1](x), of_slices.encoders[1](x[0].transpose(0, 1)), strict=True)
        for (_, volume), (_, flat) in pairs:
            torch.testing.assert_close(volume[0].transpose(0, 1), flat, rtol=1e-4, atol=1e-4)


# ---- presets ----

#: nnU-Net's strides and kernels of data with spacing 1, with spacing 5 x 1.6 x 1.6, and of small volumes.
TOPOLOGIES = {
    "isotropic": ([[1, 1, 1]] + [[2, 2, 2]] * 5, [[3, 3, 3]] * 6),
    "in-plane first": (
        [[1, 1, 1], [1, 2, 2], [2, 2, 2], [2, 2, 2], [1, 2, 2], [1, 2, 2]],
        [[1, 3, 3], [3, 3, 3], [3, 3, 3], [3, 3, 3], [3, 3, 3], [3, 3, 3]],
    ),
    "small": ([[1, 1, 1], [2, 2, 2], [2, 2, 2]], [[3, 3, 3]] * 3),
}


@pytest.mark.parametrize(
    ("preset", "topology", "strides", "kernels", "multiples"),
    [
        ("fast", "isotropic", [[2, 2, 2]] * 4, [[3, 3, 3]] * 4, (16, 16, 16)),
        ("fast", "in-plane first", [[1, 2, 2], [2, 2, 2], [2, 2, 2], [1, 2, 2]], [[3, 3, 3]] * 4, (4, 16, 16)),
        ("fast", "small", [[2, 2, 2], [2, 2, 2], [1, 1, 1], [1, 1, 1]], [[3, 3, 3]] * 4, (4, 4, 4)),
        (
            "atto",
            "in-plane first",
            [[1, 1, 1], [1, 2, 2], [2, 2, 2], [2, 2, 2]],
            [[1, 7, 7], [3, 7, 7], [3, 7, 7], [3, 7, 7]],
            (4, 8, 8),
        ),
    ],
)
def test_a_preset_follows_nnunets_pooling(preset, topology, strides, kernels, multiples):
    arguments = preset_for_volumes(preset, *TOPOLOGIES[topology])
    assert (arguments["strides"], arguments["kernel_sizes"]) == (strides, kernels)
    assert input_strides(**arguments) == multiples
    assert arguments.get("fused_stages", 4) == sum(max(stride) > 1 for stride in strides[1:]) + 1
    size = [2 * m for m in multiples]
    with torch.device("meta"):
        network = DualInteractionNetwork(1, 4, **arguments)
        assert network(torch.empty(1, 2, *size)).shape == (1, 4, *size)


def test_far_slices_are_fused_one_by_one():
    arguments = preset_for_volumes("fast", *TOPOLOGIES["in-plane first"], fusion_kernel=[1, 3, 3])
    with torch.device("meta"):
        network = DualInteractionNetwork(1, 4, **arguments)
    for fusion in network.difms[:2]:
        assert fusion.conv.kernel_size == (1, 3, 3)
    for difm in network.difms[2:]:
        assert difm.ffn[0].depthwise.kernel_size == (1, 3, 3) and difm.attention.window == (1, 7, 7)
    assert network.encoders[0].stages[0][0][0].kernel_size == (3, 3, 3)


@pytest.mark.slow
def test_fast_takes_less_arithmetic_and_memory_than_nnunets_network():
    """The table in docs/volumes.md."""
    from dynamic_network_architectures.architectures.unet import PlainConvUNet

    strides, kernels = TOPOLOGIES["isotropic"]
    options = {"conv_op": nn.Conv3d, "kernel_sizes": kernels, "strides": strides, "n_conv_per_stage": [2] * 6}
    layers = {"norm_op": nn.InstanceNorm3d, "norm_op_kwargs": {"affine": True}, "nonlin": nn.LeakyReLU}
    with torch.device("meta"):
        network = DualInteractionNetwork(1, 4, **preset_for_volumes("fast", strides, kernels))
        features = [32, 64, 128, 256, 320, 320]
        nnunet = PlainConvUNet(
            1, 6, features, num_classes=4, n_conv_per_stage_decoder=[2] * 5, conv_bias=True, **options, **layers,
            nonlin_kwargs={"inplace": True},
        )  # fmt: skip
    for each, channels, multiply_adds, parameters, single, half in (
        (network, 2, 160, 15.4, 2.77, 1.78),
        (nnunet, 1, 477, 31.2, 9.68, 5.10),
    ):
        shape = (2, channels, 128, 128, 128)
        assert count_multiply_adds(each, (1, *shape[1:])) / 1e9 == pytest.approx(multiply_adds, abs=0.6)
        assert count_parameters(each) / 1e6 == pytest.approx(parameters, abs=0.06)
        assert training_memory(each, shape) / 1e9 == pytest.approx(single, abs=0.006)
        assert training_memory(each, shape, half_precision=True) / 1e9 == pytest.approx(half, abs=0.006)


# ---- the whole ----


@pytest.mark.parametrize(
    "options",
    [
        {"fusion": "concat"},
        {"fusion": "input", "versions": 3},
        {"inputs": [0, 0], "spatial_attention": False},
        {"versions": 3, "queries": [0, 2], "num_heads": 2},
        {"feature_merging": False, "attention": "axial", "fused_stages": 1},
        {**IN_PLANE_FIRST, "window_size": [2, 5, 5], "checkpointing": True},
    ],
)
def test_every_part_that_is_an_option_for_slices_is_one_for_volumes(options):
    network = small(**options)
    network(torch.randn(2, options.get("versions", 2), 16, 16, 32)).square().mean().backward()
    assert not [key for key, p in network.named_parameters() if p.grad is None or not torch.isfinite(p.grad).all()]


def test_auxiliary_heads():
    network = small()
    network.add_auxiliary_heads()
    outputs = network(torch.randn(1, 2, 16, 32, 16))
    assert [tuple(y.shape[2:]) for y in outputs] == [(16, 32, 16), (8, 16, 8), (4, 8, 4)]


def test_edges_must_be_multiples_of_the_strides_of_their_axes():
    options = {"encoder": "plain_atto", **IN_PLANE_FIRST}
    assert input_strides(**options) == (4, 16, 16) and input_stride(**options) == 16
    assert input_strides(**PRESETS["fast"]) == (16, 16) and input_strides("resnet18") == (32, 32)
    network = small(**IN_PLANE_FIRST)
    assert network.encoders[0].stride_per_axis == (4, 16, 16)
    with pytest.raises(ValueError, match="Depth, height and width must be multiples of 4 x 16 x 16, got 6 x 16 x 16"):
        network(torch.randn(1, 2, 6, 16, 16))
    with pytest.raises(ValueError, match=r"\(N, 2, Z, H, W\).*shape \(1, 2, 16, 16\)"):
        network(torch.randn(1, 2, 16, 16))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"decoder": "emcad"}, "Decoder 'emcad' is for 2-D images"),
        ({"encoder": "fct"}, "Encoder 'fct' is for 2-D images.*plain_atto"),
        ({"encoder": "swin_tiny_patch4_window7_224"}, "Encoder 'swin_tiny_patch4_window7_224' is for 2-D images"),
        ({"encoder": "convnextv2_atto", "layer_scale": None}, "blocks for 2-D images only"),
        ({"stem_stride": 2}, "`strides` begins with the stem's: leave stem_stride=2 out"),
        ({"strides": [[2, 2, 2]] * 3}, "for four stages"),
        ({"strides": [[2, 2]] * 3 + [[2, 2, 2]]}, "one number for each of two or three axes"),
        ({"strides": [[3, 2, 2]] * 4}, "strides must be 1 or 2"),
        ({"kernel_sizes": [[3, 3]] * 4}, "kernel_sizes have 2 axes and the strides 3"),
        ({"kernel_sizes": [[2, 3, 3]] * 4}, "kernel_sizes must be odd"),
        ({"kernel_sizes": [[5, 3, 3]] * 4}, "must be 1 or 3 along each axis"),
        ({"fusion_kernel": [1, 3]}, "fusion_kernel must be 1 or 3 for each of the 3 axes"),
    ],
)
def test_what_has_no_form_for_volumes_is_refused_in_one_sentence(options, message):
    with torch.device("meta"), pytest.raises(ValueError, match=message):
        small(**options)


def test_strides_of_two_axes_are_the_network_for_slices():
    for stem in (1, 2):
        by_stem = small(strides=None, stem_stride=stem, upsampling="pixel_shuffle")
        by_strides = small(strides=[[stem] * 2] + [[2, 2]] * 3, upsampling="pixel_shuffle")
        by_strides.load_state_dict(by_stem.state_dict())
        x = torch.randn(1, 2, 32, 16)
        assert torch.equal(by_stem.eval()(x), by_strides.eval()(x))
