"""How the streams of the encoders become one at each scale: DIFM and what the paper compares it with (Table 5)."""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Iterable, Mapping, Sequence

from nnunet_din.containers import ModuleList
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
    if name not in FUSIONS:
        raise ValueError(f"Unknown fusion '{name}'. Known fusions: {', '.join(sorted(FUSIONS))}.")
    return FUSIONS[name]


def options_of(name: str) -> list[str]:
    """Names of a fusion's own options."""
    return [option for option in inspect.signature(get_fusion(name)).parameters if option not in _OF_EVERY_FUSION]


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
    check_options([name], options)
    return get_fusion(name)(dim, streams, kernel_size=kernel_size, **options)


def build_fusions(
    names: Sequence[str], dims: Sequence[int], streams: int, kernel_sizes: Sequence[Sequence[int]], **options
) -> ModuleList[Fusion]:
    """Build the fusions of several scales; each takes the options that it has.

    Parameters
    ----------
    names, dims
        Of each scale, see :func:`build_fusion`.
    streams
        Number of streams.
    kernel_sizes
        Of each scale.
    **options
        Options of any fusions.

    Raises
    ------
    ValueError
        As of :func:`build_fusion`.
    """
    own = {name: {key: value for key, value in options.items() if key in options_of(name)} for name in names}
    scales = zip(names, dims, kernel_sizes, strict=True)
    return ModuleList(build_fusion(name, dim, streams, kernel, **own[name]) for name, dim, kernel in scales)


def check_options(names: Sequence[str], options: Iterable[str], of_network: Sequence[str] = ()) -> None:
    """Refuse options that none of the fusions has.

    Parameters
    ----------
    names
        Names of the fusions.
    options
        Names of the options.
    of_network
        Options that the network takes itself, for the message.

    Raises
    ------
    ValueError
        If a fusion or an option is not known; the message lists all that are, the nearest first.
    """
    known = {name: options_of(name) for name in sorted(set(names))}
    for option in options:
        if any(option in own for own in known.values()):
            continue
        near = difflib.get_close_matches(option, [*of_network, *(name for own in known.values() for name in own)], n=1)
        raise ValueError(
            f"The network has no option '{option}'"
            + (f"; did you mean '{near[0]}'?" if near else ".")
            + (f" Its own options: {', '.join(of_network)}." if of_network else "")
            + "".join(f" Those of fusion '{name}': {', '.join(own) or 'none'}." for name, own in known.items())
        )


def without_options_of_others(fusion: str | Sequence[str], arguments: Mapping) -> dict:
    """Arguments of a network, without options of fusions that are not among these."""
    names = [fusion] if isinstance(fusion, str) else fusion
    own = {option for name in names for option in options_of(name)}
    of_all = {option for name in FUSIONS for option in options_of(name)}
    return {key: value for key, value in arguments.items() if key in own or key not in of_all}
