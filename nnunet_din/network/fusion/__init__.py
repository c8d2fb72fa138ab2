"""How the streams of the encoders become one at each scale: DIFM and what the paper compares it with (Table 5)."""

from __future__ import annotations

import inspect
from collections.abc import Sequence

from nnunet_din.data.names import check_known
from nnunet_din.network.fusion.base import Fusion
from nnunet_din.network.fusion.concat import ConcatenationFusion, InputFusion
from nnunet_din.network.fusion.difm import DualInteractiveFusionModule

#: Name in the plans -> class, called with (dim, streams, kernel_size=..., **options).
FUSIONS: dict[str, type[Fusion]] = {
    "difm": DualInteractiveFusionModule,
    "concat": ConcatenationFusion,
    "input": InputFusion,
}
_OF_EVERY_FUSION = ("dim", "streams", "kernel_size")


def get_fusion(name: str) -> type[Fusion]:
    """Return the fusion called ``name``.

    Raises
    ------
    ValueError
        If the name is not known; the message lists those that are.
    """
    check_known("fusion", name, FUSIONS)
    return FUSIONS[name]


def options_of(name: str) -> list[str]:
    """Names of a fusion's own options."""
    return [option for option in inspect.signature(get_fusion(name)).parameters if option not in _OF_EVERY_FUSION]


#: Options that some fusion has.
FUSION_OPTIONS = list(dict.fromkeys(option for name in FUSIONS for option in options_of(name)))


def build_fusion(name: str, dim: int, streams: int, kernel_size: Sequence[int] = (3, 3), **options) -> Fusion:
    """Build the fusion called ``name`` for one scale.

    Parameters
    ----------
    name
        A key of :data:`FUSIONS`.
    dim, streams
        Channels of the scale, and number of streams.
    kernel_size
        Kernel of its convolutions along each axis.
    **options
        Options of any fusions, of which it takes its own.

    Raises
    ------
    ValueError
        If the name or an option is not known, or the fusion has no such kernels.
    """
    for option in options:
        check_known("option of a fusion", option, FUSION_OPTIONS)
    own = {option: options[option] for option in options_of(name) if option in options}
    return get_fusion(name)(dim, streams, kernel_size=kernel_size, **own)
