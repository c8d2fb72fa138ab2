"""Whether a device trains DIN as it should: a few training steps on random data, judged."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from time import perf_counter
from typing import cast

import torch
from torch import nn

from nnunet_din.diagnosis.check import Check
from nnunet_din.diagnosis.measurement import TrainingStep, autocast, cudnn_as_in_training, measure
from nnunet_din.network import DualInteractionNetwork
from nnunet_din.network.cost import MEMORY_MARGIN, largest_batch, training_memory
from nnunet_din.network.presets import get_preset
from nnunet_din.nnunet.devices import autocast_dtype, compiles, usable_device

CHANNELS, CLASSES = 1, 4
#: Height and width of the images, and GB that the batch is planned for, by default: a batch that keeps a GPU busy, and
#: one that a CPU gets through in seconds.
GPU, CPU = ((256, 256), 8.0), ((128, 128), 0.4)
#: Steps that are timed, and the most that come before them: in fp16, until the scale suits the gradients.
STEPS, WARM_UP = 3, 20
#: Compiled outputs may lie this many times farther from eager ones than those from fp32, and at least this far.
ROUNDINGS, LEAST = 4, 1e-3
_ANOTHER = (
    "run the same with `--device cpu`: where that is well, the device, its driver or its build of torch is at fault."
)


def training_checks(
    preset: str,
    device: str | None = None,
    size: Sequence[int] | None = None,
    batch: int | None = None,
    memory_gb: float | None = None,
) -> Iterator[Check]:
    """Train a few steps and judge them.

    Parameters
    ----------
    preset
        A key of :data:`nnunet_din.network.PRESETS`.
    device
        Name of a device; None: that of :func:`nnunet_din.nnunet.devices.usable_device`.
    size
        Height and width of the images; None: that of :data:`GPU` or :data:`CPU`.
    batch
        Images a step; None: as many as the planners' count lets fit into ``memory_gb``, at least 2.
    memory_gb
        None: that of :data:`GPU` or :data:`CPU`.

    Yields
    ------
    Check
        What is trained, and each finding as soon as it is there.

    Raises
    ------
    ValueError
        If the network does not take images of this size.
    """
    try:
        where = usable_device(device)
        torch.empty(1, device=where)
    except (ValueError, RuntimeError, AssertionError, NotImplementedError) as error:
        do = "choose `--device cpu`, or install a torch for this device (a driver, and a torch that was built for it)."
        yield Check("device of the step", False, f"{device or 'the GPU'} cannot be used: {_first_line(error)}", do)
        return
    default_size, default_memory = GPU if where.type == "cuda" else CPU
    size, memory_gb, dtype = size or default_size, memory_gb or default_memory, autocast_dtype(where)
    with torch.device("meta"):
        network = DualInteractionNetwork(CHANNELS, CLASSES, **get_preset(preset))

    def count(n: int) -> int:
        return training_memory(network, (n, network.versions * CHANNELS, *size), half_precision=dtype is not None)

    n = batch or largest_batch(count, 1e9 * memory_gb / MEMORY_MARGIN)
    yield Check(
        "training step",
        True,
        f"{preset} on {where}, {size[0]} x {size[1]}, batch {n}{'' if batch else f' (for {memory_gb:g} GB)'}, in "
        f"{str(dtype or torch.float32).removeprefix('torch.')}",
    )
    try:
        step = _random_step(preset, (n, network.versions * CHANNELS, *size), where)
        yield _compilation(step)
        yield from _steps(step, count(n))
    except RuntimeError as error:
        yield _failure(error, where)


def _random_step(preset: str, shape: Sequence[int], device: torch.device) -> TrainingStep:
    """A training step of a network with random weights on a random batch of this shape."""
    torch.manual_seed(0)
    network = DualInteractionNetwork(CHANNELS, CLASSES, **get_preset(preset))
    network.add_auxiliary_heads()
    target = torch.randint(0, CLASSES, (shape[0], 1, *shape[2:]), device=device)
    return TrainingStep(network.to(device), torch.randn(*shape, device=device), target, autocast_dtype(device))


def _compilation(step: TrainingStep) -> Check:
    """Compile the network where nnU-Net does, and compare its outputs with eager ones; a network that fails to compile
    stays as it is.
    """
    network, begin = step.network.train(), perf_counter()
    if not compiles(step.x.device):
        return Check("compiled", True, "no: nnU-Net does not compile here")
    with torch.no_grad():  # whose memory is not the training's
        eager = _outputs(network, step.x, step.dtype)
        rounding = _difference(eager, _outputs(network, step.x, None))
    step.network = cast(nn.Module, torch.compile(network))
    try:
        # With gradients, as in the steps: without, the network would be compiled twice.
        difference = _difference(_outputs(step.network, step.x, step.dtype), eager)
        step()
    except Exception as error:  # a compiler raises anything, and what it is given computes without it
        if _is_out_of_memory(error):
            raise
        step.network = network
        found = f"{type(error).__name__}: {_first_line(error)}"
        return Check("compiled", False, found, "set nnUNet_compile to f, or repair what the message names.")
    return Check(
        "compiled",
        difference <= max(ROUNDINGS * rounding, LEAST),  # not so for NaN
        f"outputs differ from eager ones by {100 * difference:.2g} % of the largest, autocast from fp32 by "
        f"{100 * rounding:.2g} %; it took {perf_counter() - begin:.3g} s",
        "set nnUNet_compile to f: the compiler's results are wrong here. Another version of torch may be well.",
    )


def _steps(step: TrainingStep, counted: int) -> Iterator[Check]:
    # Yields the findings about a few steps, whose memory the planners count so, without their margin.
    with cudnn_as_in_training():
        for _ in range(WARM_UP):
            step()
            if torch.isfinite(step.gradient_norm):
                break
        measured = measure(step, STEPS)
    shortest, longest = measured["seconds_spread"]
    yield Check(
        "time of a step",
        True,
        f"{measured['seconds']:.3g} s ({shortest:.3g} to {longest:.3g}), {measured['images_per_second']:.3g} images a "
        "second",
    )
    yield _memory(counted, measured["peak_memory_bytes"], measured["reserved_memory_bytes"])
    # What was not finite in an earlier step is not finite now.
    loss, scaled = float(step()), f", scaled by {step.scale:g}" if step.scale != 1 else ""
    yield Check("loss", math.isfinite(loss), f"{loss:.4g}", _ANOTHER)
    norm = float(step.gradient_norm)
    yield Check("norm of the gradients", math.isfinite(norm), f"{norm:.4g}{scaled}", _ANOTHER)


def _memory(counted: int, peak: int, reserved: int | None) -> Check:
    allowed = MEMORY_MARGIN * counted
    in_reserve = "" if reserved is None else f" ({reserved / 1e9:.2f} reserved)"
    return Check(
        "memory of the step",
        peak <= allowed,
        f"{peak / 1e9:.2f} GB at the peak{in_reserve}, {counted / 1e9:.2f} GB counted, {allowed / 1e9:.2f} GB with the "
        "planners' margin",
        f"plan for {allowed / peak:.0%} of the device's memory (-gpu_memory_target), and report it: the planners count "
        "too little here.",
    )


def _failure(error: RuntimeError, device: torch.device) -> Check:
    if _is_out_of_memory(error):
        do = "take fewer images (--batch) or a smaller network (--preset), and plan for less (-gpu_memory_target)."
        return Check("memory of the step", False, f"{device} has too little: {_first_line(error)}", do)
    return Check("steps", False, f"{type(error).__name__}: {_first_line(error)}", _ANOTHER)


def _outputs(network: nn.Module, x: torch.Tensor, dtype: torch.dtype | None) -> list[torch.Tensor]:
    """All outputs."""
    with autocast(x.device, dtype):
        return [output.detach().float() for output in network(x)]


def _difference(outputs: list[torch.Tensor], expected: list[torch.Tensor]) -> float:
    """Largest difference as a share of the largest output, over all outputs; infinite if one is not finite."""
    shares = [float((o - e).abs().max() / e.abs().max()) for o, e in zip(outputs, expected, strict=True)]
    return max(share if share == share else math.inf for share in shares)


def _first_line(error: BaseException) -> str:
    """What an error says, without what follows its first line."""
    return (str(error).strip().splitlines() or ["no message"])[0]


def _is_out_of_memory(error: BaseException) -> bool:
    """Whether a device had too little memory."""
    return any(words in str(error) for words in ("out of memory", "not enough memory"))
