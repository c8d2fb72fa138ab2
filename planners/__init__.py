"""nnU-Net planners and the preprocessor of DIN (installed as ``nnunet_din.planners``)."""
