"""Everything that a program needs to run an exported model, as JSON."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from nnunet_din import __version__
from nnunet_din.nnunet.plans import enhancements_of

#: Changes when a program that reads older descriptions would go wrong.
FORMAT = 2
#: nnU-Net's readers, which programs can do without -> directions in which the axes x, y, z of what they read run; None:
#: as they are stored.
READERS = {
    "SimpleITKIO": None,
    "NibabelIO": None,
    "NaturalImage2DIO": None,
    "Tiff3DIO": None,
    "SimpleITKIOWithReorient": "RAS",
    "NibabelIOWithReorient": "RAS",
}


def describe(
    plans: Mapping,
    configuration: Mapping,
    dataset: Mapping,
    networks: Sequence[str],
    stride: int,
    mirror_axes: Sequence[int] | None,
) -> dict:
    """Describe what happens to an image before the network, and to the logits after it.

    Parameters
    ----------
    plans, configuration
        Plans of nnU-Net, and their configuration with everything that it inherits.
    dataset
        ``dataset.json`` of the training.
    networks
        Files of the networks, one for each fold. Their logits are averaged.
    stride
        Height and width of what the network gets must be multiples of it.
    mirror_axes
        Axes of a slice along which the image may be flipped, 0 and 1; None: none.

    Returns
    -------
    dict
        With the keys that ``docs/deployment.md`` explains.

    Raises
    ------
    ValueError
        If the plans resample in another way than nnU-Net's planners plan, or images are read by another reader than
        nnU-Net's own.
    """
    if (reader := plans["image_reader_writer"]) not in READERS:
        raise ValueError(f"The plans read images by {reader}, which programs without nnU-Net do not have.")
    # nnU-Net takes "modality", which was the first version's name, too.
    channels = dataset.get("channel_names") or dataset["modality"]
    properties = plans["foreground_intensity_properties_per_channel"]
    return {
        "format": FORMAT,
        "made_by": f"nnunet_din {__version__}",
        "model": f"{plans['dataset_name']}, {plans['plans_name']}",
        "networks": list(networks),
        "reader": reader,
        "orientation": READERS[reader],
        "channels": list(channels.values()),
        "labels": dict(dataset["labels"]),
        "regions_class_order": dataset.get("regions_class_order"),
        "transpose_forward": list(plans["transpose_forward"]),
        "spacing": list(configuration["spacing"]),
        "normalization": [
            {
                "scheme": scheme,
                "only_nonzero": bool(masked),
                **{key: properties[str(i)][key] for key in ("mean", "std", "percentile_00_5", "percentile_99_5")},
            }
            for i, (scheme, masked) in enumerate(
                zip(configuration["normalization_schemes"], configuration["use_mask_for_norm"], strict=True)
            )
        ],
        "resampling": {
            "image": _resampling(configuration, "data"),
            "mask": _resampling(configuration, "seg"),
            "logits": _resampling(configuration, "probabilities"),
        },
        "enhancement": enhancements_of(configuration),
        "patch_size": list(configuration["patch_size"]),
        "stride": stride,
        "tile_step_size": 0.5,
        "mirror_axes": None if mirror_axes is None else list(mirror_axes),
    }


def _resampling(configuration: Mapping, what: str) -> dict:
    function = configuration[f"resampling_fn_{what}"]
    if function != "resample_data_or_seg_to_shape":
        raise ValueError(f"Exported models resample as nnU-Net's default does, and these plans use {function}.")
    options = configuration[f"resampling_fn_{what}_kwargs"]
    return {key: options.get(key) for key in ("order", "order_z", "force_separate_z")}
