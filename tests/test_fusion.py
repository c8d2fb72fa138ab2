"""The fusions: attention against its literal twin, and what their parts are."""

from __future__ import annotations

import pytest
import torch

import literal
from nnunet_din.network import DualInteractiveFusionModule, build_fusion
from nnunet_din.network.fusion.attention import CrossAttention, window_edges

EXACT = {"rtol": 1e-10, "atol": 1e-10}


def attention_and_maps(size, streams=2, **options):
    torch.manual_seed(0)
    attention = CrossAttention(dim=6, streams=streams, kernel_size=[3] * len(size), **options).double()
    maps = list(torch.randn(streams, 2, 6, *size, dtype=torch.float64))
    projected = (layer(f).chunk(3, dim=1) for layer, f in zip(attention.project, maps, strict=True))
    return attention, maps, *zip(*projected, strict=True)


@pytest.mark.parametrize("in_graph", [False, True])
@pytest.mark.parametrize(
    ("size", "streams"),
    [
        *[((14, 14), 2), ((8, 15), 2), ((3, 2), 2), ((7, 5), 1), ((8, 15), 3), ((7, 5), 4)],
        *[((4, 8, 4), 2), ((5, 9, 7), 2), ((2, 3, 1), 2)],
    ],
)
def test_windowed_attention_equals_the_literal_one(size, streams, in_graph, monkeypatch):
    """Each stream attends to the pixels of all others in its window at once; a single one to its own."""
    monkeypatch.setattr("nnunet_din.network.fusion.attention.exporting", lambda: in_graph)
    attention, maps, q, k, v = attention_and_maps(size, streams)
    window = 7 if len(size) == 2 else 4
    for i, result in enumerate(attention(maps)):
        others = [j for j in range(streams) if j != i] or [i]
        expected = literal.cross_attention(q[i], [k[j] for j in others], [v[j] for j in others], window)
        torch.testing.assert_close(result, expected, **EXACT)


@pytest.mark.parametrize("size", [(5, 4), (3, 4, 5)])
def test_axial_attention_is_the_mean_over_the_lines_through_a_pixel(size):
    attention, maps, q, k, v = attention_and_maps(size, attention="axial")
    lines = [[n if axis == along else 1 for axis, n in enumerate(size)] for along in range(len(size))]
    expected = sum(literal.cross_attention(q[0], [k[1]], [v[1]], line) for line in lines) / len(size)
    torch.testing.assert_close(attention(maps)[0], expected, **EXACT)


def test_heads_split_the_channels():
    two, maps, q, k, v = attention_and_maps((7, 7), num_heads=2)
    heads = [slice(0, 3), slice(3, 6)]
    expected = [literal.cross_attention(q[0][:, head], [k[1][:, head]], [v[1][:, head]], 7) for head in heads]
    torch.testing.assert_close(two(maps)[0], torch.cat(expected, dim=1), **EXACT)


@pytest.mark.parametrize(("query", "parts"), [(0, (1, 2)), (1, (2, 1))])
def test_one_direction_alone_is_that_of_both(query, parts):
    """f_IE or f_EI with the weights of both directions; what it does not need has no parameters (Table 7)."""
    both, maps, *_ = attention_and_maps((9, 7))
    one = CrossAttention(dim=6, queries=[query]).double()
    assert [layer.out_channels // 6 for layer in one.project] == list(parts)
    for i, layer in enumerate(one.project):
        rows = slice(0, 6) if i == query else slice(6, 18)
        layer.weight.data, layer.bias.data = both.project[i].weight[rows], both.project[i].bias[rows]
    torch.testing.assert_close(one(maps)[0], both(maps)[query])


def test_windows_hold_about_as_many_pixels_with_three_axes_as_with_two():
    assert window_edges(7, (3, 3)) == (7, 7)
    assert window_edges(7, (3, 3, 3)) == (4, 4, 4)
    assert window_edges(7, (1, 3, 3)) == (1, 7, 7)
    assert window_edges([2, 5, 5], (3, 3, 3)) == (2, 5, 5)
    with pytest.raises(ValueError, match="must be one number, or 3, one for each axis"):
        window_edges([7, 7], (3, 3, 3))
    with pytest.raises(ValueError, match="at least 1, got 0"):
        window_edges(0, (3, 3, 3))


def test_difm_is_symmetric_in_the_two_images_up_to_its_weights():
    """Swapping the images and the weights of the two sides does not change the sum F_IE + F_EI."""
    torch.manual_seed(0)
    difm, swapped = DualInteractiveFusionModule(6), DualInteractiveFusionModule(6)
    sides = {"0": "1", "1": "0"}
    swapped.load_state_dict(
        {".".join(sides.get(part, part) for part in key.split(".")): v for key, v in difm.state_dict().items()}
    )
    image, enhanced = torch.randn(2, 2, 1, 6, 9, 7)
    torch.testing.assert_close(difm(image, enhanced), swapped(enhanced, image))


def test_concatenation_is_a_convolution_of_the_high_features():
    fusion = build_fusion("concat", 8, 2)
    f_low, f_high = torch.randn(2, 1, 8, 7, 7)
    assert torch.equal(fusion((f_low, f_high), (f_high, f_low)), fusion.conv(torch.cat((f_high, f_low), 1)))


def test_light_parts_have_fewer_weights_and_the_papers_are_the_default():
    def weights(**options):
        return sum(weight.numel() for weight in build_fusion("difm", 16, 2, **options).parameters())

    for part in ("merging_convolution", "ffn_convolution"):
        dense, depthwise, pointwise = (weights(**{part: kind}) for kind in ("dense", "depthwise", "pointwise"))
        assert weights() == dense > depthwise > pointwise
    assert weights(joint_ffn=True) < weights()
