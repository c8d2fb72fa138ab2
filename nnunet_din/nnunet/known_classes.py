"""What plans may name: plans of strangers choose the classes that are instantiated."""

from __future__ import annotations

import pydoc
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from nnunet_din.nnunet.planned import PlannedModel

#: Packages whose classes are instantiated, whoever wrote the plans.
KNOWN = ("nnunetv2", "dynamic_network_architectures", "nnunet_din")
#: Where layers, which plans name among the arguments of networks, may come from in addition.
LAYERS = ("torch.nn",)


def check_network(architecture: Mapping) -> None:
    """Check that a network of the plans is made of known classes only, before any of them is instantiated.

    Parameters
    ----------
    architecture
        Entry ``architecture`` of a configuration, inheritance resolved.

    Raises
    ------
    ValueError
        If the network is no class of :data:`KNOWN`, or a layer none of these or of :data:`LAYERS`; the message names
        it.
    """
    arguments = architecture["arch_kwargs"]
    _check_module("network", architecture["network_class_name"], KNOWN)
    for key in architecture.get("_kw_requires_import", ()):
        if arguments[key] is not None:
            _check_module(f"argument {key} of the network", arguments[key], KNOWN + LAYERS)


def _check_module(what: str, name: Any, packages: tuple[str, ...]) -> None:
    """Check that a dotted name is a class of layers that one of the packages itself defines.

    A name may start with a known package and go on to something that this has imported, such as the module ``os``.
    """
    from torch import nn

    found = _locate(name) if isinstance(name, str) and _within(name, packages) else None
    if not (isinstance(found, type) and issubclass(found, nn.Module) and _within(found.__module__, packages)):
        raise ValueError(
            f"The plans name as {what} {name!r}, which is no class of {', '.join(packages[:-1])} or {packages[-1]}, "
            "and others are not instantiated."
        )


def _locate(name: str) -> Any:
    """What nnU-Net takes for the name of a network: classes that have moved are looked for by their last name."""
    import dynamic_network_architectures as architectures
    from nnunetv2.utilities.find_class_by_name import recursive_find_python_class

    found = pydoc.locate(name)
    if found is None:
        folder = f"{architectures.__path__[0]}/architectures"
        module = f"{architectures.__name__}.architectures"
        found = recursive_find_python_class(folder, name.rpartition(".")[2], module)
    return found


def _within(name: str, packages: tuple[str, ...]) -> bool:
    return any(name.startswith(f"{package}.") or name == package for package in packages)


def check_classes(model: PlannedModel) -> None:
    """Check that everything that prediction takes from plans by its name is nnU-Net's or ours.

    Raises
    ------
    ValueError
        If a name is of something else, the message names it; or if these are no plans that nnU-Net can use.
    """
    try:
        check_network(model.configuration_manager.configuration["architecture"])
        for what, name, found in _taken_by_name(model.manager, model.configuration_manager):
            if not _within(getattr(found, "__module__", None) or "", KNOWN):
                raise ValueError(f"The plans name as {what} {name!r}, which is not nnU-Net's or nnunet_din's.")
        _ = model.network_channels
    except ValueError:
        raise
    except Exception as error:  # nnU-Net raises what it pleases about plans that are incomplete
        raise ValueError(f"nnU-Net cannot use the plans ({type(error).__name__}: {error}).") from error


def _taken_by_name(manager: Any, configuration: Any) -> list[tuple[str, Any, Any]]:
    """What it is, its name in the plans, and what nnU-Net finds by that name."""
    import nnunetv2
    from nnunetv2.utilities.find_class_by_name import recursive_find_python_class
    from nnunetv2.utilities.label_handling.label_handling import get_labelmanager_class_from_plans

    plans, content = manager.plans, configuration.configuration
    taken = [
        ("preprocessor", content["preprocessor_name"], configuration.preprocessor_class),
        ("reader of images", plans["image_reader_writer"], manager.image_reader_writer_class),
    ]
    if "label_manager" in plans:
        taken.append(("label manager", plans["label_manager"], get_labelmanager_class_from_plans(plans)))
    for key in ("resampling_fn_data", "resampling_fn_seg", "resampling_fn_probabilities"):
        taken.append((key, content[key], getattr(configuration, key).func))
    folder = f"{nnunetv2.__path__[0]}/preprocessing/normalization"
    for name in content["normalization_schemes"]:
        found = recursive_find_python_class(folder, name, "nnunetv2.preprocessing.normalization")
        taken.append(("normalization", name, found))
    return taken
