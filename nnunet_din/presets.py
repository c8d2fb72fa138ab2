"""Sizes of the network. A preset is the keyword arguments of :class:`nnunet_din.network.DualInteractionNetwork`, as
they stand in the plans. This module loads nothing.
"""

from __future__ import annotations

#: base is the paper's network; depths and widths of each encoder are timm's. timm's layer scale, 1e-6, is for
#: pretrained weights and trainings of hundreds of thousands of steps: AdamW moves it by at most the learning rate a
#: step, so that the blocks of a network with random weights would take no part in its first thousands.
PRESETS: dict[str, dict] = {
    "base": {"encoder": "convnext_base", "layer_scale": 1.0, "decoder_channels": 768},
    "tiny": {"encoder": "convnext_tiny", "layer_scale": 1.0, "decoder_channels": 256},
    "atto": {"encoder": "convnext_atto", "layer_scale": 1.0, "decoder_channels": 128},
    # For trainings from random weights, see PlainEncoder; as quick as nnU-Net's ResEnc-M, see benchmarks/fast.py.
    "fast": {"encoder": "plain_atto", "decoder_channels": 128, "stem_stride": 2, "upsampling": "pixel_shuffle"},
}
