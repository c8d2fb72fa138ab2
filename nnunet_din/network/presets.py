"""Sizes of the network. A preset is the keyword arguments of :class:`DualInteractionNetwork`, as they stand in the
plans.
"""

from __future__ import annotations

#: base is the paper's network; depths and widths of each encoder are timm's.
PRESETS: dict[str, dict] = {
    "base": {"encoder": "convnext_base", "decoder_channels": 768},
    "tiny": {"encoder": "convnext_tiny", "decoder_channels": 256},
    "atto": {"encoder": "convnext_atto", "decoder_channels": 128},
    # Images a second as nnU-Net's ResEnc-M: see benchmarks/fast.py.
    "fast": {"encoder": "convnext_atto", "decoder_channels": 128, "stem_stride": 2},
}
