"""What the paper only compares DIN with: encoders of Table 5, the decoder of Tables 11 and 12, Zero-DCE of Table 4."""

from __future__ import annotations

from torch import nn


def init_normal(module: nn.Module) -> None:
    """Initialize a convolution by N(0, 0.02^2), its bias by 0; for ``Module.apply``."""
    if isinstance(module, nn.Conv2d):
        nn.init.normal_(module.weight, std=0.02)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
