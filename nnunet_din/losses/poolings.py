"""torch's poolings by the number of axes of an image."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor
from torch.nn import functional as F

#: Number of axes -> function.
AVERAGE_POOLINGS: dict[int, Callable[..., Tensor]] = {2: F.avg_pool2d, 3: F.avg_pool3d}
MAX_POOLINGS: dict[int, Callable[..., Tensor]] = {2: F.max_pool2d, 3: F.max_pool3d}
ADAPTIVE_AVERAGE_POOLINGS: dict[int, Callable[..., Tensor]] = {2: F.adaptive_avg_pool2d, 3: F.adaptive_avg_pool3d}
ADAPTIVE_MAX_POOLINGS: dict[int, Callable[..., Tensor]] = {2: F.adaptive_max_pool2d, 3: F.adaptive_max_pool3d}
