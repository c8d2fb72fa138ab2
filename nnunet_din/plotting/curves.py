"""Curves of trainings: arrays in, figures out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from nnunet_din.plotting.text import legend_size

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from matplotlib.typing import LineStyleType

#: Colour and dashes of curve 1, 2, 3, ...: Okabe and Ito's colours without those that are pale on white, and dashes for
#: print in grey.
LINES: tuple[tuple[str, LineStyleType], ...] = (
    ("#0072B2", "solid"),
    ("#D55E00", (0, (5, 1.5))),
    ("#009E73", (0, (1.2, 1.2))),
    ("#CC79A7", (0, (6, 1.5, 1.2, 1.5))),
    ("#E69F00", (0, (3, 1, 1, 1, 1, 1))),
    ("#56B4E9", (0, (9, 2))),
    ("#000000", (0, (2, 3))),
)


def training_curves(models: Mapping[str, Sequence[Mapping[str, Any]]], against: str = "epoch") -> Figure:
    """Show how several models were trained: losses, pseudo Dice and learning rate.

    A model with several folds has a thin line for each and a thick one for their mean, over the epochs that all of them
    have.

    Parameters
    ----------
    models : mapping of str to sequence of mappings
        Name of the model -> its folds. Keys of a fold, each with a one-dimensional array: `epoch` (whole numbers,
        ascending), `hours` (of training until the end of the epoch), `train_loss`, `val_loss`, `dice` (moving average
        of the mean foreground Dice, 0 to 1) and `learning_rate`. NaN: not known.
    against : {"epoch", "time"}
        What the horizontal axis shows.

    Returns
    -------
    matplotlib.figure.Figure
        Figure with four axes, 7.2 inches wide.

    Raises
    ------
    ValueError
        If there is no model, a model has no fold, or `against` is unknown.
    """
    from matplotlib.figure import Figure

    if against not in ("epoch", "time"):
        raise ValueError(f"Curves are drawn against 'epoch' or 'time', not '{against}'")
    if not models or not all(models.values()):
        raise ValueError("There is nothing to draw: no model, or a model without folds")
    loss = "loss (not comparable\nbetween trainers)" if len(models) > 1 else "loss"
    plots = {
        "train_loss": ("Training loss", loss),
        "val_loss": ("Validation loss", loss),
        "dice": ("Pseudo Dice on random patches", "mean foreground Dice\n(moving average)"),
        "learning_rate": ("Learning rate", "learning rate"),
    }
    labels = [f"{name} (mean of {len(folds)} folds)" if len(folds) > 1 else name for name, folds in models.items()]
    legend_columns, legend_height = legend_size(labels, 7.2, size=9.0, handle=0.75)
    figure = Figure(figsize=(7.2, 5.3 + legend_height), layout="constrained")
    axes = figure.subplots(2, 2)
    x = "hours" if against == "time" else "epoch"
    for ax, (key, (title, label)) in zip(axes.flat, plots.items(), strict=True):
        for number, (name, folds) in enumerate(zip(labels, models.values(), strict=True)):
            color, dashes = LINES[number % len(LINES)]
            for fold in folds if len(folds) > 1 else ():
                ax.plot(fold[x], fold[key], color=color, linewidth=0.6, alpha=0.45)
            across, mean = _mean_of_folds(folds, x), _mean_of_folds(folds, key)
            # A line through one point is nothing.
            marker = "o" if len(across) == 1 else None
            ax.plot(across, mean, color=color, linestyle=dashes, marker=marker, linewidth=1.6, markersize=4, label=name)
        ax.set_title(title, fontsize=10, fontweight="bold")
        ax.set_ylabel(label, fontsize=9)
        ax.set_xlabel("training time in hours" if against == "time" else "epoch", fontsize=9)
        if against != "time":
            ax.xaxis.get_major_locator().set_params(integer=True, min_n_ticks=1)
        ax.tick_params(labelsize=8)
        ax.grid(color="#DDDDDD", linewidth=0.6)
        ax.spines[["top", "right"]].set_visible(False)
    rates = np.concatenate([np.asarray(fold["learning_rate"], float) for folds in models.values() for fold in folds])
    if (rates > 0).any():
        # Trainers differ by powers of ten.
        axes[1, 1].set_yscale("log", nonpositive="mask")
    handles, _ = axes[0, 0].get_legend_handles_labels()
    figure.legend(
        handles=handles, loc="outside lower center", ncols=legend_columns, frameon=False, fontsize=9, handlelength=3.5
    )
    return figure


def _mean_of_folds(folds: Sequence[Mapping[str, Any]], key: str) -> np.ndarray:
    """Mean of one quantity over the folds, for the epochs that all folds have."""
    common = sorted(set.intersection(*({int(epoch) for epoch in fold["epoch"]} for fold in folds)))
    values = [np.asarray(fold[key], float)[np.isin(fold["epoch"], common)] for fold in folds]
    return np.mean(values, axis=0)
