"""Cross-attention between the streams, in windows (DIN paper, eqs. 2 and 3)."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from nnunet_din.data.names import check_known
from nnunet_din.network.containers import ModuleList
from nnunet_din.network.dimensions import channels_first, channels_last, convolution
from nnunet_din.network.ops import ceil_div, exporting, pointwise

#: Where a pixel attends: in its window, or along the lines through it.
ATTENTIONS = ("window", "axial")
#: Windows that one call attends in, at most: torch < 2.8 cannot start more blocks on a GPU.
MOST_WINDOWS = 65535


class CrossAttention(nn.Module):
    """Windowed attention of every stream to all others (eqs. 2 and 3 for two streams, in both directions).

    The query of a stream meets the keys and values of all other streams at once. A single stream attends to itself.

    Parameters
    ----------
    dim
        Channels d.
    streams
        Number of streams n.
    queries
        Streams that attend, and so give a result; None: all. ``[0]`` of two is f_IE alone, ``[1]`` f_EI alone.
    window_size
        Largest edge of an attention window in pixels, one for each axis or one number, see :func:`window_edges`. A map
        is cut into the fewest windows that respect it, as equal in size as possible; a map smaller than a window is one
        window.
    num_heads
        1 is eq. 2 as printed.
    attention
        "window"; or "axial", the mean of what a pixel finds along the line through it of each axis, for which
        ``window_size`` does not count.
    kernel_size
        Kernel size of this stage's convolutions along each axis.

    Raises
    ------
    ValueError
        If an option is out of range.
    """

    def __init__(
        self,
        dim: int,
        streams: int = 2,
        queries: Sequence[int] | None = None,
        window_size: int | Sequence[int] = 7,
        num_heads: int = 1,
        attention: str = "window",
        kernel_size: Sequence[int] = (3, 3),
    ):
        super().__init__()
        if dim % num_heads:
            raise ValueError(f"num_heads={num_heads} does not divide the {dim} channels of the stage.")
        check_known("attention", attention, ATTENTIONS)
        self.axial = attention == "axial"
        self.window = window_edges(window_size, kernel_size)
        self.num_heads = num_heads
        self.queries = list(range(streams)) if queries is None else list(queries)
        if not self.queries or not set(self.queries) <= set(range(streams)):
            raise ValueError(f"queries must name some of the {streams} streams by number, got {queries}.")
        # Streams that each query attends to. Projections that no query needs are left out.
        self.attended = {i: [j for j in range(streams) if j != i] or [i] for i in self.queries}
        needed = {j for others in self.attended.values() for j in others}
        self.has_query = [i in self.queries for i in range(streams)]
        self.has_key = [i in needed for i in range(streams)]
        self.project = ModuleList(
            convolution(dim, (query + 2 * key) * dim, [1] * len(kernel_size))
            for query, key in zip(self.has_query, self.has_key, strict=True)
        )

    def forward(self, streams: Sequence[Tensor]) -> list[Tensor]:
        """Attend; from the maps ``(N, d, *size)`` of all streams comes one such map for each query."""
        size = streams[0].shape[2:]
        if not self.axial:
            return self._attend_within((GraphWindows if exporting() else Windows)(size, self.window), streams)
        axes = range(len(size))
        lines = [Windows(size, [n if axis == along else 1 for axis, n in enumerate(size)]) for along in axes]
        results = zip(*(self._attend_within(line, streams) for line in lines), strict=True)
        return [functools.reduce(torch.add, maps) / len(lines) for maps in results]

    def _attend_within(self, windows: Windows | GraphWindows, streams: Sequence[Tensor]) -> list[Tensor]:
        """Attend within the windows of a partition."""
        n, q, k, v = streams[0].shape[0], {}, {}, {}
        # Q, K, V are linear in each pixel, so that one map is cut into windows instead of three.
        for i, (f, layer) in enumerate(zip(streams, self.project, strict=True)):
            parts = list(self._heads(pointwise(windows.cut(f), layer), self.has_query[i] + 2 * self.has_key[i]))
            if self.has_query[i]:
                q[i] = parts.pop(0)
            if self.has_key[i]:
                k[i], v[i] = parts
        mask = windows.key_mask(streams[0].device)
        results = []
        for i, others in self.attended.items():
            is_pixel = None if mask is None else mask.repeat(n, 1, 1, len(others))
            keys, values = (_concatenate([t[j] for j in others]) for t in (k, v))
            f = attend(q[i], keys, values, is_pixel) + q[i]  # eqs. 2 and 3
            results.append(windows.join(f.transpose(1, 2).flatten(2), n))
        return results

    def _heads(self, x: Tensor, parts: int) -> tuple[Tensor, ...]:
        """Shape ``(N * windows, L, parts d)`` -> parts of shape ``(N * windows, heads, L, d / heads)``."""
        return x.unflatten(2, (parts, self.num_heads, -1)).permute(2, 0, 3, 1, 4).unbind(0)


def attend(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
    """``softmax(q k^T / sqrt(d)) v`` in every window, ``(windows, heads, L, d)``, for keys in a mask or for all."""
    if exporting() or len(q) <= MOST_WINDOWS:
        return F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
    masks = itertools.repeat(None) if mask is None else mask.split(MOST_WINDOWS)
    parts = zip(*(x.split(MOST_WINDOWS) for x in (q, k, v)), masks)  # noqa: B905 - masks may go on
    return torch.cat([F.scaled_dot_product_attention(q, k, v, attn_mask=mask) for q, k, v, mask in parts])


def _concatenate(tensors: list[Tensor]) -> Tensor:
    """Concatenate along the pixels of a window."""
    return tensors[0] if len(tensors) == 1 else torch.cat(tensors, dim=2)


def window_edges(window_size: int | Sequence[int], kernel_size: Sequence[int]) -> tuple[int, ...]:
    """Largest edges of an attention window along each axis.

    Parameters
    ----------
    window_size
        The edges themselves; or one number w, the edge of a square. A window with three axes then has about as many
        pixels as the square, w^2, and equal edges: 4 x 4 x 4 for 7.
    kernel_size
        Kernel size of the stage's convolutions. Where it is 1, neighbours are too far apart to look at each other: with
        one number, windows have the edge 1 there, and are squares across.

    Raises
    ------
    ValueError
        If an edge is less than 1, or there are not as many as axes.
    """
    if isinstance(window_size, int):
        looking = sum(k > 1 for k in kernel_size)
        edge = round(window_size ** (2 / max(looking, 1))) if window_size > 0 else window_size
        edges = tuple(edge if k > 1 else min(edge, 1) for k in kernel_size)
    else:
        edges = tuple(window_size)
        if len(edges) != len(kernel_size):
            raise ValueError(f"window_size {window_size} must be one number, or {len(kernel_size)}, one for each axis.")
    if min(edges) < 1:
        raise ValueError(f"window_size must be at least 1, got {window_size}.")
    return edges


class Windows:
    """A partition of a map with any number of axes into attention windows, padded at its far ends where it does not
    divide evenly.

    Parameters
    ----------
    size
        Edges of the map.
    largest
        Largest edge of a window along each axis.
    """

    def __init__(self, size: Sequence[int], largest: Sequence[int]):
        self.size = tuple(size)
        self.counts = [ceil_div(n, edge) for n, edge in zip(size, largest, strict=True)]
        self.edges = [ceil_div(n, count) for n, count in zip(size, self.counts, strict=True)]

    def cut(self, x: Tensor) -> Tensor:
        """Cut a map ``(N, d, *size)`` into windows of L places, ``(N * windows, L, d)``."""
        return self._cut(self._spread(channels_last(x)))

    def _cut(self, x: Tensor) -> Tensor:
        """Places of all windows side by side, ``(N, *(count * edge), d)`` -> windows."""
        axes = len(self.counts)
        x = x.reshape(
            x.shape[0], *itertools.chain.from_iterable(zip(self.counts, self.edges, strict=True)), x.shape[-1]
        )
        x = x.permute(0, *range(1, 2 * axes, 2), *range(2, 2 * axes + 1, 2), -1)  # (N, *counts, *edges, d)
        return x.flatten(0, axes).flatten(1, -2)

    def join(self, x: Tensor, n: int) -> Tensor:
        """Put windows of n maps together to maps again: the inverse of :meth:`cut`."""
        axes, d = len(self.counts), x.shape[-1]
        x = x.reshape(n, *self.counts, *self.edges, d)
        pairs = itertools.chain.from_iterable((1 + axis, 1 + axes + axis) for axis in range(axes))
        x = x.permute(0, *pairs, -1)  # (N, count, edge, count, edge, ..., d)
        x = x.reshape(n, *(count * edge for count, edge in zip(self.counts, self.edges, strict=True)), d)
        return channels_first(self._gather(x))

    def key_mask(self, device: torch.device) -> Tensor | None:
        """Which keys are pixels of the map and not padding, boolean ``(windows, 1, 1, L)``; None if all are."""
        if all(n == count * edge for n, count, edge in zip(self.size, self.counts, self.edges, strict=True)):
            return None
        return self.cut(torch.ones(1, 1, *self.size, device=device))[:, None, None, :, 0] > 0

    def _spread(self, x: Tensor) -> Tensor:
        """Map ``(N, *size, d)`` -> places of all windows."""
        padding = [count * edge - n for n, count, edge in zip(self.size, self.counts, self.edges, strict=True)]
        return F.pad(x, (0, 0, *(p for n in reversed(padding) for p in (0, n)))) if any(padding) else x

    def _gather(self, x: Tensor) -> Tensor:
        """Inverse of :meth:`_spread`."""
        for axis, length in enumerate(self.size, start=1):
            x = x.narrow(axis, 0, length)
        return x


class GraphWindows(Windows):
    """The windows of :class:`Windows` in a graph for maps of any size.

    torch and onnxruntime cannot reason about shapes that are quotients of quotients, rounded up. So every window has
    the largest size here. The graph itself computes which pixel a place reads, and places without a pixel are masked.

    Parameters
    ----------
    size, largest
        Arguments of :class:`Windows`.
    """

    def __init__(self, size: Sequence[int], largest: Sequence[int]):
        super().__init__(size, largest)
        self.in_use, self.edges = self.edges, list(largest)

    def key_mask(self, device: torch.device) -> Tensor:
        """Which places hold a pixel of their window, boolean ``(windows, 1, 1, L)``."""
        mask = torch.ones(1, *[1] * len(self.size), 1, dtype=torch.bool, device=device)
        for axis, (length, in_use) in enumerate(zip(self.size, self.in_use, strict=True), start=1):
            place, pixel = self._places(axis, device)
            mask = mask & ((place < in_use) & (pixel < length)).view(-1, *[1] * (len(self.size) + 1 - axis))
        return self._cut(mask)[:, None, None, :, 0]

    def _places(self, axis: int, device: torch.device) -> tuple[Tensor, Tensor]:
        """Number of each place along an axis in its window, and the pixel it reads if the map did not end."""
        window = torch.arange(self.counts[axis - 1], device=device)[:, None]
        place = torch.arange(self.edges[axis - 1], device=device).expand(window.shape[0], -1)
        return place.flatten(), (window * self.in_use[axis - 1] + place).flatten()

    def _spread(self, x: Tensor) -> Tensor:
        for axis, length in enumerate(self.size, start=1):
            x = x.index_select(axis, self._places(axis, x.device)[1].clamp(max=length - 1))
        return x

    def _gather(self, x: Tensor) -> Tensor:
        for axis, (length, in_use, edge) in enumerate(zip(self.size, self.in_use, self.edges, strict=True), start=1):
            pixel = torch.arange(length, device=x.device)
            window = pixel // in_use
            x = x.index_select(axis, window * (edge - in_use) + pixel)
        return x
