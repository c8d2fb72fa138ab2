"""A loss of several outputs of one network."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from nnunet_din.dimensions import resize


class AuxiliaryLoss(nn.Module):
    """The weighted mean of the loss of the segmentation and those of the auxiliary outputs.

    Auxiliary outputs are resized to the target, which keeps thin structures that a target of their resolution would
    lose. The gradient of each is computed together with its loss, so that between the passes they take hardly any
    memory.

    Parameters
    ----------
    loss
        Loss of one output, called with (logits, target).
    weight
        Weight of each auxiliary output, at least 0; the segmentation has 1.

    Attributes
    ----------
    parts : dict of str to Tensor
        Those of the segmentation's last loss, if it has any, and ``auxiliary``: the mean of the others' losses.
    """

    def __init__(self, loss: nn.Module, weight: float = 0.5):
        super().__init__()
        if weight < 0:
            raise ValueError(f"The weight of the auxiliary outputs must not be negative, got {weight}.")
        self.loss = loss
        self.weight = weight
        self.parts: dict[str, Tensor] = {}

    def forward(self, outputs: Sequence[Tensor], target: Tensor | Sequence[Tensor]) -> Tensor:
        """Compute the loss.

        Parameters
        ----------
        outputs
            Logits: those of the segmentation, ``(N, K, *size)``, then the auxiliary ones, ``(N, K, *size_i)``.
        target
            Of the segmentation, see :class:`DINLoss`; or a sequence that begins with it, as nnU-Net hands it over.

        Returns
        -------
        Tensor
            Scalar.
        """
        if not isinstance(target, Tensor):
            target = target[0]
        segmentation, *auxiliary = outputs
        total = self.loss(segmentation, target)
        # Now: the other outputs go through the same loss.
        self.parts = dict(getattr(self.loss, "parts", {}))
        losses = [
            _WithGradient.apply(lambda x: self.loss(resize(x, target.shape[2:]), target), _at_least_fp32(logits))
            for logits in auxiliary
        ]
        for loss in losses:
            total = total + self.weight * loss
        if losses:
            self.parts["auxiliary"] = torch.stack([loss.detach() for loss in losses]).mean()
        return total / (1 + self.weight * len(auxiliary))


class _WithGradient(torch.autograd.Function):
    """``_WithGradient.apply(function, x)`` is the scalar ``function(x)``, whose gradient is computed at once: what lies
    between the two is freed before the next operation.
    """

    @staticmethod
    def forward(ctx, function: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
        """Call the function, and compute its gradient if somebody will ask for it."""
        if not ctx.needs_input_grad[1]:
            return function(x)
        with torch.enable_grad():
            x = x.detach().requires_grad_()
            value = function(x)
            ctx.save_for_backward(*torch.autograd.grad(value, x))
        return value.detach()

    @staticmethod
    @once_differentiable
    def backward(ctx, grad: Tensor) -> tuple[None, Tensor]:
        """Scale the gradient."""
        (gradient,) = ctx.saved_tensors
        return None, grad * gradient


def _at_least_fp32(x: Tensor) -> Tensor:
    return x.to(torch.promote_types(x.dtype, torch.float32))
