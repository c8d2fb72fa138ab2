"""The loss of DIN: cross-entropy, soft Dice and the multi-scale boundary loss."""

from nnunet_din.losses.boundary import MultiScaleBoundaryLoss
from nnunet_din.losses.compound import DINLoss
from nnunet_din.losses.dice import SoftDiceLoss
from nnunet_din.losses.supervision import AuxiliaryLoss

__all__ = ["AuxiliaryLoss", "DINLoss", "MultiScaleBoundaryLoss", "SoftDiceLoss"]
