"""The whole loss of DIN (paper, eq. 10)."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.autograd.graph import get_gradient_edge
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from nnunet_din.losses.boundary import MultiScaleBoundaryLoss
from nnunet_din.losses.dice import SoftDiceLoss
from nnunet_din.losses.poolings import ADAPTIVE_AVERAGE_POOLINGS, ADAPTIVE_MAX_POOLINGS


class DINLoss(nn.Module):
    """L = alpha CE + beta Dice + L_bnd (eq. 10), computed in fp32 whatever the autocast state.

    Parameters
    ----------
    weight_ce, weight_dice
        The weights alpha and beta.
    weight_boundary
        Weight of L_bnd; 0 leaves it out.
    regions
        Whether the K channels are overlapping regions (sigmoid, binary cross-entropy) or exclusive classes (softmax).
    ignore_label
        Exclusive classes: the label whose pixels do not count, or None. Regions: anything but None says that the
        target's last channel marks those pixels, as in nnU-Net.
    batch_dice, normalized_sobel, pooled_axes
        See :class:`SoftDiceLoss` and :class:`MultiScaleBoundaryLoss`.

    Attributes
    ----------
    parts : dict of str to Tensor
        The terms of the last loss, without their weights and detached: ``ce``, ``dice`` and, if it counts,
        ``boundary``.
    """

    def __init__(
        self,
        weight_ce: float = 0.3,
        weight_dice: float = 0.7,
        weight_boundary: float = 1.0,
        regions: bool = False,
        ignore_label: int | None = None,
        batch_dice: bool = True,
        normalized_sobel: bool = True,
        pooled_axes: Sequence[int] | None = None,
    ):
        super().__init__()
        self.weight_ce = weight_ce
        self.weight_dice = weight_dice
        self.weight_boundary = weight_boundary
        self.regions = regions
        self.ignore_label = ignore_label
        self.dice = SoftDiceLoss(batch_dice)
        self.parts: dict[str, Tensor] = {}
        self.boundary = None
        if weight_boundary:
            self.boundary = MultiScaleBoundaryLoss(normalized=normalized_sobel, pooled_axes=pooled_axes)

    def forward(self, logits: Tensor, target: Tensor) -> Tensor:
        """Compute the loss.

        Parameters
        ----------
        logits
            Network output, shape ``(N, K, *size)``, two or three axes.
        target
            Exclusive classes: label map, shape ``(N, 1, *size)``. Regions: multi-hot, shape ``(N, K, *size)``, or K +
            1 with the ignore mask last.

        Returns
        -------
        Tensor
            Scalar, fp32 (fp64 for fp64 logits).
        """
        return self.of_outputs([logits], target)[0]

    def of_outputs(self, outputs: Sequence[Tensor], target: Tensor) -> Tensor:
        """Compute the loss of each of several outputs for the same images.

        Parameters
        ----------
        outputs
            Logits ``(N, K, *size_i)``. The truth of an output that is smaller than the target is the share of each
            class in a pixel of it; such a pixel counts if all of its area does.
        target
            See :meth:`forward`.

        Returns
        -------
        Tensor
            Shape ``(outputs,)``; :attr:`parts` are those of the first.
        """
        # The meta device, on which memory is counted, has no autocast to switch off.
        with nullcontext() if target.is_meta else torch.autocast(target.device.type, enabled=False):
            truth, valid = self._truth(target, outputs[0].shape[1])
            compared = [(x, *_at_size(truth, valid, x.shape[2:])) for x in outputs]
            sums = (self._overlap(*output) for output in compared)
            ce, *of_dice = (torch.stack(terms) for terms in zip(*sums, strict=True))
            parts = {"ce": ce, "dice": self.dice.of_sums(*of_dice)}
            loss = self.weight_ce * parts["ce"] + self.weight_dice * parts["dice"]  # eq. 10
            if self.boundary is not None:
                parts["boundary"] = torch.stack([self._boundary(*output) for output in compared])
                loss = loss + self.weight_boundary * parts["boundary"]
            self.parts = {name: of_output[0].detach() for name, of_output in parts.items()}
            return loss

    def _overlap(self, logits: Tensor, truth: Tensor, valid: Tensor | None) -> tuple[Tensor, ...]:
        """Cross-entropy (eq. 7) and the sums of soft Dice (eq. 8) of one output; their maps are computed again in the
        backward pass.
        """
        log_likelihood, intersection, volume = checkpoint(
            self._sums, logits, truth, valid, use_reentrant=False, preserve_rng_state=False
        )
        pixels = truth[:, 0].numel() if valid is None else valid.sum().clamp_min(1)
        ce = log_likelihood / (-pixels * (truth.shape[1] if self.regions else 1))
        return ce, intersection, volume, self.dice.sum(truth)

    def _truth(self, target: Tensor, classes: int) -> tuple[Tensor, Tensor | None]:
        """One-hot or multi-hot truth ``(N, K, *size)``, 0 where a pixel does not count, and which pixels do."""
        if self.regions:
            valid = None if self.ignore_label is None else ~target[:, -1:].bool()
            truth = target if valid is None else target[:, :-1]
        else:
            valid = None if self.ignore_label is None else target != self.ignore_label
            labels = torch.arange(classes, device=target.device).view(-1, *[1] * (target.ndim - 2))
            truth = (target == labels).view(torch.uint8)
        return truth if valid is None else truth * valid, valid

    def _sums(self, logits: Tensor, truth: Tensor, valid: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
        """Sum of the log-likelihood over all pixels, and sums for the Dice loss: of the intersection, and of the
        probabilities.
        """
        x = _at_least_fp32(logits)
        if self.regions:
            log_likelihood, p = x * truth - F.softplus(x), x.sigmoid()
            if valid is not None:
                log_likelihood = log_likelihood * valid
        else:
            log_p = x.log_softmax(1)
            log_likelihood, p = log_p * truth, log_p.exp()  # eq. 7
        if valid is not None:
            p = p * valid
        intersection = self.dice.sum(p * truth)  # the last to be computed again: sums keep nothing
        return log_likelihood.sum(), intersection, self.dice.sum(p)

    def _boundary(self, logits: Tensor, truth: Tensor, valid: Tensor | None) -> Tensor:
        """L_bnd of one output. Its gradient is computed with it: what autograd would keep instead are full maps."""
        assert self.boundary is not None
        with torch.enable_grad():
            x = _at_least_fp32(logits.detach().requires_grad_())
            edge = get_gradient_edge(x)
            p = x.sigmoid() if self.regions else x.softmax(1)
        del x  # a whole map where the logits are in half precision
        difference = p.detach() - truth
        gradient = self.boundary.gradient(difference, self.boundary.scales_of(truth, difference.dtype, valid))
        return _WithGradient.apply(logits, (gradient * difference).sum(), torch.autograd.grad(p, edge, gradient)[0])


def _at_least_fp32(x: Tensor) -> Tensor:
    return x.to(torch.promote_types(x.dtype, torch.float32))


def _at_size(truth: Tensor, valid: Tensor | None, size: Sequence[int]) -> tuple[Tensor, Tensor | None]:
    """Truth and valid pixels of an output of this size."""
    if truth.shape[2:] == size:
        return truth, valid
    shares = ADAPTIVE_AVERAGE_POOLINGS[len(size)](truth.float(), size)
    if valid is None:
        return shares, None
    valid = ADAPTIVE_MAX_POOLINGS[len(size)]((~valid).float(), size) == 0
    return shares * valid, valid


class _WithGradient(torch.autograd.Function):
    """``apply(x, value, gradient)`` is the scalar ``value``, whose gradient with respect to ``x`` is known."""

    @staticmethod
    def forward(ctx, x: Tensor, value: Tensor, gradient: Tensor) -> Tensor:
        """Keep the gradient."""
        ctx.save_for_backward(gradient)
        return value

    @staticmethod
    @once_differentiable
    def backward(ctx, grad: Tensor) -> tuple[Tensor, None, None]:
        """Scale the gradient."""
        return grad * ctx.saved_tensors[0], None, None
