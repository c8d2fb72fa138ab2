"""Segment an image by an exported DIN model, without torch and without nnU-Net.

    nnunet-din export MODEL_FOLDER exported --format onnx
    python examples/onnx_predict.py exported case_0000.nii.gz [case_0001.nii.gz ...] -o case.nii.gz

One file a channel, in the order of the training, or one picture in colour. Needs numpy, scipy, SimpleITK and
onnxruntime, and of this package the enhancement (nnunet_din.enhancement), which needs no more than numpy. Each step is
nnU-Net's: crop, normalize, resample, enhance, tiles with mirroring, resample the logits, label.
"""

from __future__ import annotations

import argparse
import itertools
import json
from pathlib import Path

import numpy as np
import onnxruntime
import SimpleITK as sitk
from scipy.ndimage import binary_fill_holes, gaussian_filter, map_coordinates, zoom

from nnunet_din.enhancement import enhance_slices

#: nnU-Net resamples axes apart from each other where spacings differ by more than this.
ANISOTROPY = 3


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path, help="folder that nnunet-din export wrote")
    parser.add_argument("images", type=Path, nargs="+", help="one file for each channel, or one picture in colour")
    parser.add_argument("-o", dest="out", type=Path, required=True, help="label map to write")
    parser.add_argument("--no-mirroring", action="store_true", help="four times as fast, a little less accurate")
    args = parser.parse_args()
    if args.out.exists() and any(args.out.samefile(image) for image in args.images):
        raise SystemExit(f"{args.out} is one of the images: choose another name for the label map.")
    model = json.loads((args.model / "model.json").read_text(encoding="utf-8"))
    if model["format"] not in (1, 2):
        raise SystemExit(f"{args.model}/model.json has format {model['format']}; this program reads formats 1 and 2.")
    if args.no_mirroring:
        model["mirror_axes"] = None
    images = read(args.images, model)
    sessions = [onnxruntime.InferenceSession(args.model / name) for name in model["networks"]]
    sitk.WriteImage(label_map(images, model, sessions), str(args.out), useCompression=True)


def label_map(images: list[sitk.Image], model: dict, sessions: list) -> sitk.Image:
    """Label map on the grid of the images, which the network may see turned."""
    turned = model.get("orientation")
    stored = sitk.DICOMOrientImageFilter.GetOrientationFromDirectionCosines(images[0].GetDirection()) if turned else ""
    if turned:
        images = [sitk.DICOMOrient(image, turned) for image in images]
    result = sitk.GetImageFromArray(segment(images, model, sessions))
    result.CopyInformation(images[0])
    return sitk.DICOMOrient(result, stored) if turned else result


def read(paths: list[Path], model: dict) -> list[sitk.Image]:
    """Images as they are stored, with the spacing that nnU-Net takes."""
    images = [sitk.ReadImage(str(path)) for path in paths]
    if sum(image.GetNumberOfComponentsPerPixel() for image in images) != len(model["channels"]):
        raise SystemExit(f"The model takes {len(model['channels'])} channels: {', '.join(model['channels'])}.")
    if model.get("reader") == "NaturalImage2DIO":
        for image in images:
            image.SetSpacing((1, 1))
    if model.get("reader") == "Tiff3DIO":  # beside CASE_0000.tif, CASE.json may hold its spacing along z, y and x
        spacing = paths[0].with_name(f"{paths[0].stem.removesuffix('_0000')}.json")
        for image in images:
            image.SetSpacing(json.loads(spacing.read_text())["spacing"][::-1] if spacing.is_file() else (1, 1, 1))
    return images


def segment(images: list[sitk.Image], model: dict, sessions: list) -> np.ndarray:
    """Label map of an image, one channel a file or colours in one, in the order of its pixels in memory."""
    arrays = [sitk.GetArrayFromImage(image).astype(np.float32) for image in images]
    if images[0].GetNumberOfComponentsPerPixel() > 1:
        arrays = list(np.moveaxis(np.concatenate(arrays, axis=-1), -1, 0))
    data = np.stack(arrays)
    spacing = list(images[0].GetSpacing())[::-1]
    if not np.isfinite(data).all():
        raise SystemExit("The image has NaN or infinite voxels.")
    if flat := data.ndim == 3:  # a 2-D image is a volume of one slice
        data, spacing = data[:, None], [999.0, *spacing]
    axes = model["transpose_forward"]
    data = data.transpose(0, *(axis + 1 for axis in axes))
    spacing = [spacing[axis] for axis in axes]
    whole = data.shape[1:]

    inside = binary_fill_holes((data != 0).any(axis=0))
    found = np.argwhere(inside)
    box = tuple(slice(a, b + 1) for a, b in zip(found.min(axis=0), found.max(axis=0), strict=True))
    data, inside = data[(slice(None), *box)], inside[box]
    cropped = data.shape[1:]

    data = np.stack([normalize(x, how, inside) for x, how in zip(data, model["normalization"], strict=True)])
    wanted = [spacing[0], *model["spacing"]] if len(model["spacing"]) == 2 else model["spacing"]
    shape = [round(a / b * n) for a, b, n in zip(spacing, wanted, cropped, strict=True)]
    data = resample(data, shape, spacing, wanted, **model["resampling"]["image"])
    mask = None
    if any(how["only_nonzero"] for how in model["normalization"]):
        mask = resample(inside[None].astype(np.float32), shape, spacing, wanted, **model["resampling"]["mask"])
        mask = mask[0] >= 0.5
    data = np.concatenate([data, *(enhance(data, entry, mask, model) for entry in model["enhancement"])])

    logits = np.mean([predict(data, model, session) for session in sessions], axis=0)
    logits = resample(logits, cropped, wanted, spacing, **model["resampling"]["logits"])
    labels = np.zeros(whole, np.uint8 if len(model["labels"]) < 255 else np.uint16)
    labels[box] = label(logits, model)
    labels = labels.transpose(np.argsort(axes))
    return labels[0] if flat else labels


def normalize(x: np.ndarray, how: dict, inside: np.ndarray) -> np.ndarray:
    """One channel, by the scheme that nnU-Net planned for it."""
    x = x.astype(np.float32)
    if how["scheme"] == "ZScoreNormalization":
        part = inside if how["only_nonzero"] else np.ones_like(inside)
        x[part] = (x[part] - x[part].mean()) / max(x[part].std(), 1e-8)
    elif how["scheme"] == "CTNormalization":
        x = (x.clip(how["percentile_00_5"], how["percentile_99_5"]) - how["mean"]) / max(how["std"], 1e-8)
    elif how["scheme"] == "RescaleTo01Normalization":
        x -= x.min()
        x /= max(x.max(), 1e-8)
    elif how["scheme"] == "RGBTo01Normalization":
        x /= 255
    elif how["scheme"] != "NoNormalization":
        raise SystemExit(f"Unknown normalization {how['scheme']}.")
    return x


def enhance(data: np.ndarray, entry: dict, mask: np.ndarray | None, model: dict) -> np.ndarray:
    """Enhanced channels; where normalization knows the image only, they are zero outside it."""
    enhanced = enhance_slices(data, mask=mask, **entry)
    for x, how in zip(enhanced, model["normalization"], strict=True):
        if how["only_nonzero"]:
            x[~mask] = 0
    return enhanced


def resample(data, shape, spacing, wanted, order, order_z, force_separate_z) -> np.ndarray:
    """Channels first; slices apart from each other where the spacing is anisotropic."""
    if tuple(shape) == data.shape[1:]:
        return data
    axis = None
    for candidate in (spacing, wanted) if force_separate_z is None else (spacing,) * bool(force_separate_z):
        if force_separate_z or max(candidate) / min(candidate) > ANISOTROPY:
            coarse = np.flatnonzero(np.isclose(candidate, max(candidate), rtol=0, atol=0))
            axis = int(coarse[0]) if len(coarse) == 1 else None
            break
    return np.stack([resample_channel(x, shape, axis, order, order_z) for x in data]).astype(data.dtype)


def resample_channel(x: np.ndarray, shape, axis: int | None, order: int, order_z: int) -> np.ndarray:
    """One channel; along ``axis`` by ``order_z``, within the slices across it by ``order``."""
    if axis is None:
        return resize(x, shape, order)
    within = [n for i, n in enumerate(shape) if i != axis]
    x = np.stack([resize(part, within, order) for part in np.moveaxis(x, axis, 0)], axis=axis)
    if x.shape[axis] != shape[axis]:
        grid = np.meshgrid(*map(np.arange, shape), indexing="ij")
        scales = [a / b for a, b in zip(x.shape, shape, strict=True)]
        read = [scale * (pixel + 0.5) - 0.5 for scale, pixel in zip(scales, grid, strict=True)]
        x = map_coordinates(x, read, order=order_z, mode="nearest")
    return x


def resize(x: np.ndarray, shape, order: int) -> np.ndarray:
    """Spline of an order, within the range of what it is made from."""
    x = x.astype(float)
    factors = [a / b for a, b in zip(shape, x.shape, strict=True)]
    return zoom(x, factors, order=order, mode="nearest", grid_mode=True).clip(x.min(), x.max())


def predict(data: np.ndarray, model: dict, session) -> np.ndarray:
    """Logits of a volume ``(C, slices, H, W)``, tile by tile, averaged by a Gaussian."""
    patch = model["patch_size"]
    margins = [max(0, p - n) for p, n in zip(patch, data.shape[2:], strict=True)]
    padding = [(m // 2, m - m // 2) for m in margins]
    data = np.pad(data, ((0, 0), (0, 0), *padding))
    weight = np.zeros(patch)
    weight[tuple(p // 2 for p in patch)] = 1
    weight = gaussian_filter(weight, [p / 8 for p in patch], mode="constant")
    weight = (10 * weight / weight.max()).astype(np.float32)
    weight[weight == 0] = weight[weight > 0].min()
    total, weights = None, np.zeros(data.shape[1:], np.float32)
    starts = [steps(n, p, model["tile_step_size"]) for n, p in zip(data.shape[2:], patch, strict=True)]
    for z, y, x in itertools.product(range(data.shape[1]), *starts):
        tile = np.s_[:, z, y : y + patch[0], x : x + patch[1]]
        logits = mirrored(data[tile][None].astype(np.float32), model["mirror_axes"], session)[0]
        if total is None:
            total = np.zeros((len(logits), *data.shape[1:]), np.float32)
        total[tile] += logits * weight
        weights[tile[1:]] += weight
    inner = tuple(slice(a, n - b) for (a, b), n in zip(padding, data.shape[2:], strict=True))
    return (total / weights)[(slice(None), slice(None), *inner)]


def steps(size: int, patch: int, step: float) -> list[int]:
    """Where tiles begin along an axis: evenly, at most ``step`` of a patch apart."""
    count = int(np.ceil((size - patch) / (patch * step))) + 1
    return [round((size - patch) * i / max(1, count - 1)) for i in range(count)]


def mirrored(x: np.ndarray, axes: list[int] | None, session) -> np.ndarray:
    """Mean of the logits of an image and of its mirror images."""
    axes = axes or []
    flips = [c for n in range(len(axes) + 1) for c in itertools.combinations([a + 2 for a in axes], n)]
    # Contiguous: onnxruntime reads the memory, not the view.
    results = [np.flip(session.run(None, {"image": np.ascontiguousarray(np.flip(x, c))})[0], c) for c in flips]
    return np.mean(results, axis=0)


def label(logits: np.ndarray, model: dict) -> np.ndarray:
    """The class with the largest logit; of regions, the last one in their order that is more likely than not."""
    if model["regions_class_order"] is None:
        return logits.argmax(axis=0)
    labels = np.zeros(logits.shape[1:], np.uint16)
    for region, value in zip(logits, model["regions_class_order"], strict=True):
        labels[region > 0] = value
    return labels


if __name__ == "__main__":
    main()
