"""Whether a device trains DIN as it should."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import torch

from nnunet_din.cost.accounting import MEMORY_MARGIN
from nnunet_din.cost.training_step import (
    CompilationError,
    Outcome,
    Trial,
    first_line,
    is_out_of_memory,
    plan_trial,
    try_training,
)
from nnunet_din.devices import usable_device
from nnunet_din.diagnosis.check import Check
from nnunet_din.nnunet.training_device import autocast_dtype, compiles

#: Height and width of the images, and GB that the batch is planned for, by default: a batch that keeps a GPU busy, and
#: one that a CPU gets through in seconds.
GPU, CPU = ((256, 256), 8.0), ((128, 128), 0.4)
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
        Name of a device; None: that of :func:`nnunet_din.devices.usable_device`.
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
        yield Check("device of the step", False, f"{device or 'the GPU'} cannot be used: {first_line(error)}", do)
        return
    default_size, default_memory = GPU if where.type == "cuda" else CPU
    memory_gb = default_memory if memory_gb is None else memory_gb
    trial = plan_trial(preset, where, size or default_size, batch, memory_gb)
    dtype = autocast_dtype(where)
    chosen = "" if batch else f" (for {memory_gb:g} GB)"
    yield Check(
        "training step",
        True,
        f"{preset} on {where}, {trial.size[0]} x {trial.size[1]}, batch {trial.batch}{chosen}, in "
        f"{str(dtype).removeprefix('torch.') if dtype else 'float32'}",
    )
    compiled = compiles(where)
    try:
        try:
            outcome = try_training(trial, compiled)
        except CompilationError as error:
            yield Check("compiled", False, str(error), "set nnUNet_compile to f, or repair what the message names.")
            outcome = try_training(trial, compiled=False)
        else:
            yield _compilation(outcome)
    except RuntimeError as error:
        if is_out_of_memory(error):
            do = "take fewer images (--batch) or a smaller network (--preset), and plan for less (-gpu_memory_target)."
            yield Check("memory of the step", False, f"{where} has too little: {first_line(error)}", do)
        else:
            yield Check("steps", False, f"{type(error).__name__}: {first_line(error)}", _ANOTHER)
        return
    yield _speed(trial, outcome)
    yield _memory(trial, outcome)
    if (rounding := outcome.prediction_rounding) is not None:
        yield Check(
            "prediction",
            math.isfinite(rounding),
            f"outputs in fp16, in which nnU-Net predicts, differ from fp32 by {100 * rounding:.2g} % of the largest",
            "report it: outputs beyond the range of fp16 are lost in every prediction.",
        )
    yield _finite("loss", outcome.losses)
    scaled = f", scaled by {outcome.scale:g}" if outcome.scale != 1 else ""
    yield _finite("norm of the gradients", outcome.gradient_norms, scaled)


def _compilation(outcome: Outcome) -> Check:
    if outcome.difference is None or outcome.rounding is None:
        return Check("compiled", True, "no: nnU-Net does not compile here")
    allowed = max(ROUNDINGS * outcome.rounding, LEAST)
    return Check(
        "compiled",
        outcome.difference <= allowed,  # not so for NaN
        f"outputs differ from eager ones by {100 * outcome.difference:.2g} % of the largest, autocast from fp32 by "
        f"{100 * outcome.rounding:.2g} %",
        "set nnUNet_compile to f: the compiler's results are wrong here. Another version of torch may be well.",
    )


def _speed(trial: Trial, outcome: Outcome) -> Check:
    seconds = sorted(outcome.seconds)
    middle = seconds[len(seconds) // 2]
    return Check(
        "time of a step",
        True,
        f"{middle:.3g} s ({seconds[0]:.3g} to {seconds[-1]:.3g}), {trial.batch / middle:.3g} images a second; "
        f"the first step {outcome.first_seconds:.3g} s",
    )


def _memory(trial: Trial, outcome: Outcome) -> Check:
    peak, counted = outcome.peak_memory_bytes / 1e9, trial.counted_bytes / 1e9
    reserved = "" if outcome.reserved_memory_bytes is None else f" ({outcome.reserved_memory_bytes / 1e9:.2f} reserved)"
    allowed = MEMORY_MARGIN * counted
    return Check(
        "memory of the step",
        peak <= allowed,
        f"{peak:.2f} GB at the peak{reserved}, {counted:.2f} GB counted, {allowed:.2f} GB with the planners' margin",
        f"plan for {allowed / peak:.0%} of the device's memory (-gpu_memory_target), and report it: the planners count "
        "too little here.",
    )


def _finite(what: str, values: Sequence[float], more: str = "") -> Check:
    text = ", ".join(f"{value:.4g}" for value in values)
    return Check(what, all(map(math.isfinite, values)), text + more, _ANOTHER)
