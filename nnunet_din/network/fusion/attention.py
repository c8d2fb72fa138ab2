"""Cross-attention between the streams, in windows (DIN paper, eqs. 2 and 3)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from nnunet_din.network.containers import ModuleList
from nnunet_din.network.ops import ceil_div, exporting, in_slices, pointwise


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
        Largest edge of an attention window in pixels. A map is cut into the fewest windows that respect it, as equal in
        size as possible; a map smaller than a window is one window.
    num_heads
        1 is eq. 2 as printed.
    """

    def __init__(
        self,
        dim: int,
        streams: int = 2,
        queries: Sequence[int] | None = None,
        window_size: int = 7,
        num_heads: int = 1,
    ):
        super().__init__()
        if dim % num_heads:
            raise ValueError(f"num_heads={num_heads} does not divide the {dim} channels of the stage.")
        if window_size < 1:
            raise ValueError(f"window_size must be at least 1, got {window_size}.")
        self.window_size = window_size
        self.num_heads = num_heads
        self.queries = list(range(streams)) if queries is None else list(queries)
        if not self.queries or not set(self.queries) <= set(range(streams)):
            raise ValueError(f"queries must name some of the {streams} streams by number, got {queries}.")
        # Whom each query attends to; what nobody asks for is not computed.
        self.attended = {i: [j for j in range(streams) if j != i] or [i] for i in self.queries}
        asked_for = {j for others in self.attended.values() for j in others}
        self.has_query = [i in self.queries for i in range(streams)]
        self.has_key = [i in asked_for for i in range(streams)]
        self.project = ModuleList(
            nn.Conv2d(dim, (query + 2 * key) * dim, kernel_size=1)
            for query, key in zip(self.has_query, self.has_key, strict=True)
        )

    def forward(self, streams: Sequence[Tensor]) -> list[Tensor]:
        """Attend; from the maps ``(N, d, H, W)`` of all streams comes one such map for each query."""
        height, width = streams[0].shape[-2:]
        windows = (GraphWindows if exporting() else Windows)(height, width, self.window_size)
        inputs = [windows.cut(f) for f in streams]
        mask = windows.key_mask(streams[0].device)
        if mask is not None:
            inputs.append(mask.repeat(streams[0].shape[0], 1, 1, 1))
        results = in_slices(self._attend, *inputs, dim=0, width=3 * inputs[0][0].numel())
        return [windows.join(f, streams[0].shape[0]) for f in results]

    def _attend(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        """Windows of all streams, ``(N * windows, L, d)``, and the mask of keys if there is one -> windows of the
        results.
        """
        streams, masks = inputs[: len(self.project)], inputs[len(self.project) :]
        # Q, K, V are linear in each pixel, so that one map is cut into windows instead of three.
        q, k, v = {}, {}, {}
        for i, (x, layer) in enumerate(zip(streams, self.project, strict=True)):
            parts = list(self._heads(pointwise(x, layer), self.has_query[i] + 2 * self.has_key[i]))
            if self.has_query[i]:
                q[i] = parts.pop(0)
            if self.has_key[i]:
                k[i], v[i] = parts
        results = []
        for i, others in self.attended.items():
            mask = torch.cat([*masks] * len(others), dim=-1) if masks else None
            keys, values = (_concatenate([t[j] for j in others]) for t in (k, v))
            f = F.scaled_dot_product_attention(q[i], keys, values, attn_mask=mask)  # scaled by 1 / sqrt(d) (eq. 2)
            results.append(self._merge(f + q[i]))  # eq. 3
        return tuple(results)

    def _heads(self, x: Tensor, parts: int) -> tuple[Tensor, ...]:
        """Shape ``(N * windows, L, parts d)`` -> parts of shape ``(N * windows, heads, L, d / heads)``."""
        return x.unflatten(2, (parts, self.num_heads, -1)).permute(2, 0, 3, 1, 4).unbind(0)

    @staticmethod
    def _merge(x: Tensor) -> Tensor:
        """Shape ``(N * windows, heads, L, d / heads)`` -> ``(N * windows, L, d)``."""
        return x.transpose(1, 2).flatten(2)


def _concatenate(tensors: list[Tensor]) -> Tensor:
    """Concatenate along the pixels of a window."""
    return tensors[0] if len(tensors) == 1 else torch.cat(tensors, dim=2)


class Windows:
    """A partition of an H x W map into attention windows, padded at the lower right where it does not divide evenly."""

    def __init__(self, height: int, width: int, window_size: int):
        self.height, self.width = height, width
        self.rows, self.columns = ceil_div(height, window_size), ceil_div(width, window_size)
        self.window_height, self.window_width = ceil_div(height, self.rows), ceil_div(width, self.columns)
        self.pad_bottom = self.rows * self.window_height - height
        self.pad_right = self.columns * self.window_width - width
        self.padded = self.pad_bottom > 0 or self.pad_right > 0

    def cut(self, x: Tensor) -> Tensor:
        """Cut a map ``(N, d, H, W)`` into windows of L pixels, ``(N * windows, L, d)``."""
        n, d = x.shape[:2]
        x = x.permute(0, 2, 3, 1)  # channels last, as in memory
        if self.padded:
            x = F.pad(x, (0, 0, 0, self.pad_right, 0, self.pad_bottom))
        x = x.reshape(n, self.rows, self.window_height, self.columns, self.window_width, d)
        return x.transpose(2, 3).flatten(0, 2).flatten(1, 2)

    def join(self, x: Tensor, n: int) -> Tensor:
        """Put windows of n maps together to maps again: the inverse of :meth:`cut`."""
        d = x.shape[-1]
        x = x.reshape(n, self.rows, self.columns, self.window_height, self.window_width, d).transpose(2, 3)
        x = x.reshape(n, self.rows * self.window_height, self.columns * self.window_width, d)
        return x[:, : self.height, : self.width].permute(0, 3, 1, 2)

    def key_mask(self, device: torch.device) -> Tensor | None:
        """Which keys are pixels of the map and not padding, boolean ``(windows, 1, 1, L)``; None if all are."""
        if not self.padded:
            return None
        inside = torch.ones(1, 1, self.height, self.width, device=device)
        return self.cut(inside)[:, None, None, :, 0] > 0


class GraphWindows:
    """The windows of :class:`Windows` in a graph for maps of any size.

    Shapes that are quotients of quotients, rounded up, are beyond what torch and onnxruntime reason about. So every
    window has the largest size here, ``window_size`` squared: places that read one pixel each. Which one is computed
    by the graph itself, and places of no pixel are masked.
    """

    def __init__(self, height: int, width: int, window_size: int):
        self.height, self.width, self.window_size = height, width, window_size
        self.rows, self.columns = ceil_div(height, window_size), ceil_div(width, window_size)
        self.window_height, self.window_width = ceil_div(height, self.rows), ceil_div(width, self.columns)

    def cut(self, f: Tensor) -> Tensor:
        """Cut a map ``(N, d, H, W)`` into windows of L places, ``(N * windows, L, d)``."""
        n, d = f.shape[:2]
        y, x = self._pixels(f.device)
        read = y.clamp(max=self.height - 1) * self.width + x.clamp(max=self.width - 1)
        windows = f.permute(0, 2, 3, 1).flatten(1, 2).index_select(1, read.flatten())
        return windows.view(n * self.rows * self.columns, self.window_size**2, d)

    def join(self, windows: Tensor, n: int) -> Tensor:
        """Put windows of n maps together to maps again: the inverse of :meth:`cut`."""
        y = torch.arange(self.height, device=windows.device)[:, None]
        x = torch.arange(self.width, device=windows.device)[None]
        row, column = y // self.window_height, x // self.window_width
        place = (y - row * self.window_height) * self.window_size + x - column * self.window_width
        read = (row * self.columns + column) * self.window_size**2 + place
        places = windows.reshape(n, self.rows * self.columns * self.window_size**2, windows.shape[-1])
        return places.index_select(1, read.flatten()).unflatten(1, (self.height, self.width)).permute(0, 3, 1, 2)

    def key_mask(self, device: torch.device) -> Tensor:
        """Which places hold a pixel of their window, boolean ``(windows, 1, 1, L)``."""
        place = torch.arange(self.window_size, device=device)
        y, x = self._pixels(device)
        inside_y = (place < self.window_height)[:, None] & (y < self.height)
        inside_x = (place < self.window_width) & (x < self.width)
        return (inside_y & inside_x).view(self.rows * self.columns, 1, 1, self.window_size**2)

    def _pixels(self, device: torch.device) -> tuple[Tensor, Tensor]:
        """Where the places of all windows lie, or would lie if the map did not end: rows ``(rows, 1, window_size, 1)``
        and columns ``(1, columns, 1, window_size)``.
        """
        place = torch.arange(self.window_size, device=device)
        y = torch.arange(self.rows, device=device)[:, None] * self.window_height + place
        x = torch.arange(self.columns, device=device)[:, None] * self.window_width + place
        return y[:, None, :, None], x[None, :, None, :]
