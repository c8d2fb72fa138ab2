"""``nnUNetv2_train -pretrained_weights`` for DIN's networks."""

from __future__ import annotations

from pathlib import Path

from nnunet_din.data.weight_files import UnreadableFileError, read_checkpoint
from nnunet_din.network.din import DualInteractionNetwork
from nnunet_din.weights import transfer_weights


def load_pretrained_weights(network: DualInteractionNetwork, path: str | Path) -> None:
    """Start a network from a checkpoint of nnU-Net, see :func:`nnunet_din.weights.transfer_weights`.

    What was done is printed, and kept in ``network.origin`` for the log of the training.

    Raises
    ------
    ValueError
        If the file is no checkpoint of nnU-Net, or one of another network; the message names it.
    """
    try:
        checkpoint = read_checkpoint(path)
        weights = checkpoint["network_weights"]
    except FileNotFoundError:
        raise
    except Exception as error:
        reason = error.reason if isinstance(error, UnreadableFileError) else "it has no network_weights"
        raise ValueError(
            f"-pretrained_weights {path}: this is no readable checkpoint of nnU-Net ({reason})."
        ) from error
    try:
        transfer = transfer_weights(network, weights)
    except ValueError as error:
        plans = checkpoint.get("init_args", {}).get("plans", {}).get("plans_name", "plans without a name")
        trainer = checkpoint.get("trainer_name", "an unknown trainer")
        raise ValueError(f"-pretrained_weights {path} ({trainer}, {plans}): {error}") from error
    network.origin = f"Pretrained weights from {path}: {transfer}"
    print(network.origin)
