"""nnU-Net trainers of DIN (installed as ``nnunet_din.trainers``)."""
