"""How much room text takes, and where to break it."""

from __future__ import annotations

import re
from collections.abc import Sequence


def text_width(text: str, size: float, weight: str = "normal") -> float:
    """Width in inches of the widest line of a text."""
    from matplotlib.font_manager import FontProperties
    from matplotlib.textpath import TextPath

    font = FontProperties(weight=weight)
    lines = [line for line in text.split("\n") if line.strip()]
    return max((TextPath((0, 0), line, size=size, prop=font).get_extents().x1 / 72 for line in lines), default=0.0)


def text_height(text: str, size: float) -> float:
    """Height of a text in inches."""
    return 1.25 * size * (text.count("\n") + 1) / 72


def fitting_size(text: str, width: float, size: float) -> float:
    """Largest size up to `size` in which a bold text is not wider than `width`, but never too small to read."""
    return min(size, max(5.5, size * width / max(text_width(text, size, "bold"), 1e-6)))


def wrapped(text: str, width: float, size: float, weight: str = "normal") -> str:
    """Text with line breaks after spaces and underscores where a line would be wider than `width` inches."""
    lines = [""]
    for word in re.findall(r"[^ _]*[ _]*", text):
        if lines[-1] and text_width((lines[-1] + word).rstrip(), size, weight) > width:
            lines.append("")
        lines[-1] += word
    return "\n".join(line.rstrip() for line in lines)


def heading(name: str, width: float) -> str:
    """A column's heading in at most three lines if type that can be read allows it, which begin at a double underscore
    or where a bold line would be too wide.
    """
    for size in (8.0, 7.0, 6.0):
        lines = "\n".join(wrapped(part, width, size, "bold") for part in name.split("__"))
        if lines.count("\n") < 3:
            break
    return lines


def legend_size(names: Sequence[str], width: float, size: float, handle: float = 0.45) -> tuple[int, float]:
    """Number of columns and height in inches of a legend; a coloured handle takes `handle` inches beside its name."""
    if not names:
        return 1, 0.0
    entry = max(text_width(name, size) for name in names) + handle
    rows = -(-len(names) // min(max(int((width - 0.2) / entry), 1), 8))
    # As many columns as these rows need: the last one is not left alone in a row.
    return -(-len(names) // rows), 0.12 + size * 1.55 / 72 * rows
