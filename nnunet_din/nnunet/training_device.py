"""How a device trains: nnU-Net's autocast, as DIN's trainers set it, and nnU-Net's choice to compile."""

from __future__ import annotations

from types import SimpleNamespace

import torch


def autocast_dtype(device: torch.device) -> torch.dtype | None:
    """The precision in which DIN's trainers compute on a device.

    Returns
    -------
    torch.dtype or None
        BF16 on a GPU, or fp16 where the GPU has no bf16 of its own; elsewhere None, fp32 throughout, because nnU-Net
        has autocast on GPUs only.
    """
    if device.type != "cuda":
        return None
    return torch.bfloat16 if torch.cuda.is_bf16_supported(including_emulation=False) else torch.float16


def compiles(device: torch.device) -> bool:
    """Whether nnU-Net's trainers compile the network on a device, as their own rule and ``nnUNet_compile`` say."""
    from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer

    # The rule needs nothing of a trainer but these.
    stand_in = SimpleNamespace(device=device, print_to_log_file=lambda *args, **kwargs: None)
    return nnUNetTrainer._do_i_compile(stand_in)
