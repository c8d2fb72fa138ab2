"""Fuzzy image enhancement in closed form (DIN paper, eqs. 11 and 12, after Patrascu, arXiv:1502.04499).

Patrascu's logarithmic model on (-1, 1) becomes ordinary arithmetic under phi = atanh. There, the image support is
divided into (m+1)(n+1) fuzzy windows whose memberships are separable, so that every fuzzy sum over the image is a
product with two small matrices, and the sum over windows of affine maps is one affine map per pixel. The support of a
volume is divided along its slices, too, for one more product.
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
    _check(f, 2, color, {"m": m, "n": n}, gamma, sigma_u, s_min)
    xp, (wy, wx) = _memberships_like(f, (n, m), gamma)  # (n+1) x H, (m+1) x W
    wx_t = wx.T  # W x (m+1)

    g = _phi(xp, f)
    luminosity = g.mean(-3) if color else g
    weight = xp.ones_like(luminosity) if mask is None else _broadcast_like(xp, mask, luminosity)

    # Fuzzy cardinality, mean and variance of each window, (n+1) x (m+1). Centred first, or fp32 variances come out
    # negative.
    n_inside = xp.clip(weight.sum((-2, -1)), 1, None)[..., None, None]
    centre = (luminosity * weight).sum((-2, -1))[..., None, None] / n_inside
    d = (luminosity - centre) * weight
    card = xp.clip(wy @ weight @ wx_t, 1e-12, None)
    mean = (wy @ d @ wx_t) / card
    scale = _scale(xp, mean, (wy @ (d * d) @ wx_t) / card, sigma_u, s_min)  # lambda_ij
    # Eq. 12, memberships as weights: sum_ij w_ij lambda_ij (g + tau_ij) = A (g - centre) - B
    a = wy.T @ scale @ wx  # H x W
    b = wy.T @ (scale * mean) @ wx
    if color:
        a, b, centre = a[..., None, :, :], b[..., None, :, :], centre[..., None, :, :]
    return xp.tanh(a * (g - centre) - b)


def fuzzy_enhance_volume(
    f,
    m: int = 2,
    n: int = 2,
    p: int = 2,
    gamma: float = 1.0,
    sigma_u: float = sqrt(1 / 3),
    s_min: float = 1e-2,
    color: bool = False,
    mask=None,
):
    """Enhance volumes by support fuzzification: :func:`fuzzy_enhance` with windows along three axes.

    Besides the result it takes the memory of a few slices.

    Parameters
    ----------
    f
        Volumes in (-1, 1): a floating NumPy array or torch tensor of shape ``(..., Z, H, W)``, or ``(..., C, Z, H, W)``
        where ``color`` is true.
    m, n, p
        Orders of the fuzzy partition along columns (x), rows (y) and slices (z): (m + 1)(n + 1)(p + 1) windows.
    gamma, sigma_u, s_min
        As for :func:`fuzzy_enhance`.
    color
        Whether axis -4 holds the colours of one volume.
    mask
        Foreground, shape ``(..., Z, H, W)``: only its voxels enter the statistics. All voxels are enhanced.

    Returns
    -------
    array like f
        E in (-1, 1), same type, shape and dtype. A constant volume gives 0.

    Raises
    ------
    ValueError
        If a parameter is out of range.
    """
    _check(f, 3, color, {"m": m, "n": n, "p": p}, gamma, sigma_u, s_min)
    xp, (wz, wy, wx) = _memberships_like(f, (p, n, m), gamma)  # (p+1) x Z, (n+1) x H, (m+1) x W
    wx_t = wx.T
    e = xp.empty_like(f)  # phi(f) at first
    luminosities, weights = [], []
    for z in range(f.shape[-3]):
        e[..., z, :, :] = g = _phi(xp, f[..., z, :, :])
        luminosity = g.mean(-3) if color else g
        weight = xp.ones_like(luminosity) if mask is None else _broadcast_like(xp, mask[..., z, :, :], luminosity)
        luminosities.append((luminosity * weight).sum((-2, -1)))
        weights.append(weight.sum((-2, -1)))
    centre = (sum(luminosities) / xp.clip(sum(weights), 1, None))[..., None, None]

    # Window sums of each slice, (n+1) x (m+1), and then of the volume, (p+1) x (n+1) x (m+1).
    sums: tuple[list, list, list] = ([], [], [])
    for z in range(f.shape[-3]):
        g = e[..., z, :, :]
        luminosity = g.mean(-3) if color else g
        weight = xp.ones_like(luminosity) if mask is None else _broadcast_like(xp, mask[..., z, :, :], luminosity)
        d = (luminosity - centre) * weight
        for of_slices, x in zip(sums, (weight, d, d * d), strict=True):
            of_slices.append(wy @ x @ wx_t)
    card, first, second = (xp.einsum("kz,...zji->...kji", wz, xp.stack(x, -3)) for x in sums)
    card = xp.clip(card, 1e-12, None)
    mean = first / card
    scale = _scale(xp, mean, second / card, sigma_u, s_min)  # lambda_ijk

    # Eq. 12: sum_ijk w_ijk lambda_ijk (g + tau_ijk) = A (g - centre) - B
    scales, shifts = (xp.einsum("kz,...kji->...zji", wz, x) for x in (scale, scale * mean))
    for z in range(f.shape[-3]):
        a, b, c = wy.T @ scales[..., z, :, :] @ wx, wy.T @ shifts[..., z, :, :] @ wx, centre
        if color:
            a, b, c = a[..., None, :, :], b[..., None, :, :], c[..., None, :, :]
        e[..., z, :, :] = xp.tanh(a * (e[..., z, :, :] - c) - b)
    return e


def _check(f, axes: int, color: bool, orders: dict[str, int], gamma: float, sigma_u: float, s_min: float) -> None:
    if min(orders.values()) < 0:
        got = ", ".join(f"{name}={order}" for name, order in orders.items())
        raise ValueError(f"The orders of the fuzzy partition must not be negative, got {got}.")
    if gamma <= 0 or sigma_u <= 0 or s_min <= 0:
        raise ValueError(f"gamma, sigma_u and s_min must be positive, got {gamma}, {sigma_u} and {s_min}.")
    if f.ndim < axes + color:
        expected = ", ".join(["...", *["C"] * color, *["Z", "H", "W"][-axes:]])
        raise ValueError(f"Expected ({expected}), got shape {tuple(f.shape)}.")


def _phi(xp, f):
    return xp.arctanh(xp.clip(f, -1 + 1e-6, 1 - 1e-6))


def _scale(xp, mean, mean_of_squares, sigma_u: float, s_min: float):
    """The factor lambda of each window; its shift is tau = -(mean + centre) (eq. 11)."""
    variance = mean_of_squares - mean * mean
    return sigma_u / xp.clip(xp.sqrt(xp.clip(variance, 0, None)), s_min, None)


def _memberships_like(f, orders: tuple[int, ...], gamma: float):
    """Array module of ``f``, and the membership matrices of its last axes as arrays of its kind, dtype and device."""
    edges = f.shape[-len(orders) :]
    memberships = [fuzzy_membership(edge, order, gamma) for edge, order in zip(edges, orders, strict=True)]
    if isinstance(f, np.ndarray):
        return np, [w.astype(f.dtype) for w in memberships]
    import torch

    return torch, [torch.as_tensor(w).to(f) for w in memberships]


def _broadcast_like(xp, mask, reference):
    mask = mask.astype(reference.dtype) if xp is np else mask.to(reference)
    return xp.broadcast_to(mask, reference.shape)
