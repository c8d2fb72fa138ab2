"""What all pictures have in common: colours, and how they are written."""

from __future__ import annotations

from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING

from nnunet_din.data.files import written_whole

if TYPE_CHECKING:
    from matplotlib.figure import Figure
#: Colours for label 1, 2, 3, ... after Okabe and Ito, told apart with any kind of colour vision. Black, their eighth,
#: cannot be seen on a grey image: a deep red takes its place, which is grey with no kind of colour vision.
LABEL_COLORS = ("#56B4E9", "#E69F00", "#009E73", "#CC79A7", "#F0E442", "#0072B2", "#D55E00", "#901800")


def label_color(label: int) -> str:
    """Colour of a label.

    Parameters
    ----------
    label : int
        Label, 1 or more; colours repeat after the eighth label.

    Returns
    -------
    str
        Hexadecimal RGB colour.

    Raises
    ------
    ValueError
        If the label is below 1: background has no colour.
    """
    if label < 1:
        raise ValueError(f"Only labels from 1 on have a colour, got {label}")
    return LABEL_COLORS[(label - 1) % len(LABEL_COLORS)]


def save_figure(figure: Figure, path: Path | str, dpi: float = 150) -> Path:
    """Write a figure to a file; the folder is made if needed.

    Parameters
    ----------
    figure : matplotlib.figure.Figure
        Figure to write.
    path : pathlib.Path or str
        File to write; its suffix gives the format, for example `.png` or `.pdf`.
    dpi : float
        Dots per inch, also of the images inside a vector picture.

    Returns
    -------
    pathlib.Path
        The file that was written.

    Raises
    ------
    ValueError
        If matplotlib cannot write the format.
    """
    from matplotlib import rc_context

    path = Path(path)
    # Journals refuse matplotlib's default, Type 3 fonts.
    picture = BytesIO()  # of a file on a full disk, matplotlib's PDF says something else
    with rc_context({"pdf.fonttype": 42}):
        figure.savefig(picture, format=path.suffix.removeprefix("."), dpi=dpi, facecolor="white")
    with written_whole(path) as temporary:
        temporary.write_bytes(picture.getvalue())
    return path


def save_both(figure: Figure, stem: Path | str) -> list[Path]:
    """Write a figure as PDF, whose text stays text, and as PNG of 300 dots per inch.

    Parameters
    ----------
    figure : matplotlib.figure.Figure
        Figure to write.
    stem : pathlib.Path or str
        The files without their suffixes; the folder is made if needed.

    Returns
    -------
    list of pathlib.Path
        ``stem.pdf`` and ``stem.png``.
    """
    return [save_figure(figure, f"{stem}{suffix}", dpi=300) for suffix in (".pdf", ".png")]
