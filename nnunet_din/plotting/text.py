"""How much room text takes, estimated from its number of letters, and where to break it."""

from __future__ import annotations

import re
from collections.abc import Sequence
from textwrap import fill

#: Widths of a letter of matplotlib's font on average, in sizes of the type.
LETTER, BOLD_LETTER = 0.58, 0.68


def wrapped(text: str, width: float, size: float, letter: float = LETTER) -> str:
    """Text with line breaks after spaces and underscores, for lines of `width` inches in type of `size` points."""
    characters = max(int(72 * width / (letter * size)), 1)
    return fill(re.sub("(_+)", r"\1 ", text), characters, break_on_hyphens=False).replace("_ ", "_")


def text_height(text: str, size: float) -> float:
    """Height of a text in inches; 0 without text."""
    return 1.35 * size / 72 * (text.count("\n") + 1) if text else 0.0


def legend_size(names: Sequence[str], width: float, size: float, handle: float = 0.45) -> tuple[int, float]:
    """Number of columns and height in inches of a legend; a coloured handle takes `handle` inches beside its name."""
    if not names:
        return 1, 0.0
    entry = max(map(len, names)) * LETTER * size / 72 + handle
    rows = -(-len(names) // min(max(int(width / entry), 1), 8))
    # As many columns as these rows need: the last one is not left alone in a row.
    return -(-len(names) // rows), 0.15 + size * 1.6 / 72 * rows
