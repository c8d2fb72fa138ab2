"""Bad images of known badness: a corruption, one of five severities, and a seed.

The transforms are MONAI's, and TorchIO's for ghosting and motion. Images are corrupted as they are stored, and keep
their geometry and their type of number. Where slices are more than three times as thick as pixels are wide, and in
two-dimensional images, everything but the bias field happens in the plane of the slices, as in the scanner.
"""

from __future__ import annotations

import hashlib
import re
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from nnunet_din.data.files import refuse_overwriting
from nnunet_din.data.images import Image, read_image, write_image

__all__ = [
    "CORRUPTIONS",
    "Corruption",
    "corrupt",
    "corrupt_file",
    "refusal",
    "sensible_corruptions",
]

#: To be raised whenever a corrupted image changes: scores remembered under another number are computed again.
CORRUPTION_VERSION = 1
#: Thickness of slices in pixels from which on they count as slices, which is where nnU-Net draws the line, too.
_THICK = 3
#: Range of intensities of CT in HU, soft tissue from fat to contrast medium: other images have their own.
_CT_RANGE = 800.0
#: Share of voxels that are exactly 0 from which on a volume counts as masked, as after skull stripping.
_MASKED = 0.25


@dataclass(frozen=True)
class Corruption:
    """A way in which images go bad.

    Attributes
    ----------
    transform : callable
        Function of level, shape ``(Y, X)`` or ``(Z, Y, X)``, voxel size and a state of random numbers. Gives the
        transform of channels in that shape, whose intensities are in [0, 1] but for a few bright voxels.
    levels : tuple of float
        What severities 1 to 5 mean.
    unit : str
        What a level is.
    ct, color : bool
        Whether it makes sense for CT, and for colour pictures; it does for all others.
    whole : bool
        Whether it goes through the whole volume even where slices are thick.
    """

    transform: Callable[[float, Sequence[int], Sequence[float], np.random.RandomState], Callable]
    levels: tuple[float, float, float, float, float]
    unit: str
    ct: bool = False
    color: bool = False
    whole: bool = False


def _monai(name: str, *arguments, **settings) -> Callable:
    from monai import transforms

    return getattr(transforms, name)(*arguments, **settings)


def _gaussian_noise(level, shape, spacing, state):
    return _monai("RandGaussianNoise", prob=1, std=level, sample_std=False)


def _rician_noise(level, shape, spacing, state):
    return _monai("RandRicianNoise", prob=1, std=level, sample_std=False)


def _blur(level, shape, spacing, state):
    return _monai("GaussianSmooth", [level * min(spacing) / edge for edge in spacing])


def _gamma(level, shape, spacing, state):
    return _monai("AdjustContrast", level)


def _bias_field(level, shape, spacing, state):
    return _monai("RandBiasField", coeff_range=(-level, level), prob=1)


def _gibbs_ringing(level, shape, spacing, state):
    return _monai("GibbsNoise", level)


def _spikes(level, shape, spacing, state):
    log = float(np.log(level * np.prod(shape)))  # a wave of amplitude 1 has the number of voxels in k-space
    return _monai("RandKSpaceSpikeNoise", prob=1, intensity_range=(log, log), channel_wise=False)


def _low_resolution(level, shape, spacing, state):
    upsampling = "bilinear" if len(shape) == 2 else "trilinear"
    return _monai("RandSimulateLowResolution", 1, "area", upsampling, (1 / level, 1 / level))


def _ghosting(level, shape, spacing, state):
    axis, number = int(state.randint(len(shape))), int(state.randint(3, 7))
    return _torchio("Ghosting", spacing, num_ghosts=number, axis=axis, intensity=level, restore=None)


def _motion(level, shape, spacing, state):
    # An even number of movements: none of them is near the centre of k-space, which says where the image lies.
    times = (np.arange(1, 5) + state.uniform(-0.3, 0.3, 4)) / 5
    degrees, translation = state.uniform(-level, level, (2, 4, 3))
    if len(shape) == 2:  # turns about the axis across the plane, and moves in it
        degrees[:, :2] = translation[:, 2] = 0
    movements = {"degrees": degrees, "translation": translation, "times": times}
    return _torchio("Motion", spacing, image_interpolation="linear", **movements)


def _torchio(name: str, spacing: Sequence[float], **settings) -> Callable:
    try:
        import torchio
    except ImportError as error:
        raise ValueError(
            f"{name.lower()} is a transform of TorchIO, which is not installed: pip install 'nnunet-din[robustness]'."
        ) from error
    affine = np.diag([*(*spacing, 1)[:3], 1])

    def transform(channels):
        volume = channels.reshape(*channels.shape, *[1] * (4 - channels.ndim))  # an image has one slice
        image = torchio.ScalarImage(tensor=volume, affine=affine)
        return getattr(torchio, name)(**settings)(image).data.reshape(channels.shape)

    return transform


_RANGE = "of the range of intensities"
#: Name -> corruption, with what severities 1 to 5 mean.
CORRUPTIONS = {
    "gaussian_noise": Corruption(_gaussian_noise, (0.025, 0.05, 0.1, 0.15, 0.2), f"σ, {_RANGE}", True, True),
    "rician_noise": Corruption(_rician_noise, (0.025, 0.05, 0.1, 0.15, 0.2), f"σ, {_RANGE}"),
    "blur": Corruption(_blur, (0.5, 1, 2, 3, 4), "σ of a Gaussian, pixels", True, True),
    "gamma_up": Corruption(_gamma, (1.25, 1.5, 2, 2.5, 3), "exponent", color=True),
    "gamma_down": Corruption(_gamma, (0.8, 0.67, 0.5, 0.4, 0.33), "exponent", color=True),
    "bias_field": Corruption(
        _bias_field, (0.1, 0.2, 0.3, 0.4, 0.5), "largest coefficient of a cubic log-field", color=True, whole=True
    ),
    "gibbs_ringing": Corruption(_gibbs_ringing, (0.4, 0.5, 0.6, 0.7, 0.8), "share of k-space's radius cut off"),
    "spikes": Corruption(_spikes, (0.05, 0.1, 0.2, 0.3, 0.4), f"amplitude of the wave, {_RANGE}"),
    "low_resolution": Corruption(_low_resolution, (1.5, 2, 3, 4, 6), "size of the new pixels, old ones", True, True),
    "ghosting": Corruption(_ghosting, (0.2, 0.4, 0.6, 0.8, 1), "share of every n-th line of k-space that is lost"),
    "motion": Corruption(_motion, (1, 2, 4, 6, 8), "largest turn and shift of four movements, degrees and mm"),
}
#: Those that need TorchIO.
_BY_TORCHIO = ("ghosting", "motion")


def refusal(name: str, ct: bool, color: bool) -> str:
    """Why a corruption is not for such images, in one sentence; empty if it is.

    Raises
    ------
    ValueError
        If there is no such corruption.
    """
    if name not in CORRUPTIONS:
        raise ValueError(f"There is no corruption '{name}'. Choose from {', '.join(CORRUPTIONS)}.")
    corruption = CORRUPTIONS[name]
    if ct and not corruption.ct:
        return f"{name} makes no sense for CT, whose Hounsfield units are absolute and whose scanner has no k-space."
    if color and not corruption.color:
        return f"{name} makes no sense for colour pictures, which are not made from k-space as MR images are."
    return ""


def sensible_corruptions(ct: bool, color: bool) -> list[str]:
    """Corruptions to begin with: those that make sense for such images and need no TorchIO; of the two noises that of
    magnitude MR images where it fits.
    """
    fitting = [name for name in CORRUPTIONS if name not in _BY_TORCHIO and not refusal(name, ct, color)]
    return [name for name in fitting if name != "gaussian_noise" or "rician_noise" not in fitting]


def corrupt(image: Image, name: str, severity: int, seed: int, ct: bool = False) -> np.ndarray:
    """Make a bad image.

    Parameters
    ----------
    image
        Any image; where all channels are one, or the colours of a picture, the range of intensities is that of all.
    name
        A key of :data:`CORRUPTIONS`.
    severity
        1 to 5.
    seed
        Below 2**32. Another one gives other noise, another bias field, and so on.
    ct
        Whether intensities are Hounsfield units.

    Returns
    -------
    numpy.ndarray
        Shape ``(C, Z, Y, X)`` and type of number of ``image.array``, which whole numbers do not leave. Where a quarter
        of a volume or more is exactly 0, as after skull stripping, these voxels stay 0.

    Raises
    ------
    ValueError
        If there is no such corruption or severity, it makes no sense for the image, or TorchIO is needed and missing.
    """
    if reason := refusal(name, ct, image.color):
        raise ValueError(reason)
    corruption = CORRUPTIONS[name]
    if not 1 <= severity <= len(corruption.levels):
        raise ValueError(f"A severity is 1 to {len(corruption.levels)}, not {severity}.")
    array = image.array.astype(np.float32)
    low = array.min()
    width = _CT_RANGE if ct else max(np.percentile(array, 99.5) - low, np.finfo(np.float32).tiny)
    state = np.random.RandomState(seed)
    bad = _applied(corruption, severity, (array - low) / np.float32(width), image, state) * width + low
    if not (ct or image.flat) and (masked := image.array == 0).mean() >= _MASKED:
        bad[masked] = 0
    kind = image.array.dtype
    if np.issubdtype(kind, np.integer):
        limits = np.iinfo(kind)
        bad = np.clip(np.rint(bad.astype(np.float64)), limits.min, limits.max)
    return bad.astype(kind)


def _applied(
    corruption: Corruption, severity: int, channels: np.ndarray, image: Image, state: np.random.RandomState
) -> np.ndarray:
    """Apply a corruption to channels ``(C, Z, Y, X)``: to the volume, or to its slices as if they were channels."""
    import torch

    across, edges = image.slice_axis, image.spacing
    by_slice = image.flat or (max(edges) > _THICK * min(edges) and not corruption.whole)
    if by_slice:
        slices = np.moveaxis(channels, across + 1, 1)
        channels, edges = slices.reshape(-1, *slices.shape[2:]), edges[:across] + edges[across + 1 :]
    transform = corruption.transform(corruption.levels[severity - 1], channels.shape[1:], edges, state)
    if hasattr(transform, "set_random_state"):
        transform.set_random_state(state=state)
    bad = np.asarray(transform(torch.from_numpy(np.ascontiguousarray(channels))))
    return np.moveaxis(bad.reshape(slices.shape), 1, across + 1) if by_slice else bad


def corrupt_file(source: Path, target: Path, name: str, severity: int, seed: int = 0, ct: bool = False) -> None:
    """Write a bad image of an image file, one channel of a case or a colour picture.

    Parameters
    ----------
    source, target
        Files that SimpleITK reads and writes. Geometry and type of number are kept.
    name, severity
        See :func:`corrupt`.
    seed
        Seed of a study. The image's own follows from it, the name of the file, the corruption and the severity, so that
        neither the order nor the number of images changes one.
    ct
        Whether intensities are Hounsfield units.

    Raises
    ------
    FileNotFoundError
        If there is no such file.
    ValueError
        If it cannot be read, see :func:`nnunet_din.data.images.read_image`, it would be overwritten, or :func:`corrupt`
        refuses it.
    """
    refuse_overwriting([target], [source])
    digest = hashlib.sha256(f"{seed}/{source.name}/{name}/{severity}".encode()).digest()
    write_image(target, corrupt(read_image(source), name, severity, int.from_bytes(digest[:4], "big"), ct), source)
    spacing = source.with_name(re.sub(r"_\d{4}$", "", source.stem) + ".json")
    if source.suffix in (".tif", ".tiff") and spacing.is_file():  # nnU-Net's spacing of TIFF volumes
        shutil.copyfile(spacing, target.with_name(spacing.name))
