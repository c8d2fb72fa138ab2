"""Any timm model with a feature pyramid as an encoder: Swin, PVT, ResNet, EfficientNet, ..."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Sequence
from itertools import pairwise
from typing import Any, NamedTuple, cast

import timm
import torch
from timm.layers import LayerNorm2d
from timm.models import FeatureInfo
from torch import Tensor, nn

from nnunet_din.network.containers import ModuleList
from nnunet_din.network.encoders.base import Encoder, OfStages
from nnunet_din.network.initialization import init_by_fan_in

#: Models whose windows are not padded take multiples of a window at their smallest resolution: sizes of windows to try.
WINDOWS = (1, 7, 8, 12, 16)


class PyramidEncoder(Encoder):
    """The last four levels of a timm model's feature pyramid, with edge features of their own.

    f_high is the level itself. f_low follows :class:`ConvNeXtEncoder`: for stages 2 to 4, LayerNorm and a 2 x 2
    convolution of stride 2 on the level before; for the first, a stem that leads from the image to that level's
    resolution, 3 x 3 convolutions of stride 2, each with LayerNorm, GELU in between, widths doubling up to the level's.

    Levels stand at the resolutions that the model gives them, mostly 1/4 to 1/32: nothing is at full resolution as in
    the paper's ConvNeXt. Weights are random.

    Parameters
    ----------
    in_channels
        Channels of the image.
    name
        A model of timm, for example ``swin_tiny_patch4_window7_224``, ``resnet34`` or ``pvt_v2_b0``.
    layer_scale
        Not an option here: only the default (1e-6, or None) is accepted.
    drop_path_rate
        Stochastic depth, as the model defines it.
    checkpointing
        The model's own activation checkpointing. BatchNorm's running statistics take every batch twice with it.
    stem_stride
        Not an option here: only 1 is accepted.

    Attributes
    ----------
    channels : tuple of int
        Widths of the four stages.
    stride_per_axis : tuple of int
        Height and width of the input must be multiples of these: 32 for most models; more where windows are not padded.

    Raises
    ------
    ValueError
        If the model has no pyramid of four levels, each half the size of the one before, if it takes no images of other
        sizes than its own, or if it has no use for an option.
    """

    edge_pooling: ModuleList[nn.Module]

    def __init__(
        self,
        in_channels: int,
        name: str,
        layer_scale: float | None = 1e-6,
        drop_path_rate: float = 0.0,
        checkpointing: bool = False,
        stem_stride: int = 1,
    ):
        super().__init__()
        self.refuse(name, layer_scale=layer_scale)
        self.stride_per_axis = self.input_strides(name, stem_stride)
        pyramid = describe(name)
        self.options = {"in_chans": in_channels, **pyramid.options}
        if drop_path_rate:
            if not pyramid.takes_drop_path:
                self.refuse(name, drop_path_rate=drop_path_rate)
            self.options["drop_path_rate"] = drop_path_rate
        self.name = name
        self.channels = pyramid.channels
        self.checkpointing = checkpointing
        self.body = self._build_body()
        halvings = pyramid.reduction.bit_length() - 1
        widths = [max(8, self.channels[0] >> (halvings - i)) for i in range(1, halvings)]
        self.edge_stem: nn.Module = _edge_stem([in_channels, *widths, self.channels[0]], stride=2 if halvings else 1)
        self.edge_pooling = ModuleList(
            nn.Sequential(LayerNorm2d(d_in), nn.Conv2d(d_in, d_out, kernel_size=2, stride=2))
            for d_in, d_out in pairwise(self.channels)
        )
        self.has_edges: Sequence[bool] = [True] * len(self.channels)
        for module in (self.edge_stem, self.edge_pooling):
            module.apply(init_by_fan_in)

    @staticmethod
    def input_strides(name: str, stem_stride: int = 1, strides: OfStages | None = None) -> tuple[int, ...]:
        """What :attr:`stride_per_axis` will be, from the model on the meta device; ValueError as for the class."""
        if stem_stride != 1:
            raise ValueError(f"stem_stride={stem_stride} has no meaning for encoder '{name}', which has its own stem.")
        return (describe(name).stride,) * 2

    def keep_stages(self, count: int) -> None:
        """Leave out the stages after the first ``count``; draws the weights again."""
        self.channels, self.has_edges = self.channels[:count], self.has_edges[:count]
        self.edge_pooling = self.edge_pooling[: count - 1]
        self.body = self._build_body()

    def keep_edges(self, stages: Sequence[bool]) -> None:
        """Give None for f_low where a stage's fusion does not use it, and drop the layers that make it."""
        self.has_edges = list(stages)
        if not stages[0]:
            self.edge_stem = nn.Identity()
        for i, has_edges in enumerate(stages[1:]):
            if not has_edges:
                self.edge_pooling[i] = nn.Identity()

    def forward(self, x: Tensor) -> Sequence[tuple[Tensor | None, Tensor]]:
        """Encode, see :meth:`Encoder.forward`. f_low are the edge features, f_high is the level of the pyramid."""
        highs = _maps(self.body, x)
        edges = zip([x, *highs], [self.edge_stem, *self.edge_pooling], self.has_edges, strict=False)
        lows = [layer(f) if has_edges else None for f, layer, has_edges in edges]
        return list(zip(lows, highs, strict=True))

    def _build_body(self) -> nn.Module:
        count = len(self.channels)
        body = _create(self.name, features_only=True, out_indices=describe(self.name).levels[:count], **self.options)
        # Some models keep layers behind the last level: nothing may wait for their gradients.
        unused = _unused_parameters(self.name, count)
        for key, parameter in body.named_parameters():
            parameter.requires_grad_(key not in unused)
        if self.checkpointing:
            _checkpoint(body, self.name)
        return body


def _edge_stem(widths: list[int], stride: int) -> nn.Sequential:
    layers: list[nn.Module] = []
    for d_in, d_out in pairwise(widths):
        layers += [nn.Conv2d(d_in, d_out, kernel_size=3, stride=stride, padding=1), LayerNorm2d(d_out), nn.GELU()]
    return nn.Sequential(*layers[:-1])


def _maps(body: nn.Module, x: Tensor) -> list[Tensor]:
    """Bring the levels to ``(N, d_i, H_i, W_i)``; some models of timm give channels last."""
    channels_last = getattr(body, "output_fmt", "NCHW") == "NHWC"
    return [level.permute(0, 3, 1, 2) if channels_last else level for level in body(x)]


def _checkpoint(body: nn.Module, name: str) -> None:
    for module in body.modules():  # what one module keeps for the backward pass, the next must not overwrite
        if getattr(module, "inplace", False):
            module.inplace = False  # type: ignore[assignment]  # to torch, every attribute is a tensor or a module
    model: Any = getattr(body, "model", body)
    try:
        model.set_grad_checkpointing(True)
    except (AttributeError, AssertionError) as error:  # timm asserts where a model has none
        raise ValueError(f"Encoder '{name}' has no activation checkpointing: leave checkpointing out.") from error


# ---- what a model is like, found out on the meta device ----


class Pyramid(NamedTuple):
    """The last four levels of a model.

    Attributes
    ----------
    body : torch.nn.Module
        The model down to these levels, without memory, in evaluation mode.
    levels, channels : tuple of int
        timm's indices of the levels, and their widths.
    reduction : int
        Resolution of the image by that of the first level, a power of two.
    stride : int
        Height and width of the image must be multiples of this.
    options : dict
        What timm needs to be told for images of any size.
    takes_drop_path : bool
        Whether the model has stochastic depth.
    """

    body: nn.Module
    levels: tuple[int, ...]
    channels: tuple[int, ...]
    reduction: int
    stride: int
    options: dict
    takes_drop_path: bool


@functools.cache
def describe(name: str) -> Pyramid:
    """Look at a timm model without computing anything.

    Raises
    ------
    ValueError
        If it is no encoder for :class:`PyramidEncoder`.
    """
    with torch.device("meta"):
        arguments = inspect.signature(type(_create(name))).parameters
        options = {"strict_img_size": False} if "strict_img_size" in arguments else {}
        try:
            info = cast(FeatureInfo, _create(name, features_only=True, **options).feature_info)
        except (RuntimeError, AssertionError) as error:
            raise ValueError(f"timm's '{name}' gives no feature pyramid ({error}): use another encoder.") from error
        levels = list(range(len(info.info)))[-4:]
        channels, reductions = tuple(info.channels(levels)), tuple(info.reduction(levels))
        first = reductions[0]
        if reductions != (first, 2 * first, 4 * first, 8 * first) or first.bit_count() != 1:
            raise ValueError(
                f"Encoder '{name}' must give four levels, each half the size of the one before; its last ones are at "
                f"1/{', 1/'.join(map(str, reductions))} of the image: use another encoder."
            )
        body = _create(name, features_only=True, out_indices=tuple(levels), **options).eval()
        stride = _smallest_stride(name, body, reductions)
    return Pyramid(body, tuple(levels), channels, first, stride, options, "drop_path_rate" in arguments)


def _smallest_stride(name: str, body: nn.Module, reductions: tuple[int, ...]) -> int:
    reasons = []
    for stride in (window * reductions[-1] for window in WINDOWS):
        try:
            maps = _maps(body, torch.empty(1, 3, stride, 2 * stride))
        except Exception as error:  # whatever a model does with a size that it cannot take
            reasons.append(str(error))
            continue
        if all(y.shape[-2:] == (stride // r, 2 * stride // r) for y, r in zip(maps, reductions, strict=True)):
            return stride
        reasons.append(f"its levels are not at 1/{', 1/'.join(map(str, reductions))} of the image")
    raise ValueError(f"Encoder '{name}' fails at sizes other than its own ({reasons[0]}): use another encoder.")


@functools.cache
@torch.enable_grad()
def _unused_parameters(name: str, count: int) -> set[str]:
    """Names of the parameters on which none of the first ``count`` levels depends."""
    pyramid = describe(name)
    maps = _maps(pyramid.body, torch.empty(1, 3, pyramid.stride, 2 * pyramid.stride, device="meta"))[:count]
    keys, parameters = zip(*pyramid.body.named_parameters(), strict=True)
    gradients = torch.autograd.grad([y.sum() for y in maps], parameters, allow_unused=True)
    return {key for key, gradient in zip(keys, gradients, strict=True) if gradient is None}


def _create(name: str, **options) -> nn.Module:
    try:
        return timm.create_model(name, **options)
    except RuntimeError:  # some models compute their widths with torch, which the meta device cannot
        if torch.get_default_device().type != "meta":
            raise
        with torch.device("cpu"):
            model = timm.create_model(name, **options)
        return model.to(torch.get_default_device())
