"""A few training steps on random data: what they cost on a device, and whether it computes what it should."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import cast

import torch
from torch import nn

from nnunet_din.cost.accounting import MEMORY_MARGIN, training_memory
from nnunet_din.cost.measurement import (
    TrainingStep,
    autocast,
    cudnn_as_in_training,
    peak_memory,
    reserved_memory,
    seconds_of,
)
from nnunet_din.network import PRESETS, DualInteractionNetwork
from nnunet_din.nnunet.training_device import autocast_dtype

CHANNELS, CLASSES = 1, 4
#: Steps that are timed, and the most that come before them, beside the first.
STEPS, WARM_UP = 3, 20


class CompilationError(RuntimeError):
    """``torch.compile`` fails on a network that computes without it; the message is one line."""


@dataclass(frozen=True)
class Trial:
    """A training to try.

    Attributes
    ----------
    preset : str
        A key of :data:`nnunet_din.network.PRESETS`.
    device : torch.device
        Where it computes.
    size : tuple of int
        Height and width of the images, in pixels.
    batch : int
        Images a step.
    counted_bytes : int
        The planners' count of its memory, without their margin, in what the device trains in.
    checkpointing : bool
        Whether activations are computed again in the backward pass.
    """

    preset: str
    device: torch.device
    size: tuple[int, int]
    batch: int
    counted_bytes: int
    checkpointing: bool = False

    @property
    def network(self) -> DualInteractionNetwork:
        """The network, with random weights, as prediction has it."""
        return DualInteractionNetwork(
            CHANNELS, CLASSES, **{**PRESETS[self.preset], "checkpointing": self.checkpointing}
        )


@dataclass(frozen=True)
class Outcome:
    """What came of a trial.

    Attributes
    ----------
    first_seconds : float
        Of the first step, with all that happens only once, compilation above all.
    seconds, losses, gradient_norms : list of float
        Of each timed step; a norm is finite if every gradient is.
    scale : float
        By which gradients were scaled in the end; 1 where nothing is.
    peak_memory_bytes : int
        What torch's allocator held.
    reserved_memory_bytes : int or None
        What a GPU's allocator reserved for that.
    prediction_rounding : float or None
        Difference of the segmentation between fp16, which nnU-Net's prediction and validation compute in on a GPU, and
        fp32, as a share of the largest output; infinite if an output is not finite. None on a CPU.
    difference : float or None
        Largest difference between outputs of the compiled and of the eager network, as a share of the largest output;
        None where nothing was compiled.
    rounding : float or None
        The same between autocast and fp32, both eager.
    """

    first_seconds: float
    seconds: list[float]
    losses: list[float]
    gradient_norms: list[float]
    scale: float
    peak_memory_bytes: int
    difference: float | None = None
    rounding: float | None = None
    reserved_memory_bytes: int | None = None
    prediction_rounding: float | None = None


def plan_trial(
    preset: str,
    device: torch.device,
    size: Sequence[int],
    batch: int | None = None,
    memory_gb: float = 8.0,
    checkpointing: bool = False,
) -> Trial:
    """A trial with this batch, or with the largest, at least 2, whose count with the planners' margin is within
    ``memory_gb``.

    Raises
    ------
    ValueError
        If the network does not take images of this size.
    """
    half = autocast_dtype(device) is not None

    trial = Trial(preset, device, (size[0], size[1]), batch or 2, 0, checkpointing)

    def count(n: int) -> int:
        with torch.device("meta"):
            network = trial.network
        return training_memory(network, (n, network.versions * CHANNELS, *size), half_precision=half)

    if batch is None:
        budget = memory_gb * 1e9 / MEMORY_MARGIN
        # The peak is the largest of several quantities that grow with the batch: never below a line through two counts.
        few, more = count(2), count(4)
        most = 2 + max(0, int(2 * (budget - few) / (more - few)))
        batch = max(2, 1 + bisect_right(range(2, most + 1), budget, key=count))
    return replace(trial, batch=batch, counted_bytes=count(batch))


@cudnn_as_in_training()
def try_training(trial: Trial, compiled: bool, steps: int = STEPS) -> Outcome:
    """Train a network with random weights for a few steps; all of them after the first are timed.

    Raises
    ------
    CompilationError
        If ``torch.compile`` fails.
    RuntimeError
        Whatever the device raises, see :func:`is_out_of_memory`.
    """
    torch.manual_seed(0)
    device, dtype = trial.device, autocast_dtype(trial.device)
    network = trial.network
    network.add_auxiliary_heads()
    network.to(device)
    x = torch.randn(trial.batch, network.versions * CHANNELS, *trial.size, device=device)
    target = torch.randint(0, CLASSES, (trial.batch, 1, *trial.size), device=device)
    prediction = prediction_rounding(network, x) if device.type == "cuda" else None
    if not compiled:
        return replace(_train(TrainingStep(network, x, target, dtype), device, steps), prediction_rounding=prediction)
    fast = cast(nn.Module, torch.compile(network))
    with torch.no_grad():  # whose memory is not the trial's
        eager = _outputs(network, x, dtype)
        rounding = _difference(eager, _outputs(network, x, None))
    try:
        # With gradients, as in the steps: without, the network would be compiled twice.
        difference = _difference(_outputs(fast, x, dtype), eager)
        outcome = _train(TrainingStep(fast, x, target, dtype), device, steps, difference, rounding)
        return replace(outcome, prediction_rounding=prediction)
    except Exception as error:  # a compiler raises anything, and what it is given computes without it
        if is_out_of_memory(error):
            raise
        raise CompilationError(f"{type(error).__name__}: {first_line(error)}") from error


def _train(
    step: TrainingStep,
    device: torch.device,
    steps: int,
    difference: float | None = None,
    rounding: float | None = None,
) -> Outcome:
    scale = step.scale
    first = seconds_of(step, device)
    for _ in range(WARM_UP):  # in fp16, until the scale suits the gradients
        if step.scale >= scale:
            break
        scale = step.scale
        step()
    losses, norms = [], []

    def recorded() -> None:
        losses.append(step())
        norms.append(step.gradient_norm)

    seconds = [seconds_of(recorded, device) for _ in range(steps)]
    return Outcome(
        first_seconds=first,
        seconds=seconds,
        losses=[float(loss) for loss in losses],
        gradient_norms=[float(norm) for norm in norms],
        scale=step.scale,
        peak_memory_bytes=peak_memory(step, step.network, device),
        difference=difference,
        rounding=rounding,
        reserved_memory_bytes=reserved_memory(device),
    )


def _outputs(network: nn.Module, x: torch.Tensor, dtype: torch.dtype | None) -> list[torch.Tensor]:
    """All outputs in training mode."""
    network.train()
    with autocast(x.device, dtype):
        return [output.detach().float() for output in network(x)]


@torch.no_grad()
def prediction_rounding(network: nn.Module, x: torch.Tensor) -> float:
    """Largest difference between outputs in fp16 and in fp32 in prediction, see :class:`Outcome`."""
    network.eval()
    with autocast(x.device, torch.float16):
        half = network(x)
    half, full = ([y] if isinstance(y, torch.Tensor) else y for y in (half, network(x)))
    return _difference([y.float() for y in half], full)


def _difference(outputs: list[torch.Tensor], expected: list[torch.Tensor]) -> float:
    """Largest difference as a share of the largest output, over all outputs; infinite if one is not finite."""
    shares = [float((o - e).abs().max() / e.abs().max()) for o, e in zip(outputs, expected, strict=True)]
    return max(share if share == share else float("inf") for share in shares)


def first_line(error: BaseException) -> str:
    """What an error says, without what follows its first line."""
    return (str(error).strip().splitlines() or ["no message"])[0]


def is_out_of_memory(error: BaseException) -> bool:
    """Whether a device had too little memory."""
    # On a CPU, torch raises RuntimeError.
    return isinstance(error, (torch.OutOfMemoryError, MemoryError)) or "not enough memory" in str(error)
