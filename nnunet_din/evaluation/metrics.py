"""Dice, HD95 and NSD of one structure, by MONAI, in millimetres, and with a stated rule for empty masks."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np

#: To be raised whenever a metric's value changes: scores remembered under another number are computed again.
METRICS_VERSION = 1
#: Distance in mm up to which two surfaces agree, unless another one is asked for.
TOLERANCE = 2.0

#: What happens where a mask is empty; printed under every table.
POLICY = (
    "A structure that only one of prediction and truth has counts as missed or as a false alarm: Dice 0, NSD 0, "
    "HD95 = diagonal of the image (the largest distance between two voxels). A structure that neither has is not "
    "counted."
)

#: The published rule for the same, in the code that the papers on ACDC and Synapse share.
MERIT_POLICY = (
    "merit: as the published 2-D comparisons on ACDC and Synapse compute it. HD95 is in voxels and pools the distances "
    "of both directions; a structure that the truth does not have counts as Dice 1 and HD95 0 if it is predicted, and "
    "a structure that is not predicted counts as Dice 0 and HD95 0, even if the truth does not have it either."
)


def structure_metrics(
    prediction: np.ndarray, truth: np.ndarray, spacing: Sequence[float], tolerance: float = TOLERANCE
) -> dict[str, float | bool]:
    """Compare the masks of one structure.

    Parameters
    ----------
    prediction, truth
        Boolean masks, same shape ``(Z, Y, X)`` or ``(Y, X)``. A volume of one slice has no surface but its outline.
    spacing
        Voxel size along each axis in mm.
    tolerance
        Distance in mm up to which two surfaces agree (NSD).

    Returns
    -------
    dict
        ``Dice`` and ``NSD`` in [0, 1] and ``HD95`` in mm, NaN where both masks are empty, see :data:`POLICY`;
        ``truth_ml`` and ``prediction_ml``, volumes in ml (for a 2-D image, areas in cm2); ``truth_empty`` and
        ``prediction_empty``.
    """
    n_prediction, n_truth = int(prediction.sum()), int(truth.sum())
    scores = (math.nan, math.nan, math.nan)
    if n_prediction and n_truth:
        from monai.metrics import compute_hausdorff_distance, compute_surface_dice

        predicted, true = (_batch(mask) for mask in _crop(prediction, truth))
        in_mm = [float(s) for s, size in zip(spacing, truth.shape, strict=True) if size > 1]
        hd95 = compute_hausdorff_distance(predicted, true, include_background=True, percentile=95, spacing=in_mm)
        nsd = compute_surface_dice(
            predicted, true, [tolerance], include_background=True, spacing=in_mm, use_subvoxels=True
        )
        scores = (dice(prediction, truth), float(hd95), float(nsd))
    elif n_prediction or n_truth:
        scores = (0.0, diagonal(truth.shape, spacing), 0.0)
    voxel = math.prod(spacing) / (1000 if truth.ndim == 3 else 100)
    return {
        **dict(zip(("Dice", "HD95", "NSD"), scores, strict=True)),
        "truth_ml": n_truth * voxel,
        "prediction_ml": n_prediction * voxel,
        "truth_empty": n_truth == 0,
        "prediction_empty": n_prediction == 0,
    }


def merit_metrics(prediction: np.ndarray, truth: np.ndarray) -> dict[str, float]:
    """Dice and HD95 as the published 2-D comparisons on ACDC and Synapse compute them, see :data:`MERIT_POLICY`.

    Parameters
    ----------
    prediction, truth
        Boolean masks of the same shape.

    Returns
    -------
    dict
        ``Dice_merit`` in [0, 1], ``HD95_merit`` in voxels.
    """
    n_prediction, n_truth = int(prediction.sum()), int(truth.sum())
    if not (n_prediction and n_truth):
        return {"Dice_merit": float(n_prediction > 0), "HD95_merit": 0.0}
    from monai.metrics.utils import get_mask_edges, get_surface_distance

    edges = get_mask_edges(*_crop(prediction, truth))
    distances = [get_surface_distance(a, b) for a, b in (edges, edges[::-1])]
    return {
        "Dice_merit": dice(prediction, truth),
        "HD95_merit": float(np.percentile(np.concatenate(distances), 95)),
    }


def diagonal(shape: Sequence[int], spacing: Sequence[float]) -> float:
    """Largest distance between the centres of two voxels, in the unit of ``spacing``."""
    return math.hypot(*((n - 1) * s for n, s in zip(shape, spacing, strict=True)))


def _crop(prediction: np.ndarray, truth: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Both masks around their union, without axes of length 1: the same metrics in a fraction of the time."""
    from scipy import ndimage

    prediction, truth = prediction.squeeze(), truth.squeeze()
    box = ndimage.find_objects((prediction | truth).astype(np.uint8))[0]
    return prediction[box], truth[box]


def _batch(mask: np.ndarray):
    """Bring a mask into MONAI's layout, ``(1, 1, ...)``."""
    import torch

    return torch.from_numpy(np.ascontiguousarray(mask))[None, None]


def dice(prediction: np.ndarray, truth: np.ndarray) -> float:
    """Dice of one structure's boolean masks, of the same shape; NaN where both are empty, see :data:`POLICY`."""
    total = int(prediction.sum()) + int(truth.sum())
    return 2 * int((prediction & truth).sum()) / total if total else math.nan


def mean_dice(
    prediction: np.ndarray,
    truth: np.ndarray,
    structures: Mapping[str, Sequence[int]] | None = None,
    ignore: int | None = None,
) -> float:
    """Mean Dice over the structures of a case, as the leaderboard counts them.

    Parameters
    ----------
    prediction, truth
        Integer label maps of the same shape.
    structures
        Values that make up each structure; None or empty: every value above 0 of either map is one.
    ignore
        Value of voxels of the truth that do not count.

    Returns
    -------
    float
        0 to 1, see :data:`POLICY`. NaN if neither map has a structure.
    """
    if ignore is not None:
        valid = truth != ignore
        prediction, truth = prediction * valid, truth * valid
    if not structures:
        values = np.union1d(np.unique(prediction), np.unique(truth))
        structures = {str(v): (int(v),) for v in values if v > 0}
    scores = [dice(np.isin(prediction, values), np.isin(truth, values)) for values in structures.values()]
    return float(np.nanmean(scores)) if not np.isnan(scores).all() else math.nan
