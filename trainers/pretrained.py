"""The DIN trainer with pretrained encoders."""

from __future__ import annotations

from torch._dynamo import OptimizedModule
from torch.nn.parallel import DistributedDataParallel

from nnunet_din.network import load_pretrained_encoders
from nnunet_din.trainers.din_trainer import nnUNetTrainerDIN


class nnUNetTrainerDIN_pretrained(nnUNetTrainerDIN):
    """Starts both encoders from pretrained weights.

    The plans' configuration may say which with a key ``pretrained_encoder``: a timm name with tag, or the path of a
    file. Without it, timm's default weights of the configuration's encoder are used. Resuming, validation and
    prediction never need the source.
    """

    _restoring = False

    def initialize(self) -> None:
        """As in nnU-Net, then load the encoders' weights and report what was loaded."""
        super().initialize()
        if not self._restoring:
            network = self.network.module if isinstance(self.network, DistributedDataParallel) else self.network
            network = network._orig_mod if isinstance(network, OptimizedModule) else network
            source = self.configuration_manager.configuration.get("pretrained_encoder", network.encoders[0].name)
            self.print_to_log_file(load_pretrained_encoders(network, source))

    def load_checkpoint(self, filename_or_checkpoint: dict | str) -> None:
        """As in nnU-Net, without loading pretrained weights first."""
        self._restoring = True
        super().load_checkpoint(filename_or_checkpoint)
