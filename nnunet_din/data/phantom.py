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
from types import SimpleNamespace

import numpy as np

from nnunet_din.data.files import write_text
from nnunet_din.data.images import save
from nnunet_din.data.raw_dataset import refuse_other_files

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


#: What differs between patients, in the order in which it is drawn: lowest and highest value, or lists of them. Lengths
#: in mm, angles in degrees, intensities in arbitrary units; shares of the outer radius (wall), of blood or of muscle.
_ANATOMY: dict[str, tuple] = {
    "radius": (28.0, 36.0),
    "blood": (290.0, 350.0),
    "muscle": (0.46, 0.6),
    "length": (64.0, 76.0),
    "centre": ([-7.0, 4.0], [9.0, 18.0]),
    "tilt": ([-2.0, 0.0], [8.0, 12.0]),
    "rotation": (-22.0, 22.0),
    "wall": (0.25, 0.36),
    "base_taper": (0.0, 0.1),
    "apex_taper": (0.86, 0.93),
    "ellipticity": (0.0, 0.08),
    "ellipse_angle": (0.0, 180.0),
    "outer_wave": ([[-0.025] * 2] * 2, 0.025),
    "inner_wave": ([[-0.045] * 2] * 2, 0.045),
    "rv_width": (22.0, 34.0),
    "rv_arc": (66.0, 84.0),
    "rv_skew": (-0.1, 0.45),
    "rv_end": (0.74, 0.93),
    "rv_sharpness": (0.6, 1.0),
    "rv_wall": (2.5, 4.0),
    "papillary": (0.0, 1.0),
    "papillary_angles": ([30.0, -75.0], [65.0, -35.0]),
    "papillary_radii": ([2.6] * 2, 4.4),
    "fat_rim": (3.0, 9.0),
    "fat_angle": (-50.0, 50.0),
    "mediastinum": ([-56.0, -34.0], [-42.0, -14.0]),
    "mediastinum_radii": ([22.0, 30.0], [34.0, 44.0]),
    "mediastinum_wave": ([[-0.12] * 2] * 2, 0.12),
    "chest_wall": (54.0, 66.0),
    "chest_curve": (140.0, 260.0),
    "chest_fat": (6.0, 16.0),
    "diaphragm": (46.0, 62.0),
    "diaphragm_slope": (-0.25, 0.1),
    "stomach": ([54.0, 10.0], [70.0, 45.0]),
    "stomach_radii": ([14.0] * 2, 24.0),
    "aorta": ([50.0, 48.0], [64.0, 64.0]),
    "aorta_radius": (9.0, 13.0),
    "vessels": ([[-60.0, -79.0, 1.5]] * 16, [60.0, 79.0, 4.5]),
    "rv_blood": (0.85, 1.02),
    "lung": (0.1, 0.18),
    "vessel": (0.4, 0.7),
    "fat": (0.8, 1.2),
    "liver": (0.95, 1.35),
    "stomach_content": (0.35, 1.0),
    "chest_muscle": (0.8, 1.15),
}
_ANGLES = ("rotation", "ellipse_angle", "rv_arc", "papillary_angles", "fat_angle")
_SHARES_OF_BLOOD = ("muscle", "rv_blood", "lung", "vessel", "fat", "stomach_content")
_SHARES_OF_MUSCLE = ("liver", "chest_muscle")


def _draw_anatomy(rng: np.random.Generator) -> SimpleNamespace:
    """What differs between patients, drawn: angles in radians, wall in mm, tones as intensities."""
    drawn = SimpleNamespace(**{name: rng.uniform(*bounds) for name, bounds in _ANATOMY.items()})
    values = vars(drawn)
    values |= {name: np.deg2rad(values[name]) for name in _ANGLES}
    values |= {name: drawn.blood * values[name] for name in _SHARES_OF_BLOOD}
    values |= {name: drawn.muscle * values[name] for name in _SHARES_OF_MUSCLE}
    drawn.wall *= drawn.radius
    return drawn


def _wave(angle: np.ndarray, coefficients: np.ndarray) -> np.ndarray:
    """Relative change of a radius along the angle: second and third harmonic, so that outlines are not circles."""
    return sum(
        cos * np.cos(order * angle) + sin * np.sin(order * angle)
        for order, (cos, sin) in enumerate(coefficients, start=2)
    )


def _heart(anatomy: SimpleNamespace, depth: float, y: np.ndarray, x: np.ndarray) -> dict[str, np.ndarray]:
    """Masks of the heart's parts in one plane.

    Parameters
    ----------
    anatomy : types.SimpleNamespace
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

    if anatomy.papillary < 0.85 and 0.2 < depth < 0.72:
        free_wall = np.pi
        papillary = empty
        for side, radius in zip(anatomy.papillary_angles, anatomy.papillary_radii, strict=True):
            direction = anatomy.rotation + free_wall + side
            reach = max(anatomy.radius * taper - wall - radius - 2.5, 0.0)
            papillary = papillary | (np.hypot(dy + reach * np.sin(direction), dx + reach * np.cos(direction)) < radius)
        parts["papillary"] = papillary & parts["lv"]
    return parts


def _paint(anatomy: SimpleNamespace, depth: float, y: np.ndarray, x: np.ndarray) -> np.ndarray:
    """Noise-free intensities of one plane at the coordinates `y`, `x` (mm)."""
    image = np.full(y.shape, anatomy.lung)
    for vessel_y, vessel_x, radius in anatomy.vessels:
        drift = 10.0 * (depth - 0.5)
        image[np.hypot(y - vessel_y - drift, x - vessel_x - drift) < radius] = anatomy.vessel

    # Fat and vessels of the mediastinum fill the space between the heart and the breastbone, in patches.
    from_middle_y, from_middle_x = y - anatomy.mediastinum[0], x - anatomy.mediastinum[1]
    angle = np.arctan2(from_middle_y, from_middle_x)
    reach = np.hypot(from_middle_y / anatomy.mediastinum_radii[0], from_middle_x / anatomy.mediastinum_radii[1])
    mediastinum = reach < 1.0 + _wave(angle, anatomy.mediastinum_wave)
    waves = np.sin(0.19 * x + 0.07 * y + 3.0 * depth) * np.sin(0.05 * x - 0.16 * y + 5.0 * depth)
    share = np.clip(0.4 + 0.8 * waves, 0.0, 1.0)
    image[mediastinum] = (anatomy.fat + share * (anatomy.muscle - anatomy.fat))[mediastinum]

    dome = anatomy.diaphragm - 14.0 * depth + anatomy.diaphragm_slope * x + 0.004 * (x + 25.0) ** 2
    below = y > dome
    image[below] = anatomy.liver
    stomach_y, stomach_x = anatomy.stomach
    radius_y, radius_x = anatomy.stomach_radii * (0.6 + 0.5 * depth)
    stomach = ((y - stomach_y) / radius_y) ** 2 + ((x - stomach_x) / radius_x) ** 2 < 1.0
    image[stomach] = anatomy.stomach_content

    aorta = np.hypot(y - anatomy.aorta[0], x - anatomy.aorta[1])
    image[aorta < anatomy.aorta_radius + 2.0] = anatomy.muscle
    image[aorta < anatomy.aorta_radius] = anatomy.blood

    chest = -y - anatomy.chest_wall + (x + 15.0) ** 2 / anatomy.chest_curve
    image[chest > 0.0] = anatomy.chest_muscle
    ribs = (chest > 2.0) & (chest < 8.0) & (np.sin(x / 8.0 + 4.0 * depth) > 0.35)
    image[ribs] = 0.5 * (anatomy.fat + anatomy.chest_muscle)
    image[chest > 9.0] = anatomy.fat
    image[chest > 9.0 + anatomy.chest_fat] = 0.03 * anatomy.blood

    heart = _heart(anatomy, depth, y, x)
    image[heart["fat"]] = anatomy.fat
    image[heart["rv_wall"] | heart["myo"]] = anatomy.muscle
    image[heart["rv"]] = anatomy.rv_blood
    image[heart["lv"]] = anatomy.blood
    image[heart["papillary"]] = anatomy.muscle
    return image


def _label(anatomy: SimpleNamespace, depth: float, y: np.ndarray, x: np.ndarray) -> np.ndarray:
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

    image = _degrade(image, rng, pixel, y, anatomy.blood)
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
        If a number is out of range, or the folder already holds other cases, which nnU-Net would count in.
    """
    import SimpleITK

    folder, ending = Path(folder), ".nii.gz"
    files = {}
    for index in range(train + test):
        part = "Tr" if index < train else "Ts"
        image = folder / f"images{part}" / f"case_{index:03d}_0000{ending}"
        files[index] = image, folder / f"labels{part}" / f"case_{index:03d}{ending}"
    refuse_other_files(folder, {path for pair in files.values() for path in pair})
    for index, paths in files.items():
        case = make_case(index, seed=seed, size=size, slices=slices)
        for path, array in zip(paths, (np.rint(case.image).astype(np.int16), case.label), strict=True):
            volume = SimpleITK.GetImageFromArray(array)
            volume.SetSpacing(case.spacing[::-1])
            save(volume, path)
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
