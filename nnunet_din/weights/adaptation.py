"""Weights of a layer for other channels, or one more axis."""

from __future__ import annotations

import torch
from torch import Tensor


def inflate(weight: Tensor, planes: int) -> Tensor:
    """Give the kernel of a convolution on slices a third axis, along which it does not look: it stands in the middle
    plane, or, of an even number, with half of it in each of the middle two.

    Parameters
    ----------
    weight
        Shape ``(d, C, kh, kw)``.
    planes
        Edge along the new axis.

    Returns
    -------
    Tensor
        Shape ``(d, C, planes, kh, kw)``.
    """
    middle = slice((planes - 1) // 2, planes // 2 + 1)
    inflated = weight.new_zeros(*weight.shape[:2], planes, *weight.shape[2:])
    inflated[:, :, middle] = weight[:, :, None] / (2 - planes % 2)
    return inflated


def adapt_channels(weight: Tensor, channels: int, versions: int = 1) -> Tensor:
    """Adapt the weights of a convolution on images to another number of channels, as timm does.

    One channel gets the sum, more get the given channels in turn, scaled so that the response to an image with the same
    values in all channels stays about what it was.

    Parameters
    ----------
    weight
        Shape ``(d, versions * C, kh, kw)``.
    channels
        The new number of channels C'.
    versions
        Images side by side along the channels, each adapted by itself.

    Returns
    -------
    Tensor
        Shape ``(d, versions * C', kh, kw)``.
    """
    weight = weight.unflatten(1, (versions, -1))
    before = weight.shape[2]
    if channels == 1:
        weight = weight.sum(dim=2, keepdim=True)
    else:
        turn = torch.arange(channels, device=weight.device) % before
        weight = weight[:, :, turn] * (before / channels)
    return weight.flatten(1, 2)
