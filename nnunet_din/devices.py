"""The device to compute on."""

from __future__ import annotations

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
