"""What a trained model costs: counted from its plans, and as its training log says."""

from __future__ import annotations

import math
import statistics
from pathlib import Path

from nnunet_din.nnunet.models import Model
from nnunet_din.nnunet.training_log import read_costs

#: Cost -> whether it is shown as a whole number, and what it is.
COSTS = {
    "parameters": "trainable values",
    "multiply_adds": "multiply-adds of one forward pass of one patch",
    "seconds_per_epoch": "median over the epochs of all folds, from the training logs",
    "peak_memory_gb": "largest GPU memory that torch held in training, from the logs of DIN trainers",
}


def cost_of(model: Model) -> dict[str, float]:
    """The costs of a model, see :data:`COSTS`; NaN where unknown."""
    parameters, multiply_adds = count(model.folder)
    seconds: list[float] = []
    memory: list[float] = []
    for folder in model.folds.values():
        for found, of_fold in zip((seconds, memory), read_costs(folder), strict=True):
            found += of_fold
    return {
        "parameters": parameters,
        "multiply_adds": multiply_adds,
        "seconds_per_epoch": statistics.median(seconds) if seconds else math.nan,
        "peak_memory_gb": max(memory, default=math.nan),
    }


def count(model_folder: Path) -> tuple[float, float]:
    """Parameters, and multiply-adds of one patch, of the network in a model's plans.

    NaN where it cannot be built, and where the plans name classes that are not nnU-Net's or ours; a note says which.
    """
    import torch
    from nnunetv2.utilities.get_network_from_plans import get_network_from_plans

    from nnunet_din.network import DualInteractionNetwork
    from nnunet_din.network.cost import count_multiply_adds, count_parameters
    from nnunet_din.nnunet.planned import PlannedModel

    try:
        configuration_name = model_folder.name.split("__")[2]
        model = PlannedModel.read(model_folder / "plans.json", model_folder / "dataset.json", configuration_name)
        configuration, (channels, classes) = model.configuration_manager, model.network_channels
        names = ("network_arch_class_name", "network_arch_init_kwargs", "network_arch_init_kwargs_req_import")
        with torch.device("meta"):
            network = get_network_from_plans(
                *(getattr(configuration, name) for name in names), channels, classes, deep_supervision=False
            )
        taken = network.versions * channels if isinstance(network, DualInteractionNetwork) else channels
        return count_parameters(network), count_multiply_adds(network, (1, taken, *configuration.patch_size))
    except Exception as error:  # whatever a network of somebody else's raises: the leaderboard goes on without it
        print(f"NOTE: the network of {model_folder.name} cannot be counted: {error}")
        return math.nan, math.nan
