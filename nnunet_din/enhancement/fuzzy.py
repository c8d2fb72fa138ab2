"""Fuzzy image enhancement in closed form (DIN paper, eqs. 11 and 12, after Patrascu, arXiv:1502.04499).

Patrascu's logarithmic model on (-1, 1) becomes ordinary arithmetic under phi = atanh. There, the image support is
divided into (m+1)(n+1) fuzzy windows whose memberships are separable, so that every fuzzy sum over the image is a
product with a small matrix along each axis, and the sum over windows of affine maps is one affine map per pixel. The
support of a volume is divided along its slices, too.
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
    p: int = 2,
    axes: int = 2,
):
    """Enhance images or volumes by support fuzzification.

    Parameters
    ----------
    f
        Images in (-1, 1): a floating NumPy array or torch tensor of shape ``(..., H, W)``, or ``(..., C, H, W)`` where
        ``color`` is true. Values closer to +-1 than 1e-6 are pulled back to there. With 3 ``axes``, volumes:
        ``(..., Z, H, W)`` or ``(..., C, Z, H, W)``.
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
        Whether the axis before those of the image holds its colours: window statistics then come from the luminosity
        (mean phi of the channels), and every channel gets the same affine map.
    mask
        Foreground, shape of ``f`` without the colours, boolean or 0/1 numbers: only its pixels enter the statistics.
        All pixels are enhanced.
    p
        Order along slices (z), where there are 3 axes: (m + 1)(n + 1)(p + 1) windows.
    axes
        Number of axes that are divided, 2 or 3.

    Returns
    -------
    array like f
        E in (-1, 1), same type, shape and dtype. A constant image gives 0.

    Raises
    ------
    ValueError
        If a parameter is out of range.
    """
    orders = (m, n, p)[:axes]
    _check(f, orders, color, gamma, sigma_u, s_min)
    xp, like = _array_module(f)
    edges, space = f.shape[-axes:], tuple(range(-axes, 0))
    w = [like(fuzzy_membership(edge, order, gamma)) for edge, order in zip(edges, orders[::-1], strict=True)]

    def luminosity(g):
        return g.mean(-axes - 1, keepdims=True) if color else g

    g = xp.arctanh(xp.clip(f, -1 + 1e-6, 1 - 1e-6))  # phi
    inside = xp.ones_like(luminosity(g)) if mask is None else like(mask)
    if color and mask is not None:
        inside = inside.reshape(*mask.shape[:-axes], 1, *edges)

    # Fuzzy cardinality, mean and variance of each window. Centred first, or fp32 variances come out negative.
    g = g - (luminosity(g) * inside).sum(space, keepdims=True) / xp.clip(inside.sum(space, keepdims=True), 1, None)
    card = xp.clip(_contract(xp, inside, w), 1e-12, None)
    mean = _contract(xp, luminosity(g) * inside, w) / card
    variance = _contract(xp, luminosity(g) ** 2 * inside, w) / card - mean**2
    scale = sigma_u / xp.clip(xp.sqrt(xp.clip(variance, 0, None)), s_min, None)  # lambda_ij, eq. 11; tau_ij = -mean
    # Eq. 12, memberships as weights: sum_ij w_ij lambda_ij (g + tau_ij)
    back = [matrix.T for matrix in w]
    return xp.tanh(_contract(xp, scale, back) * g - _contract(xp, scale * mean, back))


def fuzzy_enhance_volume(f, m: int = 2, n: int = 2, p: int = 2, gamma: float = 1.0, **parameters):
    """Enhance volumes: :func:`fuzzy_enhance` with 3 ``axes``."""
    return fuzzy_enhance(f, m, n, gamma, p=p, axes=3, **parameters)


def _contract(xp, x, matrices):
    """Multiply each of the last axes of ``x`` by its matrix, ``(n_out, n_in)``."""
    for axis, matrix in enumerate(matrices, start=-len(matrices)):
        x = xp.moveaxis(xp.moveaxis(x, axis, -1) @ matrix.T, -1, axis)
    return x


def _array_module(f):
    """Array module of ``f``, and what makes other arrays of its kind, dtype and device."""
    if isinstance(f, np.ndarray):
        return np, lambda x: np.asarray(x, f.dtype)
    import torch

    return torch, lambda x: torch.as_tensor(x).to(f)


def _check(f, orders: tuple[int, ...], color: bool, gamma: float, sigma_u: float, s_min: float) -> None:
    if min(orders) < 0:
        got = ", ".join(f"{name}={order}" for name, order in zip("mnp", orders, strict=False))
        raise ValueError(f"The orders of the fuzzy partition must not be negative, got {got}.")
    if gamma <= 0 or sigma_u <= 0 or s_min <= 0:
        raise ValueError(f"gamma, sigma_u and s_min must be positive, got {gamma}, {sigma_u} and {s_min}.")
    if f.ndim < len(orders) + color:
        expected = ", ".join(["...", *["C"] * color, *"ZHW"[-len(orders) :]])
        raise ValueError(f"Expected ({expected}), got shape {tuple(f.shape)}.")
