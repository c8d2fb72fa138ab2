"""The Dual Interaction Network (Noh, Jeon, Park: Pattern Recognition Letters 2025)."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from nnunet_din.network.decoder import build_decoder
from nnunet_din.network.difm import DualInteractiveFusionModule
from nnunet_din.network.encoder import build_encoder


class DualInteractionNetwork(nn.Module):
    """Twin encoders for the original and the enhanced image, a DIFM per scale, a SegFormer MLP decoder (paper, Fig.
    2a).

    Parameters
    ----------
    input_channels
        Channels C of the original image. The network takes 2C: the C originals, then their C enhanced versions.
    num_classes
        Channels K of the logits.
    encoder
        Name of the encoder, see :func:`nnunet_din.network.known_encoders`.
    layer_scale, drop_path_rate, stem_stride
        See :class:`nnunet_din.network.ConvNeXtEncoder`.
    checkpointing
        Keep only the inputs of the encoders' blocks and of the DIFMs for the backward pass, and compute the rest again
        there: less memory, more time, the same outputs and gradients.
    window_size, num_heads, ffn_expansion
        See :class:`nnunet_din.network.DualInteractiveFusionModule`.
    decoder, decoder_channels
        Name of the decoder and its width. It decodes at the stem's resolution; with a ``stem_stride`` of 2, the
        logits are resized to the image's.
    deep_supervision
        nnU-Net passes it to every network. DIN has one output, so only False is possible.

    Raises
    ------
    ValueError
        For unknown names, options out of range, or deep supervision.
    """

    def __init__(
        self,
        input_channels: int,
        num_classes: int,
        encoder: str = "convnext_base",
        layer_scale: float | None = 1e-6,
        drop_path_rate: float = 0.0,
        window_size: int = 7,
        num_heads: int = 1,
        ffn_expansion: int = 2,
        decoder: str = "segformer",
        decoder_channels: int = 768,
        checkpointing: bool = False,
        stem_stride: int = 1,
        deep_supervision: bool = False,
    ):
        super().__init__()
        if deep_supervision:
            raise ValueError(
                "DIN has a single output and cannot be trained with deep supervision: use -tr nnUNetTrainerDIN (or "
                "one of its "
                "variants), or another trainer without deep supervision such as nnUNetTrainerNoDeepSupervision."
            )
        self.input_channels = input_channels
        self.num_classes = num_classes
        self.checkpointing = checkpointing
        options = {
            "layer_scale": layer_scale,
            "drop_path_rate": drop_path_rate,
            "checkpointing": checkpointing,
            "stem_stride": stem_stride,
        }
        self.encoder_image = build_encoder(encoder, input_channels, **options)
        self.encoder_enhanced = build_encoder(encoder, input_channels, **options)
        channels = self.encoder_image.channels
        self.difms = nn.ModuleList(
            DualInteractiveFusionModule(d, window_size, num_heads, ffn_expansion) for d in channels
        )
        self.decoder = build_decoder(decoder, channels, num_classes, decoder_channels)
        # Every part works along the channels (LayerNorm, 1 x 1 convolutions, attention, depthwise convolutions): keep
        # them last in memory.
        self.to(memory_format=torch.channels_last)

    def forward(self, x: Tensor) -> Tensor:
        """Segment.

        Parameters
        ----------
        x
            Originals and enhanced versions, shape ``(N, 2C, H, W)``; H and W multiples of 8 times ``stem_stride``.

        Returns
        -------
        Tensor
            Logits, shape ``(N, K, H, W)``.

        Raises
        ------
        ValueError
            If the shape of ``x`` does not fit.
        """
        self._check_input(x)
        image, enhanced = x.chunk(2, dim=1)
        pairs = zip(self.encoder_image(image), self.encoder_enhanced(enhanced), strict=True)
        fused = [self._checkpoint(difm, *pair) for difm, pair in zip(self.difms, pairs, strict=True)]
        logits = self.decoder(fused)
        if logits.shape[-2:] != x.shape[-2:]:
            logits = F.interpolate(logits, size=x.shape[-2:], mode="bilinear", align_corners=False)
        return logits

    def _checkpoint(self, difm: nn.Module, image: tuple[Tensor, Tensor], enhanced: tuple[Tensor, Tensor]) -> Tensor:
        if not (self.checkpointing and self.training):
            return difm(image, enhanced)
        return checkpoint(difm, image, enhanced, use_reentrant=False, preserve_rng_state=False)

    def _check_input(self, x: Tensor) -> None:
        if x.ndim != 4 or x.shape[1] != 2 * self.input_channels:
            raise ValueError(
                f"DIN takes {2 * self.input_channels} channels, (N, {2 * self.input_channels}, H, W): "
                f"{self.input_channels} original "
                f"and {self.input_channels} enhanced. Got a tensor of shape {tuple(x.shape)}. In nnU-Net the "
                "enhanced channels come from "
                "plans made with `nnUNetv2_plan_and_preprocess -pl nnUNetPlannerDIN`."
            )
        stride = self.encoder_image.stride
        if x.shape[2] % stride or x.shape[3] % stride:
            raise ValueError(f"Height and width must be multiples of {stride}, got {x.shape[2]} x {x.shape[3]}.")

    def load_state_dict(self, state_dict, strict: bool = True, assign: bool = False):
        """As in torch, with one clear error instead of a page of keys where the weights are those of another
        network.
        """
        own = self.state_dict()
        differing = [key for key in own if key in state_dict and state_dict[key].shape != own[key].shape]
        if strict:
            differing += sorted(own.keys() ^ state_dict.keys())
        if differing:
            key = differing[0]
            raise RuntimeError(
                f"These weights belong to another network: {len(differing)} of {len(own)} entries do not fit, the "
                f"first is '{key}' "
                f"({_shape(state_dict, key)} in the weights, {_shape(own, key)} here). A checkpoint fits only plans "
                "with the preset, channels "
                "and classes that it was trained with."
            )
        return super().load_state_dict(state_dict, strict=strict, assign=assign)

    def compute_conv_feature_map_size(self, input_size) -> int:
        """Elements in fp32 that a training step holds at its peak for each image, beyond what does not grow with the
        batch: nnU-Net's hook for memory planning.

        Counted on the meta device, so nothing is computed or allocated.

        Parameters
        ----------
        input_size
            Height and width of the patch, multiples of the encoder's stride.
        """
        from nnunet_din.network.accounting import training_memory

        # At four images and more, the peak lies where the activations do.
        four, eight = (training_memory(self, (n, 2 * self.input_channels, *input_size)) for n in (4, 8))
        return (eight - four) // 16


def _shape(state_dict, key: str):
    return tuple(state_dict[key].shape) if key in state_dict else "missing"
