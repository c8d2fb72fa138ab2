"""A training step on a GPU that is not there: tensors without memory take the way of a GPU through the code."""

from __future__ import annotations

from contextlib import contextmanager

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from nnunet_din.losses import AuxiliaryLoss, DINLoss
from nnunet_din.network import PRESETS, DualInteractionNetwork
from nnunet_din.network.cost import _AsOnDevices, _backward
from nnunet_din.network.fusion import attention
from nnunet_din.network.presets import preset_for_volumes

#: Operations that make the host wait for the device.
WAITING = {"aten::_local_scalar_dense", "aten::nonzero", "aten::item", "aten::is_nonzero", "aten::masked_select"}
#: Preset, axes of the images, and autocast's type: for daily work those that have all layers but ConvNeXt's in volumes.
QUICK = [("fast", 2, torch.bfloat16), ("fast", 3, torch.float16), ("atto", 2, torch.bfloat16)]
CASES = pytest.mark.parametrize(
    ("preset", "dimensions", "dtype"),
    [
        *QUICK,
        *(
            pytest.param(preset, dimensions, torch.float16, marks=pytest.mark.slow)
            for preset in ("atto", "tiny", "base")
            for dimensions in (2, 3)
        ),
    ],
)


class OnTheDevice(TorchDispatchMode):
    """Refuses what a training step on a device must not do."""

    def __init__(self, device: str):
        super().__init__()
        self.device = device

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func._schema.name
        assert name not in WAITING, f"{name} waits for the device"
        # For these, torch 2.14 compiles a kernel, even in eager mode.
        assert name != "aten::bmm" or args[0].shape[2] > 1, "a batched outer product needs a compiler"
        result = func(*args, **(kwargs or {}))
        for t in tree_leaves((args, kwargs, result)):
            if isinstance(t, torch.Tensor):
                assert t.device.type == self.device, f"{name} on {t.device}"
        return result


@contextmanager
def autocast(dtype):
    """``torch.autocast`` switches itself off where there is no GPU."""
    torch.set_autocast_enabled("cuda", True)
    torch.set_autocast_dtype("cuda", dtype)
    try:
        yield
    finally:
        torch.set_autocast_enabled("cuda", False)
        torch.clear_autocast_cache()


def network_and_size(preset, dimensions):
    """On the meta device, with few channels where they cost time only, and windows that are padded."""
    if dimensions == 2:
        arguments, size = PRESETS[preset], (48, 80)
    else:
        poolings, kernels = [[1, 1, 1], [1, 2, 2], *[[2, 2, 2]] * 3], [[1, 3, 3], *[[3, 3, 3]] * 4]
        arguments, size = preset_for_volumes(preset, poolings, kernels), (8, 32, 48)
    with torch.device("meta"):
        network = DualInteractionNetwork(1, 3, **{**arguments, "decoder_channels": 16})
        network.add_auxiliary_heads()
        return network, size


@CASES
def test_forward_pass(preset, dimensions, dtype):
    network, size = network_and_size(preset, dimensions)
    with FakeTensorMode(allow_non_fake_inputs=True), torch.device("cuda"):
        network.to_empty(device="cuda")
        x = torch.empty(2, 2, *size)
        with OnTheDevice("cuda"), autocast(dtype):
            outputs = network(x)
    assert {(output.device.type, output.dtype) for output in outputs} == {("cuda", dtype)}


@CASES
def test_training_step(preset, dimensions, dtype):
    """Forward pass in half precision, loss and backward pass: a gradient in fp32 for every weight."""
    network, size = network_and_size(preset, dimensions)
    with torch.device("meta"):
        loss = AuxiliaryLoss(DINLoss())
        x, target = torch.empty(2, 2, *size), torch.empty(2, 1, *size, dtype=torch.int16)
    with OnTheDevice("meta"):
        with _AsOnDevices(dtype):
            outputs = network(x)
        value = loss(outputs, [target])
        with _AsOnDevices(dtype):
            _backward(value)
    assert {output.dtype for output in outputs} == {dtype} and value.dtype == torch.float32
    for name, p in network.named_parameters():
        assert p.grad is not None and p.grad.dtype == torch.float32, name


def test_attention_in_parts_is_the_same(monkeypatch):
    """A GPU that is asked for more than 65535 blocks refuses; fails if windows, or masks, are mixed up."""
    torch.manual_seed(0)
    q, k, v = torch.randn(3, 10, 2, 6, 4).unbind()
    mask = torch.rand(10, 1, 1, 6) > 0.3
    mask[..., 0] = True
    whole = [attention.attend(q, k, v, m) for m in (None, mask)]
    monkeypatch.setattr(attention, "MOST_WINDOWS", 4)
    for m, expected in zip((None, mask), whole, strict=True):
        torch.testing.assert_close(attention.attend(q, k, v, m), expected)
