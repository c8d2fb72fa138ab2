"""How the streams of the encoders become one at each scale: DIFM and what the paper compares it with (Table 5)."""

from __future__ import annotations

import inspect

from torch import nn

from nnunet_din.network.fusion.concat import ConcatenationFusion, InputFusion
from nnunet_din.network.fusion.difm import DualInteractiveFusionModule

#: Name in the plans -> class, called with (dim, streams, **options); ``needs_edges`` says whether it uses f_low.
FUSIONS: dict[str, type[nn.Module]] = {
    "difm": DualInteractiveFusionModule,
    "concat": ConcatenationFusion,
    "input": InputFusion,
}


def get_fusion(name: str) -> type[nn.Module]:
    """The fusion called ``name``.

    Raises
    ------
    ValueError
        If the name is not known; the message lists those that are.
    """
    if name not in FUSIONS:
        raise ValueError(f"Unknown fusion '{name}'. Known fusions: {', '.join(sorted(FUSIONS))}.")
    return FUSIONS[name]


def build_fusion(name: str, dim: int, streams: int, **options) -> nn.Module:
    """Build the fusion called ``name`` for one scale.

    Raises
    ------
    ValueError
        If the name or an option is not known.
    """
    fusion = get_fusion(name)
    known = [option for option in inspect.signature(fusion).parameters if option not in ("dim", "streams")]
    unknown = sorted(set(options) - set(known))
    if unknown:
        raise ValueError(
            f"The network has no option {', '.join(unknown)} with fusion '{name}', which takes "
            f"{', '.join(known) or 'none of its own'}."
        )
    return fusion(dim, streams, **options)
