"""Configurations of the plans: those of the paper's tables, and new ones that inherit."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence

from nnunet_din.enhancement.intensity import INTENSITIES
from nnunet_din.nnunet.folders import weights_file
from nnunet_din.nnunet.plans import descendants, enhancements_of, resolve
from nnunet_din.nnunet.training_settings import check_training_settings

#: SwinUNet's encoder.
_SWIN = "swin_tiny_patch4_window7_224"
#: The paper's tables: name of the configuration, for 2d -> (arguments of the network, enhancements by name or None for
#: those of the configuration it is made from).
PAPER_TABLES: dict[str, tuple[dict, list[str] | None]] = {
    # Table 3, parts of DIFM; without L_bnd: -tr nnUNetTrainerDIN_noBoundaryLoss
    "2d_attention": ({"feature_merging": False, "spatial_attention": False}, None),
    "2d_attention_merging": ({"spatial_attention": False}, None),
    "2d_attention_spatial": ({"feature_merging": False}, None),
    # Tables 4, 9 and 10, inputs
    "2d_only_I": ({"inputs": [0]}, None),
    "2d_only_E": ({"inputs": [1]}, None),
    "2d_I_I": ({"inputs": [0, 0]}, None),
    "2d_he": ({}, ["he"]),
    "2d_clahe": ({}, ["clahe"]),
    "2d_zero_dce": ({}, ["zero_dce"]),
    # Tables 3 and 5, fusion
    "2d_input_concat": ({"fusion": "input"}, None),
    "2d_concat": ({"fusion": "concat"}, None),
    # Table 5, the same with other encoders
    "2d_swin_only_I": ({"encoder": _SWIN, "inputs": [0]}, None),
    "2d_swin_input_concat": ({"encoder": _SWIN, "fusion": "input"}, None),
    "2d_swin_concat": ({"encoder": _SWIN, "fusion": "concat"}, None),
    "2d_swin": ({"encoder": _SWIN}, None),
    "2d_fct_only_I": ({"encoder": "fct", "inputs": [0]}, None),
    "2d_fct_input_concat": ({"encoder": "fct", "fusion": "input"}, None),
    "2d_fct_concat": ({"encoder": "fct", "fusion": "concat"}, None),
    "2d_fct": ({"encoder": "fct"}, None),
    # Table 6, number of DIFMs
    "2d_1_difm": ({"fused_stages": 1}, None),
    "2d_2_difms": ({"fused_stages": 2}, None),
    "2d_3_difms": ({"fused_stages": 3}, None),
    # Table 7, direction
    "2d_only_IE": ({"queries": [0]}, None),
    "2d_only_EI": ({"queries": [1]}, None),
    # Tables 11 and 12, decoder
    "2d_emcad": ({"decoder": "emcad"}, None),
    # Beyond the paper: several enhanced versions at once
    "2d_fuzzy_clahe": ({}, ["fuzzy", "clahe"]),
}


def paper_tables(base: str) -> dict[str, tuple[dict, list[str] | None]]:
    """:data:`PAPER_TABLES` with the names of configurations that are made from ``base``: ``3d_fullres_concat`` from
    ``3d_fullres``.
    """
    return {base + name.removeprefix("2d"): entry for name, entry in PAPER_TABLES.items()}


def derive_paper_tables(plans: Mapping, base: str) -> tuple[dict[str, dict], list[str]]:
    """Configurations of the paper's tables that inherit from ``base``, by name, and notes about those left out.

    Those that are ``base`` itself are left out, and of volumes those that have a form for slices only.

    Raises
    ------
    ValueError
        See :func:`derive`.
    """
    from nnunet_din.network.dimensions import NoVolumesError

    same = {"inherits_from": base, "architecture": resolve(plans, base)["architecture"]}
    new: dict[str, dict] = {}
    notes = []
    for name, (network, methods) in paper_tables(base).items():
        if "zero_dce" in (methods or ()) and not weights_file(plans["dataset_name"]).is_file():
            command = f"nnunet-din train-zero-dce -d {plans['dataset_name']}"
            notes.append(f"NOTE: {name} needs the weights of Zero-DCE: `{command}`, then this command again.")
            continue
        try:
            new[name] = derive(plans, base, name, network, methods)
        except NoVolumesError as error:
            notes.append(f"NOTE: {name} has no form for volumes. {error}")
            continue
        if new[name] == same:
            del new[name]
            notes.append(f"NOTE: {name} is {base} itself.")
    return new, notes


def may_be_added(plans: Mapping, name: str, configuration: dict, replace: bool) -> bool:
    """Whether a configuration is new to the plans, or another one of the same name may be replaced by it.

    Raises
    ------
    ValueError
        If there is another one that may not be replaced, or from which others inherit.
    """
    present = plans["configurations"].get(name, configuration)
    if name in plans["configurations"] and present != configuration:
        if not replace:
            raise ValueError(f"The plans have a configuration '{name}' already: choose another name, or --force.")
        if inheriting := descendants(plans, name):
            raise ValueError(
                f"{', '.join(inheriting)} of the plans inherit from '{name}', which cannot be replaced for this "
                "reason: choose another name."
            )
    return name not in plans["configurations"] or present != configuration


def derive(
    plans: Mapping,
    base: str,
    name: str,
    network: Mapping,
    methods: Sequence[str] | None = None,
    training: Mapping | None = None,
    batch_size: int | None = None,
    parameters: Mapping | None = None,
) -> dict:
    """A configuration that inherits from ``base`` and differs from it.

    Parameters
    ----------
    plans
        Plans of a DIN planner; not changed.
    base, name
        Configuration to inherit from; name of the new one.
    network
        Arguments of :class:`nnunet_din.network.DualInteractionNetwork` to set.
    methods
        Names of the enhancements; None: the inherited ones.
    training
        Settings of the training in addition to inherited ones, see :mod:`nnunet_din.nnunet.training_settings`.
    batch_size
        Patches in a batch, 1 or more; None: as many as inherited.
    parameters
        Parameters of the enhancements to set, see :func:`nnunet_din.enhancement.enhance`.

    Returns
    -------
    dict
        The new configuration, checked by building its network without computing anything.

    Raises
    ------
    ValueError
        If there is no such configuration, it is not one of DIN's, the network cannot be built, a setting of the
        training or a parameter of the enhancement is unknown, or the batch is empty.
    """
    import torch

    from nnunet_din.network import DualInteractionNetwork, input_strides

    inherited = resolve(plans, base)
    enhancements = enhancements_of(inherited)
    if "versions" in network:
        raise ValueError("`versions` follows from the enhancements, one more than there are: name them instead.")
    if not enhancements:
        raise ValueError(f"Configuration '{base}' is not one of a DIN planner: it has no `enhancement`.")
    configuration: dict = {"inherits_from": base}
    if training:
        configuration["training"] = check_training_settings({**inherited.get("training", {}), **training})
    if batch_size is not None:
        if batch_size < 1:
            raise ValueError(f"A batch holds 1 patch or more, not {batch_size}.")
        configuration["batch_size"] = batch_size
    if methods is not None or parameters:
        methods = methods or [entry["method"] for entry in enhancements]
        enhancements = [_enhancement(method, enhancements, plans["dataset_name"]) for method in methods]
        enhancements = [{**entry, **(parameters or {})} for entry in enhancements]
        for entry in enhancements:
            _check_enhancement(entry)
        configuration |= {
            "data_identifier": f"{plans['plans_name']}_{name}",
            "enhancement": enhancements if len(enhancements) > 1 else enhancements[0],
        }
    architecture = copy.deepcopy(inherited["architecture"])
    arguments = network_arguments(architecture["arch_kwargs"], network, enhancements)
    configuration["architecture"] = {**architecture, "arch_kwargs": arguments}
    try:
        with torch.device("meta"):
            DualInteractionNetwork(1, 2, **arguments)
    except TypeError as error:
        raise ValueError(f"The network of '{name}' cannot be built: {error}.") from error
    patch, strides = inherited["patch_size"], input_strides(**arguments)
    if len(strides) != len(patch):
        raise ValueError(
            f"This network is for images with {len(strides)} axes, and the patches of '{base}' have {len(patch)}: "
            "leave `strides` and the encoder as they are, or set both to what has as many."
        )
    if any(edge % stride for edge, stride in zip(patch, strides, strict=True)):
        # The data stay as they are: patches are padded.
        configuration["patch_size"] = [-(-edge // stride) * stride for edge, stride in zip(patch, strides, strict=True)]
    return configuration


def network_arguments(inherited: Mapping, network: Mapping, enhancements: Sequence | None = None) -> dict:
    """Arguments of the network of a configuration that inherits from another one.

    Parameters
    ----------
    inherited, network
        Arguments of the other one's network, and those to set.
    enhancements
        Enhancements of the configuration, one for each enhanced version; None: as many as inherited.
    """
    from nnunet_din.network.encoders import has_layer_scale

    arguments = {**inherited, **network}
    if "encoder" in network and "layer_scale" not in network and not has_layer_scale(network["encoder"]):
        arguments.pop("layer_scale", None)
    if enhancements is not None:
        arguments.pop("versions", None)
        if len(enhancements) != 1:
            arguments["versions"] = 1 + len(enhancements)
    return arguments


def _enhancement(method: str, inherited: Sequence[Mapping], dataset: str) -> dict:
    """The inherited enhancement of that name, or the method's own defaults with the inherited intensities."""
    from nnunet_din.enhancement import get_enhancement

    get_enhancement(method)
    for entry in inherited:
        if entry["method"] == method:
            return dict(entry)
    shared = {key: inherited[0].get(key, value) for key, value in INTENSITIES.items()}
    if method == "zero_dce":
        from nnunet_din.enhancement.zero_dce import zero_dce_parameters

        shared |= zero_dce_parameters(weights_file(dataset))
    return {"method": method, **shared, "color": inherited[0].get("color", False)}


def _check_enhancement(entry: Mapping) -> None:
    """Enhance a small image, whose errors are those of the parameters."""
    import numpy as np

    from nnunet_din.enhancement import enhance

    try:
        enhance(np.random.default_rng(0).normal(size=(3, 4, 8, 8)), **entry)
    except TypeError as error:
        raise ValueError(f"The enhancement {dict(entry)} cannot be computed: {error}.") from error
