"""timm's ConvNeXt as the paper uses it: full resolution in the first stage, two feature maps per stage."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeGuard

import timm
from timm.layers import GELU, LayerNorm, LayerNorm2d, Mlp
from timm.models import convnext
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from nnunet_din.network.containers import ModuleList, Sequential
from nnunet_din.network.dimensions import NoVolumesError, channels_first, channels_last, convolution
from nnunet_din.network.encoders.base import Encoder, OfStages, kernels_of_stages, strides_of_stages
from nnunet_din.network.initialization import init_truncated
from nnunet_din.network.ops import LAYER_NORMS, normalize, pointwise, recompute


class ConvNeXtBlock(nn.Module):
    """timm's ConvNeXt block, the same function of the same parameters, with half the memory in training.

    Kept for the backward pass: the block's input, the LayerNorm's input and the GELU's input. The layer scale is
    folded into the second linear layer's weights, which is a product of the size of the weights and not of the image.

    Parameters
    ----------
    block
        The block whose layers, and names of layers, are taken over.
    """

    def __init__(self, block: convnext.ConvNeXtBlock):
        super().__init__()
        self.conv_dw, self.norm, self.mlp = block.conv_dw, block.norm, block.mlp
        self.gamma = block.gamma
        self.drop_path = block.drop_path

    @staticmethod
    def fits(block: nn.Module) -> TypeGuard[convnext.ConvNeXtBlock]:
        """Whether a block is of the plain kind: LayerNorm, two linear layers, GELU in between."""
        return (
            type(block) is convnext.ConvNeXtBlock
            and type(block.norm) in (LayerNorm, LayerNorm2d)
            and type(block.mlp) is Mlp
            and type(block.mlp.act) in (nn.GELU, GELU)
            and isinstance(block.shortcut, nn.Identity)
        )

    def forward(self, x: Tensor) -> Tensor:
        """Shape ``(N, d, *size)`` -> same."""
        y = recompute(self._expand, channels_last(self.conv_dw(x)))
        return x + self.drop_path(channels_first(recompute(self._project, y)))

    def _expand(self, x: Tensor) -> Tensor:
        return pointwise(normalize(x, self.norm), self.mlp.fc1)

    def _project(self, x: Tensor) -> Tensor:
        weight, bias = self.mlp.fc2.weight.flatten(1), self.mlp.fc2.bias
        if self.gamma is not None:
            weight, bias = self.gamma[:, None] * weight, None if bias is None else self.gamma * bias
        return F.linear(F.gelu(x), weight, bias)


class ConvNeXtEncoder(Encoder):
    """timm's ConvNeXt with a 3 x 3 stem at full resolution and a second pooling convolution per stage (paper, section
    9.1 and Table 14).

    Parameter names of the stages are timm's, so that timm's pretrained weights fit them.

    Parameters
    ----------
    in_channels
        Channels of the image.
    name
        A ConvNeXt of timm, for example ``convnext_base``.
    layer_scale
        Initial value of the blocks' layer scale. timm's 1e-6 suits pretrained weights and very long trainings. None:
        the model's own way, which is no layer scale at all for ConvNeXt V2.
    drop_path_rate
        Stochastic depth of the last block; it grows linearly from 0 at the first.
    checkpointing
        Whether only the input of each block is kept for the backward pass, which computes the block again.
    stem_stride
        1 is the paper's stem. 2 halves the resolution of every stage, for a quarter of the arithmetic. For images with
        two axes.
    strides
        Strides of the stem and of the three poolings, 1 or 2 for each of two or three axes. None: ``stem_stride``, then
        2.
    kernel_sizes
        Kernels of the depthwise convolutions of the four stages, odd, for each axis. None: 7. The stem's kernel is 3,
        or 1 along axes where that of the first stage is 1.

    Attributes
    ----------
    channels : tuple of int
        Widths of the four stages, at 1, 1/2, 1/4 and 1/8 of the stem's resolution.
    stride_per_axis : tuple of int
        Each edge of the input must be a multiple of the axis' number.
    """

    takes_strides = True
    stages: Sequential[convnext.ConvNeXtStage]

    def __init__(
        self,
        in_channels: int,
        name: str = "convnext_base",
        layer_scale: float | None = 1e-6,
        drop_path_rate: float = 0.0,
        checkpointing: bool = False,
        stem_stride: int = 1,
        strides: OfStages | None = None,
        kernel_sizes: OfStages | None = None,
    ):
        super().__init__()
        self.stride_per_axis = self.input_strides(name, stem_stride, strides)
        dimensions = len(self.stride_per_axis)
        stem, *poolings = strides_of_stages(stem_stride, strides)
        kernels = kernels_of_stages(kernel_sizes, 7, dimensions)
        self.checkpointing = checkpointing
        options: dict[str, Any] = {} if layer_scale is None else {"ls_init_value": layer_scale}
        options |= {"in_chans": in_channels, "num_classes": 0, "drop_path_rate": drop_path_rate}
        model: Any = timm.create_model(name, **options)  # a ConvNeXt: timm knows only that it is a module
        self.name = name
        self.channels = tuple(info["num_chs"] for info in model.feature_info)
        layer_norm = LAYER_NORMS[dimensions]
        self.stem = nn.Sequential(
            convolution(in_channels, self.channels[0], [min(k, 3) for k in kernels[0]], stem),
            layer_norm(self.channels[0]),
        )
        self.stages = model.stages
        for stage in self.stages:
            stage.blocks = nn.Sequential(*(ConvNeXtBlock(b) if ConvNeXtBlock.fits(b) else b for b in stage.blocks))
        if strides is not None or kernel_sizes is not None:
            for stage, stride, kernel_size in zip(self.stages, (None, *poolings), kernels, strict=True):
                _replace_convolutions(stage, stride, kernel_size)
        self.has_edges = [True] * 4
        # Two kinds of pooling convolution (Table 14): the stages' own feed the blocks, these give f_edge.
        self.edge_pooling = ModuleList(
            nn.Sequential(layer_norm(d_in), convolution(d_in, d_out, stride, stride))
            for d_in, d_out, stride in zip(self.channels[:-1], self.channels[1:], poolings, strict=True)
        )
        for module in (self.stem, self.edge_pooling):
            module.apply(init_truncated)

    def keep_stages(self, count: int) -> None:
        """Leave out the stages after the first ``count``."""
        super().keep_stages(count)
        self.edge_pooling = self.edge_pooling[: count - 1]

    def keep_edges(self, stages: Sequence[bool]) -> None:
        """Give None for f_low where a stage's fusion does not use it, and drop the layers that make it."""
        self.has_edges = list(stages)
        for i, has_edges in enumerate(stages[1:]):
            if not has_edges:
                self.edge_pooling[i] = nn.Identity()

    def forward(self, x: Tensor) -> Sequence[tuple[Tensor | None, Tensor]]:
        """Encode, see :meth:`Encoder.forward`. f_low are the edge features after the (first) pooling layer and f_high
        the output of the last block: f_edge and f_shape of Table 14.
        """
        x = self.stem(x)
        pairs = []
        for i, stage in enumerate(self.stages):
            f_low = None
            if self.has_edges[i]:
                f_low = recompute(self.edge_pooling[i - 1], x) if i else x
            x = recompute(stage.downsample, x) if i else x
            for block in stage.blocks:
                x = checkpoint(block, x, use_reentrant=False) if self.checkpointing and self.training else block(x)
            pairs.append((f_low, x))
        return pairs


def _replace_convolutions(stage: Any, stride: Sequence[int] | None, kernel_size: Sequence[int]) -> None:
    """Replace the convolutions of timm's ConvNeXtStage by those of this stride and kernel, and of as many axes; and
    with them the LayerNorms of maps. Names and widths stay.

    Raises
    ------
    ValueError
        If the stage has other parts that are for two axes only.
    """
    dimensions = len(kernel_size)
    layer_norm, point = LAYER_NORMS[dimensions], (1,) * dimensions
    if stride is not None:  # all stages but the first
        pooling = stage.downsample[1]
        stage.downsample = nn.Sequential(
            layer_norm(pooling.in_channels), convolution(pooling.in_channels, pooling.out_channels, stride, stride)
        )
    for block in stage.blocks:
        if dimensions > 2 and not isinstance(block, ConvNeXtBlock):
            raise NoVolumesError("This ConvNeXt has blocks for 2-D images only: take one of the first version.")
        d = block.conv_dw.out_channels
        block.conv_dw = convolution(d, d, kernel_size, groups=d, bias=block.conv_dw.bias is not None)
        if isinstance(block.norm, LayerNorm2d):
            block.norm = layer_norm(d)
        for name in ("fc1", "fc2"):
            layer = getattr(block.mlp, name)
            if isinstance(layer, nn.Conv2d):
                setattr(block.mlp, name, convolution(layer.in_channels, layer.out_channels, point))
    stage.apply(init_truncated)
