"""Fusions of their own at every level, and the light parts of a DIFM."""

from __future__ import annotations

from itertools import product

import pytest
import torch

import literal
from nnunet_din.losses import AuxiliaryLoss, DINLoss
from nnunet_din.network import PRESETS, DualInteractionNetwork, DualInteractiveFusionModule, build_fusion
from nnunet_din.network.fusion.difm import CONVOLUTION_KINDS
from nnunet_din.network.reference import ReferenceNetwork
from nnunet_din.presets import preset_for_volumes

HYBRID = {"fusion": ["concat", "concat", "difm", "difm"]}
LIGHT = {"merging_convolution": "pointwise", "ffn_convolution": "depthwise", "joint_ffn": True}
VOLUMES = {"strides": [*[[2, 2, 2]] * 3, [1, 1, 1]], "kernel_sizes": [[3, 3, 3]] * 4, "fused_stages": 3}


def build(**options):
    torch.manual_seed(0)
    return DualInteractionNetwork(1, 3, **{"encoder": "plain_atto", "decoder_channels": 8, **options})


@pytest.mark.parametrize(
    ("options", "size"),
    [
        ({**HYBRID, **LIGHT}, (24, 40)),
        ({**HYBRID, "merging_convolution": "depthwise", "ffn_convolution": "pointwise"}, (24, 40)),
        ({**LIGHT, **VOLUMES, "merging_convolution": "depthwise"}, (8, 16, 24)),
        pytest.param({**HYBRID, **LIGHT, "encoder": "convnext_atto"}, (24, 40), marks=pytest.mark.slow),
        pytest.param({**HYBRID, **LIGHT, "checkpointing": True, "joint_ffn": False}, (32, 48), marks=pytest.mark.slow),
        pytest.param({**HYBRID, **VOLUMES, **LIGHT, "fusion_kernel": [1, 3, 3]}, (8, 16, 24), marks=pytest.mark.slow),
    ],
)
def test_every_form_equals_the_literal_one_forward_and_backward(options, size):
    network = build(**options).double()
    x = torch.randn(2, 2, *size, dtype=torch.float64)
    literal.assert_same_outputs_and_gradients(network, ReferenceNetwork(network), x, 1e-11)


@pytest.mark.parametrize("encoder", ["plain_atto", "convnext_atto"])
@pytest.mark.parametrize("fusion", [["concat", "difm", "concat", "difm"], ["difm", "concat", "difm", "concat"]])
def test_every_weight_gets_a_gradient(encoder, fusion):
    """Under DDP, a layer that makes an f_low which nobody reads would stop the training."""
    network = build(encoder=encoder, fusion=fusion, versions=3, **LIGHT)
    network.add_auxiliary_heads()
    outputs = network(torch.randn(2, 3, 16, 24))
    AuxiliaryLoss(DINLoss())(outputs, torch.randint(0, 3, (2, 1, 16, 24))).backward()
    assert [name for name, weight in network.named_parameters() if weight.grad is None] == []


def test_a_light_difm_has_fewer_weights_and_the_papers_is_the_default():
    counts = {
        (merging, ffn): sum(
            weight.numel()
            for weight in build_fusion("difm", 16, 2, merging_convolution=merging, ffn_convolution=ffn).parameters()
        )
        for merging, ffn in product(CONVOLUTION_KINDS, repeat=2)
    }
    assert counts["dense", "dense"] == sum(weight.numel() for weight in DualInteractiveFusionModule(16).parameters())
    for dense, depthwise, pointwise in (
        [counts[kind, "dense"] for kind in CONVOLUTION_KINDS],
        [counts["dense", kind] for kind in CONVOLUTION_KINDS],
    ):
        assert dense > depthwise > pointwise
    assert len(build_fusion("difm", 16, 2, joint_ffn=True).ffn) == 1


def test_levels_that_are_left_out_need_no_fusion():
    """The names are those of four stages, in images and in volumes that pool less often."""
    assert [type(each).__name__ for each in build(**HYBRID, **LIGHT, fused_stages=1).difms] == ["ConcatenationFusion"]
    strides, kernels = [[1, 1, 1], *[[2, 2, 2]] * 3], [[3, 3, 3]] * 4
    network = DualInteractionNetwork(1, 3, **preset_for_volumes("fast", strides, kernels))
    names = [type(each).__name__ for each in network.difms]
    assert names == ["ConcatenationFusion", "ConcatenationFusion", "DualInteractiveFusionModule"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"fusion": ["concat", "difm"]}, "one name, or one for each of the four stages, got .'concat', 'difm'."),
        ({"fusion": ["input", "difm", "difm", "difm"]}, "'input' has one encoder for all inputs and cannot stand"),
        ({**HYBRID, "heads": 2}, "Unknown option of the network 'heads': did you mean 'num_heads'"),
        ({"ffn_convolution": "sparse"}, "Unknown kind of convolution 'sparse'. Known: dense, depthwise, pointwise"),
    ],
)
def test_what_is_refused(options, message):
    with pytest.raises(ValueError, match=message):
        build(**options)


def test_options_of_another_fusion_count_for_nothing():
    """``nnunet-din configure --set fusion=concat`` on plans of a preset that sets parts of its DIFMs."""
    build(**{**PRESETS["fast"], "fusion": "concat"})
