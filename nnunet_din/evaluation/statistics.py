"""Means, ranks and paired comparisons of models, from a table of scored cases.

The table (:func:`nnunet_din.evaluation.scoring.score_cases`) has a row per model, fold, case and structure. A value
that is NaN (neither prediction nor truth has the structure) is not counted. Tests and intervals treat cases as
independent unless they are grouped, for example by patient.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Iterable, Sequence

import numpy as np
import pandas as pd
from scipy import stats

#: Metric -> whether larger is better.
METRICS = {"Dice": True, "HD95": False, "NSD": True, "Dice_merit": True, "HD95_merit": False}

#: Name of the mean over the structures, where the others are names of structures.
MEAN = "mean"


def summarize(cases: pd.DataFrame, metric: str) -> pd.DataFrame:
    """Mean and spread of a metric, per model and structure and over the structures, pooled and by fold.

    Parameters
    ----------
    cases
        Scored cases.
    metric
        A key of :data:`METRICS`.

    Returns
    -------
    pandas.DataFrame
        Indexed by model and structure, :data:`MEAN` among them. ``mean`` and ``sd`` are over all cases (as nnU-Net
        pools; of the mean over structures: the mean of the structures' means, and the standard deviation of the cases'
        means), ``n`` is the number of values, ``fold_mean`` and ``fold_sd`` are mean and standard deviation of the
        folds' means, ``n_folds`` their number. Standard deviations are of the sample, NaN for one value.
    """
    keys = ["model", "structure"]
    values = cases.set_index(["model", "fold", "case", "structure"])[metric]
    by_fold = values.groupby(["model", "fold", "structure"], sort=False).mean()
    summary = pd.DataFrame({"mean": _with_mean(values.groupby(keys, sort=False).mean())})
    summary[["sd", "n"]] = _with_mean(values).groupby(keys).agg(["std", "count"])
    summary[["fold_mean", "fold_sd", "n_folds"]] = _with_mean(by_fold).groupby(keys).agg(["mean", "std", "count"])
    return summary


def _with_mean(values: pd.Series) -> pd.Series:
    """Values by structure, which is the last level of their index, with :data:`MEAN` as a further structure."""
    names = list(values.index.names)
    mean = values.groupby(names[:-1], sort=False).mean()
    return pd.concat([values, pd.concat({MEAN: mean}, names=["structure"]).reorder_levels(names)])


def count_empty(cases: pd.DataFrame) -> pd.DataFrame:
    """How often a structure was missed (only the truth has it), a false alarm (only the prediction), or in neither.

    Returns
    -------
    pandas.DataFrame
        Indexed by model and structure; columns ``missed``, ``false_alarms``, ``not_counted``.
    """
    truth, prediction = cases["truth_empty"].astype(bool), cases["prediction_empty"].astype(bool)
    counts = cases[["model", "structure"]].assign(
        missed=~truth & prediction, false_alarms=truth & ~prediction, not_counted=truth & prediction
    )
    return counts.groupby(["model", "structure"], sort=False).sum()


def check_choices(
    cases: Iterable[str], models: Iterable[str], reference: str | None = None, group_by: str | None = None
) -> None:
    """Refuse a reference or groups that fail only when everything is scored.

    Parameters
    ----------
    cases, models
        Names.
    reference, group_by
        See :func:`compare_with_reference`.

    Raises
    ------
    ValueError
        If the reference is none of the models, or the expression is not valid or does not match a case.
    """
    models = dict.fromkeys(models)
    if reference and reference not in models:
        raise ValueError(f"The reference {reference} is none of the models: {', '.join(models)}.")
    for case in cases:
        group_of(case, group_by)


def group_of(case: str, pattern: str | None) -> str:
    """Group of a case: what the regular expression matches in its name, or the case itself.

    Raises
    ------
    ValueError
        If the expression is not valid or does not match.
    """
    try:
        match = re.search(pattern or ".*", case)
    except re.error as error:
        raise ValueError(f"'{pattern}' is not a regular expression: {error}.") from error
    if not match:
        raise ValueError(f"The group '{pattern}' does not match the case {case}.")
    return match[0]


def paired_values(cases: pd.DataFrame, metric: str, structure: str = MEAN, group_by: str | None = None) -> pd.DataFrame:
    """A table of independent units by models, for paired statistics.

    Parameters
    ----------
    cases
        Scored cases.
    metric
        A key of :data:`METRICS`.
    structure
        A structure, or :data:`MEAN`: the mean of each case over its structures.
    group_by
        Regular expression; cases in whose names it matches the same text are averaged to one unit.

    Returns
    -------
    pandas.DataFrame
        A row for each unit that every model has a value for, a column for each model.
    """
    rows = cases if structure == MEAN else cases[cases["structure"] == structure]
    values = rows.groupby(["case", "model"])[metric].mean().unstack("model")[cases["model"].unique()]
    values = values.dropna()
    return values.groupby([group_of(case, group_by) for case in values.index]).mean()


def interval(values: Sequence[float], resamples: int = 2000, seed: int = 0) -> tuple[float, float]:
    """95 % bootstrap interval (percentiles) of the mean; NaN for fewer than two values."""
    sample = np.asarray(values, dtype=float)
    if len(sample) < 2:
        return np.nan, np.nan
    result = stats.bootstrap(
        (sample,), np.mean, n_resamples=resamples, method="percentile", rng=np.random.default_rng(seed)
    )
    return float(result.confidence_interval.low), float(result.confidence_interval.high)


def compare_with_reference(
    cases: pd.DataFrame, metric: str, reference: str, group_by: str | None = None, resamples: int = 2000
) -> pd.DataFrame:
    """Paired differences of every model to a reference model.

    Parameters
    ----------
    cases, metric
        See :func:`paired_values`.
    reference
        Name of the reference model.
    group_by
        See :func:`paired_values`.
    resamples
        Number of bootstrap samples.

    Returns
    -------
    pandas.DataFrame
        A row per model and structure (and :data:`MEAN`): ``difference`` (model less reference), ``low`` and ``high``
        (95 % bootstrap interval), ``p`` (Wilcoxon signed-rank, two-sided), ``p_holm`` (corrected by Holm over the
        rows), ``n`` units, and ``better``, ``worse`` and ``equal``, the number of units of each kind.
    """
    sign = 1 if METRICS[metric] else -1
    rows = []
    for model in cases["model"].unique():
        if model == reference:
            continue
        pair = cases[cases["model"].isin([model, reference])]
        for structure in [*cases["structure"].unique(), MEAN]:
            values = paired_values(pair, metric, structure, group_by)
            difference = (values[model] - values[reference]).to_numpy()
            low, high = interval(difference, resamples)
            rows.append(
                {
                    "model": model,
                    "structure": structure,
                    "n": len(difference),
                    "difference": difference.mean() if len(difference) else np.nan,
                    "low": low,
                    "high": high,
                    "p": signed_rank_p(difference),
                    "better": np.count_nonzero(sign * difference > 0),
                    "worse": np.count_nonzero(sign * difference < 0),
                    "equal": np.count_nonzero(difference == 0),
                }
            )
    table = pd.DataFrame(rows)
    if len(table):
        table.insert(table.columns.get_loc("better"), "p_holm", holm(table["p"]))
    return table


def signed_rank_p(difference: np.ndarray) -> float:
    """Two-sided p of Wilcoxon's signed-rank test; 1 where all differences are 0, NaN where there are none."""
    if not len(difference):
        return np.nan
    if not np.any(difference):
        return 1.0
    with warnings.catch_warnings():
        # Few cases or ties: SciPy says that it takes the normal approximation.
        warnings.simplefilter("ignore")
        return float(stats.wilcoxon(difference).pvalue)


def holm(p_values: Sequence[float]) -> np.ndarray:
    """Return p-values corrected for their number by Holm's step-down method; NaN stays NaN and does not count."""
    corrected = np.asarray(p_values, dtype=float).copy()
    ascending = np.argsort(corrected)[: np.count_nonzero(~np.isnan(corrected))]  # NaN come last
    factors = np.arange(len(ascending), 0, -1)
    corrected[ascending] = np.minimum(np.maximum.accumulate(corrected[ascending] * factors), 1)
    return corrected


def bootstrap_ranks(values: pd.DataFrame, resamples: int = 1000, seed: int = 0) -> pd.DataFrame:
    """Rank the models by their means in bootstrap samples of the units.

    Parameters
    ----------
    values
        Units by models, see :func:`paired_values`, of a metric of which more is better.
    resamples, seed
        Number of samples and seed of the draw.

    Returns
    -------
    pandas.DataFrame
        A row per sample, a column per model.
    """
    array = values.to_numpy()
    drawn = np.random.default_rng(seed).integers(len(array), size=(resamples, len(array)))
    return pd.DataFrame(stats.rankdata(-array[drawn].mean(axis=1), axis=1), columns=values.columns)


def rank_stability(values: pd.DataFrame, samples: pd.DataFrame) -> pd.DataFrame:
    """Say how firm the ranking is.

    Parameters
    ----------
    values, samples
        What :func:`bootstrap_ranks` takes and returns.

    Returns
    -------
    pandas.DataFrame
        Indexed by model, best first; ``rank`` by the mean over the units (1 is best, equal means share the mean of
        their ranks), ``low`` and ``high`` (95 % of the samples), and ``share_first``, the share of the samples in which
        it is alone at the top.
    """
    low, high = samples.quantile([0.025, 0.975]).to_numpy()
    rank = values.mean().rank(ascending=False)
    table = pd.DataFrame({"rank": rank, "low": low, "high": high, "share_first": (samples == 1).mean()})
    return table.sort_values("rank", kind="stable")
