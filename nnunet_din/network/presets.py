"""Sizes of the network. A preset is the keyword arguments of :class:`nnunet_din.network.DualInteractionNetwork`, as
they stand in the plans.
"""

from __future__ import annotations

from collections.abc import Sequence

from nnunet_din.data.names import check_known

#: base is the paper's network; depths and widths of each encoder are timm's. timm's layer scale, 1e-6, is for
#: pretrained weights and trainings of hundreds of thousands of steps: AdamW moves it by at most the learning rate a
#: step, so that the blocks of a network with random weights would take no part in its first thousands.
PRESETS: dict[str, dict] = {
    "base": {"encoder": "convnext_base", "layer_scale": 1.0, "decoder_channels": 768},
    "tiny": {"encoder": "convnext_tiny", "layer_scale": 1.0, "decoder_channels": 256},
    "atto": {"encoder": "convnext_atto", "layer_scale": 1.0, "decoder_channels": 128},
    # For trainings from random weights, see PlainEncoder; DIFM where maps are small, in a light form (docs/method.md).
    "fast": {
        "encoder": "plain_atto",
        "decoder_channels": 128,
        "stem_stride": 2,
        "upsampling": "pixel_shuffle",
        "fusion": ["concat", "concat", "difm", "difm"],
        "merging_convolution": "pointwise",
        "ffn_convolution": "depthwise",
        "joint_ffn": True,
    },
}


def get_preset(name: str) -> dict:
    """Return the arguments of a preset.

    Raises
    ------
    ValueError
        If the name is not known; the message lists those that are.
    """
    check_known("preset", name, PRESETS)
    return PRESETS[name]


def preset_for_volumes(
    preset: str,
    pool_op_kernel_sizes: Sequence[Sequence[int]],
    conv_kernel_sizes: Sequence[Sequence[int]],
    depthwise_kernel: Sequence[int] = (3, 7, 7),
    fusion_kernel: Sequence[int] | None = None,
) -> dict:
    """A preset for volumes, pooled as nnU-Net pools them: the axis of far slices joins in when the others have caught
    up with it, and is not convolved until then.

    Parameters
    ----------
    preset
        A key of :data:`PRESETS`.
    pool_op_kernel_sizes, conv_kernel_sizes
        Strides and kernels of nnU-Net's stages along each axis, as its ``get_pool_and_conv_props`` gives them; the
        first stage has the stride 1.
    depthwise_kernel
        Edges of ConvNeXt's kernels along each axis, where those of nnU-Net are not 1. The default holds the 7 x 7 of
        pretrained weights, and takes half as long as 7 along all three axes (docs/volumes.md).
    fusion_kernel
        See :class:`nnunet_din.network.DualInteractionNetwork`.

    Returns
    -------
    dict
        Arguments of :class:`nnunet_din.network.DualInteractionNetwork`: ``strides`` and ``kernel_sizes`` are those of
        nnU-Net's first four stages, or, where the preset's stem has the stride 2, of the four after the first. If it
        has fewer, so have we (``fused_stages``): stages that do not pool would hold most of the weights, on the
        smallest maps.
    """
    arguments = dict(PRESETS[preset])
    first = 1 if arguments.pop("stem_stride", 1) == 2 else 0
    strides = [list(stride) for stride in pool_op_kernel_sizes][first : first + 4]
    kernels = [list(kernel) for kernel in conv_kernel_sizes][first : first + 4]
    kernels = kernels or [list(conv_kernel_sizes[-1])]  # nnU-Net does not pool at all
    if len(kernels) < 4:
        arguments["fused_stages"] = len(kernels)
    strides += [[1] * len(pool_op_kernel_sizes[0])] * (4 - len(strides))
    kernels += [kernels[-1]] * (4 - len(kernels))
    if arguments["encoder"].startswith("convnext"):
        kernels = [[d if k > 1 else 1 for d, k in zip(depthwise_kernel, kernel, strict=True)] for kernel in kernels]
    if fusion_kernel is not None:
        arguments["fusion_kernel"] = list(fusion_kernel)
    return {**arguments, "strides": strides, "kernel_sizes": kernels}
