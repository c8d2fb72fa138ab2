"""The paper's results: transcribed without a slip, in one form for all data sets."""

from __future__ import annotations

import numpy as np
import pytest

from nnunet_din.evaluation.published import PUBLISHED, published_rows

DIN = "DIN (Noh et al. 2025)"
STRUCTURES = {
    "synapse": ["Aorta", "GB", "KL", "KR", "Liver", "PC", "SP", "SM"],
    "acdc": ["RV", "Myo", "LV"],
    "clinicdb": [],
    "isic18": [],
}

#: Printed mean minus mean of the printed structures, where that is more than rounding of the mean explains. The paper
#: prints exactly these numbers. (TransUNet: 77.48625 is printed as 77.48.)
INCONSISTENT_IN_PRINT = {
    ("synapse", "R50+AttnUNet"): 3.469,
    ("synapse", "TransUNet"): -0.006,
    ("synapse", "FCT"): -0.056,
}

#: Sum of each column of the paper's tables, added up from its text.
SUMS = {
    "synapse": [968.56, 254.35, 1021.93, 811.49, 1007.43, 961.55, 1128.85, 763.72, 1070.46, 955.76],
    "acdc": [1094.48, 0, 1079.19, 1057.70, 1146.52],
    "clinicdb": [1589.46, 0],
    "isic18": [1520.67, 0],
}


@pytest.mark.parametrize("dataset", PUBLISHED)
def test_columns_and_rows(dataset):
    """Fails if data sets differ in form, a method is lost or named twice, or ours is not the last as in the paper."""
    rows = published_rows(dataset)
    assert list(rows.columns) == ["method", "source", "Dice", "HD95", *STRUCTURES[dataset]]
    assert len(rows) == {"synapse": 12, "acdc": 12}.get(dataset, 17)
    assert rows["method"].is_unique
    assert rows["method"].iloc[-1] == DIN


@pytest.mark.parametrize("dataset", ["synapse", "acdc"])
def test_mean_of_the_structures_is_the_printed_mean(dataset):
    """Fails if a digit of a row is wrong: only rows inconsistent in print may differ, and by that much."""
    for _, row in published_rows(dataset).iterrows():
        difference = row["Dice"] - row[STRUCTURES[dataset]].astype(float).mean()
        expected = INCONSISTENT_IN_PRINT.get((dataset, row["method"]))
        if expected is None:
            assert abs(difference) <= 0.00501, row["method"]
        else:
            assert difference == pytest.approx(expected, abs=0.001), row["method"]


@pytest.mark.parametrize("dataset", PUBLISHED)
def test_columns_add_up(dataset):
    """Fails if two values of a row are swapped, or one is wrong where there is no mean to check it by."""
    np.testing.assert_allclose(published_rows(dataset).iloc[:, 2:].sum(), SUMS[dataset], atol=0.001)


def test_what_is_not_printed_is_missing():
    """Fails if a missing HD95 becomes zero, which would be the best of all, or NaN hides a printed number."""
    synapse = published_rows("synapse").set_index("method")
    assert list(synapse.index[synapse["HD95"].isna()]) == ["FCT"]
    assert not synapse.drop(columns="HD95").isna().any(axis=None)
    for dataset in ("acdc", "clinicdb", "isic18"):
        assert published_rows(dataset)["HD95"].isna().all()
        assert not published_rows(dataset).drop(columns="HD95").isna().any(axis=None)


def test_source_names_table_and_reference():
    """Fails if a reader is sent to the wrong table or reference."""
    tables = {
        "synapse": ("Table 1", 6),
        "acdc": ("Table 2", 10),
        "clinicdb": ("Table 13", 6),
        "isic18": ("Table 13", 6),
    }
    for dataset, (table, first) in tables.items():
        sources = list(published_rows(dataset)["source"])
        assert sources[0] == f"{table} [{first}]" and sources[-1] == table
        assert all(source.startswith(f"{table} [") for source in sources[:-1])


def test_unknown_data_set_is_refused_with_the_known_names():
    """Fails if a misspelt name gives an empty table or an error that does not help."""
    with pytest.raises(ValueError, match="'kits'.*synapse, acdc, clinicdb, isic18"):
        published_rows("kits")
