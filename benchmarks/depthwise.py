"""Depthwise convolutions of volumes: kernels of 3, 5, 7 and 3 x 7 x 7, dense and one axis after the other, with the
channels last in memory and first.

Forward and backward pass of one layer with the widths and map sizes of ConvNeXt-Atto's four stages on a patch whose
first map has ``--edge`` voxels an axis, in what DIN's trainers compute in. Writes ``depthwise.json`` beside this file.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Callable

import torch
from common import head, write
from torch import nn
from tqdm import tqdm

from nnunet_din.cost.measurement import autocast, seconds_of
from nnunet_din.dimensions import convolution
from nnunet_din.nnunet.training_device import autocast_dtype

WIDTHS = (40, 80, 160, 320)
KERNELS = ((3, 3, 3), (5, 5, 5), (3, 7, 7), (7, 7, 7))


def dense(d: int, kernel: tuple[int, ...]) -> nn.Module:
    """One convolution along the three axes."""
    return convolution(d, d, kernel, groups=d)


def separable(d: int, kernel: tuple[int, ...]) -> nn.Module:
    """Three convolutions, each along one axis."""
    lines = [[k if i == axis else 1 for i in range(len(kernel))] for axis, k in enumerate(kernel)]
    return nn.Sequential(*(convolution(d, d, line, groups=d) for line in lines))


def pass_of(layer: nn.Module, x: torch.Tensor, dtype: torch.dtype | None) -> Callable[[], None]:
    """A forward and a backward pass, gradients of the map and of the weights."""

    def step() -> None:
        layer.zero_grad(set_to_none=True)
        x.grad = None
        with autocast(x.device, dtype):
            y = layer(x)
        y.backward(torch.ones_like(y))

    return step


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--edge", type=int, default=32, help="voxels an axis of the first map (default: 32)")
    parser.add_argument("--batch", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    args = parser.parse_args()
    device = torch.device(args.device)
    rows = []
    cases = [
        (make, kernel, layout)
        for make in (dense, separable)
        for kernel in KERNELS
        for layout in (torch.channels_last_3d, torch.contiguous_format)
    ]
    for make, kernel, layout in tqdm(cases):
        milliseconds = []
        for stage, d in enumerate(WIDTHS):
            edge = args.edge // 2**stage
            layer = make(d, kernel).to(device=device, memory_format=layout)
            x = torch.randn(args.batch, d, edge, edge, edge, device=device).to(memory_format=layout).requires_grad_()
            step = pass_of(layer, x, autocast_dtype(device))
            step()
            seconds = [seconds_of(step, device) for _ in range(args.repeats)]
            milliseconds.append(round(1000 * statistics.median(seconds), 2))
        rows.append(
            {
                "kernel": " x ".join(map(str, kernel)),
                "form": make.__name__,
                "channels": "last" if layout == torch.channels_last_3d else "first",
                "milliseconds of each stage": milliseconds,
                "sum": round(sum(milliseconds), 1),
            }
        )
    write(head(device) | {"first map": [args.batch, WIDTHS[0], *[args.edge] * 3], "cases": rows})
    for row in rows:
        print(row)


if __name__ == "__main__":
    main()
