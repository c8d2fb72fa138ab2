"""Commands of nnU-Net, run one after the other: the demo, whole cross-validations."""
