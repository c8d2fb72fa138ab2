"""``nnunet-din configure``: add configurations to the plans of a data set, by nnU-Net's own ``inherits_from``."""

from __future__ import annotations

import argparse
import copy
import json
import os
from collections.abc import Mapping, Sequence

from nnunet_din.enhancement.entry import enhancements_of
from nnunet_din.evaluation.discovery import dataset_name, nnunet_folder
from nnunet_din.train_zero_dce import INTENSITIES, weights_file

#: SwinUNet's encoder.
_SWIN = "swin_tiny_patch4_window7_224"

#: The paper's tables: name of the configuration -> (arguments of the network, enhancements by name or None for those of
#: the configuration it is made from).
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


def add_parser(subparsers) -> None:
    """Add the sub-command."""
    parser = subparsers.add_parser(
        "configure",
        help="add configurations with another network or enhancement to the plans",
        description="Add a configuration that inherits from another one and differs in arguments of the network or in "
        "the enhancement. Where only the network differs, the preprocessed data are shared; another enhancement gets "
        "data of its own (nnUNetv2_preprocess).",
    )
    parser.add_argument("-d", dest="dataset", required=True, metavar="ID", help="number or name of the data set")
    parser.add_argument("-p", dest="plans", default="nnUNetDINPlans", help="name of the plans (default: %(default)s)")
    parser.add_argument("--from", dest="base", default="2d", help="configuration to inherit from (default: 2d)")
    parser.add_argument("--name", help="name of the new configuration")
    parser.add_argument(
        "--set",
        nargs="+",
        default=[],
        metavar="KEY=VALUE",
        help="arguments of the network, for example fusion=concat inputs=[0]; values are JSON or words",
    )
    parser.add_argument(
        "--enhancement",
        nargs="+",
        metavar="METHOD",
        help="enhancements in place of the inherited ones; several give the network as many more streams",
    )
    parser.add_argument("--paper-tables", action="store_true", help="add the configurations of the paper's tables")
    parser.add_argument("--dry-run", action="store_true", help="print the configurations, write nothing")
    parser.add_argument("--force", action="store_true", help="replace configurations of the same name")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Add the configurations."""
    if args.paper_tables == bool(args.name):
        raise ValueError("Give either --name with what is different, or --paper-tables.")
    if args.paper_tables and (args.set or args.enhancement):
        raise ValueError("--set and --enhancement go with --name, not with --paper-tables.")
    path = nnunet_folder("nnUNet_preprocessed") / dataset_name(args.dataset) / f"{args.plans}.json"
    if not path.is_file():
        raise FileNotFoundError(f"{path} does not exist: plan with a DIN planner first, or name the plans with -p.")
    plans = json.loads(path.read_text(encoding="utf-8"))
    wanted = PAPER_TABLES if args.paper_tables else {args.name: (_values(args.set), args.enhancement)}
    added, notes = {}, []
    for name, (network, methods) in wanted.items():
        if args.paper_tables and "zero_dce" in (methods or ()) and not weights_file(args.dataset).is_file():
            notes.append(
                f"NOTE: {name} needs the weights of Zero-DCE: `nnunet-din train-zero-dce -d {args.dataset}`, then this "
                "command again."
            )
            continue
        configuration = derive(plans, args.base, name, network, methods)
        there = plans["configurations"].get(name)
        if there == configuration:
            notes.append(f"{name} is there already.")
            continue
        if there is not None and not args.force:
            raise ValueError(f"{path} has a configuration '{name}' already: choose another name, or --force.")
        added[name] = configuration
    print(json.dumps(added, indent=2))
    for note in notes:
        print(note)
    if args.dry_run or not added:
        return 0
    plans["configurations"].update(added)
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    temporary.write_text(json.dumps(plans, indent=4) + "\n", encoding="utf-8")
    temporary.replace(path)
    print(f"Wrote {path}")
    for name, configuration in added.items():
        if "data_identifier" in configuration:
            print(f"Next: nnUNetv2_preprocess -d {args.dataset} -plans_name {args.plans} -c {name}")
        print(f"Train: nnUNetv2_train {args.dataset} {name} 0 -tr nnUNetTrainerDIN -p {args.plans}")
    return 0


def derive(plans: Mapping, base: str, name: str, network: Mapping, methods: Sequence[str] | None = None) -> dict:
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

    Returns
    -------
    dict
        The new configuration, checked by building its network without computing anything.

    Raises
    ------
    ValueError
        If there is no such configuration, it is not one of DIN's, or the network cannot be built or takes another
        patch.
    """
    import torch
    from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

    from nnunet_din.network import DualInteractionNetwork, input_stride

    if base not in plans["configurations"]:
        raise ValueError(f"The plans have no configuration '{base}'. They have: {', '.join(plans['configurations'])}.")
    inherited = PlansManager(copy.deepcopy(dict(plans))).get_configuration(base).configuration
    enhancements = enhancements_of(inherited)
    if not enhancements:
        raise ValueError(f"Configuration '{base}' is not one of a DIN planner: it has no `enhancement`.")
    configuration: dict = {"inherits_from": base}
    if methods is not None:
        enhancements = [_enhancement(method, enhancements, plans["dataset_name"]) for method in methods]
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
    stride = input_stride(**arguments)
    if any(edge % stride for edge in inherited["patch_size"]):
        # The data stay as they are: patches are padded.
        configuration["patch_size"] = [-(-edge // stride) * stride for edge in inherited["patch_size"]]
    return configuration


def network_arguments(inherited: Mapping, network: Mapping, enhancements: Sequence | None = None) -> dict:
    """Arguments of the network of a configuration that inherits from another one.

    Parameters
    ----------
    inherited, network
        Arguments of the other one's network, and those to set.
    enhancements
        Of the configuration, one for each enhanced version; None: the inherited number of them.
    """
    arguments = {**inherited, **network}
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


def _values(texts: Sequence[str]) -> dict:
    values = {}
    for text in texts:
        key, equals, value = text.partition("=")
        if not (key and equals):
            raise ValueError(f"--set takes KEY=VALUE, got '{text}'.")
        try:
            values[key] = json.loads(value)
        except ValueError:
            values[key] = value
    return values
