"""The losses: literal twins, gradients, regions, ignore label, autocast."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

import literal
from nnunet_din.cost.accounting import _LiveBytes
from nnunet_din.losses import AuxiliaryLoss, DINLoss, MultiScaleBoundaryLoss, SoftDiceLoss, boundary


def batch(n=2, k=3, h=12, w=9, seed=0, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(n, k, h, w, generator=generator, dtype=dtype)
    labels = torch.randint(0, k, (n, 1, h, w), generator=generator)
    return logits, labels


def sobel(x):
    axes = x.ndim - 2
    return boundary.sobel(x, boundary.sobel_kernels(axes).to(x).repeat(x.shape[1], *[1] * (axes + 1)))


def one_hot(labels, k):
    return F.one_hot(labels[:, 0], k).movedim(-1, 1).double()


@pytest.mark.parametrize("normalized", [True, False])
@pytest.mark.parametrize("shape", [(12, 9), (8, 8), (3, 5), (1, 1)])
def test_boundary_loss_equals_its_literal_twin(shape, normalized):
    logits, labels = batch(h=shape[0], w=shape[1])
    p, y = logits.softmax(1), one_hot(labels, 3)
    expected = literal.boundary_loss(p, y, normalized)
    torch.testing.assert_close(MultiScaleBoundaryLoss(normalized=normalized)(p, y), expected)


def test_boundary_loss_with_ignored_pixels_equals_its_literal_twin():
    logits, labels = batch(h=16, w=12)
    p, y = logits.softmax(1), one_hot(labels, 3)
    valid = torch.ones(2, 1, 16, 12, dtype=torch.bool)
    valid[0, 0, 3, 4] = valid[1, 0, 10:, :2] = False
    torch.testing.assert_close(MultiScaleBoundaryLoss()(p, y, valid), literal.boundary_loss(p, y, True, valid))


def test_ignored_pixels_have_no_influence():
    logits, labels = batch(h=16, w=12)
    valid = torch.ones(2, 1, 16, 12, dtype=torch.bool)
    valid[0, 0, 3, 4] = False
    p, y = logits.softmax(1), one_hot(labels, 3)
    changed = p.clone()
    changed[0, :, 3, 4] = torch.tensor([1.0, 0, 0])
    loss = MultiScaleBoundaryLoss()
    torch.testing.assert_close(loss(changed, y, valid), loss(p, y, valid))


def test_all_ignored_is_zero():
    logits, labels = batch()
    p = logits.softmax(1).requires_grad_()
    loss = MultiScaleBoundaryLoss()(p, one_hot(labels, 3), torch.zeros(2, 1, 12, 9, dtype=torch.bool))
    assert loss == 0
    loss.backward()
    assert torch.isfinite(p.grad).all()


def test_sobel_of_a_step_edge():
    x = torch.zeros(1, 1, 6, 6)
    x[..., 3:] = 1
    horizontal, vertical = sobel(x)[0]
    assert not horizontal.any(), "a vertical edge has no response of G_H, at the image border neither"
    assert vertical[:, 2:4].eq(4).all() and not vertical[:, :2].any() and not vertical[:, 4:].any()


def test_sobel_is_a_convolution_with_the_printed_kernels():
    x = torch.rand(2, 3, 7, 5, dtype=torch.float64)
    g_h = torch.tensor([[-1, -2, -1], [0, 0, 0], [1, 2, 1]], dtype=x.dtype)  # eq. 15
    kernels = torch.stack((g_h, g_h.T))[:, None]
    padded = torch.nn.functional.pad(x.flatten(0, 1)[:, None], (1, 1, 1, 1), mode="replicate")
    literal = torch.nn.functional.conv2d(padded, kernels).unflatten(0, (2, 3))
    torch.testing.assert_close(sobel(x).unflatten(1, (3, 2)), literal)


@pytest.mark.parametrize("ignoring", [True, False])
@pytest.mark.parametrize("size", [(7, 5), (1, 4), (1, 1), (4, 3, 5), (1, 6, 2)])
def test_gradient_of_the_boundary_loss(size, ignoring):
    """Against autograd's, of the mean absolute response."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(2, *size, 3, generator=generator, dtype=torch.float64).movedim(-1, 1).requires_grad_()
    valid = torch.rand(2, 1, *size, generator=generator) > 0.2 if ignoring else None
    loss = MultiScaleBoundaryLoss(scales=(1,), normalized=False)
    counts = torch.ones(2, 1, *size) if valid is None else boundary.untouched(valid, [1] * len(size))
    expected = (sobel(x).abs() * counts).sum() / (counts.sum() * 3 * len(size)).clamp_min(1)
    value = loss(x, torch.zeros_like(x), valid)
    torch.testing.assert_close(value, expected)
    torch.testing.assert_close(*(torch.autograd.grad(3 * v, x)[0] for v in (value, expected)))


def test_auxiliary_outputs_count_by_their_weight_at_their_own_resolution():
    """Against the loss written out, for the shares of the classes in each pixel."""
    logits, labels = batch(dtype=torch.float32)
    outputs = [logits.requires_grad_(), logits[..., ::2, ::3].detach().requires_grad_()]
    p, y = outputs[1].softmax(1), F.adaptive_avg_pool2d(one_hot(labels, 3).float(), outputs[1].shape[2:])
    cross_entropy = -(y * p.log()).sum(1).mean()
    dice = 1 - ((2 * (p * y).sum((0, 2, 3)) + 1e-5) / ((p + y).sum((0, 2, 3)) + 1e-5)).mean()
    auxiliary = 0.3 * cross_entropy + 0.7 * dice + MultiScaleBoundaryLoss()(p, y)
    loss = DINLoss()
    literal = (loss(logits, labels) + 0.5 * auxiliary) / 1.5
    whole = AuxiliaryLoss(loss, 0.5)(outputs, [labels])
    torch.testing.assert_close(whole, literal)
    for a, b in zip(torch.autograd.grad(whole, outputs), torch.autograd.grad(literal, outputs), strict=True):
        torch.testing.assert_close(a, b)
    with torch.no_grad():
        torch.testing.assert_close(AuxiliaryLoss(loss, 0.5)(outputs, [labels]), literal)
    with pytest.raises(ValueError, match="must not be negative"):
        AuxiliaryLoss(loss, -1)


def test_pixels_of_auxiliary_outputs_count_if_their_whole_area_does():
    logits, labels = batch(w=8)
    half, whole = labels.clone(), labels.clone()
    half[..., 3:5] = 9  # half of the area of columns 1 and 2
    whole[..., 2:6] = 9
    loss = DINLoss(ignore_label=9)
    outputs = [logits, F.avg_pool2d(logits, 2)]
    torch.testing.assert_close(*(loss.of_outputs(outputs, target)[1] for target in (half, whole)))


def test_printed_sobel_is_eight_times_normalized():
    logits, labels = batch()
    p, y = logits.softmax(1), one_hot(labels, 3)
    torch.testing.assert_close(MultiScaleBoundaryLoss(normalized=False)(p, y), 8 * MultiScaleBoundaryLoss()(p, y))


def test_boundary_loss_is_zero_for_the_truth_and_grows_with_displacement():
    y = torch.zeros(1, 1, 32, 32)
    y[..., 8:20, 8:20] = 1
    loss = MultiScaleBoundaryLoss()
    values = [loss(y.roll(shift, dims=-1), y).item() for shift in (0, 1, 2, 4)]
    assert values[0] == 0 and values == sorted(values) and values[1] > 0


@pytest.mark.parametrize("scales", [(), (0, 1), (1.5,)])
def test_scales_must_be_positive_whole_numbers(scales):
    with pytest.raises(ValueError, match="scales"):
        MultiScaleBoundaryLoss(scales)


def test_gradcheck():
    logits, labels = batch(n=1, k=3, h=8, w=6)
    loss = DINLoss()
    assert torch.autograd.gradcheck(lambda x: loss(x, labels), logits.requires_grad_())


def test_dice_of_the_truth_is_zero_and_of_its_complement_one():
    y = one_hot(batch()[1], 3)
    assert SoftDiceLoss()(y, y).item() == pytest.approx(0, abs=1e-6)
    assert SoftDiceLoss()(y.roll(1, dims=1), y).item() == pytest.approx(1, abs=1e-3)


def test_batch_dice_sums_over_the_batch():
    logits, labels = batch()
    p, y = logits.softmax(1), one_hot(labels, 3)
    joined = SoftDiceLoss()(torch.cat(list(p), dim=1)[None], torch.cat(list(y), dim=1)[None])
    torch.testing.assert_close(SoftDiceLoss()(p, y), joined)
    assert SoftDiceLoss(batch_dice=False)(p, y) != joined


def test_weights_of_equation_10():
    logits, labels = batch()
    p, y = logits.softmax(1), one_hot(labels, 3)
    expected = 0.3 * F.cross_entropy(logits, labels[:, 0]) + 0.7 * SoftDiceLoss()(p, y) + MultiScaleBoundaryLoss()(p, y)
    torch.testing.assert_close(DINLoss()(logits, labels), expected)
    torch.testing.assert_close(DINLoss(weight_boundary=0)(logits, labels), expected - MultiScaleBoundaryLoss()(p, y))


def test_ignore_label_equals_leaving_the_pixels_out():
    # A whole image column block of ignored pixels against the image without it; L_bnd has its own tests.
    logits, labels = batch(h=8, w=12)
    ignored = labels.clone()
    ignored[..., 8:] = 7
    loss = DINLoss(weight_boundary=0, ignore_label=7)
    torch.testing.assert_close(loss(logits, ignored), DINLoss(weight_boundary=0)(logits[..., :8], labels[..., :8]))


def test_ignore_label_has_no_gradient_where_ignored():
    logits, labels = batch(h=16, w=12)
    labels[..., 5:8, 5:8] = 9
    logits.requires_grad_()
    DINLoss(ignore_label=9)(logits, labels).backward()
    assert not logits.grad[..., 5:8, 5:8].any() and logits.grad.any()


def test_regions_with_ignore_mask():
    logits, _ = batch(h=16, w=12)
    target = (torch.rand(2, 4, 16, 12) > 0.5).to(torch.uint8)
    target[:, 3] = 0
    target[..., 3, :4, :4] = 1
    loss = DINLoss(regions=True, ignore_label=5)
    logits.requires_grad_()
    loss(logits, target).backward()
    assert not logits.grad[..., :4, :4].any() and logits.grad.any()
    no_mask = target.clone()
    no_mask[:, 3] = 0
    torch.testing.assert_close(loss(logits, no_mask), DINLoss(regions=True)(logits, target[:, :3]))


def test_regions_use_sigmoids():
    logits, labels = batch()
    y = one_hot(labels, 3)
    p = logits.sigmoid()
    expected = 0.3 * F.binary_cross_entropy(p, y) + 0.7 * SoftDiceLoss()(p, y) + MultiScaleBoundaryLoss()(p, y)
    torch.testing.assert_close(DINLoss(regions=True)(logits, y), expected)


def test_fp32_inside_autocast():
    logits, labels = batch(dtype=torch.float32)
    expected = DINLoss()(logits, labels)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        result = DINLoss()(logits, labels)
        assert DINLoss()(logits.bfloat16(), labels).dtype == torch.float32
    assert result.dtype == torch.float32
    torch.testing.assert_close(result, expected, rtol=0, atol=0)


def test_labels_may_be_floats_as_nnunet_delivers_them():
    logits, labels = batch()
    torch.testing.assert_close(DINLoss()(logits, labels.float()), DINLoss()(logits, labels))


# ---- volumes ----


def volumes(shape, n=1, k=2, seed=0):
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(n, k, *shape, generator=generator, dtype=torch.float64)
    return logits, torch.randint(0, k, (n, 1, *shape), generator=generator)


@pytest.mark.parametrize("ignoring", [False, True])
@pytest.mark.parametrize(("shape", "pooled_axes"), [((4, 5, 8), None), ((3, 5, 8), None), ((1, 6, 4), (1, 2))])
def test_boundary_loss_of_volumes_equals_its_literal_twin(shape, pooled_axes, ignoring):
    logits, labels = volumes(shape)
    p, y = logits.softmax(1), one_hot(labels, 2)
    valid = torch.ones(1, 1, *shape, dtype=torch.bool)
    valid[..., 0, 0, 0] = valid[..., -1, 4:, 2] = False
    valid = valid if ignoring else None
    expected = literal.boundary_loss(p, y, True, valid, pooled_axes)
    torch.testing.assert_close(MultiScaleBoundaryLoss(pooled_axes=pooled_axes)(p, y, valid), expected)


def test_a_step_between_slices_is_an_edge_of_volumes_only():
    """Half of a unit step, as in slices; none across."""
    x = torch.zeros(1, 1, 6, 5, 5)
    x[:, :, 3:] = 1
    across_slices, *in_plane = sobel(x)[0] / 32
    assert across_slices[2:4].eq(0.5).all() and not across_slices[:2].any() and not across_slices[4:].any()
    assert not any(response.any() for response in in_plane)


def test_volumes_of_equal_slices_have_the_loss_of_a_slice():
    """But for L_bnd, whose mean is over three directions instead of two."""
    logits, labels = batch(n=1, h=8, w=6)
    deep = [t[:, :, None].expand(-1, -1, 4, -1, -1) for t in (logits, labels)]
    flat = DINLoss(weight_boundary=1.5)(logits, labels)
    torch.testing.assert_close(DINLoss(weight_boundary=1.5 * 1.5)(*deep), flat)


@pytest.mark.parametrize("regions", [False, True])
def test_gradcheck_of_volumes_with_ignored_voxels(regions):
    logits, labels = volumes((2, 4, 5), k=2)
    target = labels.clone()
    target[..., 0, :2, :2] = 2
    if regions:
        target = torch.cat([labels, 1 - labels, target == 2], dim=1)
    loss = DINLoss(regions=regions, ignore_label=2, pooled_axes=(1, 2))
    logits.requires_grad_()
    assert torch.autograd.gradcheck(lambda x: loss(x, target), logits)
    loss(logits, target).backward()
    assert not logits.grad[..., 0, :2, :2].any()


def test_auxiliary_outputs_of_volumes_have_shares_as_truth():
    logits, labels = volumes((4, 4, 6))
    low, target = logits[..., ::2, ::2, ::2], one_hot(labels, 2).float()
    loss = DINLoss(regions=True)
    torch.testing.assert_close(loss.of_outputs([logits, low], target)[1], loss(low, F.avg_pool3d(target, 2)))


@pytest.mark.parametrize("pooled_axes", [(), (3,)])
def test_pooled_axes_are_those_of_an_image(pooled_axes):
    with pytest.raises(ValueError, match="pooled_axes must name axes"):
        MultiScaleBoundaryLoss(pooled_axes=pooled_axes)


# ---- memory and launches ----


class CountedKernels(TorchDispatchMode):
    """Counts the operations that compute something, and the bytes that they read and write."""

    count = moved = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        is_view = any(a.alias_info is not None and not a.alias_info.is_write for a in func._schema.arguments)
        if not (is_view or func._schema.name in ("aten::detach", "aten::promote_types")):
            self.count += 1
            self.moved += sum(x.nbytes for x in tree_leaves((args, kwargs, result)) if isinstance(x, torch.Tensor))
        return result


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("classes", [2, 16, 118])
@pytest.mark.parametrize("size", [(256, 256), (64, 64, 64)])
def test_memory_and_launches_of_the_whole_loss(size, classes, dtype):
    """At most 8 maps of all classes in fp32 beside the network's outputs, 350 kernels, and 140 maps that these read and
    write, whatever the classes. With auxiliary outputs resized to the target they would be 430.
    """
    sizes = [[edge // stride for edge in size] for stride in (1, 2, 4, 8, 16)]
    with torch.device("meta"):
        outputs = [torch.empty(2, classes, *s, dtype=dtype, requires_grad=True) for s in sizes]
        target = torch.empty(2, 1, *size, dtype=torch.int16)
        loss = AuxiliaryLoss(DINLoss())
    with CountedKernels() as kernels, _LiveBytes([*outputs, target]) as live:
        before = live.now
        loss(outputs, [target]).backward()
    assert live.peak - before < 8 * 4 * outputs[0].numel()
    assert kernels.count <= 350
    assert kernels.moved < 140 * 4 * outputs[0].numel()
