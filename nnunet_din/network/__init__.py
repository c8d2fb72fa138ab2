"""The Dual Interaction Network and its parts."""

import warnings

with warnings.catch_warnings():
    # timm defines a class by it, of which nothing here makes use: no warning for the users of this package.
    warnings.filterwarnings("ignore", ".*torch.jit.interface.* is deprecated", FutureWarning)
    import timm  # noqa: F401

from nnunet_din.network.decoders import DECODERS, EMCADHead, SegFormerHead, build_decoder
from nnunet_din.network.din import DualInteractionNetwork
from nnunet_din.network.encoders import (
    FCTEncoder,
    PyramidEncoder,
    build_encoder,
    input_stride,
    input_strides,
    known_encoders,
    learning_rate,
)
from nnunet_din.network.encoders.convnext import ConvNeXtEncoder
from nnunet_din.network.encoders.plain import PlainEncoder
from nnunet_din.network.fusion import FUSIONS, ConcatenationFusion, InputFusion, build_fusion
from nnunet_din.network.fusion.difm import DualInteractiveFusionModule
from nnunet_din.network.presets import PRESETS

__all__ = [
    "DECODERS",
    "FUSIONS",
    "PRESETS",
    "ConcatenationFusion",
    "ConvNeXtEncoder",
    "DualInteractionNetwork",
    "DualInteractiveFusionModule",
    "EMCADHead",
    "FCTEncoder",
    "InputFusion",
    "PlainEncoder",
    "PyramidEncoder",
    "SegFormerHead",
    "build_decoder",
    "build_encoder",
    "build_fusion",
    "input_stride",
    "input_strides",
    "known_encoders",
    "learning_rate",
]
