"""The device to compute on, and how nnU-Net and DIN's trainers compute on it."""

from __future__ import annotations

from types import SimpleNamespace
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch


def usable_device(name: str | None = None) -> torch.device:
    """A device that is there.

    Parameters
    ----------
    name
        As torch writes it, for example ``cuda:1``. None: CUDA's if there is one, else the CPU; Apple's GPU is taken
        only where it is named, since DIN was never run on one.

    Raises
    ------
    ValueError
        If torch does not know it, or it is not there.
    """
    import torch

    if name is None:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise ValueError(f"Unknown device '{name}': use cpu, cuda, cuda:1 or mps.") from error
    there = {"cpu": 1, "cuda": torch.cuda.device_count(), "mps": int(torch.backends.mps.is_available())}
    if (device.index or 0) >= there.get(device.type, 0):
        usable = [kind for kind, count in there.items() if count]
        raise ValueError(f"There is no device '{name}' here for this torch ({torch.__version__}): use {usable[-1]}.")
    return device


def autocast_dtype(device: torch.device) -> torch.dtype | None:
    """The precision in which DIN's trainers compute on a device.

    Returns
    -------
    torch.dtype or None
        BF16 on a GPU, or fp16 where the GPU has no bf16 of its own; elsewhere None, fp32 throughout, because nnU-Net
        has autocast on GPUs only.
    """
    import torch

    if device.type != "cuda":
        return None
    return torch.bfloat16 if torch.cuda.is_bf16_supported(including_emulation=False) else torch.float16


def compiles(device: torch.device) -> bool:
    """Whether nnU-Net's trainers compile the network on a device, as their own rule and ``nnUNet_compile`` say."""
    from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer

    # The rule needs nothing of a trainer but these.
    stand_in = SimpleNamespace(device=device, print_to_log_file=lambda *args, **kwargs: None)
    return nnUNetTrainer._do_i_compile(stand_in)
