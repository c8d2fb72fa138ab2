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
from nnunet_din.network.encoders.base import Encoder
from nnunet_din.network.ops import normalize, pixelwise, pointwise, recompute


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
        """Shape ``(N, d, H, W)`` -> same."""
        y = pixelwise((self._expand, self._project), self.conv_dw(x), len(self.mlp.fc1.weight))
        return x + self.drop_path(y)

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
        Keep only the input of each block for the backward pass, and compute the block again there.
    stem_stride
        1 is the paper's stem. 2 halves the resolution of every stage, for a quarter of the arithmetic.

    Attributes
    ----------
    channels : tuple of int
        Widths of the four stages, at 1, 1/2, 1/4 and 1/8 of the stem's resolution.
    stride : int
        Height and width of the input must be multiples of this.
    """

    stages: Sequential[convnext.ConvNeXtStage]
    edge_pooling: ModuleList[nn.Sequential] | None

    def __init__(
        self,
        in_channels: int,
        name: str = "convnext_base",
        layer_scale: float | None = 1e-6,
        drop_path_rate: float = 0.0,
        checkpointing: bool = False,
        stem_stride: int = 1,
    ):
        super().__init__()
        self.stride = self.input_stride(name, stem_stride)
        self.checkpointing = checkpointing
        options: dict[str, Any] = {} if layer_scale is None else {"ls_init_value": layer_scale}
        options |= {"in_chans": in_channels, "num_classes": 0, "drop_path_rate": drop_path_rate}
        model: Any = timm.create_model(name, **options)  # a ConvNeXt: timm knows only that it is a module
        self.name = name
        self.channels = tuple(info["num_chs"] for info in model.feature_info)
        self.stem = nn.Sequential(
            nn.Conv2d(in_channels, self.channels[0], kernel_size=3, stride=stem_stride, padding=1),
            LayerNorm2d(self.channels[0]),
        )
        self.stages = model.stages
        for stage in self.stages:
            stage.blocks = nn.Sequential(*(ConvNeXtBlock(b) if ConvNeXtBlock.fits(b) else b for b in stage.blocks))
        # Two kinds of pooling convolution (Table 14): the stages' own feed the blocks, these give f_edge.
        self.edge_pooling = ModuleList(
            nn.Sequential(LayerNorm2d(d_in), nn.Conv2d(d_in, d_out, kernel_size=2, stride=2))
            for d_in, d_out in zip(self.channels[:-1], self.channels[1:], strict=True)
        )
        for module in (self.stem, self.edge_pooling):
            module.apply(_init_like_timm)

    def keep_stages(self, count: int) -> None:
        """Leave out the stages after the first ``count``."""
        super().keep_stages(count)
        if self.edge_pooling is not None:
            self.edge_pooling = self.edge_pooling[: count - 1]

    def leave_out_edges(self) -> None:
        """Give None for f_low, which some fusions do not use, and drop the layers that make it."""
        self.edge_pooling = None

    def forward(self, x: Tensor) -> Sequence[tuple[Tensor | None, Tensor]]:
        """Encode, see :meth:`Encoder.forward`. f_low are the edge features after the (first) pooling layer and f_high
        the output of the last block: f_edge and f_shape of Table 14.
        """
        x = self.stem(x)
        pairs = []
        for i, stage in enumerate(self.stages):
            f_low = None
            if self.edge_pooling is not None:
                f_low = recompute(self.edge_pooling[i - 1], x) if i else x
            x = recompute(stage.downsample, x) if i else x
            for block in stage.blocks:
                x = checkpoint(block, x, use_reentrant=False) if self.checkpointing and self.training else block(x)
            pairs.append((f_low, x))
        return pairs


def _init_like_timm(module: nn.Module) -> None:
    if isinstance(module, nn.Conv2d):
        nn.init.trunc_normal_(module.weight, std=0.02)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
