"""The Dual Interaction Network (Noh, Jeon, Park: Pattern Recognition Letters 2025)."""

from __future__ import annotations

import inspect
import math
import warnings
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from nnunet_din.data.names import check_known
from nnunet_din.network.auxiliary import AuxiliaryHeads
from nnunet_din.network.containers import ModuleList
from nnunet_din.network.decoders import build_decoder
from nnunet_din.network.dimensions import CHANNELS_LAST, resize
from nnunet_din.network.encoders import build_encoder
from nnunet_din.network.encoders.base import Encoder, OfStages, kernels_of_stages, strides_of_stages
from nnunet_din.network.fusion import FUSION_OPTIONS, build_fusion, get_fusion
from nnunet_din.network.fusion.base import Fusion
from nnunet_din.network.resize import shuffle_pixels

UPSAMPLING = ("bilinear", "pixel_shuffle")
#: Beginning of the names of the auxiliary heads' weights.
AUXILIARY_PREFIX = "auxiliary_heads."
NOT_NNUNETS_OUTPUTS = (
    "DIN's auxiliary outputs are not those of nnU-Net's deep supervision. To train in nnU-Net, use "
    "-tr nnUNetTrainerDIN (or one of its variants), or another trainer without deep supervision such as "
    "nnUNetTrainerNoDeepSupervision."
)


class DualInteractionNetwork(nn.Module):
    """Twin encoders for the original and the enhanced image, a DIFM per scale, a SegFormer MLP decoder (paper, Fig.
    2a); and what the paper's tables compare it with.

    Parameters
    ----------
    input_channels
        Channels C of the original image. The network takes ``versions`` times as many: the C originals, then their
        enhanced versions, one after the other.
    num_classes
        Channels K of the logits.
    encoder
        Name of the encoder, see :func:`nnunet_din.network.build_encoder`.
    layer_scale, drop_path_rate
        Options of the encoder, see :class:`nnunet_din.network.ConvNeXtEncoder`.
    versions
        Versions of the image among the channels: 2 in the paper, one more than the plans have enhancements.
    inputs
        Versions that are used, each by an encoder of its own: 0 is the original. None: all of them. ``[0]`` is the
        paper's "only I", ``[1]`` "only E", ``[0, 0]`` "I + I" (Table 4).
    fusion
        Name of the fusion (:data:`nnunet_din.network.FUSIONS`); or names of those of the four stages, the highest
        resolution first.
    fused_stages
        Stages that have a DIFM, and that the decoder sees: 4 in the paper. The smallest resolution is left out first
        (Table 6), and the encoders end where the last DIFM is.
    decoder, decoder_channels
        Name of the decoder and its width. It decodes at the first stage's resolution.
    checkpointing
        Whether only the inputs of the encoders' blocks and of the DIFMs are kept for the backward pass, which computes
        the rest again: less memory, more time, the same outputs and gradients.
    stem_stride
        Stride of the encoder's stem, see :class:`nnunet_din.network.ConvNeXtEncoder`.
    upsampling
        Way from the first stage's resolution to the image's behind a stem of stride 2: "bilinear" (of three
        axes: trilinear), or "pixel_shuffle", where the decoder predicts the logits of all pixels of a feature. What a
        larger stride of the encoder still lacks is bilinear.
    strides, kernel_sizes
        Strides and kernel sizes of the encoder's stages along each axis, see
        :class:`nnunet_din.network.ConvNeXtEncoder` and :class:`nnunet_din.network.PlainEncoder`. With three axes the
        network is for volumes. The convolutions of the fusions and of the decoder are 3, too, or 1 along axes where
        those of the stage are. None: images with two axes, ``stem_stride``, and 3 along both.
    fusion_kernel
        Kernel size of the fusions' convolutions along each axis, 1 or 3, at every level; never more than the stage's.
        None: 3. ``[1, 3, 3]`` fuses volumes slice by slice: the encoders and the decoder alone look across.
    deep_supervision
        Whether the network has auxiliary heads, see :meth:`add_auxiliary_heads`. nnU-Net and other programs pass it to
        every network; DIN's trainers add the heads themselves.
    **fusion_options
        Arguments of the fusions, for example those of :class:`nnunet_din.network.DualInteractiveFusionModule`. Each
        stage's takes those that it has; what none of them has counts for nothing.

    Attributes
    ----------
    auxiliary_heads : AuxiliaryHeads or None
        Additional outputs for training, see :meth:`add_auxiliary_heads`.
    deep_supervision : bool
        Whether :meth:`forward` gives the auxiliary outputs, too.
    origin : str or None
        What the weights were started from if they are not random, for the log of a training.

    Raises
    ------
    ValueError
        For unknown names, or options out of range.
    """

    deep_supervision = False
    origin: str | None = None

    def __init__(
        self,
        input_channels: int,
        num_classes: int,
        encoder: str = "convnext_base",
        layer_scale: float | None = 1e-6,
        drop_path_rate: float = 0.0,
        versions: int = 2,
        inputs: Sequence[int] | None = None,
        fusion: str | Sequence[str] = "difm",
        fused_stages: int = 4,
        decoder: str = "segformer",
        decoder_channels: int = 768,
        checkpointing: bool = False,
        stem_stride: int = 1,
        upsampling: str = "bilinear",
        strides: OfStages | None = None,
        kernel_sizes: OfStages | None = None,
        fusion_kernel: Sequence[int] | None = None,
        deep_supervision: bool = False,
        **fusion_options,
    ):
        super().__init__()
        self.input_channels, self.num_classes, self.versions = input_channels, num_classes, versions
        self.inputs = chosen_inputs(inputs, versions)
        fusions = names_of_stages(fusion, fused_stages)
        for option in fusion_options:
            check_known("option of the network", option, OPTIONS)
        self.one_encoder = reads_all_inputs_at_once(fusions)
        self.checkpointing = checkpointing
        options: dict = {"layer_scale": layer_scale, "drop_path_rate": drop_path_rate, "stem_stride": stem_stride}
        options |= {"checkpointing": checkpointing, "strides": strides, "kernel_sizes": kernel_sizes}
        self.encoders = self._build_encoders(encoder, fused_stages, options)
        self.dimensions = len(self.encoders[0].stride_per_axis)
        kernels = [[min(k, 3) for k in kernel] for kernel in kernels_of_stages(kernel_sizes, 3, self.dimensions)]
        self.difms = self._build_fusions(fusions[:fused_stages], kernels, fusion_kernel, fusion_options)
        self.subpixels = subpixels(upsampling, strides_of_stages(stem_stride, strides)[0])
        outputs = num_classes * math.prod(self.subpixels)
        self.decoder = build_decoder(decoder, self.encoders[0].channels, outputs, decoder_channels, kernels[0])
        self.auxiliary_heads: AuxiliaryHeads | None = None
        # Every part works along the channels (LayerNorm, 1 x 1 convolutions, attention, depthwise convolutions), so
        # that they are last in memory. On a CPU, large depthwise kernels of volumes are quicker that way, too.
        self.to(memory_format=CHANNELS_LAST[self.dimensions])
        if deep_supervision:
            warnings.warn(NOT_NNUNETS_OUTPUTS, stacklevel=2)
            self.add_auxiliary_heads()

    def _build_encoders(self, name: str, stages: int, options: dict) -> ModuleList[Encoder]:
        """One encoder an input, or one for all, down to the last fused stage."""
        n = len(self.inputs)
        widths = [n * self.input_channels] if self.one_encoder else [self.input_channels] * n
        encoders = ModuleList(build_encoder(name, width, **options) for width in widths)
        if stages < 4:
            for encoder in encoders:
                encoder.keep_stages(stages)
        return encoders

    def _build_fusions(
        self, names: Sequence[str], kernels: OfStages, fusion_kernel: Sequence[int] | None, options: dict
    ) -> ModuleList[Fusion]:
        """A fusion a stage; encoders leave out what none of them uses."""
        streams = len(self.encoders)
        fusions = ModuleList(
            build_fusion(name, dim, streams, fusion_kernel_of_stage(kernel, fusion_kernel), **options)
            for name, dim, kernel in zip(names, self.encoders[0].channels, kernels, strict=False)
        )
        for encoder in self.encoders:
            encoder.keep_edges([fusion.needs_edges for fusion in fusions])
        return fusions

    def add_auxiliary_heads(self) -> None:
        """Give every fused level a classifier of its own, for training, and switch :attr:`deep_supervision` on.

        The deep levels, which see most of the image, otherwise get their gradient through the last fusion only. The
        heads are no part of the method: without them the network, its outputs and its other weights are the same, and
        :meth:`load_state_dict` takes weights with and without them.
        """
        self.auxiliary_heads = AuxiliaryHeads(self.encoders[0].channels, self.num_classes, self.dimensions)
        self.deep_supervision = True

    def forward(self, x: Tensor) -> Tensor | list[Tensor]:
        """Segment a batch of images.

        Parameters
        ----------
        x
            Originals and enhanced versions, shape ``(N, versions * C, H, W)``, or ``(N, versions * C, Z, H, W)`` for
            volumes; edges are multiples of the encoder's strides, 8 for ConvNeXt.

        Returns
        -------
        Tensor or list of Tensor
            Logits, shape ``(N, K, H, W)`` or ``(N, K, Z, H, W)``. With :attr:`deep_supervision` a list, the logits
            first and then those of the auxiliary heads, ``(N, K, *size_i)``.

        Raises
        ------
        ValueError
            If the shape of ``x`` does not fit.
        """
        self._check_input(x)
        versions = x.chunk(self.versions, dim=1)
        images = [versions[i] for i in self.inputs]
        if self.one_encoder:
            images = [torch.cat(images, dim=1)]
        streams = [encoder(image) for encoder, image in zip(self.encoders, images, strict=True)]
        fused = [self._checkpoint(difm, *pairs) for difm, *pairs in zip(self.difms, *streams, strict=True)]
        logits = shuffle_pixels(self.decoder(fused), self.subpixels)
        if logits.shape[2:] != x.shape[2:]:
            logits = resize(logits, x.shape[2:])
        if not self.deep_supervision:
            return logits
        if self.auxiliary_heads is None:
            raise RuntimeError("There are no auxiliary outputs: call add_auxiliary_heads first.")
        return [logits, *self.auxiliary_heads(fused)]

    def _checkpoint(self, difm: nn.Module, *pairs: tuple[Tensor | None, Tensor]) -> Tensor:
        if not (self.checkpointing and self.training):
            return difm(*pairs)
        return checkpoint(difm, *pairs, use_reentrant=False, preserve_rng_state=False)

    def _check_input(self, x: Tensor) -> None:
        channels = self.versions * self.input_channels
        if x.ndim != 2 + self.dimensions or x.shape[1] != channels:
            axes = "H, W" if self.dimensions == 2 else "Z, H, W"
            raise ValueError(
                f"DIN takes {channels} channels, (N, {channels}, {axes}): {self.input_channels} original and "
                f"{channels - self.input_channels} enhanced. Got a tensor of shape {tuple(x.shape)}. In nnU-Net the "
                "enhanced channels come from plans made with `nnUNetv2_plan_and_preprocess -pl nnUNetPlannerDIN`."
            )
        strides, size = self.encoders[0].stride_per_axis, x.shape[2:]
        if any(edge % stride for edge, stride in zip(size, strides, strict=True)):
            edges = "Height and width" if self.dimensions == 2 else "Depth, height and width"
            multiples = str(strides[0]) if len(set(strides)) == 1 else " x ".join(map(str, strides))
            raise ValueError(f"{edges} must be multiples of {multiples}, got {' x '.join(map(str, size))}.")

    def load_state_dict(self, state_dict, strict: bool = True, assign: bool = False):
        """As in torch, with one clear error instead of a page of keys where the weights are those of another
        network.

        Auxiliary heads may be missing on either side: they have no part in the segmentation.
        """
        own = self.state_dict()
        given = {key: value for key, value in state_dict.items() if not key.startswith(AUXILIARY_PREFIX)}
        for key in own.keys() - given.keys():
            if key.startswith(AUXILIARY_PREFIX):
                fits = key in state_dict and state_dict[key].shape == own[key].shape
                given[key] = state_dict[key] if fits else own[key]
        state_dict = given
        differing = [key for key in own if key in state_dict and state_dict[key].shape != own[key].shape]
        if strict:
            differing += sorted(own.keys() ^ state_dict.keys())
        if differing:
            key = differing[0]
            raise RuntimeError(
                f"These weights belong to another network: {len(differing)} of {len(own)} entries do not fit, the "
                f"first is '{key}' ({_shape(state_dict, key)} in the weights, {_shape(own, key)} here). A checkpoint "
                "fits only plans with the preset, channels and classes that it was trained with."
            )
        return super().load_state_dict(state_dict, strict=strict, assign=assign)


#: Arguments of the network that the plans may set.
OPTIONS = [
    name
    for name in inspect.signature(DualInteractionNetwork).parameters
    if name not in ("input_channels", "num_classes", "deep_supervision", "fusion_options")
] + FUSION_OPTIONS


def _shape(state_dict, key: str):
    return tuple(state_dict[key].shape) if key in state_dict else "missing"


def chosen_inputs(inputs: Sequence[int] | None, versions: int) -> list[int]:
    """Versions of the image that are used, all of them for None; ValueError if one is not there."""
    if inputs is not None and not (inputs and set(inputs) <= set(range(versions))):
        raise ValueError(f"inputs must name some of the {versions} versions of the image by number, got {inputs}.")
    return list(range(versions) if inputs is None else inputs)


def names_of_stages(fusion: str | Sequence[str], fused_stages: int) -> list[str]:
    """Names of the fusions of the four stages; ValueError if there are not as many, or more or fewer are asked for."""
    if not 1 <= fused_stages <= 4:
        raise ValueError(f"fused_stages must be 1 to 4, got {fused_stages}.")
    fusions = [fusion] * 4 if isinstance(fusion, str) else list(fusion)
    if len(fusions) != 4:
        raise ValueError(f"fusion must be one name, or one for each of the four stages, got {fusions}.")
    return fusions


def reads_all_inputs_at_once(fusions: Sequence[str]) -> bool:
    """Whether one encoder reads the concatenated inputs.

    Raises
    ------
    ValueError
        If some fusions want that and others do not.
    """
    wanted = {get_fusion(name).one_encoder for name in fusions}
    if len(wanted) > 1:
        raise ValueError(f"Fusion 'input' has one encoder for all inputs and cannot stand beside others: {fusions}.")
    return wanted.pop()


def subpixels(upsampling: str, stem_stride: Sequence[int]) -> tuple[int, ...]:
    """Pixels along each axis that the decoder predicts from one feature.

    Raises
    ------
    ValueError
        If the way of upsampling is not known.
    """
    check_known("upsampling", upsampling, UPSAMPLING)
    return tuple(stem_stride if upsampling == "pixel_shuffle" else [1] * len(stem_stride))


def fusion_kernel_of_stage(stage_kernel: Sequence[int], fusion_kernel: Sequence[int] | None) -> list[int]:
    """Kernel of a stage's fusion along each axis: that of the stage, or a smaller one that is asked for.

    Raises
    ------
    ValueError
        If it is not 1 or 3 along each axis of the image.
    """
    if fusion_kernel is None:
        return list(stage_kernel)
    if len(fusion_kernel) != len(stage_kernel) or any(k not in (1, 3) for k in fusion_kernel):
        raise ValueError(
            f"fusion_kernel must be 1 or 3 for each of the {len(stage_kernel)} axes of the images, got {fusion_kernel}."
        )
    return [min(pair) for pair in zip(stage_kernel, fusion_kernel, strict=True)]
