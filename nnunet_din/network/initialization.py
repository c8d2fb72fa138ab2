"""Random weights at the start."""

from __future__ import annotations

from torch import nn

from nnunet_din.network.dimensions import Convolution


def init_by_fan_in(module: nn.Module) -> None:
    """Initialize a convolution for unit gain; for ``Module.apply``.

    The widths of the stages differ by a factor of eight, so that one fixed standard deviation cannot fit all.
    """
    if isinstance(module, Convolution):
        init_truncated(module, module.weight[0].numel() ** -0.5)


def init_truncated(module: nn.Module, std: float = 0.02) -> None:
    """Initialize a convolution by a truncated normal distribution, by default as timm does; for ``Module.apply``."""
    if isinstance(module, Convolution):
        nn.init.trunc_normal_(module.weight, std=std)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
