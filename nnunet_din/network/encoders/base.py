"""What the network needs of an encoder."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import ClassVar, TypeAlias

from torch import Tensor, nn

#: One number for each axis, for each stage.
OfStages: TypeAlias = Sequence[Sequence[int]]


class Encoder(nn.Module, ABC):
    """Stages of halving resolution, each with a low- and a high-level feature map.

    The methods here suit an encoder of four stages, the first at the resolution of the image or, behind a stem of
    stride 2, at half of it; others replace them.

    Attributes
    ----------
    takes_strides : bool
        Whether the class has the options ``strides`` and ``kernel_sizes``, and so takes volumes.
    learning_rate : float
        Largest learning rate of AdamW that suits trainings from random weights.
    name : str
        Name of the encoder in the plans.
    channels : tuple of int
        Channels of each stage.
    stride_per_axis : tuple of int
        Each edge of the image must be a multiple of the axis' number.
    stages : torch.nn.Sequential or torch.nn.ModuleList
        The stages' layers.
    """

    takes_strides: ClassVar[bool] = False
    learning_rate: ClassVar[float] = 5e-4
    name: str
    channels: tuple[int, ...]
    stride_per_axis: tuple[int, ...]
    stages: nn.Sequential | nn.ModuleList

    @property
    def stride(self) -> int:
        """The largest of :attr:`stride_per_axis`; images whose edges are multiples of it fit."""
        return max(self.stride_per_axis)

    @staticmethod
    def input_strides(name: str, stem_stride: int = 1, strides: OfStages | None = None) -> tuple[int, ...]:
        """What :attr:`stride_per_axis` will be, without building anything; ValueError for strides out of range."""
        return tuple(math.prod(axis) for axis in zip(*strides_of_stages(stem_stride, strides), strict=True))

    @staticmethod
    def refuse(name: str, **values: float | None) -> None:
        """Refuse options without a meaning for the encoder, unless they are None, 0, or timm's layer scale, 1e-6."""
        for option, value in values.items():
            if value not in (None, 0, 1e-6):
                raise ValueError(f"{option}={value} has no meaning for encoder '{name}': leave it out.")

    def keep_stages(self, count: int) -> None:
        """Leave out the stages after the first ``count``."""
        self.stages = self.stages[:count]
        self.channels = self.channels[:count]

    def keep_edges(self, stages: Sequence[bool]) -> None:
        """Give None for f_low where a stage's fusion does not use it, and drop the layers that only f_low needs.

        Without such layers, nothing changes.
        """

    @abstractmethod
    def forward(self, x: Tensor) -> Sequence[tuple[Tensor | None, Tensor]]:
        """Encode a batch of images.

        Parameters
        ----------
        x
            Image, shape ``(N, C, H, W)``, or ``(N, C, Z, H, W)`` where the strides have three axes; edges are multiples
            of :attr:`stride_per_axis`.

        Returns
        -------
        list of (Tensor, Tensor)
            Per stage ``(f_low, f_high)``, both ``(N, d_i, *size_i)``.
        """


def strides_of_stages(stem_stride: int, strides: OfStages | None) -> OfStages:
    """Strides of the four stages along each axis, the stem's first.

    Parameters
    ----------
    stem_stride
        That of the stem, 1 or 2, where ``strides`` is None: two axes, and 2 for the other stages.
    strides
        All of them, 1 or 2 along each of two or three axes.

    Raises
    ------
    ValueError
        If they are out of range.
    """
    if strides is None:
        if stem_stride not in (1, 2):
            raise ValueError(f"stem_stride must be 1 or 2, got {stem_stride}.")
        return [[stem_stride] * 2] + [[2, 2]] * 3
    if stem_stride != 1:
        raise ValueError(f"`strides` begins with the stem's: leave stem_stride={stem_stride} out.")
    _check_stages("strides", strides)
    if any(s not in (1, 2) for stage in strides for s in stage):
        raise ValueError(f"strides must be 1 or 2 along each axis, got {strides}.")
    return strides


def kernels_of_stages(kernel_sizes: OfStages | None, default: int, dimensions: int) -> OfStages:
    """Kernels of the four stages along each axis, ``default`` for None.

    Raises
    ------
    ValueError
        If they are not odd, or not for as many axes as the strides.
    """
    if kernel_sizes is None:
        return [[default] * dimensions] * 4
    _check_stages("kernel_sizes", kernel_sizes)
    if any(k < 1 or k % 2 == 0 for stage in kernel_sizes for k in stage):
        raise ValueError(f"kernel_sizes must be odd, got {kernel_sizes}.")
    if len(kernel_sizes[0]) != dimensions:
        raise ValueError(f"kernel_sizes have {len(kernel_sizes[0])} axes and the strides {dimensions}.")
    return kernel_sizes


def _check_stages(what: str, values: OfStages) -> None:
    if len(values) != 4 or {len(stage) for stage in values} not in ({2}, {3}):
        raise ValueError(f"{what} must have one number for each of two or three axes, for four stages; got {values}.")
