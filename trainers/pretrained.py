"""The DIN trainer with pretrained encoders."""

from __future__ import annotations

from nnunet_din.weights import load_pretrained_encoders

from .din_trainer import bare, nnUNetTrainerDIN


class nnUNetTrainerDIN_pretrained(nnUNetTrainerDIN):
    """Starts both encoders from pretrained weights.

    The plans' configuration may say which with a key ``pretrained_encoder``: a timm name with tag, or the path of a
    file or folder (docs/pretrained.md). Without it, timm's default weights of the configuration's encoder are used.
    Resuming, validation and prediction never need the source.
    """

    _restoring = False

    def initialize(self) -> None:
        """Initialize as nnU-Net does, then load the encoders' weights and report what was loaded."""
        super().initialize()
        if not self._restoring:
            network = bare(self.network)
            source = self.configuration_manager.configuration.get("pretrained_encoder", network.encoders[0].name)
            self.print_to_log_file(load_pretrained_encoders(network, source))

    def load_checkpoint(self, *args, **kwargs) -> None:
        """Load a checkpoint as nnU-Net does, without loading pretrained weights first."""
        self._restoring = True
        super().load_checkpoint(*args, **kwargs)
