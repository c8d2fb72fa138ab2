"""What a network costs: parameters, multiply-adds, and the memory of a training step, without computing anything."""

from __future__ import annotations

import copy
from collections.abc import Sequence

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode


def count_parameters(module: nn.Module) -> int:
    """Number of trainable values."""
    return sum(p.numel() for p in module.parameters() if p.requires_grad)


def count_multiply_adds(network: nn.Module, input_shape: Sequence[int]) -> int:
    """Multiply-adds of one forward pass in convolutions, matrix products and attention (the paper's "GFLOPs", times
    1e9).
    """
    network = copy.deepcopy(network).to("meta").eval()
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        network(torch.empty(*input_shape, device="meta"))
    return counter.get_total_flops() // 2


def saved_elements(network: nn.Module, input_shape: Sequence[int]) -> int:
    """Elements of all tensors that autograd keeps between forward and backward, parameters excepted."""
    network = copy.deepcopy(network).to("meta").train()
    parameters = {p.untyped_storage()._cdata for p in network.parameters()}
    kept: dict[int, tuple[int, torch.Tensor]] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage._cdata not in parameters:
            # The tensor itself is held so that its storage's address is not used again while counting.
            kept[storage._cdata] = (storage.nbytes() // tensor.element_size(), tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        network(torch.empty(*input_shape, device="meta"))
    return sum(elements for elements, _ in kept.values())
