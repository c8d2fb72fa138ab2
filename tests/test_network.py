"""The network: the paper's totals, the reordered decoder and the windowed attention against their literal twins, every
preset.
"""

from __future__ import annotations

import hashlib
from itertools import product

import pytest
import timm
import torch
from torch import nn
from torch.nn import functional as F

import literal
from nnunet_din.cost.accounting import count_multiply_adds, count_parameters, multiply_adds_by_part, training_memory
from nnunet_din.cost.profiling import printed_multiply_adds
from nnunet_din.network import (
    PRESETS,
    DualInteractionNetwork,
    DualInteractiveFusionModule,
    SegFormerHead,
    build_decoder,
    build_encoder,
    input_stride,
    known_encoders,
    reference,
)
from nnunet_din.network.alternatives.pyramid import describe
from nnunet_din.network.decoders.segformer import fuse_levels
from nnunet_din.network.fusion.attention import CrossAttention
from nnunet_din.network.reference import ReferenceNetwork
from nnunet_din.weights import load_pretrained_encoders


def on_meta(*args, **kwargs):
    with torch.device("meta"):
        return DualInteractionNetwork(*args, **kwargs)


def small(**kwargs):
    torch.manual_seed(0)
    return DualInteractionNetwork(1, 3, **{**PRESETS["atto"], "decoder_channels": 16, **kwargs})


# ---- the paper's numbers ----


def test_base_reproduces_the_papers_totals():
    network = on_meta(1, 4, **PRESETS["base"])
    assert count_parameters(network) == pytest.approx(323.31e6, rel=0.002)
    assert count_parameters(network.difms) == pytest.approx(119.94e6, rel=0.002)
    assert count_multiply_adds(ReferenceNetwork(network), (1, 2, 224, 224)) == pytest.approx(1860.09e9, rel=0.002)


@pytest.mark.slow
def test_reordering_halves_the_multiply_adds():
    network = on_meta(1, 4, **PRESETS["base"])
    assert count_multiply_adds(network, (1, 2, 224, 224)) < 0.5 * 1860.09e9


@pytest.mark.slow
def test_defaults_are_the_papers_network():
    assert count_parameters(on_meta(1, 4)) == count_parameters(on_meta(1, 4, **PRESETS["base"]))


@pytest.mark.slow
def test_widths_and_resolutions_of_table_14():
    encoder = build_encoder("convnext_base", 1).to("meta")
    shapes = [
        (tuple(low.shape), tuple(high.shape)) for low, high in encoder(torch.empty(1, 1, 224, 224, device="meta"))
    ]
    expected = [(1, 128, 224, 224), (1, 256, 112, 112), (1, 512, 56, 56), (1, 1024, 28, 28)]
    assert shapes == [(s, s) for s in expected]
    assert [len(stage.blocks) for stage in encoder.stages] == [3, 3, 27, 3]


def test_a_stem_of_stride_two_halves_every_scale_and_the_logits_come_back_to_full_size():
    network = on_meta(1, 4, **PRESETS["fast"])
    pairs = network.encoders[0](torch.empty(1, 1, 64, 96, device="meta"))
    assert [tuple(high.shape[-2:]) for _, high in pairs] == [(32, 48), (16, 24), (8, 12), (4, 6)]
    assert network(torch.empty(1, 2, 64, 96, device="meta")).shape == (1, 4, 64, 96)
    with pytest.raises(ValueError, match="multiples of 16, got 64 x 88"):
        network(torch.empty(1, 2, 64, 88, device="meta"))
    with pytest.raises(ValueError, match="stem_stride must be 1 or 2, got 4"):
        on_meta(1, 4, **{**PRESETS["fast"], "stem_stride": 4})
    assert [input_stride(**PRESETS[p]) for p in ("base", "fast")] == [8, 16]


# ---- decoder ----

SIZES = {
    "powers of two": [(16, 24), (8, 12), (4, 6), (2, 3)],
    "odd": [(13, 9), (7, 5), (3, 3), (1, 1)],
    "any factor": [(10, 15), (7, 4), (12, 30), (10, 15)],
    "far larger": [(5, 6), (40, 60), (17, 6), (5, 50)],
    "three axes": [(4, 8, 6), (2, 4, 3), (1, 2, 2), (1, 1, 1)],
    "in-plane first": [(5, 16, 8), (5, 8, 4), (3, 4, 2), (2, 2, 1)],
    "three axes, any factor": [(6, 5, 7), (9, 5, 4), (2, 11, 20), (6, 5, 7)],
}


def levels_and_parameters(sizes, bias=True, dtype=torch.float64):
    """Arguments of fuse_levels, and its leaves; maps of three axes that are not pooled along the first get a kernel
    that is flat there.
    """
    generator = torch.Generator().manual_seed(0)

    def random(*shape):
        return torch.randn(*shape, generator=generator, dtype=torch.float64).to(dtype).requires_grad_()

    channels, width = (5, 6, 7, 8), 9
    features = [random(2, d, *size) for d, size in zip(channels, sizes, strict=True)]
    weights = [random(width, d) for d in channels]
    biases = [random(width) if bias else torch.zeros(width, dtype=dtype, requires_grad=True) for _ in channels]
    flat = len(sizes[0]) == 3 and sizes[0][0] == sizes[1][0]
    kernel = random(width, 4 * width, *((1, 3, 3) if flat else [3] * len(sizes[0])))
    return (features, weights, biases, kernel), [*features, *weights, *biases, kernel]


@pytest.mark.parametrize("sizes", SIZES.values(), ids=SIZES.keys())
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.float64, 1e-12)])
def test_reordered_decoder_equals_the_literal_one(sizes, bias, dtype, tolerance):
    arguments, leaves = levels_and_parameters(sizes, bias, dtype)
    ours, twin = (f(*arguments) for f in (fuse_levels, reference.fuse_levels))
    generator = torch.Generator().manual_seed(1)
    cotangent = torch.randn(twin.shape, generator=generator, dtype=torch.float64).to(dtype)
    results = [(ours, twin), *zip(*(torch.autograd.grad(y, leaves, cotangent) for y in (ours, twin)), strict=True)]
    for result, expected in results:
        assert (result - expected).abs().max() <= tolerance * expected.abs().max()


def test_decoder_module_uses_the_reordered_form():
    torch.manual_seed(0)
    head = SegFormerHead((4, 8), num_classes=3, channels=6).eval()
    features = [torch.randn(2, 4, 12, 10), torch.randn(2, 8, 6, 5)]
    torch.testing.assert_close(head(features), reference.decode(head, features), rtol=1e-5, atol=1e-5)


# ---- the whole network against its literal twin ----


def slow(*cases):
    """Cases of a test for the long run."""
    return [pytest.param(*case, marks=pytest.mark.slow) for case in cases]


DOUBLE, SINGLE = (torch.float64, 1e-11), (torch.float32, 1e-4)
WITH_PADDING, WITHOUT = (1, (24, 40)), (2, (32, 48))  # stem's stride and size; attention's windows padded or not


@pytest.mark.parametrize(
    ("encoder", "precision", "shape", "checkpointing"),
    [
        # 1 x 1 convolutions
        ("convnext_atto", SINGLE, WITH_PADDING, False),
        *slow(*product(["convnext_atto"], (SINGLE, DOUBLE), (WITH_PADDING, WITHOUT), (False, True)))[1:],
        # linear layers
        *slow(("convnext_tiny", DOUBLE, WITH_PADDING, False), ("convnext_tiny", SINGLE, WITHOUT, True)),
    ],
)
def test_network_equals_the_literal_one_forward_and_backward(encoder, precision, shape, checkpointing):
    (dtype, tolerance), (stem_stride, size) = precision, shape
    network = small(
        encoder=encoder,
        layer_scale=0.5,
        stem_stride=stem_stride,
        upsampling="pixel_shuffle" if checkpointing else "bilinear",
        checkpointing=checkpointing,
    ).to(dtype)
    x = torch.randn(2, 2, *size, dtype=dtype)
    literal.assert_same_outputs_and_gradients(network, ReferenceNetwork(network), x, tolerance)


@pytest.mark.slow
@pytest.mark.parametrize("preset", ["atto", "fast"])
def test_prediction_equals_the_reference(preset):
    """Without gradients, at the size of a patch: what nnU-Net's prediction runs."""
    torch.manual_seed(0)
    network = DualInteractionNetwork(1, 4, **PRESETS[preset]).eval()
    n, size = 2, (128, 112) if preset == "atto" else (256, 224)
    x = torch.randn(n, 2, *size)
    with torch.no_grad():
        ours, twin = network(x), ReferenceNetwork(network)(x)
    assert (ours - twin).abs().max() <= 1e-4 * twin.abs().max()


@pytest.mark.slow
def test_bf16_is_as_near_to_the_truth_as_the_references_bf16():
    network = small(layer_scale=0.5)
    x = torch.randn(2, 2, 48, 40)
    exact = ReferenceNetwork(network)(x)
    errors = []
    for model in (network, ReferenceNetwork(network)):
        with torch.autocast("cpu", torch.bfloat16):
            errors.append((model(x).float() - exact).abs().mean())
    assert errors[0] <= 1.5 * errors[1] <= 0.1 * exact.abs().mean()


def test_images_of_a_batch_do_not_mix():
    network = small().eval()
    x = torch.randn(3, 2, 48, 40)
    with torch.no_grad():
        torch.testing.assert_close(network(x), torch.cat([network(one) for one in x.split(1)]), rtol=1e-4, atol=1e-5)


@pytest.mark.slow
def test_compiled_network_equals_the_reference():
    """In one graph, without breaks; two levels have all that four have, in half the time."""
    torch._dynamo.reset()
    network = small(layer_scale=0.5, fused_stages=2)
    x = torch.randn(2, 2, 48, 40)
    ours, twin = torch.compile(network, fullgraph=True)(x), ReferenceNetwork(network)(x)
    gradients = [torch.autograd.grad(y.square().mean(), list(network.parameters())) for y in (ours, twin)]
    assert (ours - twin).abs().max() <= 1e-4 * twin.abs().max()
    scale = max(g.abs().max() for g in gradients[1])
    assert all((a - b).abs().max() <= 1e-4 * scale for a, b in zip(*gradients, strict=True))


@pytest.mark.slow
def test_a_training_step_needs_three_quarters_of_the_literal_ones_memory():
    network = on_meta(1, 4, **PRESETS["base"])
    shape = (1, 2, 224, 224)
    assert training_memory(network, shape) < 0.75 * training_memory(ReferenceNetwork(network), shape)


@pytest.mark.slow
def test_literal_multiply_adds_of_the_decoder_are_those_of_its_twin():
    network = on_meta(1, 4, **PRESETS["atto"])
    size = (56, 56)  # no padded attention windows, whose products the literal form leaves out
    counted = count_multiply_adds(ReferenceNetwork(network), (1, 2, *size))
    parts = multiply_adds_by_part(network, (1, 2, *size))
    assert counted == parts[""] - parts["decoder"] + printed_multiply_adds(
        network.decoder, [(56 >> i, 56 >> i) for i in range(4)]
    )


# ---- attention ----


@pytest.mark.parametrize("size", [(14, 14), (7, 5), (8, 15), (3, 2), (43, 20)])
def test_windowed_cross_attention_equals_the_literal_one(size):
    torch.manual_seed(0)
    attention = CrossAttention(dim=6, window_size=7).double()
    f_i, f_e = torch.randn(2, 2, 6, *size, dtype=torch.float64)
    f_ie, f_ei = attention([f_i, f_e])
    q_i, k_i, v_i = attention.project[0](f_i).chunk(3, dim=1)
    q_e, k_e, v_e = attention.project[1](f_e).chunk(3, dim=1)
    torch.testing.assert_close(f_ie, literal.cross_attention(q_i, [k_e], [v_e], 7), rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(f_ei, literal.cross_attention(q_e, [k_i], [v_i], 7), rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("size", [(7, 5), (8, 15)])
@pytest.mark.parametrize("streams", [1, 3, 4])
def test_attention_of_any_number_of_streams_equals_the_literal_one(streams, size):
    """Each stream attends to the pixels of all others in its window at once; a single one to its own."""
    torch.manual_seed(0)
    attention = CrossAttention(dim=6, streams=streams, window_size=7).double()
    maps = list(torch.randn(streams, 2, 6, *size, dtype=torch.float64))
    q, k, v = zip(*(layer(f).chunk(3, dim=1) for layer, f in zip(attention.project, maps, strict=True)), strict=True)
    for i, result in enumerate(attention(maps)):
        others = [j for j in range(streams) if j != i] or [i]
        expected = literal.cross_attention(q[i], [k[j] for j in others], [v[j] for j in others], 7)
        torch.testing.assert_close(result, expected, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize(("query", "parts"), [(0, (1, 2)), (1, (2, 1))])
def test_one_direction_alone_is_that_of_both(query, parts):
    """f_IE or f_EI with the weights of both directions; what it does not need has no parameters (Table 7)."""
    torch.manual_seed(0)
    both, one = CrossAttention(dim=6), CrossAttention(dim=6, queries=[query])
    assert [layer.out_channels // 6 for layer in one.project] == list(parts)
    for i, layer in enumerate(one.project):
        rows = slice(0, 6) if i == query else slice(6, 18)
        layer.weight.data, layer.bias.data = both.project[i].weight[rows], both.project[i].bias[rows]
    maps = list(torch.randn(2, 1, 6, 9, 7))
    torch.testing.assert_close(one(maps)[0], both(maps)[query])
    with pytest.raises(ValueError, match="queries must name some of the 2 streams"):
        CrossAttention(dim=6, queries=[2])


def test_heads_split_the_channels():
    torch.manual_seed(0)
    two = CrossAttention(dim=6, window_size=7, num_heads=2)
    one = CrossAttention(dim=6, window_size=7)
    one.load_state_dict(two.state_dict())
    f = torch.randn(1, 6, 7, 7)
    assert not torch.allclose(two([f, f])[0], one([f, f])[0])
    with pytest.raises(ValueError, match="num_heads=4 does not divide the 6 channels"):
        CrossAttention(dim=6, num_heads=4)


def test_difm_is_symmetric_in_the_two_images_up_to_its_weights():
    # Swapping the images and the weights of the two sides must not change the sum F_IE + F_EI.
    torch.manual_seed(0)
    difm = DualInteractiveFusionModule(6)
    swapped = DualInteractiveFusionModule(6)
    names = {"0": "1", "1": "0"}
    state = difm.state_dict()
    swapped.load_state_dict({".".join(names.get(part, part) for part in k.split(".")): v for k, v in state.items()})
    image, enhanced = torch.randn(2, 2, 1, 6, 9, 7).unbind(0)
    torch.testing.assert_close(difm(tuple(image), tuple(enhanced)), swapped(tuple(enhanced), tuple(image)))


# ---- the whole ----


@pytest.mark.slow
@pytest.mark.parametrize("preset", sorted(PRESETS))
def test_every_preset_builds_and_gives_logits(preset):
    network = on_meta(2, 5, **PRESETS[preset])
    assert network(torch.empty(2, 4, 64, 80, device="meta")).shape == (2, 5, 64, 80)


@pytest.mark.parametrize("size", [(8, 8), (56, 40), (24, 136)])
def test_any_multiple_of_eight(size):
    network = small().eval()
    with torch.no_grad():
        y = network(torch.randn(1, 2, *size))
    assert y.shape == (1, 3, *size) and torch.isfinite(y).all()


@pytest.mark.parametrize("size", [(20, 24), (24, 7), (4, 4)])
def test_other_sizes_are_refused(size):
    with pytest.raises(ValueError, match=f"multiples of 8, got {size[0]} x {size[1]}"):
        small()(torch.randn(1, 2, *size))


def test_missing_enhanced_channel_is_refused():
    with pytest.raises(ValueError, match="1 original and 1 enhanced.*nnUNetPlannerDIN"):
        small()(torch.randn(1, 1, 16, 16))


def test_every_parameter_gets_a_finite_gradient():
    network = small()
    network(torch.randn(2, 2, 24, 16)).square().mean().backward()
    without = [
        n
        for n, p in network.named_parameters()
        if p.grad is None or not torch.isfinite(p.grad).all() or not p.grad.any()
    ]
    assert not without


def test_both_images_matter_and_not_alike():
    network = small().eval()
    x = torch.randn(1, 2, 24, 16)
    with torch.no_grad():
        y, only_i, only_e, swapped = (
            network(v)
            for v in (
                x,
                x * torch.tensor([1.0, 0])[:, None, None],
                x * torch.tensor([0, 1.0])[:, None, None],
                x.flip(1),
            )
        )
    for other in (only_i, only_e, swapped):
        assert (y - other).abs().max() > 1e-4


def test_same_weights_same_output_after_save_and_load(tmp_path):
    network = small().eval()
    torch.save(network.state_dict(), tmp_path / "weights.pth")
    other = DualInteractionNetwork(1, 3, **{**PRESETS["atto"], "decoder_channels": 16}).eval()
    other.load_state_dict(torch.load(tmp_path / "weights.pth"))
    x = torch.randn(1, 2, 24, 16)
    with torch.no_grad():
        torch.testing.assert_close(network(x), other(x), rtol=0, atol=0)


def test_weights_of_another_preset_are_refused_in_one_sentence():
    with pytest.raises(RuntimeError, match="These weights belong to another network.*preset"):
        small().load_state_dict(small(encoder="convnext_femto").state_dict())
    with pytest.raises(RuntimeError, match="do not fit, the first is 'decoder.classifier.weight'"):
        small().load_state_dict(
            DualInteractionNetwork(1, 5, **{**PRESETS["atto"], "decoder_channels": 16}).state_dict()
        )


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


@pytest.mark.slow
def test_checkpointing_saves_memory():
    shape = (2, 2, 224, 224)
    less, more = (training_memory(on_meta(1, 4, **PRESETS["base"], checkpointing=c), shape) for c in (True, False))
    assert less < 0.6 * more


def test_multiply_adds_by_part_add_up():
    parts = multiply_adds_by_part(on_meta(1, 4, **PRESETS["atto"]), (1, 2, 64, 64))
    total = parts.pop("")
    assert set(parts) == {"encoders", "difms", "decoder"} and all(parts.values())
    assert sum(parts.values()) == total


def test_deep_supervision_is_that_of_the_fused_levels():
    """nnU-Net and other programs ask for it by this argument."""
    with pytest.warns(UserWarning, match="-tr nnUNetTrainerDIN"):
        network = small(deep_supervision=True)
    assert network.auxiliary_heads is not None and len(network(torch.randn(2, 2, 24, 16))) == 5


def test_auxiliary_heads_change_nothing_else():
    network = small()
    x = torch.randn(2, 2, 24, 16)
    network.eval()
    with torch.no_grad():
        before = network(x)
        weights = network.state_dict()
        network.add_auxiliary_heads()
        after = network(x)
    assert torch.equal(before, after[0])
    assert [o.shape for o in after[1:]] == [(2, before.shape[1], 24 // d, 16 // d) for d in (1, 2, 4, 8)]
    own = network.auxiliary_heads.seg_layers[0].weight.clone()
    network.load_state_dict(weights)
    assert torch.equal(network.auxiliary_heads.seg_layers[0].weight, own)
    plain = small()
    plain.load_state_dict(network.state_dict())
    assert plain.state_dict().keys() == weights.keys()


def test_unknown_names_list_the_known_ones():
    with pytest.raises(ValueError, match="Unknown encoder 'resnet5'.*convnext_tiny"):
        small(encoder="resnet5")
    with pytest.raises(ValueError, match="Unknown decoder 'unet'.*segformer"):
        build_decoder("unet", (4, 8), 3, 16)
    assert {"convnext_atto", "convnext_base"} <= set(known_encoders())


# ---- pretrained weights ----


@pytest.fixture(scope="module")
def atto_weights():
    torch.manual_seed(1)
    return timm.create_model("convnext_atto").state_dict()


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_pretrained_weights_from_a_file(tmp_path, atto_weights, suffix):
    path = tmp_path / f"weights{suffix}"
    if suffix == ".pth":
        torch.save(atto_weights, path)
    else:
        from safetensors.torch import save_file

        save_file(atto_weights, path)
    network = small()
    report = load_pretrained_encoders(network, path)
    for encoder in network.encoders:
        for key, value in encoder.stages.state_dict().items():
            torch.testing.assert_close(value, atto_weights[f"stages.{key}"], rtol=0, atol=0)
    text = str(report)
    assert "fitted to this encoder: stem.0.weight: (40, 3, 4, 4), (40, 1, 3, 3)" in text
    assert "head.fc.weight" in text and "edge_pooling.0.1.weight" in text
    assert hashlib.sha256(path.read_bytes()).hexdigest() in text


@pytest.mark.parametrize("channels", [1, 3, 6])
def test_the_pretrained_stem_answers_an_enlarged_patch_as_before(tmp_path, atto_weights, channels):
    torch.save(atto_weights, tmp_path / "weights.pth")
    torch.manual_seed(0)
    network = DualInteractionNetwork(channels, 3, **{**PRESETS["atto"], "decoder_channels": 16})
    load_pretrained_encoders(network, tmp_path / "weights.pth")
    small_patch = torch.randn(1, 1, 3, 3)
    patch = F.interpolate(small_patch, size=(4, 4), mode="bilinear")
    expected = F.conv2d(patch.repeat(1, 3, 1, 1), atto_weights["stem.0.weight"], atto_weights["stem.0.bias"])
    for encoder in network.encoders:
        stem = encoder.stem[0]
        got = F.conv2d(small_patch.repeat(1, channels, 1, 1), stem.weight, stem.bias)
        torch.testing.assert_close(got, expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("prefix", ["", "local-dir:"])
def test_pretrained_weights_from_a_folder(tmp_path, atto_weights, prefix):
    """As a download from the hub leaves it, and with a single file of any name."""
    from safetensors.torch import save_file

    hub, single = tmp_path / "hub", tmp_path / "single"
    hub.mkdir(), single.mkdir()
    (hub / "config.json").write_text("{}")
    save_file(atto_weights, hub / "model.safetensors")
    (hub / "pytorch_model.bin").write_text("the other form of the same weights, which nobody reads")
    torch.save(atto_weights, single / "convnext_atto_d2.pth")
    for folder, file in ((hub, "model.safetensors"), (single, "convnext_atto_d2.pth")):
        network = small()
        report = load_pretrained_encoders(network, f"{prefix}{folder}")
        assert report.source.startswith(str(folder / file))
        key = "stages.0.blocks.0.conv_dw.weight"
        assert torch.equal(network.encoders[1].state_dict()[key], atto_weights[key])


def test_folders_without_the_one_file_are_refused(tmp_path):
    with pytest.raises(ValueError, match="there is no such folder"):
        load_pretrained_encoders(small(), f"local-dir:{tmp_path / 'nowhere'}")
    with pytest.raises(ValueError, match="holds no file with weights"):
        load_pretrained_encoders(small(), tmp_path)
    for name in ("a.pth", "b.pth"):
        (tmp_path / name).write_text("")
    with pytest.raises(ValueError, match=r"holds more than one file with weights \(a.pth, b.pth\). Name the file"):
        load_pretrained_encoders(small(), tmp_path)


def test_convnext_v2_is_an_encoder_like_the_others(tmp_path):
    """No layer scale, global response normalization; every parameter learns, and timm's weights fit."""
    options = {"encoder": "convnextv2_atto", "layer_scale": None}
    network = small(**options)
    assert any(key.endswith("mlp.grn.weight") for key in network.encoders[0].state_dict())
    assert not any("gamma" in key for key in network.encoders[0].state_dict())
    network(torch.rand(1, 2, 32, 32)).sum().backward()
    assert all(p.grad is not None for p in network.parameters())
    weights = timm.create_model("convnextv2_atto").state_dict()
    torch.save(weights, tmp_path / "weights.pth")
    report = load_pretrained_encoders(network, tmp_path / "weights.pth")
    assert not report.mismatched and all(key.startswith("edge_pooling") for key in report.not_in_file)


def test_pretrained_weights_in_the_original_authors_names(tmp_path, atto_weights):
    def original(key):
        for new, old in (
            ("stem.", "downsample_layers.0."),
            ("conv_dw", "dwconv"),
            ("mlp.fc", "pwconv"),
            (".blocks.", "."),
        ):
            key = key.replace(new, old)
        if ".downsample." in key:
            key = key.replace("stages.", "downsample_layers.").replace(".downsample", "")
        return key.replace("head.norm", "norm").replace("head.fc", "head")

    torch.save({"model": {original(k): v for k, v in atto_weights.items()}}, tmp_path / "fb.pth")
    network = small()
    report = load_pretrained_encoders(network, tmp_path / "fb.pth")
    assert sum(".blocks." in key for key in report.loaded) == sum(".blocks." in k for k in atto_weights)


@pytest.mark.parametrize("content", ["other size", "no ConvNeXt"])
def test_a_file_that_fits_nothing_is_refused(tmp_path, content):
    model = timm.create_model("convnext_femto") if content == "other size" else nn.Conv2d(3, 40, 3)
    torch.save(model.state_dict(), tmp_path / "other.pth")
    with pytest.raises(ValueError, match="do not fit the encoder convnext_atto.*convnext_atto.d2_in1k"):
        load_pretrained_encoders(small(), tmp_path / "other.pth")


@pytest.mark.slow
@pytest.mark.parametrize("name", ["resnet18", "swin_tiny_patch4_window7_224"])
def test_pretrained_weights_of_a_pyramid(tmp_path, name):
    """As timm loads them; fails if a layer but the edge features keeps its random weights."""
    torch.manual_seed(1)
    torch.save(timm.create_model(name).state_dict(), tmp_path / "weights.pth")
    network = small(encoder=name, layer_scale=None)
    report = load_pretrained_encoders(network, tmp_path / "weights.pth")
    assert all(key.startswith("edge_") for key in report.not_in_file) and not report.mismatched
    overlay = {"file": str(tmp_path / "weights.pth")}
    expected = timm.create_model(
        name, pretrained=True, features_only=True, in_chans=1, out_indices=describe(name).levels,
        pretrained_cfg_overlay=overlay, **({"strict_img_size": False} if "swin" in name else {}),
    ).state_dict()  # fmt: skip
    for encoder in network.encoders:
        for key, value in expected.items():
            assert torch.equal(encoder.body.state_dict()[key], value), key


@pytest.mark.slow
def test_pretrained_weights_that_no_pyramid_takes(tmp_path):
    torch.save(timm.create_model("resnet18").state_dict(), tmp_path / "resnet.pth")
    network = small(encoder="pvt_v2_b0", layer_scale=None)
    with pytest.raises(ValueError, match="do not fit the encoder pvt_v2_b0.*pvt_v2_b0.in1k"):
        load_pretrained_encoders(network, tmp_path / "resnet.pth")
    with pytest.raises(ValueError, match="do not fit the encoder pvt_v2_b0: they are another model's"):
        load_pretrained_encoders(network, "resnet18")
    with pytest.raises(ValueError, match="no such file or folder, and timm knows no model"):
        load_pretrained_encoders(network, tmp_path / "nowhere.pth")
    with pytest.raises(ValueError, match="no pretrained weights for encoder 'fct': use -tr nnUNetTrainerDIN"):
        load_pretrained_encoders(small(encoder="fct", layer_scale=None), tmp_path / "resnet.pth")


def test_a_source_that_does_not_exist_is_refused(tmp_path):
    with pytest.raises(ValueError, match="no such file or folder, and timm knows no model of that name"):
        load_pretrained_encoders(small(), tmp_path / "nowhere.pth")
