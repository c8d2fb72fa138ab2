"""Every encoder, fusion and decoder does what the network asks of it. A new one gets these tests by a row of PARTS."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from itertools import accumulate
from typing import NamedTuple

import pytest
import torch
from timm.layers import DropPath
from torch import nn
from torch.utils._pytree import tree_leaves, tree_map

from nnunet_din.network import build_decoder, build_encoder, build_fusion
from tiny import IN_PLANE_FIRST, without_gradient

Size = Sequence[int]


class Part(NamedTuple):
    """How a part is built, what it takes and gives for maps of a size, and the sizes to try; the first for training."""

    build: Callable[[], nn.Module]
    inputs: Callable[[Size], tuple]
    outputs: Callable[[Size], list[Size]]
    sizes: tuple[Size, ...]


def encoder(name: str, channels: Size, *sizes: Size, first: int = 1, **options) -> Part:
    """Make a row of an encoder with these widths, whose first stage stands at 1/first of the image."""
    strides = options.get("strides") or [[first] * 2, *[[2, 2]] * 3]
    steps = list(accumulate(strides, lambda a, b: [s * t for s, t in zip(a, b, strict=True)]))

    def outputs(size):
        levels = [[edge // s for edge, s in zip(size, step, strict=True)] for step in steps]
        return [(2, d, *level) for d, level in zip(channels, levels, strict=True) for _ in ("low", "high")]

    return Part(lambda: build_encoder(name, 3, **options), lambda size: (torch.randn(2, 3, *size),), outputs, sizes)


def fusion(name: str, *sizes: Size, streams: int = 2, edges: bool = True, **options) -> Part:
    """Make a row of a fusion, which may leave f_low alone (``edges``)."""

    def inputs(size):
        return tuple((torch.randn(2, 8, *size) if edges else None, torch.randn(2, 8, *size)) for _ in range(streams))

    kernel = [3] * len(sizes[0])
    return Part(lambda: build_fusion(name, 8, streams, kernel, **options), inputs, lambda size: [(2, 8, *size)], sizes)


def decoder(name: str, *sizes: Size) -> Part:
    """Make a row of a decoder of four levels, each half the size of the one before, rounded up."""
    channels = (32, 48, 64, 96)

    def inputs(size):
        levels = [[-(-edge // 2**i) for edge in size] for i in range(4)]
        return ([torch.randn(2, d, *level) for d, level in zip(channels, levels, strict=True)],)

    kernel = [3] * len(sizes[0])
    return Part(lambda: build_decoder(name, channels, 3, 12, kernel), inputs, lambda size: [(2, 3, *size)], sizes)


LIGHT = {"merging_convolution": "depthwise", "ffn_convolution": "pointwise", "joint_ffn": True}
PARTS = {
    "convnext": encoder("convnext_atto", (40, 80, 160, 320), (32, 48), (8, 8)),
    "convnext v2": encoder("convnextv2_atto", (40, 80, 160, 320), (32, 48), layer_scale=None),
    "convnext for volumes": encoder("convnext_atto", (40, 80, 160, 320), (8, 32, 16), **IN_PLANE_FIRST),
    "plain": encoder("plain_tiniest", (8, 8, 16, 16), (32, 48), (8, 8)),
    "plain with a stem of stride 2": encoder("plain_tiniest", (8, 8, 16, 16), (32, 48), first=2, stem_stride=2),
    "plain for volumes": encoder("plain_tiniest", (8, 8, 16, 16), (8, 32, 48), **IN_PLANE_FIRST),
    "fct": encoder("fct", (16, 32, 64, 128), (32, 48), (8, 8)),
    "swin": encoder("swin_tiny_patch4_window7_224", (96, 192, 384, 768), (64, 96), first=4),
    "resnet": encoder("resnet18", (64, 128, 256, 512), (64, 96), first=4),
    "pvt": encoder("pvt_v2_b0", (32, 64, 160, 256), (64, 96), first=4),
    "mobilenet": encoder("mobilenetv3_small_050", (8, 16, 24, 288), (64, 96), first=4),
    "difm": fusion("difm", (9, 15), (1, 1), (7, 14)),
    "difm of one stream": fusion("difm", (9, 15), streams=1),
    "difm of three streams with heads": fusion("difm", (9, 15), streams=3, num_heads=2),
    "difm along axes": fusion("difm", (9, 15), attention="axial"),
    "difm without its parts": fusion("difm", (9, 15), edges=False, feature_merging=False, spatial_attention=False),
    "light difm": fusion("difm", (9, 15), **LIGHT),
    "light difm for volumes": fusion("difm", (3, 9, 6), **LIGHT),
    "difm for volumes": fusion("difm", (3, 9, 6), (1, 1, 1)),
    "concat": fusion("concat", (9, 15), (1, 1), edges=False),
    "concat for volumes": fusion("concat", (3, 9, 6), edges=False),
    "input": fusion("input", (9, 15), streams=1),
    "segformer": decoder("segformer", (16, 24), (13, 9), (1, 2)),
    "segformer for volumes": decoder("segformer", (8, 16, 8), (5, 3, 9)),
    "emcad": decoder("emcad", (16, 24), (13, 9), (1, 2)),
}
#: Those with more than ten million weights.
HEAVY = ("swin", "resnet")


@pytest.mark.parametrize(
    "part",
    [pytest.param(part, id=name, marks=[pytest.mark.slow] * (name in HEAVY)) for name, part in PARTS.items()],
)
class TestPart:
    """What holds for every part."""

    def build(self, part: Part, seed: int = 0) -> nn.Module:
        """Build the part, fill what timm starts at zero, and drop nothing: both would hide what is in some branches."""
        torch.manual_seed(seed)
        module = part.build()
        for layer in module.modules():
            if isinstance(layer, DropPath):
                layer.drop_prob = 0.0
            elif isinstance(layer, nn.Dropout):
                layer.p = 0.0
        for parameter in module.parameters():
            if not parameter.any():
                nn.init.constant_(parameter, 0.1)
        return module

    def predict(self, module: nn.Module, inputs: tuple) -> list[torch.Tensor]:
        with torch.no_grad():
            return tree_leaves(module.eval()(*inputs))

    def test_forward(self, part):
        """Any size gives its shapes, and images of a batch do not mix."""
        module = self.build(part)
        for size in part.sizes:
            inputs = part.inputs(size)
            results = self.predict(module, inputs)
            assert [tuple(y.shape) for y in results] == part.outputs(size)
            second = self.predict(module, tree_map(lambda x: x if x is None else x[1:], inputs))
            for y, one in zip(results, second, strict=True):
                torch.testing.assert_close(y[1:], one, rtol=1e-4, atol=1e-4)

    def test_backward(self, part):
        """Every weight and every input gets a gradient: under DDP, one that does not would stop the training."""
        module, inputs = self.build(part), part.inputs(part.sizes[0])
        tensors = dict(module.named_parameters())
        for i, x in enumerate(tree_leaves(inputs)):
            if x is not None:
                tensors[f"input {i}"] = x.requires_grad_()
        outputs = tree_leaves(module(*inputs))
        sum((y * torch.linspace(-1, 1, y.numel()).view_as(y)).sum() for y in outputs).backward()
        assert not without_gradient(tensors.items())

    def test_save_and_load(self, part, tmp_path):
        """Fails if something that matters is not in the state, or if evaluation draws random numbers."""
        module, other = (self.build(part, seed) for seed in (0, 1))
        torch.save(module.state_dict(), tmp_path / "weights.pth")
        other.load_state_dict(torch.load(tmp_path / "weights.pth", weights_only=True))
        inputs = part.inputs(part.sizes[0])
        for y, expected in zip(self.predict(other, inputs), self.predict(module, inputs), strict=True):
            assert torch.equal(y, expected)

    @pytest.mark.slow
    def test_bfloat16_is_close_to_float32(self, part):
        module, inputs = self.build(part), part.inputs(part.sizes[0])
        expected = self.predict(module, inputs)
        with torch.autocast("cpu", torch.bfloat16):
            half = self.predict(module, inputs)
        for y, e in zip(half, expected, strict=True):
            assert (y.float() - e).norm() <= 0.05 * e.norm()

    @pytest.mark.slow
    def test_compile(self, part):
        """In one graph, without breaks, forward and backward."""
        torch._dynamo.reset()
        module, inputs = self.build(part), part.inputs(part.sizes[0])
        twin = copy.deepcopy(module)
        for model in (torch.compile(module, fullgraph=True, backend="aot_eager"), twin):
            sum(y.square().mean() for y in tree_leaves(model(*inputs))).backward()
        gradients = {name: p.grad for name, p in twin.named_parameters() if p.requires_grad}
        allowed = 1e-4 * max(gradient.abs().max() for gradient in gradients.values())
        compiled = dict(module.named_parameters())
        assert not [name for name, g in gradients.items() if (compiled[name].grad - g).abs().max() > allowed]

    @pytest.mark.slow
    def test_export(self, part):
        module, inputs = self.build(part), part.inputs(part.sizes[0])
        expected = self.predict(module, inputs)
        with torch.no_grad():
            results = tree_leaves(torch.export.export(module, inputs).module()(*inputs))
        for y, e in zip(results, expected, strict=True):
            torch.testing.assert_close(y, e, rtol=1e-4, atol=1e-4)
