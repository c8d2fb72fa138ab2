"""Dual interactive fusion module (DIN paper, section 3.1, Fig. 2b-d)."""

from __future__ import annotations

import math

import torch
from timm.layers import LayerNorm2d
from torch import Tensor, nn
from torch.nn import functional as F

from nnunet_din.network.functional import add_, gelu_, in_slices, normalize, pointwise, recompute
from nnunet_din.network.initialization import init_by_fan_in


class FeatureMerging(nn.Module):
    """Merge low- and high-level features of one image by a convolution (eq. 1): 2d -> d channels."""

    def __init__(self, dim: int):
        super().__init__()
        self.conv = nn.Conv2d(2 * dim, dim, kernel_size=3, padding=1)

    def forward(self, f_low: Tensor, f_high: Tensor) -> Tensor:
        """Shapes ``(N, d, H, W)``, ``(N, d, H, W)`` -> ``(N, d, H, W)``."""
        return recompute(self._merge, f_low, f_high)

    def _merge(self, f_low: Tensor, f_high: Tensor) -> Tensor:
        return self.conv(torch.cat((f_low, f_high), dim=1))


class DualCrossAttention(nn.Module):
    """Windowed cross-attention in both directions (eqs. 2 and 3).

    Parameters
    ----------
    dim
        Channels d.
    window_size
        Largest edge of an attention window in pixels. A map is cut into the fewest windows that respect it, as equal in
        size as possible; a map smaller than a window is one window.
    num_heads
        1 is eq. 2 as printed.
    """

    def __init__(self, dim: int, window_size: int = 7, num_heads: int = 1):
        super().__init__()
        if dim % num_heads:
            raise ValueError(f"num_heads={num_heads} does not divide the {dim} channels of the stage.")
        if window_size < 1:
            raise ValueError(f"window_size must be at least 1, got {window_size}.")
        self.window_size = window_size
        self.num_heads = num_heads
        self.qkv_image = nn.Conv2d(dim, 3 * dim, kernel_size=1)
        self.qkv_enhanced = nn.Conv2d(dim, 3 * dim, kernel_size=1)

    def forward(self, f_image: Tensor, f_enhanced: Tensor) -> tuple[Tensor, Tensor]:
        """Shapes ``(N, d, H, W)`` twice -> f_IE and f_EI, ``(N, d, H, W)`` each."""
        windows = Windows(*f_image.shape[-2:], self.window_size)
        inputs = [windows.cut(f_image), windows.cut(f_enhanced)]
        mask = windows.key_mask(f_image.device)
        if mask is not None:
            inputs.append(mask.repeat(f_image.shape[0], 1, 1, 1))
        f_ie, f_ei = in_slices(self._attend, *inputs, dim=0, width=3 * inputs[0][0].numel())
        return windows.join(f_ie), windows.join(f_ei)

    def _attend(self, x_image: Tensor, x_enhanced: Tensor, mask: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Windows of both maps, ``(N * windows, L, d)`` -> f_IE and f_EI, same shape."""
        # Q, K, V are linear in each pixel, so that one map is cut into windows instead of three.
        q_i, k_i, v_i = self._heads(pointwise(x_image, self.qkv_image))
        q_e, k_e, v_e = self._heads(pointwise(x_enhanced, self.qkv_enhanced))
        # eq. 3; scaled by 1 / sqrt(d) (eq. 2)
        f_ie = F.scaled_dot_product_attention(q_i, k_e, v_e, attn_mask=mask)
        f_ei = F.scaled_dot_product_attention(q_e, k_i, v_i, attn_mask=mask)
        return self._merge(add_(f_ie, q_i)), self._merge(add_(f_ei, q_e))

    def _heads(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Shape ``(N * windows, L, 3d)`` -> Q, K, V of shape ``(N * windows, heads, L, d / heads)``."""
        return x.unflatten(2, (3, self.num_heads, -1)).permute(2, 0, 3, 1, 4).unbind(0)

    @staticmethod
    def _merge(x: Tensor) -> Tensor:
        """Shape ``(N * windows, heads, L, d / heads)`` -> ``(N * windows, L, d)``."""
        return x.transpose(1, 2).flatten(2)


class Windows:
    """A partition of an H x W map into attention windows, padded at the lower right where it does not divide evenly."""

    def __init__(self, height: int, width: int, window_size: int):
        self.height, self.width = height, width
        self.rows, self.columns = math.ceil(height / window_size), math.ceil(width / window_size)
        self.window_height, self.window_width = math.ceil(height / self.rows), math.ceil(width / self.columns)
        self.pad_bottom = self.rows * self.window_height - height
        self.pad_right = self.columns * self.window_width - width

    def cut(self, x: Tensor) -> Tensor:
        """Shape ``(N, d, H, W)`` -> ``(N * windows, L, d)``, L pixels a window."""
        n, d = x.shape[:2]
        x = x.permute(0, 2, 3, 1)  # channels last, as in memory
        if self.pad_bottom or self.pad_right:
            x = F.pad(x, (0, 0, 0, self.pad_right, 0, self.pad_bottom))
        x = x.reshape(n, self.rows, self.window_height, self.columns, self.window_width, d)
        return x.transpose(2, 3).reshape(n * self.rows * self.columns, -1, d)

    def join(self, x: Tensor) -> Tensor:
        """The inverse of :meth:`cut`."""
        d = x.shape[-1]
        x = x.reshape(-1, self.rows, self.columns, self.window_height, self.window_width, d).transpose(2, 3)
        x = x.reshape(-1, self.rows * self.window_height, self.columns * self.window_width, d)
        return x[:, : self.height, : self.width].permute(0, 3, 1, 2)

    def key_mask(self, device: torch.device) -> Tensor | None:
        """Which keys are pixels of the map and not padding, boolean ``(windows, 1, 1, L)``; None if all are."""
        if not (self.pad_bottom or self.pad_right):
            return None
        inside = torch.ones(1, 1, self.height, self.width, device=device)
        return self.cut(inside)[:, None, None, :, 0] > 0


class GatedFeedForward(nn.Module):
    """Gated feed-forward network (eqs. 4 and 5).

    Parameters
    ----------
    dim
        Channels d.
    expansion
        Each of the two chunks has ``expansion * d`` channels.
    """

    def __init__(self, dim: int, expansion: int = 2):
        super().__init__()
        self.norm = LayerNorm2d(dim)
        self.expand = nn.Conv2d(dim, 2 * expansion * dim, kernel_size=1)
        self.project = nn.Conv2d(expansion * dim, dim, kernel_size=3, padding=1)

    def forward(self, f: Tensor) -> Tensor:
        """Shape ``(N, d, H, W)`` -> same."""
        if torch.is_grad_enabled():
            return recompute(self._gate_and_project, recompute(self._expand, f.permute(0, 2, 3, 1))) + f  # eq. 5
        gated = in_slices(
            lambda x: self._gate(self._expand(x)),
            f.permute(0, 2, 3, 1).flatten(1, 2),
            dim=1,
            width=len(f) * self.expand.out_channels,
        )
        return add_(self.project(gated.unflatten(1, f.shape[2:]).permute(0, 3, 1, 2)), f)  # eq. 5

    def _expand(self, f: Tensor) -> Tensor:
        """Shape ``(..., d)`` -> f1 and f2 side by side, ``(..., 2 expansion d)``."""
        return pointwise(normalize(f, self.norm), self.expand)

    @staticmethod
    def _gate(f12: Tensor) -> Tensor:
        f1, f2 = f12.chunk(2, dim=-1)  # eq. 4
        return gelu_(f1) * f2

    def _gate_and_project(self, f12: Tensor) -> Tensor:
        return self.project(self._gate(f12).permute(0, 3, 1, 2))


def global_spatial_attention(f: Tensor) -> Tensor:
    """Gate each pixel by the sigmoid of its mean over channels (eq. 6); shape ``(N, d, H, W)`` -> same."""
    return torch.sigmoid(f.mean(dim=1, keepdim=True)) * f


class DualInteractiveFusionModule(nn.Module):
    """Fuse the features of the original and the enhanced image at one scale.

    Parameters
    ----------
    dim
        Channels d of the four inputs and of the output.
    window_size, num_heads
        See :class:`DualCrossAttention`.
    ffn_expansion
        See :class:`GatedFeedForward`.
    """

    def __init__(self, dim: int, window_size: int = 7, num_heads: int = 1, ffn_expansion: int = 2):
        super().__init__()
        self.merge_image = FeatureMerging(dim)
        self.merge_enhanced = FeatureMerging(dim)
        self.attention = DualCrossAttention(dim, window_size, num_heads)
        self.ffn_ie = GatedFeedForward(dim, ffn_expansion)
        self.ffn_ei = GatedFeedForward(dim, ffn_expansion)
        self.apply(init_by_fan_in)

    def forward(self, image: tuple[Tensor, Tensor], enhanced: tuple[Tensor, Tensor]) -> Tensor:
        """Fuse ``(f_low, f_high)`` of both images, each ``(N, d, H, W)``, to F_IE + F_EI, ``(N, d, H, W)``."""
        f_ie, f_ei = self.attention(self.merge_image(*image), self.merge_enhanced(*enhanced))
        return global_spatial_attention(self.ffn_ie(f_ie)) + global_spatial_attention(self.ffn_ei(f_ei))
