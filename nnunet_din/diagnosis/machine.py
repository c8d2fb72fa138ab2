"""The device, nnU-Net's folders and worker processes, and the memory for them."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path

from nnunet_din.diagnosis.check import Check
from nnunet_din.nnunet.devices import usable_device

FOLDERS = ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results")
MEMORY = Path("/proc/meminfo")
SHARED_MEMORY = Path("/dev/shm")
#: GB of shared memory that nnU-Net's queues of batches should find; a container of Docker's has 0.064.
SHARED_GB = 1.0
#: GB of main memory that a worker holds before its first image: Python, torch, nnU-Net and the plug-in.
WORKER_GB = 0.4
#: GB that the images of one worker, and the command itself, are given.
REST_GB = 2.0


def device() -> Check:
    """What nnU-Net can train on."""
    import torch

    from nnunet_din.nnunet.devices import autocast_dtype

    if usable_device().type == "cuda":
        properties = torch.cuda.get_device_properties(0)
        precision = "bf16" if autocast_dtype(torch.device("cuda")) == torch.bfloat16 else "fp16"
        return Check(
            "device", True, f"cuda: {properties.name}, {properties.total_memory / 1e9:.0f} GB, trains in {precision}"
        )
    more = "; DIN was never run on Apple's GPU, `-device mps`" if torch.backends.mps.is_available() else ""
    return Check(
        "device", True, f"cpu, {os.cpu_count()} cores; add `-device cpu` to nnUNetv2_train and nnUNetv2_predict{more}"
    )


def folders() -> Iterator[Check]:
    """Look at nnU-Net's three folders.

    Yields
    ------
    Check
        Whether each is set, there, and writable where nnU-Net writes to it.
    """
    for name in FOLDERS:
        value = os.environ.get(name)
        if not value:
            yield Check(name, False, "not set", f"set {name} to the path of a folder, in every shell and job script")
            continue
        path = Path(value)
        if not path.is_dir():
            yield Check(name, False, f"{value} does not exist", f"make the folder {value}")
        elif name != "nnUNet_raw" and not os.access(path, os.W_OK):
            yield Check(
                name, False, f"{value} is not writable", f"make {value} writable, or set {name} to a folder that is"
            )
        else:
            yield Check(name, True, f"{value}, {shutil.disk_usage(path).free / 1e9:.0f} GB free")


def workers() -> Check:
    """How many worker processes nnU-Net starts."""
    numbers = {name: os.environ.get(name, "1") for name in ("nnUNet_n_proc_DA", "nnUNet_def_n_proc")}
    for name, value in numbers.items():
        if not value.isdecimal():
            return Check("workers", False, f"{name} is '{value}'", f"set {name} to 4, or another whole number.")
    if numbers["nnUNet_n_proc_DA"] == "0":
        return Check(
            "workers",
            False,
            "nnUNet_n_proc_DA=0: a training loads its batches in its own process, and waits for them; nnU-Net's own "
            "planners end with 'set_num_threads expects a positive integer'",
            "unset nnUNet_n_proc_DA, and set it to 0 for the single commands that need it.",
        )
    from nnunetv2.utilities.default_n_proc_DA import get_allowed_n_proc_DA

    return Check("workers", True, f"{get_allowed_n_proc_DA()} for the batches of a training, {_workers()} for the rest")


def _workers() -> int:
    """Worker processes of preprocessing and export, nnU-Net's default where nothing sensible is set."""
    value = os.environ.get("nnUNet_def_n_proc", "")
    return int(value) if value.isdecimal() else 8


def memory() -> Check:
    """Main memory that programs can still get, where the operating system tells, for as many workers as there are."""
    if not MEMORY.is_file():
        return Check("memory", True, "free memory unknown on this system")
    # Not sysconf's free pages: those leave out the file cache, which gives way.
    kilobytes = re.search(r"MemAvailable: +(\d+)", MEMORY.read_text(encoding="ascii"))
    free = int(kilobytes[1]) * 1024 / 1e9 if kilobytes else 0.0
    enough = REST_GB + _workers() * WORKER_GB
    found = f"{free:.1f} GB free; {_workers()} workers hold about {enough:.1f} GB with their images"
    do = (
        "close other programs, or give nnU-Net fewer worker processes (nnUNet_def_n_proc=1 and nnUNet_n_proc_DA=1; -np "
        "1 for a single command)."
    )
    return Check("memory", free >= enough, found, do)


def shared_memory() -> Check:
    """What training's workers hand their batches over in."""
    name = "shared memory"
    if not SHARED_MEMORY.is_dir():
        return Check(name, True, f"this system has no {SHARED_MEMORY}")
    total = shutil.disk_usage(SHARED_MEMORY).total / 1e9
    do = "start the container with --ipc=host (or --shm-size=16g), or train with nnUNet_n_proc_DA=0, which is slow."
    return Check(name, total >= SHARED_GB, f"{SHARED_MEMORY} holds {total:.3g} GB", do)
