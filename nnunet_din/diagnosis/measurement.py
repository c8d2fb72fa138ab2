"""Time and memory of a training step and of a prediction on a device. Everything that times a step does it by this."""

from __future__ import annotations

import os
import statistics
import time
from collections.abc import Callable, Hashable, Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Any, TypedDict, TypeVar

import torch
from torch import nn

from nnunet_din.data.progress import progress
from nnunet_din.losses import AuxiliaryLoss, DINLoss

#: Largest norm of all gradients together, nnU-Net's.
CLIP = 12.0
Name = TypeVar("Name", bound=Hashable)


class Step:
    """What is timed: a function that works on one batch.

    Parameters
    ----------
    network
        Network, which may be compiled.
    x
        Batch ``(N, C, *size)``, on the network's device.
    dtype
        Type to which autocast casts; None: fp32 throughout.
    """

    #: Numbers that the optimizer keeps for each weight.
    moments = 0

    def __init__(self, network: nn.Module, x: torch.Tensor, dtype: torch.dtype | None = None):
        self.network, self.x, self.dtype = network, x, dtype

    def __call__(self) -> torch.Tensor:
        """Do it once."""
        raise NotImplementedError

    def autocast(self) -> AbstractContextManager:
        """Cast what the network computes to :attr:`dtype`."""
        return autocast(self.x.device, self.dtype)


class Prediction(Step):
    """A forward pass in evaluation mode, without the outputs that training alone has."""

    @torch.no_grad()
    def __call__(self) -> torch.Tensor:
        """Compute the logits."""
        self.network.eval()
        supervised: list[Any] = [
            module for module in self.network.modules() if getattr(module, "deep_supervision", False)
        ]
        for module in supervised:
            module.deep_supervision = False
        with self.autocast():
            logits = self.network(self.x)
        for module in supervised:
            module.deep_supervision = True
        return logits


class TrainingStep(Step):
    """A training step on one batch, as nnU-Net does it with nnUNetTrainerDIN: forward pass and loss in autocast,
    gradients scaled where fp16 asks for it and clipped, AdamW.

    Parameters
    ----------
    network
        Network in its training form: one with auxiliary outputs gets their loss, too.
    x, target
        Batch ``(N, versions * C, *size)``, and labels ``(N, 1, *size)``.
    dtype
        Type to which autocast casts; None: fp32 throughout.

    Attributes
    ----------
    gradient_norm : Tensor
        Norm of all gradients of the last call, before clipping: finite if every gradient is.
    scale : float
        Factor of the loss before the backward pass; 1 where nothing is scaled. A call whose gradients overflow changes
        no weight, and halves it.
    """

    moments = 2

    def __init__(self, network: nn.Module, x: torch.Tensor, target: torch.Tensor, dtype: torch.dtype | None = None):
        super().__init__(network, x, dtype)
        self.target = target
        self.optimizer = self.make_optimizer()
        self.loss_of_outputs = AuxiliaryLoss(DINLoss()).to(x.device)
        self.scaler = torch.amp.GradScaler(x.device.type, enabled=dtype == torch.float16)
        self.gradient_norm = torch.tensor(0.0)

    def make_optimizer(self) -> torch.optim.Optimizer:
        """AdamW of all weights."""
        fused = self.x.device.type in ("cuda", "cpu")
        return torch.optim.AdamW(self.network.parameters(), lr=1e-4, fused=fused)

    def loss(self, output) -> torch.Tensor:
        """Loss of the logits, or of a list with the auxiliary outputs behind them; a scalar."""
        return self.loss_of_outputs([output] if isinstance(output, torch.Tensor) else output, self.target)

    @property
    def scale(self) -> float:
        return self.scaler.get_scale()

    def __call__(self) -> torch.Tensor:
        """Do the step; returns the loss, a scalar."""
        self.network.train()
        self.optimizer.zero_grad(set_to_none=True)
        with self.autocast():
            loss = self.loss(self.network(self.x))
        self.scaler.scale(loss).backward()
        self.scaler.unscale_(self.optimizer)
        self.gradient_norm = nn.utils.clip_grad_norm_(self.network.parameters(), CLIP)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        return loss.detach()


class Measured(TypedDict):
    """What a step costs on a device; the spread is from the shortest to the longest, and only a GPU's allocator
    reserves more than it hands out.
    """

    seconds: float
    seconds_spread: list[float]
    images_per_second: float
    peak_memory_bytes: int
    reserved_memory_bytes: int | None


def measure(step: Step, repeats: int, name: str = "measuring") -> Measured:
    """Time and memory of a step.

    Parameters
    ----------
    step
        Step, which is called ``repeats + 2`` times.
    repeats
        Calls that are timed.
    name
        Name that the progress shows.
    """
    device = step.x.device
    seconds = seconds_in_turn({name: step}, repeats, device)[name]
    median = statistics.median(seconds)
    return {
        "seconds": median,
        "seconds_spread": [min(seconds), max(seconds)],
        "images_per_second": len(step.x) / median,
        "peak_memory_bytes": peak_memory(step),
        "reserved_memory_bytes": torch.cuda.max_memory_reserved(device) if device.type == "cuda" else None,
    }


def seconds_in_turn(
    steps: Mapping[Name, Callable[[], object]],
    repeats: int,
    device: torch.device,
    warm_up: int = 1,
    clock: Callable[[], float] = time.perf_counter,
) -> dict[Name, list[float]]:
    """Seconds of several steps, one after the other in each round, so that a machine that slows down slows all.

    Parameters
    ----------
    steps
        Functions to call, by name.
    repeats
        Rounds that are timed.
    device
        Device on which the steps work.
    warm_up
        Rounds before them that are not timed.
    clock
        Clock in seconds: of the wall, or ``time.process_time`` where other programs run beside.
    """
    seconds: dict[Name, list[float]] = {name: [] for name in steps}
    for i in progress(range(warm_up + repeats), desc=", ".join(map(str, steps)), unit="rounds"):
        for name, step in steps.items():
            elapsed = seconds_of(step, device, clock)
            if i >= warm_up:
                seconds[name].append(elapsed)
    return seconds


def seconds_of(
    step: Callable[[], object], device: torch.device, clock: Callable[[], float] = time.perf_counter
) -> float:
    """Seconds of one call, by a clock in seconds."""
    wait = torch.cuda.synchronize if device.type == "cuda" else lambda device: None
    wait(device)
    begin = clock()
    step()
    wait(device)
    return clock() - begin


def peak_memory(step: Step) -> int:
    """Bytes that torch's allocator holds at the peak of a step that was called before, weights and optimizer included.

    :func:`torch.cuda.max_memory_reserved` says afterwards what a GPU's allocator took for it, fragments included.
    """
    device = step.x.device
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        step()
        return torch.cuda.max_memory_allocated(device)
    # The CPU's allocator keeps no count of its own: follow what the call allocates and frees. What was there before:
    # the weights, and the optimizer's moments if the call trains. The gradients of the step before go now: the
    # profiler does not see the end of what it has not seen the beginning of.
    parameters = list(step.network.parameters())
    held = sum(p.nbytes for p in parameters) + step.moments * sum(p.nbytes for p in parameters if p.grad is not None)
    step.network.zero_grad(set_to_none=True)
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


def cudnn_as_in_training() -> AbstractContextManager:
    """Let cuDNN choose its algorithms by trying them, as ``nnUNetv2_train`` does."""
    return torch.backends.cudnn.flags(enabled=True, benchmark=True, allow_tf32=torch.backends.cudnn.allow_tf32)


def autocast(device: torch.device, dtype: torch.dtype | None) -> AbstractContextManager:
    """Autocast to ``dtype``, or none."""
    return nullcontext() if dtype is None else torch.autocast(device.type, dtype)
