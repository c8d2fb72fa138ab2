"""What a network of DIN costs: counted by part, and measured on a device."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from nnunet_din.diagnosis.measurement import Measured, Prediction, Step, TrainingStep, cudnn_as_in_training, measure
from nnunet_din.network import DualInteractionNetwork, SegFormerHead
from nnunet_din.network.cost import count_parameters, multiply_adds_by_part, training_memory
from nnunet_din.network.presets import get_preset
from nnunet_din.nnunet.devices import autocast_dtype
from nnunet_din.nnunet.labels import number_of_channels, number_of_classes, read_dataset_json
from nnunet_din.nnunet.plans import read_plans, resolve
from nnunet_din.planners.configurations import PAPER_TABLES, network_arguments

#: Direct children of the network -> name in the report.
PARTS = {"encoders": "encoders", "difms": "DIFMs", "decoder": "decoder"}


@dataclass(frozen=True)
class Profile:
    """A network with a batch of its images.

    Attributes
    ----------
    arguments : dict
        Keyword arguments of :class:`nnunet_din.network.DualInteractionNetwork`.
    size : sequence of int
        Edges of an image, in pixels.
    batch, channels, classes : int
        Images in a batch, channels of an original image, and classes.
    """

    arguments: dict
    size: Sequence[int] = (224, 224)
    batch: int = 1
    channels: int = 1
    classes: int = 4

    def changed(self, **values) -> Profile:
        """The same with other values, those that are not None."""
        return replace(self, **{key: value for key, value in values.items() if value is not None})

    @property
    def input_shape(self) -> tuple[int, ...]:
        """Shape of the batch, enhanced versions included."""
        return (self.batch, self.arguments.get("versions", 2) * self.channels, *self.size)

    def network(self, **changes) -> DualInteractionNetwork:
        """The network with random weights, and with other arguments where they are given."""
        return DualInteractionNetwork(self.channels, self.classes, **{**self.arguments, **changes})

    def parts(self) -> dict[str, dict[str, int]]:
        """Parameters and multiply-adds of one image by part of the network; ``literal`` as the paper prints the
        decoder.
        """
        with torch.device("meta"):
            network = self.network()
        levels: list[Sequence[int]] = []
        network.decoder.register_forward_pre_hook(lambda _, inputs: levels.extend(x.shape[2:] for x in inputs[0]))
        multiply_adds = multiply_adds_by_part(network, (1, *self.input_shape[1:]))
        parts = {}
        for child, part in PARTS.items():
            module, number = getattr(network, child), multiply_adds[child]
            printed = printed_multiply_adds(module, levels) if isinstance(module, SegFormerHead) else number
            parts[part] = {
                "parameters": count_parameters(module),
                "multiply_adds": number,
                "literal_multiply_adds": printed,
            }
        parts["total"] = {key: sum(row[key] for row in parts.values()) for key in parts["decoder"]}
        return parts

    def expected_memory(self) -> dict[str, int]:
        """Count the bytes of a training step, in fp32 and in half precision."""
        with torch.device("meta"):
            network = self.network()
        return {name: training_memory(network, self.input_shape, name == "half") for name in ("fp32", "half")}

    def measured(self, device: torch.device, repeats: int) -> dict[str, Measured]:
        """Time and memory of a prediction and of a training step, with and without checkpointing, in what DIN's
        trainers compute in on this device.
        """
        torch.manual_seed(0)
        x = torch.randn(*self.input_shape, device=device)
        target = torch.randint(0, self.classes, (self.batch, 1, *self.size), device=device)
        dtype = autocast_dtype(device)
        report: dict[str, Measured] = {}
        for name in ("training", "training, checkpointing"):
            network = self.network(checkpointing=name != "training")
            network.add_auxiliary_heads()
            network.to(device)
            steps: dict[str, Step] = {name: TrainingStep(network, x, target, dtype)}
            if name == "training":
                steps = {"prediction": Prediction(network, x, dtype), **steps}
            with cudnn_as_in_training():
                report |= {what: measure(step, repeats, what) for what, step in steps.items()}
        return report


def printed_multiply_adds(head: SegFormerHead, levels: Sequence[Sequence[int]]) -> int:
    """Multiply-adds of the decoder for one image with levels of these sizes, in the order that the paper prints."""
    pixels = [math.prod(size) for size in levels]
    linear = sum(layer.weight.numel() * n for layer, n in zip(head.linear, pixels, strict=True))
    return linear + pixels[0] * (head.fuse.weight.numel() + head.classifier.weight.numel())


def planned_networks(path: Path, configuration: str | None = None) -> dict[str, Profile]:
    """Networks of a plans file, with its batches and with the channels and classes of its data set.

    Parameters
    ----------
    path
        Plans file of a DIN planner. Where no ``dataset.json`` lies beside it, there are 4 classes.
    configuration
        Name of a configuration; None: all of them that hold one of DIN's networks.

    Raises
    ------
    FileNotFoundError, ValueError
        If there is no such file or configuration, or no network of DIN in it.
    """
    plans = read_plans(path)
    data = {"channels": len(plans.get("foreground_intensity_properties_per_channel", ())) or None}
    if (description := path.parent / "dataset.json").is_file():
        content = read_dataset_json(description)
        data = {"channels": number_of_channels(content), "classes": number_of_classes(content)}
    networks = {}
    for name in plans["configurations"] if configuration is None else [configuration]:
        resolved = resolve(plans, name)
        if resolved["architecture"]["network_class_name"].endswith(f".{DualInteractionNetwork.__name__}"):
            profile = Profile(
                resolved["architecture"]["arch_kwargs"], resolved["patch_size"], resolved.get("batch_size", 1)
            )
            networks[name] = profile.changed(**data)
    if not networks:
        where = f"configuration '{configuration}' of " if configuration else ""
        raise ValueError(
            f"There is no {DualInteractionNetwork.__name__} in {where}{path}: use plans made with -pl nnUNetPlannerDIN."
        )
    return networks


def networks_of_tables(preset: str) -> dict[str, Profile]:
    """Networks of the paper's tables, made from a preset, which is ``2d``."""
    base = get_preset(preset)
    derived = {name: network_arguments(base, *changes) for name, changes in PAPER_TABLES.items()}
    return {name: Profile(arguments) for name, arguments in {"2d": base, **derived}.items()}
