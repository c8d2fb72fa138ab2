"""Random weights for the parts that are trained from scratch."""

from __future__ import annotations

from torch import nn


def init_by_fan_in(module: nn.Module) -> None:
    """Initialize a convolution for unit gain; for ``Module.apply``.

    The widths of the stages differ by a factor of eight, so that one fixed standard deviation cannot fit all.
    """
    if isinstance(module, nn.Conv2d):
        fan_in = module.in_channels * module.kernel_size[0] * module.kernel_size[1]
        nn.init.trunc_normal_(module.weight, std=fan_in**-0.5)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
