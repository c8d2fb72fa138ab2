"""Zero-DCE (Guo et al., CVPR 2020; the DIN paper's [46]) as an enhancement, by weights of a file.

The network and how it is fitted: :mod:`nnunet_din.network.alternatives.zero_dce`. It takes images in [0, 1], to which
(-1, 1) is mapped linearly.
"""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path

import numpy as np
import torch

from nnunet_din.data.files import sha256_of
from nnunet_din.data.weight_files import UnsafeFileError, read_weights
from nnunet_din.network.alternatives.zero_dce import DCENet, apply_curves

_EDGE = 1 - 1e-6
_FLAT = 1e-6  # range of the values below which a slice counts as constant


def zero_dce_enhance(
    f: np.ndarray, *, weights: str | Path, sha256: str, color: bool = False, mask: np.ndarray | None = None
) -> np.ndarray:
    """Enhance images by Zero-DCE, on the CPU in fp32.

    Parameters
    ----------
    f
        Images in (-1, 1), floating, shape ``(..., H, W)``, or ``(..., C, H, W)`` where ``color`` is true. NumPy only.
    weights
        File with the weights of a fitted :class:`DCENet`, as ``nnunet-din train-zero-dce`` writes it.
    sha256
        Its SHA-256 in hexadecimal digits: other weights are another enhancement, on which the segmentation network was
        not trained.
    color
        Whether axis -3 holds the colours of one image; the weights must be fitted to colours, too.
    mask
        Not used: each pixel's curve comes from its surroundings. It is here because all enhancements are called alike.

    Returns
    -------
    numpy.ndarray
        E in (-1, 1), shape and dtype of ``f``. A constant slice is 0.

    Raises
    ------
    ValueError
        If the file is missing, is another one, or holds weights for another number of channels, or if ``f`` has too few
        axes.
    """
    if f.ndim < 2 + color:
        raise ValueError(f"Expected {'(..., C, H, W)' if color else '(..., H, W)'}, got shape {f.shape}.")
    channels = f.shape[-3] if color else 1
    network = _load(str(weights), sha256)
    if network.channels != channels:
        raise ValueError(
            f"{weights} enhances images of {network.channels} channels and these have {channels}: make weights for "
            "this data set with `nnunet-din train-zero-dce`."
        )
    x = (torch.from_numpy(f.astype(np.float32).reshape(-1, channels, *f.shape[-2:])) + 1) / 2
    with torch.no_grad():
        out = 2 * apply_curves(x, network(x)) - 1
    out[((x.amax((2, 3)) - x.amin((2, 3))) < _FLAT).all(dim=1)] = 0
    return out.clamp(-_EDGE, _EDGE).numpy().reshape(f.shape).astype(f.dtype)


def zero_dce_parameters(weights: Path) -> dict[str, str]:
    """What the plans say about a file of weights: the arguments of :func:`zero_dce_enhance`.

    Parameters
    ----------
    weights
        File of the weights.

    Returns
    -------
    dict
        Its absolute path ``weights`` and its ``sha256``.

    Raises
    ------
    ValueError
        If there is no such file.
    """
    return {"weights": str(Path(weights).resolve()), "sha256": _sha256(Path(weights))}


def _sha256(path: Path) -> str:
    if not path.is_file():
        raise ValueError(
            f"{path} does not exist: the weights of Zero-DCE are a file of their own, to be copied there from where "
            "they were made, or made again by `nnunet-din train-zero-dce`."
        )
    return sha256_of(path)


@lru_cache(maxsize=4)
def _load(weights: str, sha256: str) -> DCENet:
    """Read and check the network, once in a process."""
    found = _sha256(Path(weights))
    if found != sha256:
        raise ValueError(
            f"{weights} is not the file of the plans (its sha256 is {found}, theirs {sha256}): copy the right one "
            "there, or make it again by `nnunet-din train-zero-dce` and plan, preprocess and train with it."
        )
    try:
        state = read_weights(Path(weights))
        network = DCENet(state["convolutions.0.weight"].shape[1])
        network.load_state_dict(state)
    except UnsafeFileError:
        raise
    except Exception as error:  # whatever is no network of ours
        raise ValueError(f"{weights} does not hold weights that `nnunet-din train-zero-dce` has made.") from error
    return network.eval()
