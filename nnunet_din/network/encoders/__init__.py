"""Encoders by the names they have in the plans. Each gives a low- and a high-level feature map per stage."""

from __future__ import annotations

import difflib

import timm

from nnunet_din.network.alternatives.fct import FCTEncoder
from nnunet_din.network.alternatives.pyramid import PyramidEncoder
from nnunet_din.network.dimensions import NoVolumesError
from nnunet_din.network.encoders.base import Encoder, OfStages
from nnunet_din.network.encoders.convnext import ConvNeXtEncoder
from nnunet_din.network.encoders.plain import WIDTHS, PlainEncoder

#: Name -> class, called with (in_channels, name, **options). Every other model of timm is a PyramidEncoder.
ENCODERS: dict[str, type[Encoder]] = {
    **dict.fromkeys(timm.list_models("convnext*"), ConvNeXtEncoder),
    "fct": FCTEncoder,
    **dict.fromkeys(WIDTHS, PlainEncoder),
}


def known_encoders() -> list[str]:
    """List the names with an encoder of their own; :func:`build_encoder` accepts any timm model with a feature pyramid,
    too.
    """
    return sorted(ENCODERS)


def build_encoder(name: str, in_channels: int, **options) -> Encoder:
    """Build the encoder called ``name`` with random weights.

    Parameters
    ----------
    name
        ``convnext_base`` and its like (:class:`ConvNeXtEncoder`), ``plain_atto`` and its like (:class:`PlainEncoder`),
        ``fct`` (:class:`FCTEncoder`), or any timm model with a feature pyramid, for example
        ``swin_tiny_patch4_window7_224`` (:class:`PyramidEncoder`).
    in_channels
        Channels of the image.
    **options
        ``layer_scale``, ``drop_path_rate``, ``checkpointing``, ``stem_stride``, ``strides``, ``kernel_sizes``: see the
        class. The last two may be None, which is to leave them out.

    Raises
    ------
    ValueError
        If the name is not known, the message lists those that are; or if the encoder has no use for an option.
    """
    of_stages = {key: value for key in ("strides", "kernel_sizes") if (value := options.pop(key, None)) is not None}
    return _encoder_class(name, bool(of_stages))(in_channels, name, **options, **of_stages)


def input_strides(
    encoder: str = "convnext_base", stem_stride: int = 1, strides: OfStages | None = None, **_
) -> tuple[int, ...]:
    """Multiple that each edge of the input must be, from the network's keyword arguments as in the plans.

    Raises
    ------
    ValueError
        If no encoder has such a name, or not with these strides.
    """
    return _encoder_class(encoder, strides is not None).input_strides(encoder, stem_stride, strides)


def input_stride(encoder: str = "convnext_base", stem_stride: int = 1, strides: OfStages | None = None, **_) -> int:
    """The largest of :func:`input_strides`: inputs whose edges are multiples of it fit."""
    return max(input_strides(encoder, stem_stride, strides))


def learning_rate(encoder: str = "convnext_base", **_) -> float:
    """The encoder's :attr:`Encoder.learning_rate`, from the network's keyword arguments as in the plans.

    Raises
    ------
    ValueError
        If no encoder has such a name.
    """
    return _encoder_class(encoder).learning_rate


def has_layer_scale(encoder: str) -> bool:
    """Whether the blocks of the encoder with this name have a layer scale; ConvNeXt V2's have none.

    Raises
    ------
    ValueError
        If no encoder has such a name.
    """
    return issubclass(_encoder_class(encoder), ConvNeXtEncoder) and not encoder.startswith("convnextv2")


def _encoder_class(name: str, of_stages: bool = False) -> type[Encoder]:
    """Class by name; ``of_stages``: one that takes ``strides`` and ``kernel_sizes``."""
    if name not in ENCODERS and name not in timm.list_models():
        close = difflib.get_close_matches(name, timm.list_models())
        raise ValueError(
            f"Unknown encoder '{name}'. Known encoders: {', '.join(known_encoders())}, and any other timm model with a "
            f"feature pyramid{', such as ' if close else ''}{', '.join(close)}."
        )
    encoder = ENCODERS.get(name, PyramidEncoder)
    if of_stages and not encoder.takes_strides:
        raise NoVolumesError(
            f"Encoder '{name}' is for 2-D images and has strides and kernels of its own: leave `strides` and "
            f"`kernel_sizes` out, or take one of {', '.join(WIDTHS)} or a ConvNeXt."
        )
    return encoder
