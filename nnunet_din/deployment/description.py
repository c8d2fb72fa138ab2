"""Everything that a program needs to run an exported model, as JSON."""

from __future__ import annotations

from collections.abc import Mapping

from nnunet_din import __version__
from nnunet_din.nnunet.labels import channel_names
from nnunet_din.nnunet.predictor import TrainedModel

#: Changes when a program that reads older descriptions would go wrong.
FORMAT = 2


def describe(model: TrainedModel, networks: list[str], stride: int) -> dict:
    """Describe what happens to an image before the network, and to the logits after it.

    Parameters
    ----------
    model
        A trained model of DIN on slices.
    networks
        Files of the networks, one for each fold. Their logits are averaged.
    stride
        Height and width of what the network gets must be multiples of it.

    Returns
    -------
    dict
        With the keys that ``docs/deployment.md`` explains.

    Raises
    ------
    ValueError
        If the plans resample in another way than nnU-Net's planners plan.
    """
    plans, configuration = model.plans, model.configuration_manager.configuration
    reader = plans["image_reader_writer"]
    properties = plans["foreground_intensity_properties_per_channel"]
    return {
        "format": FORMAT,
        "made_by": f"nnunet_din {__version__}",
        "model": f"{plans['dataset_name']}, {plans['plans_name']}",
        "networks": networks,
        "reader": reader,
        "orientation": "RAS" if reader.endswith("WithReorient") else None,
        "channels": channel_names(model.dataset_json),
        "labels": model.dataset_json["labels"],
        "regions_class_order": model.dataset_json.get("regions_class_order"),
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
        "enhancement": model.enhancements,
        "patch_size": list(configuration["patch_size"]),
        "stride": stride,
        "tile_step_size": 0.5,
        "mirror_axes": model.mirroring_axes,
    }


def _resampling(configuration: Mapping, what: str) -> dict:
    function = configuration[f"resampling_fn_{what}"]
    if function != "resample_data_or_seg_to_shape":
        raise ValueError(f"Exported models resample as nnU-Net's default does, and these plans use {function}.")
    options = configuration[f"resampling_fn_{what}_kwargs"]
    return {key: options.get(key) for key in ("order", "order_z", "force_separate_z")}
