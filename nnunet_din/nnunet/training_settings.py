"""Hyper-parameters of the training in a configuration of the plans, under ``training``."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass

from nnunet_din.data.names import check_known


@dataclass(frozen=True)
class Kind:
    """What a value may be.

    Attributes
    ----------
    words : str
        For messages.
    type : type
        bool, int or float.
    least, most : float
        Bounds, both allowed.
    optional : bool
        Whether None is allowed, too.
    """

    words: str
    type: type
    least: float = -math.inf
    most: float = math.inf
    optional: bool = False

    def takes(self, value: object) -> bool:
        """Whether a value is allowed."""
        if value is None:
            return self.optional
        if self.type is bool or isinstance(value, bool):
            return self.type is bool and isinstance(value, bool)
        kinds = int if self.type is int else (int, float)
        return isinstance(value, kinds) and self.least <= value <= self.most


_YES_OR_NO = Kind("true or false", bool)
_COUNT = Kind("a whole number from 1 on", int, least=1)
_WEIGHT = Kind("a number from 0 on", float, least=0, most=1e9)
_SHARE = Kind("a number from 0 to 1", float, least=0, most=1)
#: What the plans may set: attributes of :class:`nnunet_din.trainers.din_trainer.nnUNetTrainerDIN`, which explains them.
SETTINGS: dict[str, Kind] = {
    "num_epochs": _COUNT,
    "num_iterations_per_epoch": _COUNT,
    "num_val_iterations_per_epoch": _COUNT,
    "save_every": _COUNT,
    "initial_lr": Kind(
        "a number above 0, at most 1, or null for what suits the encoder", float, least=1e-12, most=1, optional=True
    ),
    "weight_decay": _WEIGHT,
    "warmup": _SHARE,
    "enable_deep_supervision": _YES_OR_NO,
    "auxiliary_weight": _WEIGHT,
    "weight_ce": _WEIGHT,
    "weight_dice": _WEIGHT,
    "weight_boundary": _WEIGHT,
    "boundary_ramp": _SHARE,
    "normalized_sobel": _YES_OR_NO,
    "spatial_only": _YES_OR_NO,
    "enhance_augmented": _YES_OR_NO,
    "p_rotation": _SHARE,
    "max_rotation": Kind("degrees from 0 to 180, or null for nnU-Net's range", float, least=0, most=180, optional=True),
    "mirroring": _YES_OR_NO,
    "seed": Kind("a whole number from 0 on, or null for other random numbers each time", int, least=0, optional=True),
    "tensorboard": _YES_OR_NO,
}


def check_training_settings(settings: object) -> dict:
    """What a configuration of the plans holds under ``training``, checked.

    Raises
    ------
    ValueError
        If a key is not one of :data:`SETTINGS`, or a value not of its kind.
    """
    if not isinstance(settings, Mapping):
        raise ValueError(
            "`training` in the plans must hold names and values, such as num_epochs and 150; "
            f"got {json.dumps(settings)}."
        )
    for key, value in settings.items():
        check_known("setting of the training", key, SETTINGS)
        if not SETTINGS[key].takes(value):
            raise ValueError(f"The training's {key} must be {SETTINGS[key].words}, got {json.dumps(value)}.")
    return dict(settings)
