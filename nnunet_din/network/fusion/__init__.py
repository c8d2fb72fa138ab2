"""How the streams of the encoders become one at each scale: DIFM and what the paper compares it with (Table 5)."""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Iterable, Sequence

from nnunet_din.network.fusion.base import Fusion
from nnunet_din.network.fusion.concat import ConcatenationFusion, InputFusion
from nnunet_din.network.fusion.difm import DualInteractiveFusionModule

#: Name in the plans -> class, called with (dim, streams, **options).
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


def build_fusion(name: str, dim: int, streams: int, **options) -> Fusion:
    """Build the fusion called ``name`` for one scale.

    Raises
    ------
    ValueError
        If the name or an option is not known.
    """
    check_options(name, options)
    return get_fusion(name)(dim, streams, **options)


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
    known = [option for option in inspect.signature(get_fusion(name)).parameters if option not in ("dim", "streams")]
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
