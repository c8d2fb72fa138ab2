"""Fuzzy image enhancement in closed form (DIN paper, eqs. 11 and 12, after Patrascu, arXiv:1502.04499).

Patrascu's logarithmic model on (-1, 1) becomes ordinary arithmetic under phi = atanh. There, the image support is
divided into (m+1)(n+1) fuzzy windows whose memberships are separable, so that every fuzzy sum over the image is a
product with two small matrices, and the sum over windows of affine maps is one affine map per pixel.
"""

from __future__ import annotations

from math import comb, sqrt

import numpy as np


def fuzzy_membership(n_pixels: int, order: int, gamma: float = 1.0) -> np.ndarray:
    """Membership of pixels in the ``order + 1`` fuzzy windows along one axis.

    Parameters
    ----------
    n_pixels
        Pixels along the axis; they lie at 0 ... 1.
    order
        Order of the Bernstein polynomials (m or n).
    gamma
        Fuzziness: 1 is Bernstein's own, larger is closer to crisp windows.

    Returns
    -------
    numpy.ndarray
        Shape ``(order + 1, n_pixels)``, float64, in [0, 1]; each column sums to 1.
    """
    x = np.linspace(0.0, 1.0, n_pixels)
    i = np.arange(order + 1)[:, None]
    binomials = np.array([comb(order, k) for k in range(order + 1)], dtype=np.float64)[:, None]
    q = (binomials * x**i * (1 - x) ** (order - i)) ** gamma
    return q / q.sum(axis=0)


def fuzzy_enhance(
    f,
    m: int = 2,
    n: int = 2,
    gamma: float = 1.0,
    sigma_u: float = sqrt(1 / 3),
    s_min: float = 1e-2,
    color: bool = False,
    mask=None,
):
    """Enhance images by support fuzzification.

    Parameters
    ----------
    f
        Images in (-1, 1): a floating NumPy array or torch tensor of shape ``(..., H, W)``, or ``(..., C, H, W)`` where
        ``color`` is true. Values closer to +-1 than 1e-6 are pulled back to there.
    m, n
        Orders of the fuzzy partition along columns (x) and rows (y): (m + 1)(n + 1) windows. 0 and 0 is the z-score.
    gamma
        Fuzziness of the windows, > 0.
    sigma_u
        The uniform standard deviation that every window is brought to, in units of phi = atanh (eq. 11).
    s_min
        Lower bound of a window's standard deviation, in units of phi: keeps flat regions from being amplified without
        end.
    color
        Whether axis -3 holds the colours of one image: window statistics then come from the luminosity (mean phi of the
        channels), and every channel gets the same affine map.
    mask
        Foreground, shape ``(..., H, W)``, boolean or 0/1 numbers: only its pixels enter the statistics. All pixels are
        enhanced.

    Returns
    -------
    array like f
        E in (-1, 1), same type, shape and dtype. A constant image gives 0.

    Raises
    ------
    ValueError
        If a parameter is out of range.
    """
    if m < 0 or n < 0:
        raise ValueError(f"The orders of the fuzzy partition must not be negative, got m={m}, n={n}.")
    if gamma <= 0 or sigma_u <= 0 or s_min <= 0:
        raise ValueError(f"gamma, sigma_u and s_min must be positive, got {gamma}, {sigma_u} and {s_min}.")
    if f.ndim < 2 + color:
        raise ValueError(f"Expected {'(..., C, H, W)' if color else '(..., H, W)'}, got shape {tuple(f.shape)}.")

    height, width = f.shape[-2:]
    xp, wx, wy = _memberships_like(f, height, width, m, n, gamma)  # (m+1) x W, (n+1) x H
    wx_t = wx.T  # W x (m+1)

    g = xp.arctanh(xp.clip(f, -1 + 1e-6, 1 - 1e-6))  # phi(f)
    luminosity = g.mean(-3) if color else g
    weight = xp.ones_like(luminosity) if mask is None else _broadcast_like(xp, mask, luminosity)

    # Fuzzy cardinality, mean and variance of each window, (n+1) x (m+1). Centred first, or fp32 variances come out
    # negative.
    n_inside = xp.clip(weight.sum((-2, -1)), 1, None)[..., None, None]
    centre = (luminosity * weight).sum((-2, -1))[..., None, None] / n_inside
    d = (luminosity - centre) * weight
    card = xp.clip(wy @ weight @ wx_t, 1e-12, None)
    mean = (wy @ d @ wx_t) / card
    variance = (wy @ (d * d) @ wx_t) / card - mean * mean

    scale = sigma_u / xp.clip(
        xp.sqrt(xp.clip(variance, 0, None)), s_min, None
    )  # lambda_ij; tau_ij = -(mean + centre)  (eq. 11)
    # Eq. 12, memberships as weights: sum_ij w_ij lambda_ij (g + tau_ij) = A (g - centre) - B
    a = wy.T @ scale @ wx  # H x W
    b = wy.T @ (scale * mean) @ wx
    if color:
        a, b, centre = a[..., None, :, :], b[..., None, :, :], centre[..., None, :, :]
    return xp.tanh(a * (g - centre) - b)


def _memberships_like(f, height: int, width: int, m: int, n: int, gamma: float):
    """Array module of ``f`` and the membership matrices as arrays of its kind, dtype and device."""
    wx, wy = fuzzy_membership(width, m, gamma), fuzzy_membership(height, n, gamma)
    if isinstance(f, np.ndarray):
        return np, wx.astype(f.dtype), wy.astype(f.dtype)
    import torch

    return torch, torch.as_tensor(wx).to(f), torch.as_tensor(wy).to(f)


def _broadcast_like(xp, mask, reference):
    mask = mask.astype(reference.dtype) if xp is np else mask.to(reference)
    return xp.broadcast_to(mask, reference.shape)
