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

from nnunet_din.dimensions import resize
from nnunet_din.losses.boundary import MultiScaleBoundaryLoss, Scale
from nnunet_din.losses.dice import SoftDiceLoss


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

        Full maps of one output at a time are in memory: for the backward pass, those of cross-entropy and Dice are
        computed again, and of L_bnd the gradient is kept, at the output's own resolution.

        Parameters
        ----------
        outputs
            Logits ``(N, K, *size_i)``, which are resized linearly to the size of the target.
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
            # Of an output as large as the target, a copy in fp32 would stay: it is made where it is used.
            outputs = [x if x.shape == truth.shape else _at_least_fp32(x) for x in outputs]
            parts = self._overlaps(outputs, truth, valid) | self._boundaries(outputs, truth, valid)
            self.parts = {name: of_output[0].detach() for name, of_output in parts.items()}
            loss = self.weight_ce * parts["ce"] + self.weight_dice * parts["dice"]  # eq. 10
            return loss + self.weight_boundary * parts["boundary"] if "boundary" in parts else loss

    def _overlaps(self, outputs: Sequence[Tensor], truth: Tensor, valid: Tensor | None) -> dict[str, Tensor]:
        """Cross-entropy (eq. 7) and soft Dice (eq. 8) of each output."""
        sums = [checkpoint(self._sums, x, truth, valid, use_reentrant=False, preserve_rng_state=False) for x in outputs]
        log_likelihood, intersection, volume = (torch.stack(terms) for terms in zip(*sums, strict=True))
        n = truth[:, :1].numel() if valid is None else valid.sum().clamp_min(1)
        ce = log_likelihood / (-n * (truth.shape[1] if self.regions else 1))
        return {"ce": ce, "dice": self.dice.of_sums(intersection, volume, self.dice.sum(truth))}

    def _boundaries(self, outputs: Sequence[Tensor], truth: Tensor, valid: Tensor | None) -> dict[str, Tensor]:
        """L_bnd (eq. 9) of each output; nothing if it does not count."""
        if self.boundary is None:
            return {}
        scales = self.boundary.scales_of(truth, torch.promote_types(outputs[0].dtype, torch.float32), valid)
        # The largest, which needs most memory itself, comes last.
        return {"boundary": torch.stack([self._boundary(x, truth, scales) for x in reversed(outputs)][::-1])}

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

    def _probabilities(self, logits: Tensor, truth: Tensor) -> Tensor:
        x = _resized(logits, truth)
        return x.sigmoid() if self.regions else x.softmax(1)

    def _sums(self, logits: Tensor, truth: Tensor, valid: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
        """Sum of the log-likelihood over all pixels, and sums for the Dice loss: of the intersection, and of the
        probabilities.
        """
        if self.regions:
            x = _resized(logits, truth)
            log_likelihood, p = x * truth - F.softplus(x), x.sigmoid()
            if valid is not None:
                log_likelihood = log_likelihood * valid
        else:
            log_p = _resized(logits, truth).log_softmax(1)
            log_likelihood, p = log_p * truth, log_p.exp()  # eq. 7
        if valid is not None:
            p = p * valid
        intersection = self.dice.sum(p * truth)  # the last to be computed again: sums keep nothing
        return log_likelihood.sum(), intersection, self.dice.sum(p)

    def _boundary(self, logits: Tensor, truth: Tensor, scales: list[Scale]) -> Tensor:
        """L_bnd of one output. Its gradient is computed with it: what autograd would keep instead are full maps."""
        assert self.boundary is not None
        with torch.enable_grad():
            x = _at_least_fp32(logits.detach().requires_grad_())
            edge = get_gradient_edge(x)
            p = self._probabilities(x, truth)
        del x  # a whole map where the logits are in half precision
        difference = p.detach() - truth
        gradient = self.boundary.gradient(difference, scales)
        return _WithGradient.apply(logits, (gradient * difference).sum(), torch.autograd.grad(p, edge, gradient)[0])


def _at_least_fp32(x: Tensor) -> Tensor:
    return x.to(torch.promote_types(x.dtype, torch.float32))


def _resized(logits: Tensor, truth: Tensor) -> Tensor:
    """The logits at the size of the truth, in fp32 or better."""
    x = _at_least_fp32(logits)
    return x if x.shape == truth.shape else resize(x, truth.shape[2:])


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
