"""A phantom of cardiac short-axis cine MR, drawn from simple analytic shapes.

The phantom stands in for a cardiac data set such as ACDC where none may be downloaded: in the demo, in the tests and
in the continuous integration. It uses ACDC's labels (RV = 1, MYO = 2, LV = 3). Every patient has an anatomy of its own,
and the images carry what makes the real ones hard: thick slices, partial volume, low contrast between blood and
muscle, a smooth bias field, Rician noise, papillary muscles, and neighbouring organs as bright as blood or as dark as
muscle.

All shapes are given in millimetres, so `size` and `slices` change the sampling of a patient and not the anatomy.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from nnunet_din.data.files import write_text
from nnunet_din.data.images import save

__all__ = ["LABELS", "PhantomCase", "make_case", "write_dataset"]

LABELS = {"background": 0, "RV": 1, "MYO": 2, "LV": 3}

_FIELD_OF_VIEW = 158.0  # mm
_IN_PLANE_SAMPLES = 2
_THROUGH_PLANE_SAMPLES = 3


@dataclass(frozen=True)
class PhantomCase:
    """One patient of the phantom.

    Attributes
    ----------
    image : numpy.ndarray
        Magnitude image, float32, shape (Z, H, W), arbitrary units from 0 to about 700. Slice 0 lies at the base of
        the heart, the last one at the apex.
    label : numpy.ndarray
        Label map, uint8, shape (Z, H, W), values as in `LABELS`.
    spacing : tuple of float
        Voxel size (z, y, x) in mm.
    """

    image: np.ndarray
    label: np.ndarray
    spacing: tuple[float, float, float]


@dataclass(frozen=True)
class _Anatomy:
    """The numbers that make a patient. Lengths in mm, angles in radians, intensities in arbitrary units."""

    length: float
    centre: np.ndarray
    tilt: np.ndarray
    rotation: float
    radius: float
    wall: float
    base_taper: float
    apex_taper: float
    ellipticity: float
    ellipse_angle: float
    outer_wave: np.ndarray
    inner_wave: np.ndarray
    rv_width: float
    rv_arc: float
    rv_skew: float
    rv_end: float
    rv_sharpness: float
    rv_wall: float
    papillary: bool
    papillary_angles: np.ndarray
    papillary_radii: np.ndarray
    fat_rim: float
    fat_angle: float
    mediastinum: np.ndarray
    mediastinum_radii: np.ndarray
    mediastinum_wave: np.ndarray
    chest_wall: float
    chest_curve: float
    chest_fat: float
    diaphragm: float
    diaphragm_slope: float
    stomach: np.ndarray
    stomach_radii: np.ndarray
    aorta: np.ndarray
    aorta_radius: float
    vessels: np.ndarray
    intensity: dict[str, float]


def _draw_anatomy(rng: np.random.Generator) -> _Anatomy:
    radius = rng.uniform(28.0, 36.0)
    blood = rng.uniform(290.0, 350.0)
    muscle = blood * rng.uniform(0.46, 0.6)
    return _Anatomy(
        length=rng.uniform(64.0, 76.0),
        centre=np.array([rng.uniform(-7.0, 9.0), rng.uniform(4.0, 18.0)]),
        tilt=np.array([rng.uniform(-2.0, 8.0), rng.uniform(0.0, 12.0)]),
        rotation=np.deg2rad(rng.uniform(-22.0, 22.0)),
        radius=radius,
        wall=radius * rng.uniform(0.25, 0.36),
        base_taper=rng.uniform(0.0, 0.1),
        apex_taper=rng.uniform(0.86, 0.93),
        ellipticity=rng.uniform(0.0, 0.08),
        ellipse_angle=rng.uniform(0.0, np.pi),
        outer_wave=rng.uniform(-0.025, 0.025, size=(2, 2)),
        inner_wave=rng.uniform(-0.045, 0.045, size=(2, 2)),
        rv_width=rng.uniform(22.0, 34.0),
        rv_arc=np.deg2rad(rng.uniform(66.0, 84.0)),
        rv_skew=rng.uniform(-0.1, 0.45),
        rv_end=rng.uniform(0.74, 0.93),
        rv_sharpness=rng.uniform(0.6, 1.0),
        rv_wall=rng.uniform(2.5, 4.0),
        papillary=bool(rng.random() < 0.85),
        papillary_angles=np.deg2rad(np.array([rng.uniform(30.0, 65.0), rng.uniform(-75.0, -35.0)])),
        papillary_radii=rng.uniform(2.6, 4.4, size=2),
        fat_rim=rng.uniform(3.0, 9.0),
        fat_angle=np.deg2rad(rng.uniform(-50.0, 50.0)),
        mediastinum=np.array([rng.uniform(-56.0, -42.0), rng.uniform(-34.0, -14.0)]),
        mediastinum_radii=np.array([rng.uniform(22.0, 34.0), rng.uniform(30.0, 44.0)]),
        mediastinum_wave=rng.uniform(-0.12, 0.12, size=(2, 2)),
        chest_wall=rng.uniform(54.0, 66.0),
        chest_curve=rng.uniform(140.0, 260.0),
        chest_fat=rng.uniform(6.0, 16.0),
        diaphragm=rng.uniform(46.0, 62.0),
        diaphragm_slope=rng.uniform(-0.25, 0.1),
        stomach=np.array([rng.uniform(54.0, 70.0), rng.uniform(10.0, 45.0)]),
        stomach_radii=rng.uniform(14.0, 24.0, size=2),
        aorta=np.array([rng.uniform(50.0, 64.0), rng.uniform(48.0, 64.0)]),
        aorta_radius=rng.uniform(9.0, 13.0),
        vessels=rng.uniform([-60.0, -79.0, 1.5], [60.0, 79.0, 4.5], size=(16, 3)),
        intensity={
            "blood": blood,
            "rv_blood": blood * rng.uniform(0.85, 1.02),
            "muscle": muscle,
            "lung": blood * rng.uniform(0.1, 0.18),
            "vessel": blood * rng.uniform(0.4, 0.7),
            "fat": blood * rng.uniform(0.8, 1.2),
            "liver": muscle * rng.uniform(0.95, 1.35),
            "stomach": blood * rng.uniform(0.35, 1.0),
            "chest_muscle": muscle * rng.uniform(0.8, 1.15),
            "background": blood * 0.03,
        },
    )


def _wave(angle: np.ndarray, coefficients: np.ndarray) -> np.ndarray:
    """Relative change of a radius along the angle: second and third harmonic, so that outlines are not circles."""
    return sum(
        cos * np.cos(order * angle) + sin * np.sin(order * angle)
        for order, (cos, sin) in enumerate(coefficients, start=2)
    )


def _heart(anatomy: _Anatomy, depth: float, y: np.ndarray, x: np.ndarray) -> dict[str, np.ndarray]:
    """Masks of the heart's parts in one plane.

    Parameters
    ----------
    anatomy : _Anatomy
        Anatomy of the patient.
    depth : float
        Position along the long axis, 0 at the base and 1 at the tip of the apex.
    y, x : numpy.ndarray
        Coordinates in mm, y downwards, any common shape.

    Returns
    -------
    dict of str to numpy.ndarray
        Boolean masks `lv`, `myo`, `rv`, `rv_wall`, `papillary`, `fat`, shaped as `y`.
    """
    empty = np.zeros(y.shape, dtype=bool)
    parts = {name: empty for name in ("lv", "myo", "rv", "rv_wall", "papillary", "fat")}
    if not 0.0 <= depth <= 1.0:
        return parts

    dy = y - anatomy.centre[0] - anatomy.tilt[0] * (depth - 0.5)
    dx = x - anatomy.centre[1] - anatomy.tilt[1] * (depth - 0.5)
    distance = np.hypot(dy, dx)
    # Angle 0 points from the LV to the septum, that is to the left of the picture; it grows towards the chest wall.
    angle = np.arctan2(-dy, -dx) - anatomy.rotation
    angle = np.arctan2(np.sin(angle), np.cos(angle))

    along = (depth - anatomy.base_taper) / (1.0 - anatomy.base_taper)
    taper = np.sqrt(1.0 - (anatomy.apex_taper * along) ** 2)
    ellipse = 1.0 + anatomy.ellipticity * np.cos(2.0 * (angle - anatomy.ellipse_angle))
    outer = anatomy.radius * taper * ellipse * (1.0 + _wave(angle, anatomy.outer_wave))
    wall = anatomy.wall * (1.0 - 0.3 * max(along, 0.0) ** 2)
    inner = np.maximum(outer - wall * (1.0 + 2.0 * _wave(angle, anatomy.inner_wave)), 0.0)

    parts["lv"] = distance < inner
    parts["myo"] = (distance < outer) & ~parts["lv"]

    # The RV is a crescent on the septum: its width falls from the middle of the septum to the two insertion points.
    closing = 1.0 - (depth / anatomy.rv_end) ** 2
    if closing > 0.0:
        width_now = anatomy.rv_width * closing**0.6
        arc = anatomy.rv_arc * (0.6 + 0.4 * closing)
        position = np.clip(angle / arc, -1.0, 1.0)
        # Towards the base the crescent widens on the anterior side, where the outflow tract leaves it.
        skew = anatomy.rv_skew * (1.0 - depth)
        width = width_now * np.cos(0.5 * np.pi * position) ** anatomy.rv_sharpness * (1.0 + skew * position)
        parts["rv"] = (distance >= outer) & (distance < outer + width)
        parts["rv_wall"] = (
            (distance >= outer + width) & (distance < outer + width + anatomy.rv_wall) & (np.abs(angle) < arc)
        )
        rim = outer + width + anatomy.rv_wall
    else:
        rim = outer
    # A pad of fat covers part of the outside, widest in one direction as in the grooves of a real heart.
    pad = anatomy.fat_rim * np.clip(np.cos(angle - anatomy.fat_angle) + 0.2, 0.0, 1.0)
    parts["fat"] = (distance >= rim) & (distance < rim + pad)

    if anatomy.papillary and 0.2 < depth < 0.72:
        free_wall = np.pi
        papillary = empty
        for side, radius in zip(anatomy.papillary_angles, anatomy.papillary_radii, strict=True):
            direction = anatomy.rotation + free_wall + side
            reach = max(anatomy.radius * taper - wall - radius - 2.5, 0.0)
            papillary = papillary | (np.hypot(dy + reach * np.sin(direction), dx + reach * np.cos(direction)) < radius)
        parts["papillary"] = papillary & parts["lv"]
    return parts


def _paint(anatomy: _Anatomy, depth: float, y: np.ndarray, x: np.ndarray) -> np.ndarray:
    """Noise-free intensities of one plane at the coordinates `y`, `x` (mm)."""
    tone = anatomy.intensity
    image = np.full(y.shape, tone["lung"])
    for vessel_y, vessel_x, radius in anatomy.vessels:
        drift = 10.0 * (depth - 0.5)
        image[np.hypot(y - vessel_y - drift, x - vessel_x - drift) < radius] = tone["vessel"]

    # Fat and vessels of the mediastinum fill the space between the heart and the breastbone, in patches.
    from_middle_y, from_middle_x = y - anatomy.mediastinum[0], x - anatomy.mediastinum[1]
    angle = np.arctan2(from_middle_y, from_middle_x)
    reach = np.hypot(from_middle_y / anatomy.mediastinum_radii[0], from_middle_x / anatomy.mediastinum_radii[1])
    mediastinum = reach < 1.0 + _wave(angle, anatomy.mediastinum_wave)
    waves = np.sin(0.19 * x + 0.07 * y + 3.0 * depth) * np.sin(0.05 * x - 0.16 * y + 5.0 * depth)
    share = np.clip(0.4 + 0.8 * waves, 0.0, 1.0)
    image[mediastinum] = (tone["fat"] + share * (tone["muscle"] - tone["fat"]))[mediastinum]

    dome = anatomy.diaphragm - 14.0 * depth + anatomy.diaphragm_slope * x + 0.004 * (x + 25.0) ** 2
    below = y > dome
    image[below] = tone["liver"]
    stomach_y, stomach_x = anatomy.stomach
    radius_y, radius_x = anatomy.stomach_radii * (0.6 + 0.5 * depth)
    stomach = ((y - stomach_y) / radius_y) ** 2 + ((x - stomach_x) / radius_x) ** 2 < 1.0
    image[stomach] = tone["stomach"]

    aorta = np.hypot(y - anatomy.aorta[0], x - anatomy.aorta[1])
    image[aorta < anatomy.aorta_radius + 2.0] = tone["muscle"]
    image[aorta < anatomy.aorta_radius] = tone["blood"]

    chest = -y - anatomy.chest_wall + (x + 15.0) ** 2 / anatomy.chest_curve
    image[chest > 0.0] = tone["chest_muscle"]
    ribs = (chest > 2.0) & (chest < 8.0) & (np.sin(x / 8.0 + 4.0 * depth) > 0.35)
    image[ribs] = 0.5 * (tone["fat"] + tone["chest_muscle"])
    image[chest > 9.0] = tone["fat"]
    image[chest > 9.0 + anatomy.chest_fat] = tone["background"]

    heart = _heart(anatomy, depth, y, x)
    image[heart["fat"]] = tone["fat"]
    image[heart["rv_wall"] | heart["myo"]] = tone["muscle"]
    image[heart["rv"]] = tone["rv_blood"]
    image[heart["lv"]] = tone["blood"]
    image[heart["papillary"]] = tone["muscle"]
    return image


def _label(anatomy: _Anatomy, depth: float, y: np.ndarray, x: np.ndarray) -> np.ndarray:
    heart = _heart(anatomy, depth, y, x)
    label = np.zeros(y.shape, dtype=np.uint8)
    label[heart["rv"]] = LABELS["RV"]
    label[heart["myo"]] = LABELS["MYO"]
    # As in ACDC, papillary muscles count as part of the cavity.
    label[heart["lv"]] = LABELS["LV"]
    return label


def _smooth(array: np.ndarray, sigma: float | Sequence[float]) -> np.ndarray:
    from scipy import ndimage  # takes most of a second, and everything imports this package

    return ndimage.gaussian_filter(array, sigma, mode="nearest")


def _smooth_field(rng: np.random.Generator, shape: tuple[int, ...], sigma: tuple[float, ...]) -> np.ndarray:
    """Smooth random field of zero mean and unit standard deviation."""
    field = _smooth(rng.standard_normal(shape), sigma)
    return (field - field.mean()) / field.std()


def _degrade(image: np.ndarray, rng: np.random.Generator, pixel: float, y: np.ndarray, blood: float) -> np.ndarray:
    """Give an ideal volume the looks of an MR image: texture, blur, coil shading and Rician noise.

    Parameters
    ----------
    image : numpy.ndarray
        Ideal intensities, shape (Z, H, W).
    rng : numpy.random.Generator
        Source of all randomness.
    pixel : float
        In-plane pixel size in mm.
    y : numpy.ndarray
        Vertical coordinate in mm, shape (H, W).
    blood : float
        Intensity of blood, the reference for the noise.
    """
    fine = _smooth_field(rng, image.shape, (0.0, 2.5 / pixel, 2.5 / pixel))
    image = image * (1.0 + rng.uniform(0.05, 0.09) * fine)
    blur = rng.uniform(0.9, 1.7) / pixel
    image = _smooth(image, (0.0, blur, blur))

    # Surface coils lie on the chest: signal falls from the top of the picture, with slow random shading on top.
    shading = _smooth_field(rng, image.shape, (1.5, 28.0 / pixel, 28.0 / pixel))
    image = image * np.exp(rng.uniform(0.12, 0.22) * shading - rng.uniform(0.0015, 0.0045) * y)

    sigma = blood * rng.uniform(0.05, 0.085)
    real = image + sigma * rng.standard_normal(image.shape)
    imaginary = sigma * rng.standard_normal(image.shape)
    return np.hypot(real, imaginary)


def make_case(index: int, seed: int = 0, size: int = 64, slices: int = 7) -> PhantomCase:
    """Draw one patient of the phantom.

    Parameters
    ----------
    index : int
        Number of the patient, 0 or more. The same (`index`, `seed`, `size`, `slices`) always gives the same case.
    seed : int
        Seed of the cohort, 0 or more.
    size : int
        Height and width of a slice in pixels, at least 32. The field of view stays about 158 mm.
    slices : int
        Number of short-axis slices from base to apex, at least 3.

    Returns
    -------
    PhantomCase
        Image and label of shape (`slices`, `size`, `size`) with the voxel size in mm.

    Raises
    ------
    ValueError
        If `index` or `seed` is negative, `size` is below 32 or `slices` below 3.
    """
    if index < 0 or seed < 0:
        raise ValueError(f"index and seed must be 0 or more, got index={index} and seed={seed}")
    if size < 32 or slices < 3:
        raise ValueError(f"size must be at least 32 and slices at least 3, got size={size} and slices={slices}")

    rng = np.random.default_rng([seed, index])
    anatomy = _draw_anatomy(rng)
    pixel = _FIELD_OF_VIEW * rng.uniform(0.95, 1.05) / size
    # The stack reaches a little past the tip, so the last slice shows the apex or just misses it, as in practice.
    thickness = anatomy.length * rng.uniform(0.98, 1.1) / slices

    def grid(samples: int) -> tuple[np.ndarray, np.ndarray]:
        axis = ((np.arange(size * samples) + 0.5) / samples - 0.5 * size) * pixel
        return np.meshgrid(axis, axis, indexing="ij")

    y, x = grid(1)
    fine_y, fine_x = grid(_IN_PLANE_SAMPLES)
    # Each slice is taken in a breath-hold of its own, so neighbouring slices do not line up exactly.
    shifts = rng.normal(0.0, 1.0, size=(slices, 2))
    image = np.empty((slices, size, size))
    label = np.empty((slices, size, size), dtype=np.uint8)
    offsets = (np.arange(_THROUGH_PLANE_SAMPLES) + 0.5) / _THROUGH_PLANE_SAMPLES - 0.5
    for z, (shift_y, shift_x) in enumerate(shifts):
        label[z] = _label(anatomy, (z + 0.5) * thickness / anatomy.length, y - shift_y, x - shift_x)
        planes = [
            _paint(anatomy, (z + 0.5 + offset) * thickness / anatomy.length, fine_y - shift_y, fine_x - shift_x)
            for offset in offsets
        ]
        # Averaging sub-pixels and sub-slices gives the partial volume effect at every border.
        blocks = np.mean(planes, axis=0).reshape(size, _IN_PLANE_SAMPLES, size, _IN_PLANE_SAMPLES)
        image[z] = blocks.mean(axis=(1, 3))

    image = _degrade(image, rng, pixel, y, anatomy.intensity["blood"])
    return PhantomCase(image.astype(np.float32), label, (float(thickness), float(pixel), float(pixel)))


def write_dataset(
    folder: Path | str, train: int = 12, test: int = 4, seed: int = 0, size: int = 64, slices: int = 7
) -> Path:
    """Write the phantom as a raw nnU-Net data set.

    The folder gets `imagesTr`, `labelsTr`, `imagesTs`, `labelsTs` and `dataset.json`. Patient `index` of the cohort is
    always called `case_<index>`; the first `train` patients are for training, the next `test` ones for testing.

    Parameters
    ----------
    folder : pathlib.Path or str
        Folder of the data set, for example `nnUNet_raw/Dataset999_CardiacPhantom`. It is made if needed.
    train, test : int
        Number of training cases (1 or more) and test cases (0 or more).
    seed, size, slices : int
        Arguments of `make_case`.

    Returns
    -------
    pathlib.Path
        The folder that was written.

    Raises
    ------
    ValueError
        If a number is out of range.
    FileExistsError
        If the folder already holds other cases, because nnU-Net would count them in.
    """
    if train < 1 or test < 0:
        raise ValueError(f"train must be at least 1 and test at least 0, got train={train} and test={test}")
    import SimpleITK

    folder = Path(folder)
    ending = ".nii.gz"
    parts = [(index, "Tr" if index < train else "Ts") for index in range(train + test)]
    wanted = {f"images{part}/case_{index:03d}_0000{ending}" for index, part in parts}
    wanted |= {f"labels{part}/case_{index:03d}{ending}" for index, part in parts}
    for name in ("imagesTr", "labelsTr", "imagesTs", "labelsTs"):
        (folder / name).mkdir(parents=True, exist_ok=True)
        other = [path for path in sorted((folder / name).iterdir()) if f"{name}/{path.name}" not in wanted]
        if other:
            raise FileExistsError(f"{folder / name} already holds other files, the first is {other[0].name}")

    for index, part in parts:
        case = make_case(index, seed=seed, size=size, slices=slices)
        arrays = {
            f"images{part}/case_{index:03d}_0000{ending}": np.rint(case.image).astype(np.int16),
            f"labels{part}/case_{index:03d}{ending}": case.label,
        }
        for name, array in arrays.items():
            volume = SimpleITK.GetImageFromArray(array)
            volume.SetSpacing(case.spacing[::-1])
            save(volume, folder / name)

    description = {
        "name": "CardiacPhantom",
        "description": "Synthetic short-axis cine MR of the heart, drawn from analytic shapes",
        "channel_names": {"0": "cineMRI"},
        "labels": LABELS,
        "numTraining": train,
        "file_ending": ending,
    }
    write_text(folder / "dataset.json", json.dumps(description, indent=2) + "\n")
    return folder
