"""Files with weights: read without running code that they may hold, and written without any."""

from __future__ import annotations

import re
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from nnunet_din.data.files import written_whole


class UnreadableFileError(ValueError):
    """A file that cannot be read; ``reason`` says why, without the file's name."""

    def __init__(self, path: str | Path, reason: str):
        super().__init__(f"{path} cannot be read: {reason}.")
        self.reason = reason


class UnsafeFileError(UnreadableFileError):
    """A file holds more than numbers, texts and weights, ``found``; to read that is to run what its author chose."""

    def __init__(self, path: str | Path, found: str):
        super().__init__(
            path,
            f"it holds {found}, and only weights, numbers and texts are read, because anything else can run code. "
            "If you trust its author, load it with torch.load(weights_only=False) and save the weights alone",
        )
        self.found = found


@lru_cache(maxsize=1)
def _numbers_of_numpy() -> list:
    """What nnU-Net's losses and scores are made of. numpy has had two names for what makes a number again."""
    make = np.float64(0).__reduce__()[0]
    types = [type(np.dtype(code)) for code in f"?{np.typecodes['AllInteger']}{np.typecodes['Float']}"]
    return [(make, "numpy.core.multiarray.scalar"), (make, "numpy._core.multiarray.scalar"), np.dtype, *types]


@contextmanager
def _reading(path: str | Path) -> Iterator[None]:
    """Errors of what is read inside name the file.

    Raises
    ------
    FileNotFoundError
        If there is no such file.
    UnsafeFileError
        If it holds more than weights, numbers and texts; nothing of that was run.
    UnreadableFileError
        If it is damaged, or not of the kind that was expected.
    """
    try:
        yield
    except (FileNotFoundError, MemoryError):
        raise
    except Exception as error:  # whatever pickle, zip and safetensors say of what is not theirs
        raise unreadable(path, error) from error


def unreadable(path: str | Path, error: Exception) -> UnreadableFileError:
    """What an error of a reader says about a file, in one sentence."""
    if found := re.search(r"\bGLOBAL ([\w.]+)", str(error)):  # torch's words for it
        return UnsafeFileError(path, found[1])
    file = Path(path)
    if file.is_file() and not isinstance(error, SafetensorError) and not zipfile.is_zipfile(file):
        # torch's words for it lead astray
        return UnreadableFileError(path, "it is cut off, or no checkpoint" if file.stat().st_size else "it is empty")
    first = str(error).partition(". ")[0].partition("\n")[0]
    return UnreadableFileError(path, f"{type(error).__name__}: {first}")


def read_checkpoint(path: str | Path, mmap: bool = True) -> Any:
    """Read what ``torch.save`` has written, on the CPU; no code that the file may hold is run.

    Parameters
    ----------
    path
        A checkpoint of nnU-Net, or any other file of weights.
    mmap
        Whether tensors stay in the file until they are used. nnU-Net's trainers write into a checkpoint that is there
        already: for tensors that are kept, False.

    Raises
    ------
    FileNotFoundError
        If there is no such file.
    UnsafeFileError
        If it holds more than weights, numbers and texts.
    UnreadableFileError
        If it is damaged, or not of the kind that was expected.
    """
    # For the whole process, and for good: torch's context manager takes away from one thread what another has allowed.
    torch.serialization.add_safe_globals(_numbers_of_numpy())
    with _reading(path):
        mmap = mmap and zipfile.is_zipfile(path)  # the format before torch 1.6 cannot be mapped
        # What is said here counts, whatever TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD says.
        return torch.load(path, map_location="cpu", weights_only=True, mmap=mmap)


def read_tensors(path: Path) -> dict[str, Tensor]:
    """Read what :func:`write_tensors` has written; raises what :func:`read_checkpoint` raises."""
    with _reading(path), safe_open(path, "pt") as file:
        tensors = {name: file.get_tensor(name) for name in file.keys()}
        same = file.metadata() or {}
        return {**tensors, **{name: tensors[other] for name, other in same.items() if other in tensors}}


def read_weights(path: Path) -> Any:
    """Read ``.safetensors`` by :func:`read_tensors`, and any other file by :func:`read_checkpoint`."""
    return read_tensors(path) if path.suffix == ".safetensors" else read_checkpoint(path)


def write_tensors(tensors: Mapping[str, Tensor], path: Path) -> None:
    """Write tensors by name as safetensors.

    Those that are one in memory are written once: the metadata of the file name the others, as
    :func:`safetensors.torch.save_model` does. Networks of nnU-Net have most of their weights under several names.

    Raises
    ------
    ValueError
        If an entry is no tensor.
    OSError
        If the file cannot be written.
    """
    first: dict[tuple, str] = {}
    same: dict[str, str] = {}
    own: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        if not isinstance(tensor, Tensor):
            raise ValueError(f"{name} is a {type(tensor).__name__} and no tensor: safetensors cannot hold it.")
        place = (tensor.data_ptr(), tensor.dtype, tensor.shape, tensor.stride())
        if tensor.numel() and first.setdefault(place, name) != name:
            same[name] = first[place]
        else:
            own[name] = tensor.detach().clone(memory_format=torch.contiguous_format)
    with written_whole(path) as temporary:
        try:
            save_file(own, temporary, metadata=same)
        except SafetensorError as error:
            raise OSError(f"{path} could not be written: {error}") from error


def write_checkpoint(content: Any, path: Path) -> None:
    """Write what :func:`read_checkpoint` reads.

    Raises
    ------
    OSError
        If the file cannot be written.
    """
    with written_whole(path) as temporary:
        try:
            with temporary.open("wb") as file:  # torch writes the name of a path into the file
                torch.save(content, file)
        except RuntimeError as error:  # torch's words for a full disk
            reason = str(error).splitlines()[0]
            raise OSError(f"{path} could not be written ({reason}): is the disk full?") from error


def check_finite(weights: Mapping[str, Tensor], path: str | Path) -> None:
    """Refuse weights that cannot predict anything.

    Parameters
    ----------
    weights
        Weights of a network by name.
    path
        File that they come from, for the error.

    Raises
    ------
    ValueError
        If a number in them is NaN or infinite; the message names the first such tensor.
    """
    for name, tensor in weights.items():
        if isinstance(tensor, Tensor) and not tensor.isfinite().all():
            raise ValueError(f"{path}: {name} is not finite: the training has diverged, or the file is damaged.")
