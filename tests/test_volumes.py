"""The network for volumes: its relation to the network for slices, and to nnU-Net's pooling."""

from __future__ import annotations

import copy

import pytest
import torch

from nnunet_din.network import DualInteractionNetwork, build_encoder, input_strides, reference
from nnunet_din.network.presets import preset_for_volumes
from nnunet_din.network.resize import shuffle_pixels
from nnunet_din.weights.adaptation import inflate
from tiny import ISOTROPIC, tiny


@pytest.mark.parametrize("factors", [(2, 2, 2), (1, 2, 2), (1, 2), (2, 2)])
def test_pixel_shuffle_equals_the_literal_one(factors):
    x = torch.randn(2, 3 * 2 ** sum(r > 1 for r in factors), *(3, 4, 5)[: len(factors)])
    assert torch.equal(shuffle_pixels(x, factors), reference.shuffle_pixels(x, factors))


@pytest.mark.parametrize("size", [(32, 32), (16, 16, 16)])
def test_fused_adamw_steps_as_the_plain_one(size):
    """Torch's fused AdamW on a CPU pairs weights and gradients in the order of memory, whatever their strides."""
    network = tiny(strides=[[2] * len(size)] * 4)
    network(torch.randn(1, 2, *size)).square().sum().backward()
    twin = copy.deepcopy(network)
    for weight, other in zip(network.parameters(), twin.parameters(), strict=True):
        other.grad = None if weight.grad is None else weight.grad.clone()
    torch.optim.AdamW(network.parameters(), lr=0.01, fused=True).step()
    torch.optim.AdamW(twin.parameters(), lr=0.01, foreach=False).step()
    for weight, other in zip(network.parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(weight, other)


def test_inflated_kernels_stand_in_the_middle():
    weight = torch.rand(2, 3, 3, 3)
    for planes, expected in {1: [1], 2: [0.5, 0.5], 3: [0, 1, 0], 4: [0, 0.5, 0.5, 0]}.items():
        torch.testing.assert_close(
            inflate(weight, planes), weight[:, :, None] * torch.tensor(expected)[:, None, None], rtol=0, atol=0
        )


FLAT = [[1, 2, 2]] * 4


@pytest.mark.parametrize(
    ("name", "strides", "across"),
    [
        ("convnext_atto", [[1, 1, 1], *FLAT[1:]], 1),
        ("convnext_atto", FLAT, 5),
        ("plain_tiniest", FLAT, 1),
        ("plain_tiniest", FLAT, 3),
        ("convnext_atto", ISOTROPIC["strides"], 3),
        ("plain_tiniest", ISOTROPIC["strides"], 3),
    ],
)
def test_inflated_weights_give_the_features_of_slices(name, strides, across):
    """Slice by slice where slices are not pooled; and where they are, of a volume of equal slices, as there are for the
    instance normalization, which looks at all of them.
    """
    torch.manual_seed(0)
    of_slices = build_encoder(name, 1, strides=[stride[1:] for stride in strides])
    edge = 7 if name.startswith("convnext") else 3
    volume = build_encoder(name, 1, strides=strides, kernel_sizes=[[across, edge, edge]] * 4)
    own, weights = volume.state_dict(), of_slices.state_dict()
    volume.load_state_dict(
        {key: inflate(w, own[key].shape[2]) if w.ndim < own[key].ndim else w for key, w in weights.items()}
    )
    pooled, equal = strides == ISOTROPIC["strides"], name.startswith("plain")
    depth = 16 if pooled else 3
    x = torch.randn(1, 1, 1 if pooled or equal else depth, 16, 32, dtype=torch.float64).expand(-1, -1, depth, -1, -1)
    with torch.no_grad():
        for features, flat in zip(volume.double()(x), of_slices.double()(x[0].transpose(0, 1)), strict=True):
            for y, expected in zip(features, flat, strict=True):
                torch.testing.assert_close(y, expected.transpose(0, 1)[None, :, : y.shape[2]], rtol=1e-9, atol=1e-9)


def test_strides_of_two_axes_are_the_network_for_slices():
    for stem in (1, 2):
        by_stem = tiny(stem_stride=stem, upsampling="pixel_shuffle")
        by_strides = tiny(strides=[[stem] * 2] + [[2, 2]] * 3, upsampling="pixel_shuffle")
        by_strides.load_state_dict(by_stem.state_dict())
        x = torch.randn(1, 2, 32, 16)
        assert torch.equal(by_stem.eval()(x), by_strides.eval()(x))


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
