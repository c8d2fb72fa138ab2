"""What bad images cost: ROOD-MRI's weighted means, the corruption error of ImageNet-C, and retained Dice."""

from __future__ import annotations

import numpy as np
import pandas as pd

from nnunet_din.evaluation.robustness import CLEAN

#: A severity counts 2/3 of the one before (ROOD-MRI).
WEIGHT = 2 / 3
#: The measures, and in what column :func:`by_case` gives them.
MEASURES = ("clean", "weighted_mean_dice", "degradation", "retained_dice", "error")


def dice_by_case(scores: pd.DataFrame) -> pd.DataFrame:
    """Dice of every case that all models have predicted, the mean over its structures.

    Parameters
    ----------
    scores
        See :func:`nnunet_din.evaluation.robustness.score_study`.

    Returns
    -------
    pandas.DataFrame
        Indexed by model and case, in the order of ``scores``; a column for each corruption and severity. A case that
        has no structure in truth or prediction of some image is left out.

    Raises
    ------
    ValueError
        If the models have no case in common.
    """
    models = list(dict.fromkeys(scores["model"]))
    keys = ["model", "case", "corruption", "severity"]
    table = scores.groupby(keys, sort=False)["Dice"].mean().unstack(["corruption", "severity"]).dropna()
    cases = table.index.get_level_values("case")
    common = [case for case in dict.fromkeys(cases) if (cases == case).sum() == len(models)]
    if not common:
        raise ValueError("The models have no case in common: give them the same folds, or choose some (--models).")
    return table.loc[pd.MultiIndex.from_product([models, common], names=table.index.names)]


def by_case(dice: pd.DataFrame) -> pd.DataFrame:
    """Measures of every case under every corruption; their means over cases are those of the model.

    With D_s the Dice at severity s, D_0 that of the clean image and a = 2/3: the weighted mean Dice is
    (D_0 + sum a^s D_s) / (1 + sum a^s), the degradation is sum a^s (D_0 - D_s) / sum a^s. The retained Dice is the mean
    of D_s over the severities, divided by the model's mean D_0 over all cases. The error is the sum of 1 - D_s.

    Parameters
    ----------
    dice
        What :func:`dice_by_case` gives.

    Returns
    -------
    pandas.DataFrame
        Columns ``model``, ``case``, ``corruption`` and :data:`MEASURES`, in 0 to 1 but for the error.
    """
    clean = dice[(CLEAN, 0)]
    mean_clean = clean.groupby("model").transform("mean")
    parts = []
    for corruption in dict.fromkeys(dice.columns.get_level_values("corruption")):
        if corruption == CLEAN:
            continue
        bad = dice[corruption]
        weights = WEIGHT ** bad.columns.to_numpy(float)
        weighted = (bad * weights).sum(axis=1)
        part = pd.DataFrame(
            {
                "corruption": corruption,
                "clean": clean,
                "weighted_mean_dice": (clean + weighted) / (1 + weights.sum()),
                "degradation": clean - weighted / weights.sum(),
                "retained_dice": bad.mean(axis=1) / mean_clean,
                "error": (1 - bad).sum(axis=1),
            }
        )
        parts.append(part.reset_index())
    return pd.concat(parts, ignore_index=True)


def by_corruption(measures: pd.DataFrame, baseline: str) -> pd.DataFrame:
    """Means of :func:`by_case` over the cases, and corruption errors.

    Parameters
    ----------
    measures
        What :func:`by_case` gives.
    baseline
        Model whose corruption error is 1 under every corruption.

    Returns
    -------
    pandas.DataFrame
        Indexed by corruption and model, in the given order; :data:`MEASURES` and ``corruption_error``, the error
        divided by that of the baseline, NaN where the baseline makes none. Its mean over corruptions is mCE.
    """
    table = measures.groupby(["corruption", "model"], sort=False)[list(MEASURES)].mean()
    error = table["error"].xs(baseline, level="model").replace(0, np.nan)
    return table.assign(corruption_error=table["error"] / error.reindex(table.index, level="corruption"))
