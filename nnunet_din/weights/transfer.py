"""Weights of a trained network as the start of another one: other classes, other channels."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor

from nnunet_din.network.din import AUXILIARY_PREFIX, DualInteractionNetwork
from nnunet_din.weights.adaptation import adapt_channels

#: Beginnings of the names of what depends on the classes. nnU-Net's own networks keep their heads to themselves, too.
HEADS = ("decoder.classifier.", AUXILIARY_PREFIX)


@dataclass(frozen=True)
class Transfer:
    """What became of the weights.

    Attributes
    ----------
    taken : tuple of str
        Entries that were taken over as they are.
    adapted : tuple of str
        Weights of layers that read the image, which were adapted to another number of channels.
    own : tuple of str
        Entries that keep what they had: the segmentation layers.
    channels : tuple of int
        Channels of an image before and now.
    """

    taken: tuple[str, ...]
    adapted: tuple[str, ...]
    own: tuple[str, ...]
    channels: tuple[int, int]

    def __str__(self) -> str:
        lines = [
            f"{len(self.taken)} entries taken over; {len(self.own)} of the segmentation layers start from random "
            "weights, as in nnU-Net."
        ]
        if self.adapted:
            before, now = self.channels
            how = "summed over its channels" if now == 1 else f"repeated in turn and scaled by {before}/{now}"
            lines.append(
                f"The weights are of images with {before} channels and these have {now}: "
                f"{', '.join(self.adapted)} {how}."
            )
        return "\n".join(lines)


def transfer_weights(network: DualInteractionNetwork, weights: Mapping[str, Tensor]) -> Transfer:
    """Start a network from the weights of one that differs in its classes and in the channels of its images only.

    Segmentation layers keep the weights that they have.

    Parameters
    ----------
    network
        The network; changed in place.
    weights
        State dict of the other network, with or without auxiliary heads.

    Raises
    ------
    ValueError
        If the networks differ in more than that; nothing was changed then.
    """
    own = network.state_dict()
    kept = tuple(key for key in own if key.startswith(HEADS))
    missing = sorted(own.keys() - weights.keys() - set(kept))
    extra = sorted(key for key in weights.keys() - own.keys() if not key.startswith(HEADS))
    new, adapted, differing = {}, [], []
    versions = len(network.inputs) if network.one_encoder else 1
    channels = (network.input_channels, network.input_channels)
    for key in own.keys() - set(kept) - set(missing):
        value, goal = weights[key], own[key]
        if value.shape == goal.shape:
            new[key] = value
        elif key.startswith("encoders.") and _differ_in_input_only(value, goal, versions):
            channels = (value.shape[1] // versions, goal.shape[1] // versions)
            new[key] = adapt_channels(value, channels[1], versions)
            adapted.append(key)
        else:
            differing.append(f"{key} {tuple(value.shape)} in the weights, {tuple(goal.shape)} here")
    if missing or extra or differing:
        raise ValueError(
            f"These weights belong to a network of another kind: {len(missing)} entries are missing, {len(extra)} too "
            f"many, {len(differing)} of another shape (such as {(differing + missing + extra)[0]}). Only classes and "
            "channels may differ, not the preset (encoder, widths, fusion, decoder)."
        )
    network.load_state_dict({**own, **new})
    taken = tuple(key for key in own if key in new and key not in adapted)
    return Transfer(taken, tuple(sorted(adapted)), kept, channels)


def _differ_in_input_only(value: Tensor, goal: Tensor, versions: int) -> bool:
    return (
        value.ndim == goal.ndim >= 2
        and value.shape[0] == goal.shape[0]
        and value.shape[2:] == goal.shape[2:]
        and value.shape[1] % versions == 0
    )
