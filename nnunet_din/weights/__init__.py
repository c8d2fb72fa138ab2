"""Weights of other networks as the start of a DIN: those pretrained on photographs, and those of a trained DIN."""

from nnunet_din.weights.adaptation import adapt_channels
from nnunet_din.weights.pretrained import LoadReport, load_pretrained_encoders
from nnunet_din.weights.transfer import Transfer, transfer_weights

__all__ = ["LoadReport", "Transfer", "adapt_channels", "load_pretrained_encoders", "transfer_weights"]
