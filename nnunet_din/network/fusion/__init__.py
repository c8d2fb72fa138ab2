"""How the streams of the encoders become one at each scale: DIFM and what the paper compares it with (Table 5)."""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Iterable, Sequence

from nnunet_din.dimensions import NoVolumesError
from nnunet_din.network.fusion.base import Fusion
from nnunet_din.network.fusion.concat import ConcatenationFusion, InputFusion
from nnunet_din.network.fusion.difm import DualInteractiveFusionModule

#: Name in the plans -> class, called with (dim, streams, **options); with the option ``kernel_size``, too, for what is
#: not 3 x 3.
FUSIONS: dict[str, type[Fusion]] = {
    "difm": DualInteractiveFusionModule,
    "concat": ConcatenationFusion,
    "input": InputFusion,
}


def get_fusion(name: str) -> type[Fusion]:
    """Return the fusion called ``name``.

    Raises
    ------
    ValueError
        If the name is not known; the message lists those that are.
    """
    if name not in FUSIONS:
        raise ValueError(f"Unknown fusion '{name}'. Known fusions: {', '.join(sorted(FUSIONS))}.")
    return FUSIONS[name]


def build_fusion(name: str, dim: int, streams: int, kernel_size: Sequence[int] = (3, 3), **options) -> Fusion:
    """Build the fusion called ``name`` for one scale.

    Parameters
    ----------
    name
        A key of :data:`FUSIONS`.
    dim, streams
        Channels of the scale, and number of streams.
    kernel_size
        Of its convolutions along each axis.
    **options
        Its own.

    Raises
    ------
    ValueError
        If the name or an option is not known, or the fusion has no such kernels.
    """
    check_options(name, options)
    fusion = get_fusion(name)
    if tuple(kernel_size) == (3, 3):
        return fusion(dim, streams, **options)
    if "kernel_size" not in inspect.signature(fusion).parameters:
        raise NoVolumesError(f"Fusion '{name}' is for 2-D images and kernels of 3 x 3 only.")
    return fusion(dim, streams, kernel_size=kernel_size, **options)


def check_options(name: str, options: Iterable[str], of_network: Sequence[str] = ()) -> None:
    """Refuse options that a fusion does not have.

    Parameters
    ----------
    name
        Name of the fusion.
    options
        Names of the options.
    of_network
        Options that the network takes itself, for the message.

    Raises
    ------
    ValueError
        If the fusion or an option is not known; the message lists all that are, the nearest first.
    """
    of_build = inspect.signature(build_fusion).parameters
    known = [option for option in inspect.signature(get_fusion(name)).parameters if option not in of_build]
    for option in options:
        if option in known:
            continue
        near = difflib.get_close_matches(option, [*of_network, *known], n=1)
        raise ValueError(
            f"The network has no option '{option}'"
            + (f"; did you mean '{near[0]}'?" if near else ".")
            + (f" Its own options: {', '.join(of_network)}." if of_network else "")
            + f" Those of fusion '{name}': {', '.join(known) or 'none'}."
        )
