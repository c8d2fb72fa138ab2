"""What a network costs, counted and measured on this device."""

from __future__ import annotations

import math
import os
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import TypedDict

import torch
from torch import nn

from nnunet_din.cost.accounting import count_parameters, multiply_adds_by_part, training_memory
from nnunet_din.data.progress import progress
from nnunet_din.losses import AuxiliaryLoss, DINLoss
from nnunet_din.network import DualInteractionNetwork, SegFormerHead
from nnunet_din.nnunet.training_device import autocast_dtype

#: Direct children of the network -> name in the report.
PARTS = {"encoders": "encoders", "difms": "DIFMs", "decoder": "decoder"}
#: Largest norm of all gradients together, nnU-Net's.
CLIP = 12.0


class Measured(TypedDict):
    """What a forward pass or a training step costs on a device; the spread is from the shortest to the longest, and
    only a GPU's allocator reserves more than it hands out.
    """

    seconds: float
    seconds_spread: list[float]
    images_per_second: float
    peak_memory_bytes: int
    reserved_memory_bytes: int | None


def count(kwargs: dict, channels: int, classes: int, size: Sequence[int]) -> dict[str, dict[str, int]]:
    """Parameters and multiply-adds of one image by part of the network; ``literal`` as the paper prints the decoder."""
    with torch.device("meta"):
        network = DualInteractionNetwork(channels, classes, **kwargs)
    levels: list[Sequence[int]] = []
    network.decoder.register_forward_pre_hook(lambda _, inputs: levels.extend(x.shape[2:] for x in inputs[0]))
    multiply_adds = multiply_adds_by_part(network, (1, network.versions * channels, *size))
    parts: dict[str, dict[str, int]] = {}
    for child, part in PARTS.items():
        module = getattr(network, child)
        row = parts.setdefault(part, {"parameters": 0, "multiply_adds": 0, "literal_multiply_adds": 0})
        row["parameters"] += count_parameters(module)
        row["multiply_adds"] += multiply_adds[child]
        printed = printed_multiply_adds(module, levels) if isinstance(module, SegFormerHead) else multiply_adds[child]
        row["literal_multiply_adds"] += printed
    parts["total"] = {key: sum(row[key] for row in parts.values()) for key in parts["decoder"]}
    return parts


def printed_multiply_adds(head: SegFormerHead, levels: Sequence[Sequence[int]]) -> int:
    """Multiply-adds of the decoder for one image with levels of these sizes, in the order that the paper prints."""
    pixels = [math.prod(size) for size in levels]
    linear = sum(layer.weight.numel() * n for layer, n in zip(head.linear, pixels, strict=True))
    return linear + pixels[0] * (head.fuse.weight.numel() + head.classifier.weight.numel())


@contextmanager
def cudnn_as_in_training() -> Iterator[None]:
    """Let cuDNN choose its algorithms by trying them, as ``nnUNetv2_train`` does."""
    before = torch.backends.cudnn.benchmark
    torch.backends.cudnn.benchmark = True
    try:
        yield
    finally:
        torch.backends.cudnn.benchmark = before


@cudnn_as_in_training()
def measure(
    kwargs: dict, classes: int, shape: Sequence[int], device: torch.device, repeats: int
) -> dict[str, Measured]:
    """Seconds, images a second, and peak memory of a forward pass and of a training step, with and without
    checkpointing; in what DIN's trainers compute in on this device.
    """
    torch.manual_seed(0)
    x = torch.randn(*shape, device=device)
    target = torch.randint(0, classes, (shape[0], 1, *shape[2:]), device=device)
    dtype = autocast_dtype(device)
    report: dict[str, Measured] = {}
    with progress(total=3 * (repeats + 2), desc="measuring", unit="steps") as bar:
        for checkpointing in (False, True):
            network = DualInteractionNetwork(
                shape[1] // kwargs.get("versions", 2), classes, **{**kwargs, "checkpointing": checkpointing}
            ).to(device)
            cases: dict[str, Callable[[], object]] = {
                "training, checkpointing" if checkpointing else "training": TrainingStep(network, x, target, dtype)
            }
            if not checkpointing:
                cases = {"prediction": prediction(network, x, dtype), **cases}
            for name, step in cases.items():
                step()  # warm-up
                bar.update()
                seconds = []
                for _ in range(repeats):
                    seconds.append(seconds_of(step, device))
                    bar.update()
                median = statistics.median(seconds)
                report[name] = {
                    "seconds": median,
                    "seconds_spread": [min(seconds), max(seconds)],
                    "images_per_second": shape[0] / median,
                    "peak_memory_bytes": peak_memory(step, network, device),
                    "reserved_memory_bytes": reserved_memory(device),
                }
                bar.update()
    return report


def prediction(network: nn.Module, x: torch.Tensor, dtype: torch.dtype | None = None) -> Callable[[], None]:
    """Make a function that does one forward pass in evaluation mode, in autocast to ``dtype`` or in fp32."""

    def step() -> None:
        network.eval()
        with torch.no_grad(), autocast(x.device, dtype):
            network(x)

    return step


class TrainingStep:
    """A training step on one batch, as nnU-Net does it with nnUNetTrainerDIN: forward pass and loss in autocast,
    gradients scaled where fp16 asks for it and clipped, AdamW.

    Parameters
    ----------
    network
        In its training form: one with auxiliary outputs gets their loss, too; it may be compiled.
    x, target
        Batch ``(N, versions * C, H, W)``, and labels ``(N, 1, H, W)``.
    dtype
        Of autocast; None: fp32 throughout.

    Attributes
    ----------
    gradient_norm : Tensor
        Of the last call, before clipping: finite if every gradient is.
    scale : float
        By which the loss is multiplied before the backward pass; 1 where nothing is scaled. A call whose gradients
        overflow changes no weight, and halves it.
    """

    def __init__(self, network: nn.Module, x: torch.Tensor, target: torch.Tensor, dtype: torch.dtype | None = None):
        self.network, self.x, self.target, self.dtype = network, x, target, dtype
        device = x.device.type
        self.optimizer = torch.optim.AdamW(network.parameters(), lr=1e-4, fused=device in ("cuda", "cpu"))
        self.loss = DINLoss().to(x.device)
        self.auxiliary_loss = AuxiliaryLoss(self.loss)
        self.scaler = torch.amp.GradScaler(device, enabled=dtype == torch.float16)
        self.gradient_norm = torch.tensor(0.0)

    @property
    def scale(self) -> float:
        return self.scaler.get_scale()

    def __call__(self) -> torch.Tensor:
        """Do the step; returns the loss, a scalar."""
        self.network.train()
        self.optimizer.zero_grad(set_to_none=True)
        with autocast(self.x.device, self.dtype):
            output = self.network(self.x)
            loss = (self.loss if isinstance(output, torch.Tensor) else self.auxiliary_loss)(output, self.target)
        self.scaler.scale(loss).backward()
        self.scaler.unscale_(self.optimizer)
        self.gradient_norm = nn.utils.clip_grad_norm_(self.network.parameters(), CLIP)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        return loss.detach()


def autocast(device: torch.device, dtype: torch.dtype | None) -> AbstractContextManager:
    """Autocast to ``dtype``, or none."""
    return nullcontext() if dtype is None else torch.autocast(device.type, dtype)


def seconds_of(step: Callable[[], object], device: torch.device) -> float:
    """Measure the wall-clock seconds of one call."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    begin = time.perf_counter()
    step()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - begin


def peak_memory(step: Callable[[], object], network: nn.Module, device: torch.device, moments: int = 2) -> int:
    """Bytes that torch's allocator holds at the peak of one call, weights and optimizer included.

    Parameters
    ----------
    step
        Does a prediction or a training step, and was called before.
    network
        Whose weights it uses.
    device
        On which it works.
    moments
        Numbers that the optimizer keeps for each weight: 2 of AdamW, 1 of SGD with momentum.
    """
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        step()
        return torch.cuda.max_memory_allocated(device)
    # The CPU's allocator keeps no count of its own: follow what the call allocates and frees. What was there before:
    # the weights, and the optimizer's moments if the call trains. The gradients of the step before go now: the
    # profiler does not see the end of what it has not seen the beginning of.
    held = sum(p.nbytes for p in network.parameters())
    held += moments * sum(p.nbytes for p in network.parameters() if p.grad is not None)
    network.zero_grad(set_to_none=True)
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # the profiler would tell each of its stages
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profiler:
        step()
    now = peak = 0
    # The profiler's public tables give sums by operation, not the order of events.
    events = (e for e in profiler.profiler.kineto_results.events() if e.name() == "[memory]")
    for event in sorted(events, key=lambda e: e.start_ns()):
        now += event.nbytes()
        peak = max(peak, now)
    return held + peak


def reserved_memory(device: torch.device) -> int | None:
    """Bytes that a GPU's allocator held at the peak since :func:`peak_memory`, fragments and caches included."""
    return torch.cuda.max_memory_reserved(device) if device.type == "cuda" else None


def expected_memory(kwargs: dict, channels: int, classes: int, shape: Sequence[int]) -> dict[str, int]:
    """Count the bytes of a training step, in fp32 and in half precision."""
    with torch.device("meta"):
        network = DualInteractionNetwork(channels, classes, **kwargs)
    return {"fp32": training_memory(network, shape), "half": training_memory(network, shape, half_precision=True)}
