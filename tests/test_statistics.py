"""Statistics on tables whose answers are known."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from nnunet_din.evaluation.statistics import (
    MEAN,
    bootstrap_ranks,
    compare_with_reference,
    count_empty,
    holm,
    interval,
    paired_values,
    rank_stability,
    signed_rank_p,
    summarize,
)


def table(values, fold_of=lambda case: "0"):
    """``values``: (model, case, structure) -> Dice."""
    rows = [
        {"model": m, "fold": fold_of(c), "case": c, "structure": s, "Dice": v, "HD95": 10 * (1 - v)}
        for (m, c, s), v in values.items()
    ]
    return pd.DataFrame(rows)


@pytest.fixture
def two_models():
    """Model b is better by 0.1 in structure x, worse by 0.02 in y; case 3 has no y."""
    values = {}
    for i, base in enumerate((0.5, 0.6, 0.7, 0.8)):
        values |= {("a", f"p{i // 2}_c{i}", "x"): base, ("b", f"p{i // 2}_c{i}", "x"): base + 0.1}
        y = np.nan if i == 3 else base
        values |= {("a", f"p{i // 2}_c{i}", "y"): y, ("b", f"p{i // 2}_c{i}", "y"): y - 0.02}
    return table(values, fold_of=lambda case: "0" if case == "p0_c0" else "1")


def test_pooled_mean_and_mean_of_folds(two_models):
    """Fails if a fold of one case weighs as much as one of three in the pooled mean, or NaN counts as 0."""
    summary = summarize(two_models, "Dice")
    x = summary.loc[("a", "x")]
    assert x["mean"] == pytest.approx(0.65) and x["n"] == 4
    assert x["sd"] == pytest.approx(np.std([0.5, 0.6, 0.7, 0.8], ddof=1))
    assert x["fold_mean"] == pytest.approx((0.5 + 0.7) / 2) and x["n_folds"] == 2
    assert x["fold_sd"] == pytest.approx(np.std([0.5, 0.7], ddof=1))
    y = summary.loc[("a", "y")]
    assert y["mean"] == pytest.approx(0.6) and y["n"] == 3
    # nnU-Net's foreground mean: the mean of the structures' means.
    assert summary.loc[("a", MEAN), "mean"] == pytest.approx((0.65 + 0.6) / 2)


def test_paired_values_keep_common_units_and_average_groups(two_models):
    without = two_models[~((two_models["model"] == "b") & (two_models["case"] == "p1_c3"))]
    assert list(paired_values(without, "Dice").index) == ["p0_c0", "p0_c1", "p1_c2"]
    groups = paired_values(two_models, "Dice", "x", group_by=r"p\d")
    assert groups["a"].to_dict() == pytest.approx({"p0": 0.55, "p1": 0.75})
    with pytest.raises(ValueError, match="'patient' does not match the case p0_c0"):
        paired_values(two_models, "Dice", group_by="patient")
    with pytest.raises(ValueError, match="not a regular expression"):
        paired_values(two_models, "Dice", group_by="(")


def test_differences_have_the_sign_of_model_less_reference(two_models):
    differences = compare_with_reference(two_models, "Dice", "a").set_index("structure")
    assert differences.loc["x", "difference"] == pytest.approx(0.1)
    assert differences.loc["y", "difference"] == pytest.approx(-0.02)
    assert (differences.loc["x", ["better", "worse"]] == [4, 0]).all()
    assert differences.loc["y", "n"] == 3
    # HD95 falls where Dice rises: b is still the better one.
    hd95 = compare_with_reference(two_models, "HD95", "a").set_index("structure")
    assert hd95.loc["x", "difference"] == pytest.approx(-1) and hd95.loc["x", "better"] == 4


def test_interval_covers_and_is_as_wide_as_the_normal_one():
    values = np.random.default_rng(1).normal(0.9, 0.05, size=200)
    low, high = interval(values)
    half = 1.96 * values.std(ddof=1) / np.sqrt(200)
    assert (low, high) == pytest.approx((values.mean() - half, values.mean() + half), abs=0.1 * half)
    assert interval([0.5]) == pytest.approx((np.nan, np.nan), nan_ok=True)


def test_holm_by_hand():
    """The example of step-down correction: each p times the number of those not yet rejected, never falling."""
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.5, np.nan, 0.9]) == pytest.approx([1.0, np.nan, 1.0], nan_ok=True)


def test_signed_rank_p():
    assert signed_rank_p(np.zeros(5)) == 1
    assert np.isnan(signed_rank_p(np.array([])))
    # All six of one sign: 2 / 2^6.
    assert signed_rank_p(np.array([1.0, 2, 3, 4, 5, 6])) == pytest.approx(2 / 64)


def test_ranks_and_their_stability():
    """A model that always wins is first in every sample; two that are equal share a rank."""
    rng = np.random.default_rng(0)
    base = rng.uniform(0.6, 0.9, size=50)
    noise = rng.normal(0, 0.02, size=50)
    close = base + 0.05 + noise - noise.mean()
    values = pd.DataFrame({"best": base + 0.1, "equal": base, "same": base, "close": close})
    samples = bootstrap_ranks(values, resamples=300)
    assert samples.shape == (300, 4) and (samples.sum(axis=1) == 10).all()
    stability = rank_stability(values, samples)
    assert stability["rank"].to_dict() == {"best": 1, "close": 2, "equal": 3.5, "same": 3.5}
    assert stability.loc["best", "share_first"] == 1
    assert stability.loc["equal", ["low", "high"]].tolist() == [3.5, 3.5]


def test_empty_masks_are_counted():
    cases = pd.DataFrame(
        {
            "model": ["a"] * 4,
            "structure": ["x"] * 4,
            "truth_empty": [False, True, True, False],
            "prediction_empty": [True, False, True, False],
        }
    )
    assert count_empty(cases).loc[("a", "x")].to_dict() == {"missed": 1, "false_alarms": 1, "not_counted": 1}
