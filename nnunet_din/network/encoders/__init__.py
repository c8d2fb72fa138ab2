"""Encoders by the names they have in the plans. Each gives a low- and a high-level feature map per stage."""

from __future__ import annotations

import difflib

import timm

from nnunet_din.network.encoders.base import Encoder
from nnunet_din.network.encoders.convnext import ConvNeXtEncoder
from nnunet_din.network.encoders.fct import FCTEncoder
from nnunet_din.network.encoders.plain import WIDTHS, PlainEncoder
from nnunet_din.network.encoders.pyramid import PyramidEncoder

#: Prefix of the encoder's name -> class, called with (in_channels, name, **options). Every other model of timm is a
#: PyramidEncoder.
ENCODERS: dict[str, type[Encoder]] = {
    "convnext": ConvNeXtEncoder,
    "fct": FCTEncoder,
    "plain": PlainEncoder,
}


def known_encoders() -> list[str]:
    """List the names with an encoder of their own; :func:`build_encoder` accepts any timm model with a feature pyramid,
    too.
    """
    return sorted([*timm.list_models("convnext*"), "fct", *WIDTHS])


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
        ``layer_scale``, ``drop_path_rate``, ``checkpointing``, ``stem_stride``: see the class.

    Raises
    ------
    ValueError
        If the name is not known, the message lists those that are; or if the encoder has no use for an option.
    """
    return _encoder_class(name)(in_channels, name, **options)


def input_stride(encoder: str = "convnext_base", stem_stride: int = 1, **_) -> int:
    """Multiple that height and width of the input must be, from the network's keyword arguments as in the plans.

    Raises
    ------
    ValueError
        If no encoder has such a name, or not with this ``stem_stride``.
    """
    return _encoder_class(encoder).input_stride(encoder, stem_stride)


def has_layer_scale(encoder: str) -> bool:
    """Whether the blocks of the encoder with this name have a layer scale; ConvNeXt V2's have none.

    Raises
    ------
    ValueError
        If no encoder has such a name.
    """
    return issubclass(_encoder_class(encoder), ConvNeXtEncoder) and not encoder.startswith("convnextv2")


def _encoder_class(name: str) -> type[Encoder]:
    if name in known_encoders():
        return ENCODERS[max((p for p in ENCODERS if name.startswith(p)), key=len)]
    if name in timm.list_models():
        return PyramidEncoder
    close = difflib.get_close_matches(name, timm.list_models())
    raise ValueError(
        f"Unknown encoder '{name}'. Known encoders: {', '.join(known_encoders())}, and any other timm model with a "
        f"feature pyramid{', such as ' if close else ''}{', '.join(close)}."
    )
