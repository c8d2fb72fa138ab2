"""Slow, literal twins of the fast implementations: written from the definitions, loops and all.

The whole network's is `nnunet_din.network.reference`.
"""

from __future__ import annotations

import functools
import itertools
import math

import numpy as np
import torch

# ---- the logarithmic model on (-1, 1) of Patrascu (arXiv:1502.04499) ----


def log_add(v, w):
    return (v + w) / (1 + v * w)


def log_negate(v):
    return -v


def log_scale(factor, v):
    return ((1 + v) ** factor - (1 - v) ** factor) / ((1 + v) ** factor + (1 - v) ** factor)


def phi(v):
    return 0.5 * np.log((1 + v) / (1 - v))


def log_mean(values, weights):
    """Weighted mean in the model: the logarithmic sum of the values, each scaled by its share of the weight."""
    total = 0.0
    for value, weight in zip(values.ravel(), (weights / weights.sum()).ravel(), strict=True):
        total = log_add(total, log_scale(weight, value))
    return total


def fuzzy_enhance(f, m=2, n=2, gamma=1.0, sigma_u=math.sqrt(1 / 3), s_min=1e-2, mask=None, p=None):
    """Eqs. 11 and 12 for one fp64 slice (H, W), or one volume (Z, H, W) with order ``p`` along z, window by window."""
    orders = (n, m) if p is None else (p, n, m)
    mask = np.ones_like(f) if mask is None else mask.astype(f.dtype)
    windows = {}
    for window in itertools.product(*(range(order + 1) for order in orders)):
        windows[window] = np.ones_like(f)
        for pixel in np.ndindex(*f.shape):
            for i, order, position, edge in zip(window, orders, pixel, f.shape, strict=True):
                x = position / max(edge - 1, 1)
                windows[window][pixel] *= math.comb(order, i) * x**i * (1 - x) ** (order - i)
    total = sum(p**gamma for p in windows.values())
    enhanced = np.zeros_like(f)
    for p in windows.values():
        w = p**gamma / total
        mean = log_mean(f, w * mask)
        deviation = phi(log_add(f, log_negate(mean)))
        variance = (w * mask * deviation**2).sum() / (w * mask).sum()
        scale = sigma_u / max(math.sqrt(variance), s_min)
        psi = log_scale(scale, log_add(f, log_negate(mean)))
        enhanced = log_add(enhanced, log_scale(w, psi))
    return enhanced


# ---- attention ----


def cross_attention(q, keys, values, window_size):
    """Atten(Q, K, V) + Q (eqs. 2 and 3) for maps (N, d, *size), window by window, single head; the keys and values of
    several streams side by side. ``window_size`` is the largest edge along every axis, or one an axis.
    """
    size = q.shape[2:]
    largest = [window_size] * len(size) if isinstance(window_size, int) else window_size
    edges = [math.ceil(n / math.ceil(n / edge)) for n, edge in zip(size, largest, strict=True)]
    out = torch.empty_like(q)
    for n in range(q.shape[0]):
        for corner in itertools.product(*(range(0, length, edge) for length, edge in zip(size, edges, strict=True))):
            place = (slice(first, first + edge) for first, edge in zip(corner, edges, strict=True))
            window = (n, slice(None), *place)
            shape = q[window].shape
            q_m = q[window].flatten(1).T
            k_m, v_m = (torch.cat([t[window].flatten(1).T for t in ts]) for ts in (keys, values))
            attention = torch.softmax(q_m @ k_m.T / math.sqrt(q.shape[1]), dim=-1)
            out[window] = (attention @ v_m + q_m).T.reshape(shape)
    return out


# ---- the loss ----


def sobel_kernels(axes):
    """Eq. 15: (-1, 0, 1) along one axis and (1, 2, 1) along the others, for each axis."""
    for along in range(axes):
        weights = [np.array([-1.0, 0, 1] if axis == along else [1.0, 2, 1]) for axis in range(axes)]
        yield functools.reduce(np.multiply.outer, weights)


def boundary_loss(probabilities, target, normalized, valid=None, pooled_axes=None):
    """Eq. 9 with loops over scales, classes, directions and pixels of maps (N, K, *size); ``valid`` (N, 1, *size)
    boolean.
    """
    size = probabilities.shape[2:]
    kernels = list(sobel_kernels(len(size)))
    valid = np.ones((len(target), 1, *size), bool) if valid is None else valid.numpy()
    loss = 0.0
    for scale in (1, 2, 4):
        factors = [scale if pooled_axes is None or axis in pooled_axes else 1 for axis in range(len(size))]
        pooled_size = [edge // factor for edge, factor in zip(size, factors, strict=True)]
        if not all(pooled_size):
            continue
        pixels = list(itertools.product(*map(range, pooled_size)))
        total, count = 0.0, 0
        for n, c in itertools.product(*map(range, probabilities.shape[:2])):
            x, y, counts = np.zeros(pooled_size), np.zeros(pooled_size), np.zeros(pooled_size, bool)
            for pixel in pixels:
                block = tuple(slice(i * f, (i + 1) * f) for i, f in zip(pixel, factors, strict=True))
                x[pixel], y[pixel] = probabilities[n, c].numpy()[block].mean(), target[n, c].numpy()[block].mean()
                counts[pixel] = valid[n, 0][block].all()
            for pixel in pixels:
                near = zip(pixel, pooled_size, strict=True)
                window = np.ix_(*([min(max(i + d, 0), edge - 1) for d in (-1, 0, 1)] for i, edge in near))
                if not counts[window].all():
                    continue
                for kernel in kernels:
                    total += abs((kernel * x[window]).sum() - (kernel * y[window]).sum())
                    count += 1
        if count:
            loss += total / count
    return torch.tensor(loss / np.abs(kernels[0]).sum() if normalized else loss, dtype=probabilities.dtype)


def assert_same_outputs_and_gradients(network, twin, x, tolerance):
    """A network and its literal twin, which has the same weights: all within the tolerance, relative to the largest."""
    results = []
    for model in (network, twin):
        network.zero_grad()
        y = model(x)
        (y * torch.linspace(-1, 1, y.numel(), dtype=x.dtype).reshape(y.shape)).sum().backward()
        results.append([y, *(p.grad for p in network.parameters())])
    scale = max(g.abs().max() for g in results[1][1:])
    for i, (ours, theirs) in enumerate(zip(*results, strict=True)):
        assert (ours - theirs).abs().max() <= tolerance * (scale if i else theirs.abs().max())
