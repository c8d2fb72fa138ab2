"""Zero-DCE: a small network that brightens each pixel by a curve of its own, fitted without reference images.

Guo et al., *Zero-Reference Deep Curve Estimation for Low-Light Image Enhancement*, CVPR 2020; Li, Guo and Loy, IEEE
TPAMI 44 (8), 2021, the DIN paper's [46]. Equation numbers are those of the CVPR paper. Images are in [0, 1] here;
:func:`nnunet_din.enhancement.zero_dce.zero_dce_enhance` maps (-1, 1) to it and back.

The paper's losses and weights differ from those of the authors' training code, and the first author asks to follow the
code (issue 19 of its repository, Li-Chongyi/Zero-DCE). So do we in the exposure and smoothness losses, in the weights,
and in weight decay and gradient clipping, which the paper does not mention. With the paper's own weights and a mean
over the pixels, which eq. 7 leaves open, all regions of a cardiac MR slice ended at the same grey, and only edges were
left. Regions at the border have fewer neighbours, and biases start at 0, where the paper says "a constant".
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from tqdm import trange

from nnunet_din.network.alternatives import init_normal

N_CURVES = 8
EXPOSURE = 0.6  # E, the level of a well exposed region
#: Of the losses in eq. 8. The paper says 1, 1, 0.5 and 20.
WEIGHT_SPATIAL, WEIGHT_EXPOSURE, WEIGHT_COLOR, WEIGHT_SMOOTHNESS = 1.0, 10.0, 5.0, 200.0
LEARNING_RATE, WEIGHT_DECAY, CLIPPED_NORM = 1e-4, 1e-4, 0.1

_EXPOSURE_REGION = 16


class DCENet(nn.Module):
    """The curve estimation network: seven 3x3 convolutions, the last three also see the first three, mirrored.

    Parameters
    ----------
    channels
        Of the images: 3 for colours, else 1. With 3 channels the network has the paper's 79,416 parameters.
    """

    def __init__(self, channels: int = 1):
        super().__init__()
        self.channels = channels
        widths = [(channels, 32), *[(32, 32)] * 3, *[(64, 32)] * 2, (64, N_CURVES * channels)]
        self.convolutions = nn.ModuleList(nn.Conv2d(d_in, d_out, kernel_size=3, padding=1) for d_in, d_out in widths)
        self.apply(init_normal)

    def forward(self, x: Tensor) -> Tensor:
        """Images ``(N, C, H, W)`` in [0, 1] -> curve parameters A in (-1, 1), ``(N, 8, C, H, W)``."""
        early = []
        for convolution in self.convolutions[:4]:
            x = torch.relu(convolution(x))
            early.append(x)
        x = torch.relu(self.convolutions[4](torch.cat((early[2], x), dim=1)))
        x = torch.relu(self.convolutions[5](torch.cat((early[1], x), dim=1)))
        x = torch.tanh(self.convolutions[6](torch.cat((early[0], x), dim=1)))
        return x.unflatten(1, (N_CURVES, self.channels))


def apply_curves(x: Tensor, a: Tensor) -> Tensor:
    """Apply the light-enhancement curves one after the other (eq. 3).

    Parameters
    ----------
    x
        Images in [0, 1], shape ``(N, C, H, W)``.
    a
        Curve parameters in [-1, 1], shape ``(N, n, C, H, W)``: above 0 brightens, below 0 darkens.

    Returns
    -------
    Tensor
        Enhanced images in [0, 1], shape of ``x``.
    """
    for a_n in a.unbind(1):
        x = x + a_n * x * (1 - x)
    return x


def spatial_consistency_loss(enhanced: Tensor, x: Tensor) -> Tensor:
    """Penalize changed differences between neighbouring regions of 4 x 4 pixels (eq. 4).

    Parameters
    ----------
    enhanced, x
        Images after and before, shape ``(N, C, H, W)``; channels are averaged.
    """
    y, i = (F.avg_pool2d(image.mean(1, keepdim=True), 4) for image in (enhanced, x))
    # Each pair of regions is in the paper's sum twice, once from either side.
    down, across = (((y.diff(dim=d).abs() - i.diff(dim=d).abs()) ** 2).sum((1, 2, 3)) for d in (2, 3))
    return (2 * (down + across) / y[0].numel()).mean()


def exposure_loss(enhanced: Tensor) -> Tensor:
    """Penalize regions of 16 x 16 pixels that are not at the level 0.6 (eq. 5, squared distance).

    Parameters
    ----------
    enhanced
        Images, shape ``(N, C, H, W)``; channels are averaged.
    """
    return ((F.avg_pool2d(enhanced.mean(1), _EXPOSURE_REGION) - EXPOSURE) ** 2).mean()


def color_constancy_loss(enhanced: Tensor) -> Tensor:
    """Penalize colours that do not average to grey (eq. 6).

    Parameters
    ----------
    enhanced
        Images, shape ``(N, C, H, W)``. With one channel there are no pairs of colours, and the loss is 0.
    """
    j = enhanced.mean((2, 3))  # N x C
    return ((j[:, :, None] - j[:, None]) ** 2).sum((1, 2)).mean() / 2  # each pair is there twice


def smoothness_loss(a: Tensor) -> Tensor:
    """Curves of neighbouring pixels should be alike (eq. 7, without 1/N, twice the squares of both differences).

    Parameters
    ----------
    a
        Curve parameters, shape ``(N, n, C, H, W)``.
    """
    down, across = (2 * (a.diff(dim=d) ** 2).mean((3, 4)).sum((1, 2)).mean() for d in (3, 4))
    return down + across


def zero_dce_loss(network: DCENet, x: Tensor) -> Tensor:
    """Compute the total loss (eq. 8).

    Parameters
    ----------
    network
        The network to be fitted.
    x
        Images in [0, 1], shape ``(N, C, H, W)``, H and W at least 16.
    """
    a = network(x)
    enhanced = apply_curves(x, a)
    return (
        WEIGHT_SPATIAL * spatial_consistency_loss(enhanced, x)
        + WEIGHT_EXPOSURE * exposure_loss(enhanced)
        + WEIGHT_COLOR * color_constancy_loss(enhanced)
        + WEIGHT_SMOOTHNESS * smoothness_loss(a)
    )


class Fit(NamedTuple):
    """A fitted network.

    Attributes
    ----------
    network : DCENet
        The network, on the CPU.
    loss_before, loss_after : float
        Mean loss on the same crops before and after fitting.
    size : int
        Height and width of the crops in pixels.
    """

    network: DCENet
    loss_before: float
    loss_after: float
    size: int


def fit_zero_dce(
    slices: Sequence[np.ndarray],
    iterations: int = 10_000,
    size: int = 128,
    batch: int = 8,
    device: str | torch.device = "cpu",
    seed: int = 0,
) -> Fit:
    """Fit DCE-Net to images.

    Parameters
    ----------
    slices
        Images in (-1, 1), each ``(C, H, W)`` with the same C, 3 for colours or 1.
    iterations
        Number of steps of Adam.
    size
        Largest height and width of the random crops, at least 16. The crops are smaller where the median slice is, and
        a multiple of 16; slices that are smaller still are scaled up.
    batch
        Number of crops in a step.
    device
        Device on which to fit.
    seed
        Seed of the initial weights, the order and the crops.

    Returns
    -------
    Fit
        The network with the mean loss before and after.

    Raises
    ------
    ValueError
        If there are no slices, their channels differ, or a number is out of range.
    """
    if not len(slices):
        raise ValueError("There are no slices to fit Zero-DCE to.")
    channels = {image.shape[0] for image in slices}
    if len(channels) > 1:
        raise ValueError(f"The slices differ in their number of channels: {sorted(channels)}.")
    if size < _EXPOSURE_REGION or iterations < 1 or batch < 1:
        raise ValueError(
            f"size must be at least {_EXPOSURE_REGION}, iterations and batch at least 1; got size {size}, "
            f"iterations {iterations}, batch {batch}."
        )
    shorter = np.median([min(image.shape[1:]) for image in slices])
    size = max(_EXPOSURE_REGION * int(min(size, shorter) // _EXPOSURE_REGION), _EXPOSURE_REGION)

    rng = np.random.default_rng(seed)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = DCENet(channels.pop())
    network.to(device)
    optimizer = torch.optim.Adam(network.parameters(), lr=LEARNING_RATE, weight_decay=WEIGHT_DECAY)
    checked = [_crops(slices, rng, size, batch).to(device) for _ in range(max(64 // batch, 1))]
    before = _mean_loss(network, checked)
    bar = trange(iterations, desc="Zero-DCE", unit="step", disable=None)
    for step in bar:
        loss = zero_dce_loss(network, _crops(slices, rng, size, batch).to(device))
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(network.parameters(), CLIPPED_NORM)
        optimizer.step()
        if step % 50 == 0:
            bar.set_postfix(loss=f"{loss.item():.3f}")
    after = _mean_loss(network, checked)
    return Fit(network.cpu().eval(), before, after, size)


def _crops(slices: Sequence[np.ndarray], rng: np.random.Generator, size: int, n: int) -> Tensor:
    """Random square crops of random slices, flipped at random, ``(n, C, size, size)`` in [0, 1]."""
    crops = []
    for index in rng.integers(len(slices), size=n):
        x = (torch.from_numpy(np.ascontiguousarray(slices[index], np.float32)) + 1) / 2
        height, width = x.shape[1:]
        if min(height, width) < size:
            scale = size / min(height, width)
            shape = [max(round(scale * side), size) for side in (height, width)]
            x = F.interpolate(x[None], shape, mode="bilinear", align_corners=False)[0]
        top, left = (rng.integers(side - size + 1) for side in x.shape[1:])
        x = x[:, top : top + size, left : left + size]
        crops.append(x.flip([axis for axis in (1, 2) if rng.random() < 0.5]))
    return torch.stack(crops)


@torch.no_grad()
def _mean_loss(network: DCENet, batches: Sequence[Tensor]) -> float:
    return float(np.mean([zero_dce_loss(network, x).item() for x in batches]))
