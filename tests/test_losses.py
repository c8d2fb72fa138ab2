"""The losses: literal twins, gradients, regions, ignore label, autocast, memory; of images and of volumes."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

import literal
from nnunet_din.losses import AuxiliaryLoss, DINLoss, MultiScaleBoundaryLoss, SoftDiceLoss
from nnunet_din.network.cost import _LiveBytes


def batch(*size, n=2, k=3, dtype=torch.float64):
    """Make logits ``(N, K, *size)`` and labels ``(N, 1, *size)``, those of 12 x 9 pixels by default."""
    generator = torch.Generator().manual_seed(0)
    size = size or (12, 9)
    logits = torch.randn(n, k, *size, generator=generator, dtype=dtype)
    return logits, torch.randint(0, k, (n, 1, *size), generator=generator)


def one_hot(labels, k=3):
    return F.one_hot(labels[:, 0], k).movedim(-1, 1).double()


def probabilities_and_truth(*size, **options):
    logits, labels = batch(*size, **options)
    return logits.softmax(1), one_hot(labels, logits.shape[1])


def some_ignored(*size, n=2):
    """Make a mask of the pixels that count, without a corner and with a line of them missing."""
    valid = torch.ones(n, 1, *size, dtype=torch.bool)
    valid[0].flatten()[:1] = False
    valid[-1, ..., -2:, -1] = False
    return valid


# ---- the boundary loss ----


@pytest.mark.parametrize("normalized", [True, False])
@pytest.mark.parametrize("ignoring", [True, False])
@pytest.mark.parametrize(
    ("size", "pooled_axes"),
    [((12, 9), None), ((3, 5), None), ((1, 1), None), ((4, 5, 8), None), ((1, 6, 4), (1, 2))],
)
def test_boundary_loss_equals_its_literal_twin(size, pooled_axes, ignoring, normalized):
    p, y = probabilities_and_truth(*size, k=2)
    valid = some_ignored(*size) if ignoring else None
    loss = MultiScaleBoundaryLoss(normalized=normalized, pooled_axes=pooled_axes)
    torch.testing.assert_close(loss(p, y, valid), literal.boundary_loss(p, y, normalized, valid, pooled_axes))


@pytest.mark.parametrize("ignoring", [True, False])
@pytest.mark.parametrize("size", [(7, 5), (1, 4), (1, 1), (2, 3, 4), (1, 4, 2)])
def test_gradient_of_the_boundary_loss(size, ignoring):
    p, y = probabilities_and_truth(*size, k=2)
    valid = some_ignored(*size) if ignoring else None
    loss = MultiScaleBoundaryLoss()
    assert torch.autograd.gradcheck(lambda p: loss(p, y, valid), p.requires_grad_())


def test_boundary_loss_of_nothing_is_zero():
    p, y = probabilities_and_truth()
    loss = MultiScaleBoundaryLoss()(p.requires_grad_(), y, torch.zeros(2, 1, 12, 9, dtype=torch.bool))
    assert loss == 0
    loss.backward()
    assert torch.isfinite(p.grad).all()


@pytest.mark.parametrize("options", [{"scales": (0, 1)}, {"scales": ()}, {"pooled_axes": ()}, {"pooled_axes": (3,)}])
def test_scales_and_axes_out_of_range_are_refused(options):
    with pytest.raises(ValueError, match=next(iter(options))):
        MultiScaleBoundaryLoss(**options)


# ---- Dice and the sum ----


def test_dice_of_the_truth_is_zero_and_of_its_complement_one():
    _, y = probabilities_and_truth()
    assert SoftDiceLoss()(y, y).item() == pytest.approx(0, abs=1e-6)
    assert SoftDiceLoss()(y.roll(1, dims=1), y).item() == pytest.approx(1, abs=1e-3)


def test_batch_dice_sums_over_the_batch():
    p, y = probabilities_and_truth()
    joined = SoftDiceLoss()(torch.cat(list(p), dim=1)[None], torch.cat(list(y), dim=1)[None])
    torch.testing.assert_close(SoftDiceLoss()(p, y), joined)
    assert SoftDiceLoss(batch_dice=False)(p, y) != joined


@pytest.mark.parametrize("size", [(12, 9), (4, 6, 4)])
def test_weights_of_equation_10(size):
    """Of classes, and of regions with a sigmoid for each; labels may be floats, as nnU-Net delivers them."""
    logits, labels = batch(*size)
    y = one_hot(labels)
    for loss, target, p, cross_entropy in (
        (DINLoss(), labels.float(), logits.softmax(1), F.cross_entropy(logits, labels[:, 0])),
        (DINLoss(regions=True), y, logits.sigmoid(), F.binary_cross_entropy_with_logits(logits, y)),
    ):
        expected = 0.3 * cross_entropy + 0.7 * SoftDiceLoss()(p, y) + MultiScaleBoundaryLoss()(p, y)
        torch.testing.assert_close(loss(logits, target), expected)
    without = DINLoss(weight_boundary=0)(logits, labels)
    torch.testing.assert_close(without, DINLoss()(logits, labels) - MultiScaleBoundaryLoss()(logits.softmax(1), y))


@pytest.mark.parametrize("regions", [False, True])
@pytest.mark.parametrize("size", [(6, 5), (2, 4, 5)])
def test_gradient_of_the_whole_with_ignored_pixels(size, regions):
    """It is right everywhere, and 0 where pixels are ignored."""
    logits, labels = batch(*size, n=1, k=2)
    ignored = torch.zeros_like(labels, dtype=torch.bool)
    ignored[..., :2, :2] = True
    target = torch.cat([labels, 1 - labels, ignored], dim=1) if regions else labels.masked_fill(ignored, 2)
    loss = DINLoss(regions=regions, ignore_label=2, pooled_axes=None if len(size) == 2 else (1, 2))
    assert torch.autograd.gradcheck(lambda x: loss(x, target), logits.requires_grad_())
    loss(logits, target).backward()
    assert not logits.grad[ignored.expand_as(logits)].any() and logits.grad.any()


def test_ignore_label_equals_leaving_the_pixels_out():
    logits, labels = batch(8, 12)
    ignored = labels.clone()
    ignored[..., 8:] = 7
    loss = DINLoss(weight_boundary=0, ignore_label=7)
    torch.testing.assert_close(loss(logits, ignored), DINLoss(weight_boundary=0)(logits[..., :8], labels[..., :8]))


def test_fp32_inside_autocast():
    logits, labels = batch(dtype=torch.float32)
    expected = DINLoss()(logits, labels)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        result = DINLoss()(logits, labels)
        assert DINLoss()(logits.bfloat16(), labels).dtype == torch.float32
    assert torch.equal(result, expected)


# ---- several outputs ----


def test_auxiliary_outputs_count_by_their_weight_at_their_own_resolution():
    """Against the loss written out, for the shares of the classes in each pixel."""
    logits, labels = batch(dtype=torch.float32)
    outputs = [logits.requires_grad_(), logits[..., ::2, ::3].detach().requires_grad_()]
    p, y = outputs[1].softmax(1), F.adaptive_avg_pool2d(one_hot(labels).float(), outputs[1].shape[2:])
    cross_entropy = -(y * p.log()).sum(1).mean()
    dice = 1 - ((2 * (p * y).sum((0, 2, 3)) + 1e-5) / ((p + y).sum((0, 2, 3)) + 1e-5)).mean()
    auxiliary = 0.3 * cross_entropy + 0.7 * dice + MultiScaleBoundaryLoss()(p, y)
    loss = DINLoss()
    expected = (loss(logits, labels) + 0.5 * auxiliary) / 1.5
    whole = AuxiliaryLoss(loss, 0.5)(outputs, [labels])
    torch.testing.assert_close(whole, expected)
    for a, b in zip(torch.autograd.grad(whole, outputs), torch.autograd.grad(expected, outputs), strict=True):
        torch.testing.assert_close(a, b)
    with pytest.raises(ValueError, match="must not be negative"):
        AuxiliaryLoss(loss, -1)


def test_auxiliary_outputs_of_volumes_have_shares_as_truth():
    logits, labels = batch(4, 4, 6)
    low, target = logits[..., ::2, ::2, ::2], one_hot(labels).float()
    loss = DINLoss(regions=True)
    torch.testing.assert_close(loss.of_outputs([logits, low], target)[1], loss(low, F.avg_pool3d(target, 2)))


def test_pixels_of_auxiliary_outputs_count_if_their_whole_area_does():
    logits, labels = batch(12, 8)
    half, whole = labels.clone(), labels.clone()
    half[..., 3:5] = 9  # half of the area of columns 1 and 2
    whole[..., 2:6] = 9
    loss = DINLoss(ignore_label=9)
    outputs = [logits, F.avg_pool2d(logits, 2)]
    torch.testing.assert_close(*(loss.of_outputs(outputs, target)[1] for target in (half, whole)))


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


@pytest.mark.parametrize(("classes", "dtype"), [(2, torch.float32), (118, torch.bfloat16)])
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
