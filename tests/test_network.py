"""The network: the paper's totals, its literal twin, every option, what it refuses, what it costs."""

from __future__ import annotations

import json

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import literal
from nnunet_din.losses import AuxiliaryLoss, DINLoss
from nnunet_din.network import PRESETS, DualInteractionNetwork, reference
from nnunet_din.network.cost import count_multiply_adds, count_parameters, multiply_adds_by_part, training_memory
from nnunet_din.network.decoders.segformer import fuse_levels
from nnunet_din.network.reference import ReferenceNetwork
from nnunet_din.planners.configurations import PAPER_TABLES, network_arguments
from tiny import IN_PLANE_FIRST, ISOTROPIC, tiny


def on_meta(*args, **kwargs):
    with torch.device("meta"):
        return DualInteractionNetwork(*args, **kwargs)


def slow(*case, **options):
    """Make a case for the long run."""
    return pytest.param(*case, marks=pytest.mark.slow, **options)


# ---- the paper's numbers ----


@pytest.fixture(scope="module")
def base():
    """The paper's network, without memory."""
    return on_meta(1, 4, **PRESETS["base"])


def test_base_reproduces_the_papers_totals(base):
    assert count_parameters(base) == pytest.approx(323.31e6, rel=0.002)
    assert count_parameters(base.difms) == pytest.approx(119.94e6, rel=0.002)
    assert count_multiply_adds(ReferenceNetwork(base), (1, 2, 224, 224)) == pytest.approx(1860.09e9, rel=0.002)


def test_widths_and_resolutions_of_table_14(base):
    encoder = base.encoders[0]
    pairs = encoder(torch.empty(1, 1, 224, 224, device="meta"))
    expected = [(1, 128, 224, 224), (1, 256, 112, 112), (1, 512, 56, 56), (1, 1024, 28, 28)]
    assert [(low.shape, high.shape) for low, high in pairs] == [(s, s) for s in expected]
    assert [len(stage.blocks) for stage in encoder.stages] == [3, 3, 27, 3]


@pytest.mark.slow
def test_the_networks_form_saves_what_the_documentation_says(base):
    shape = (1, 2, 224, 224)
    assert count_parameters(on_meta(1, 4)) == count_parameters(base), "the defaults are the paper's network"
    assert count_multiply_adds(base, shape) < 0.5 * 1860.09e9
    memory = training_memory(base, shape)
    assert memory < 0.75 * training_memory(ReferenceNetwork(base), shape)
    assert training_memory(on_meta(1, 4, **PRESETS["base"], checkpointing=True), shape) < 0.75 * memory


# ---- the decoder ----


@pytest.mark.parametrize(
    "sizes",
    [
        [(16, 24), (8, 12), (4, 6), (2, 3)],
        [(13, 9), (7, 5), (3, 3), (1, 1)],
        [(10, 15), (7, 4), (12, 30), (10, 15)],
        [(5, 6), (40, 60), (17, 6), (5, 50)],
        [(4, 8, 6), (2, 4, 3), (1, 2, 2), (1, 1, 1)],
        [(5, 16, 8), (5, 8, 4), (3, 4, 2), (2, 2, 1)],
        [(6, 5, 7), (9, 5, 4), (2, 11, 20), (6, 5, 7)],
    ],
    ids=str,
)
def test_reordered_decoder_equals_the_literal_one(sizes):
    """Maps of three axes that are not pooled along the first get a kernel that is flat there."""
    torch.manual_seed(0)
    channels, width = (5, 6, 7, 8), 9
    flat = len(sizes[0]) == 3 and sizes[0][0] == sizes[1][0]
    kernel = (1, 3, 3) if flat else [3] * len(sizes[0])
    shapes = [(2, d, *size) for d, size in zip(channels, sizes, strict=True)]
    shapes += [*((width, d) for d in channels), *[(width,)] * 4, (width, 4 * width, *kernel)]
    leaves = [torch.randn(shape, dtype=torch.float64, requires_grad=True) for shape in shapes]
    ours, twin = (f(leaves[:4], leaves[4:8], leaves[8:12], leaves[12]) for f in (fuse_levels, reference.fuse_levels))
    cotangent = torch.randn_like(twin)
    results = [(ours, twin), *zip(*(torch.autograd.grad(y, leaves, cotangent) for y in (ours, twin)), strict=True)]
    for result, expected in results:
        assert (result - expected).abs().max() <= 1e-12 * expected.abs().max()


# ---- the whole network against its literal twin ----

DOUBLE, SINGLE = (torch.float64, 1e-11), (torch.float32, 1e-4)
HYBRID = {"fusion": ["concat", "concat", "difm", "difm"]}
LIGHT = {"merging_convolution": "pointwise", "ffn_convolution": "depthwise", "joint_ffn": True}
SUBPIXELS = {"upsampling": "pixel_shuffle"}
ATTO, TINY = ({"encoder": f"convnext_{size}", "layer_scale": 0.5} for size in ("atto", "tiny"))


@pytest.mark.parametrize(
    ("options", "size", "precision"),
    [
        (ATTO, (24, 40), SINGLE),  # 1 x 1 convolutions, padded windows
        slow({**ATTO, **SUBPIXELS, "stem_stride": 2, "checkpointing": True}, (32, 48), DOUBLE),
        slow({**ATTO, **HYBRID, **LIGHT}, (24, 40), DOUBLE),
        slow(TINY, (24, 40), DOUBLE),  # linear layers
        slow({**TINY, **SUBPIXELS, "stem_stride": 2, "checkpointing": True}, (32, 48), SINGLE),
        ({}, (24, 40), DOUBLE),
        ({**SUBPIXELS, "stem_stride": 2, "checkpointing": True}, (32, 48), DOUBLE),
        ({**HYBRID, **LIGHT}, (24, 40), DOUBLE),
        ({**LIGHT, "merging_convolution": "depthwise", "ffn_convolution": "pointwise"}, (24, 40), DOUBLE),
        ({**IN_PLANE_FIRST, **SUBPIXELS}, (4, 32, 16), DOUBLE),
        ({**IN_PLANE_FIRST, **HYBRID, **LIGHT, "fusion_kernel": [1, 3, 3]}, (4, 32, 16), DOUBLE),
        ({**ISOTROPIC, "fused_stages": 3, "checkpointing": True}, (16, 32, 16), DOUBLE),
        slow({**IN_PLANE_FIRST, **ATTO}, (4, 32, 48), DOUBLE),
        slow({**TINY, "fused_stages": 2, "strides": [[1, 1, 1], *[[2, 2, 2]] * 3]}, (8, 16, 8), DOUBLE),
    ],
)
def test_network_equals_the_literal_one_forward_and_backward(options, size, precision):
    dtype, tolerance = precision
    network = tiny(**options).to(dtype)
    x = torch.randn(2, 2, *size, dtype=dtype)
    assert network(x).shape == (2, 3, *size)
    literal.assert_same_outputs_and_gradients(network, ReferenceNetwork(network), x, tolerance)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("options", "size"),
    [
        (PRESETS["atto"], (128, 112)),
        (PRESETS["fast"], (256, 224)),
        ({"encoder": "plain_atto", "decoder_channels": 128, "fused_stages": 2, **ISOTROPIC}, (64, 80, 64)),
    ],
)
def test_prediction_equals_the_reference(options, size):
    """Without gradients, at the size of a patch: what nnU-Net's prediction runs."""
    network = tiny(**options).eval()
    x = torch.randn(2, 2, *size)
    with torch.no_grad():
        ours, twin = network(x), ReferenceNetwork(network)(x)
    assert (ours - twin).abs().max() <= 1e-4 * twin.abs().max()


@pytest.mark.slow
def test_bf16_is_as_near_to_the_truth_as_the_references_bf16():
    network = tiny(**ATTO)
    x = torch.randn(2, 2, 48, 40)
    exact = ReferenceNetwork(network)(x)
    errors = []
    for model in (network, ReferenceNetwork(network)):
        with torch.autocast("cpu", torch.bfloat16):
            errors.append((model(x).float() - exact).abs().mean())
    assert errors[0] <= 1.5 * errors[1] <= 0.1 * exact.abs().mean()


@pytest.mark.slow
def test_compiled_network_equals_the_reference():
    """In one graph, without breaks; two levels have all that four have, in half the time."""
    torch._dynamo.reset()
    network = tiny(**ATTO, fused_stages=2)
    x = torch.randn(2, 2, 48, 40)
    literal.assert_same_outputs_and_gradients(
        torch.compile(network, fullgraph=True), ReferenceNetwork(network), x, 1e-4
    )


# ---- every option ----


def configurations():
    """Arguments of the paper's tables, and of what goes beyond them; rows that differ in the enhancement have one
    network. Of Swin, 28 million parameters, the table's last row is enough; a smaller pyramid of timm takes its place.
    """
    arguments = {name: network_arguments({}, *what) for name, what in PAPER_TABLES.items()}
    for name, kwargs in arguments.items():
        if name.startswith("2d_swin_"):
            kwargs["encoder"] = "pvt_v2_b0"
    arguments |= {
        "three versions, one direction": {"versions": 3, "queries": [0]},
        "three versions, every second level": {**LIGHT, "versions": 3, "fusion": ["concat", "difm", "concat", "difm"]},
        "levels of both kinds": {**LIGHT, "fusion": ["difm", "concat", "difm", "concat"], "encoder": "convnext_atto"},
        "two levels of a pyramid": {"encoder": "pvt_v2_b0", "fused_stages": 2},
        "volumes": ISOTROPIC,
        "concat in volumes": {**ISOTROPIC, "fusion": "concat"},
        "input in volumes": {**ISOTROPIC, "fusion": "input", "versions": 3},
        "twice the image in volumes": {**ISOTROPIC, "inputs": [0, 0], "spatial_attention": False},
        "one direction in volumes": {**ISOTROPIC, "versions": 3, "queries": [0, 2], "num_heads": 2},
        "axial in volumes": {**ISOTROPIC, "feature_merging": False, "attention": "axial", "fused_stages": 1},
        "windows in volumes": {**IN_PLANE_FIRST, "window_size": [2, 5, 5], "checkpointing": True},
    }
    different = {json.dumps(kwargs): (name, kwargs) for name, kwargs in arguments.items()}.values()
    for name, kwargs in different:
        quick = "encoder" not in kwargs and (name.startswith("2d") or name in ("volumes", "windows in volumes"))
        yield pytest.param(kwargs, id=name) if quick else slow(kwargs, id=name)


@pytest.mark.parametrize("options", configurations())
def test_every_configuration_trains_every_parameter_and_comes_back_from_its_state(options, tmp_path):
    """Under DDP, a weight without a gradient, such as one that makes an f_low that nobody reads, stops the training."""
    network, size = tiny(**options), (16, 16, 32) if "strides" in options else (32, 64)
    network.add_auxiliary_heads()
    x, target = torch.randn(2, options.get("versions", 2), *size), torch.randint(0, 3, (2, 1, *size))
    logits, *auxiliary = network(x)
    assert logits.shape == (2, 3, *size) and len(auxiliary) == options.get("fused_stages", 4)
    AuxiliaryLoss(DINLoss())([logits, *auxiliary], target).backward()
    weights = [(name, p) for name, p in network.named_parameters() if p.requires_grad]
    assert not [name for name, p in weights if p.grad is None or not p.grad.isfinite().all()]
    other = tiny(**options, seed=1).eval()
    torch.save(network.state_dict(), tmp_path / "weights.pth")
    other.load_state_dict(torch.load(tmp_path / "weights.pth", weights_only=True))
    with torch.no_grad():
        assert torch.equal(other(x), network.eval()(x)[0])


@pytest.mark.parametrize("used", [(0,), (1,), (0, 1)], ids=str)
def test_the_inputs_that_are_used_matter_and_no_others(used):
    """Fails if "only I" sees the enhanced image, or if the two take the same way."""
    network = tiny(inputs=used).eval()
    x = torch.randn(1, 2, 24, 16)
    with torch.no_grad():
        y = network(x)
        for i in range(2):
            changed = x.clone()
            changed[:, i] = 0
            assert torch.equal(network(changed), y) == (i not in used)
        assert not torch.allclose(network(x.flip(1)), y)


def test_options_of_another_fusion_count_for_nothing():
    """``nnunet-din configure --set fusion=concat`` on plans of a preset that sets parts of its DIFMs."""
    tiny(**{**PRESETS["fast"], "fusion": "concat"})


def test_levels_that_are_left_out_have_no_layers():
    network = tiny(**HYBRID, **LIGHT, fused_stages=2)
    assert [type(fusion).__name__ for fusion in network.difms] == ["ConcatenationFusion"] * 2
    assert len(network.decoder.linear) == 2 and all(len(encoder.stages) == 2 for encoder in network.encoders)


@pytest.mark.parametrize(
    ("options", "size", "message"),
    [
        ({}, (20, 24), "multiples of 8, got 20 x 24"),
        ({}, (24, 7), "multiples of 8, got 24 x 7"),
        ({"stem_stride": 2}, (64, 88), "multiples of 16, got 64 x 88"),
        (IN_PLANE_FIRST, (6, 16, 16), "Depth, height and width must be multiples of 4 x 16 x 16, got 6 x 16 x 16"),
        (IN_PLANE_FIRST, (16, 16), r"\(N, 2, Z, H, W\).*shape \(1, 2, 16, 16\)"),
        ({"versions": 3}, (16, 16), "1 original and 2 enhanced.*nnUNetPlannerDIN"),
    ],
)
def test_images_that_do_not_fit_are_refused(options, size, message):
    with pytest.raises(ValueError, match=message):
        tiny(**options)(torch.randn(1, 2, *size))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"encoder": "resnet5"}, "Unknown encoder 'resnet5'.*convnext_tiny"),
        ({"fusion": "sum"}, "Unknown fusion 'sum'. Known: difm, concat, input"),
        ({"decoder": "unet"}, "Unknown decoder 'unet'.*segformer.*emcad"),
        ({"window": 7}, "option of the network 'window': did you mean 'window_size'.*feature_merging"),
        ({"inputs": [2]}, "inputs must name some of the 2 versions"),
        ({"fused_stages": 5}, "fused_stages must be 1 to 4, got 5"),
        ({"stem_stride": 4}, "stem_stride must be 1 or 2, got 4"),
        ({"fusion": ["concat", "difm"]}, "one name, or one for each of the four stages, got .'concat', 'difm'."),
        ({"fusion": ["input", "difm", "difm", "difm"]}, "'input' has one encoder for all inputs and cannot stand"),
        ({"ffn_convolution": "sparse"}, "Unknown kind of convolution 'sparse'. Known: dense, depthwise, pointwise"),
        ({"attention": "lines"}, "Unknown attention 'lines'. Known: window, axial."),
        ({"queries": [2]}, "queries must name some of the 2 streams"),
        ({"num_heads": 3}, "num_heads=3 does not divide the 8 channels"),
        ({**ISOTROPIC, "decoder": "emcad"}, "Decoder 'emcad' is for 2-D images"),
        ({**ISOTROPIC, "fusion_kernel": [1, 3]}, "fusion_kernel must be 1 or 3 for each of the 3 axes"),
    ],
)
def test_options_out_of_range_are_refused(options, message):
    with torch.device("meta"), pytest.raises(ValueError, match=message):
        tiny(**options)


def test_weights_of_another_network_are_refused_in_one_sentence():
    with pytest.raises(RuntimeError, match="These weights belong to another network.*preset"):
        tiny().load_state_dict(tiny(encoder="fct").state_dict())
    with pytest.raises(RuntimeError, match="do not fit, the first is 'decoder.classifier.weight'"):
        tiny().load_state_dict(tiny(classes=5).state_dict())


# ---- auxiliary heads ----


def test_auxiliary_heads_change_nothing_else():
    network = tiny().eval()
    x = torch.randn(2, 2, 24, 16)
    with torch.no_grad():
        before, weights = network(x), network.state_dict()
        network.add_auxiliary_heads()
        after = network(x)
    assert torch.equal(before, after[0])
    assert [o.shape for o in after[1:]] == [(2, before.shape[1], 24 // d, 16 // d) for d in (1, 2, 4, 8)]
    own = network.auxiliary_heads.seg_layers[0].weight.clone()
    network.load_state_dict(weights)
    assert torch.equal(network.auxiliary_heads.seg_layers[0].weight, own)
    plain = tiny()
    plain.load_state_dict(network.state_dict())
    assert plain.state_dict().keys() == weights.keys()


def test_deep_supervision_is_that_of_the_fused_levels():
    """nnU-Net and other programs ask for it by this argument."""
    with pytest.warns(UserWarning, match="-tr nnUNetTrainerDIN"):
        network = tiny(deep_supervision=True)
    assert network.auxiliary_heads is not None and len(network(torch.randn(2, 2, 24, 16))) == 5


# ---- what it costs ----


def test_memory_accounting_of_a_network_that_can_be_counted_by_hand():
    # Parameters, their gradient and AdamW's moments; input; output of the first layer, kept for the second.
    network = nn.Sequential(nn.Conv2d(2, 8, 1, bias=False), nn.Conv2d(8, 8, 1, bias=False))
    pixels = 4 * 16 * 16
    # The peak is in the backward pass of the second layer: its output's gradient is there, the input's is being made.
    expected = 12 * 80 + 4 * pixels * (2 + 8) + 4 * 64 + 4 * pixels * 8
    assert training_memory(network, (4, 2, 16, 16)) == pytest.approx(expected, rel=0.3)
    half = training_memory(network, (4, 2, 16, 16), half_precision=True)
    assert half < 0.75 * training_memory(network, (4, 2, 16, 16))


@pytest.mark.parametrize("half_precision", [False, True])
def test_attention_is_counted_as_devices_compute_it(half_precision):
    """Without the matrix of weights, which would be 256 times the queries here; a mask is counted as it is kept."""

    class Attention(nn.Linear):
        def __init__(self, masked):
            super().__init__(4, 4)
            self.masked = masked

        def forward(self, x):
            q = super().forward(x)
            mask = torch.ones(1, 1, 1, 1024, dtype=torch.bool, device=x.device) if self.masked else None
            return F.scaled_dot_product_attention(q, q, q, attn_mask=mask)

    queries = 4 * 2 * 1024 * 4
    plain, masked = (training_memory(Attention(masked), (2, 1, 1024, 4), half_precision) for masked in (False, True))
    assert plain < 12 * queries
    assert plain <= masked <= plain + 16 * 1024


def test_multiply_adds_by_part_add_up():
    parts = multiply_adds_by_part(tiny().to("meta"), (1, 2, 64, 64))
    total = parts.pop("")
    assert set(parts) == {"encoders", "difms", "decoder"} and all(parts.values())
    assert sum(parts.values()) == total
