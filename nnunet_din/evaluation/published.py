"""What the paper prints: the rows of its tables of results, to be shown beside measured ones."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import pandas

__all__ = ["PUBLISHED", "published_rows"]

# Method, number of its reference in the paper ("-": the paper's own method), numbers as printed ("-": none).

_SYNAPSE = """
UNet                    6   70.11 44.69  84.00 56.70 72.41 62.64 86.98 48.73 81.48 67.96
R50+AttnUNet            10  75.57 36.97  55.92 63.91 79.20 72.71 93.56 49.37 87.19 74.95
TransUNet               10  77.48 31.69  87.23 63.13 81.87 77.02 94.08 55.86 85.08 75.62
SwinUNet                11  79.13 21.55  85.47 66.53 83.28 79.61 94.29 56.58 90.66 76.60
MT-UNet                 42  78.59 26.59  87.92 64.99 81.47 77.29 93.06 59.46 87.75 76.81
MISSFormer              28  81.96 18.20  86.99 68.65 85.21 82.00 94.41 65.67 91.92 80.81
CASTFormer              43  82.55 22.73  89.05 67.48 86.05 82.17 95.61 67.49 91.00 81.55
TransCASCADE            44  82.68 17.34  86.63 68.48 87.66 84.56 94.43 65.33 90.79 83.52
MERIT                   41  84.90 13.22  87.71 74.40 87.79 84.85 95.26 71.81 92.01 85.38
FCT                     12  83.53 -      89.85 72.73 88.45 86.60 95.62 66.25 89.77 79.42
nnFormer                45  86.57 10.63  92.04 70.17 86.57 86.25 96.84 83.35 90.51 86.83
DIN (Noh et al. 2025)   -   85.49 10.74  89.12 74.32 87.47 85.85 94.71 73.82 92.30 86.31
"""

_ACDC = """
R50+AttnUNet            10  86.75  87.58 79.20 93.47
TransUNet               10  89.71  88.86 84.53 95.73
SwinUNet                11  90.00  88.55 85.62 95.83
MT-UNet                 42  90.43  86.64 89.04 95.62
MISSFormer              28  90.86  89.55 88.04 94.99
nnUNet                  9   91.61  90.24 89.24 95.36
TransCASCADE            44  91.63  89.14 90.25 95.50
nnFormer                45  92.06  90.94 89.58 95.65
MERIT                   41  92.32  90.87 90.00 96.08
FCT 224                 12  92.84  92.02 90.61 95.89
FCT 384                 12  93.02  92.64 90.51 95.90
DIN (Noh et al. 2025)   -   93.25  92.16 91.08 96.50
"""

_BINARY = """
UNet                    6   92.11 86.67
UNet++                  7   92.17 87.46
AttnUNet                49  92.20 87.05
DeepLabv3+              50  93.24 88.64
PraNet                  51  91.71 88.56
CaraNet                 52  94.08 90.18
UACANet-L               53  94.16 89.76
SSFormer-L              54  94.18 90.25
PolypPVT                55  94.13 90.36
TransUNet               10  93.90 89.16
SwinUNet                11  92.42 89.26
TransFuse               56  93.62 89.62
UNeXt                   57  90.20 87.78
PVT-CASCADE             44  94.53 90.41
PVT-EMCAD-B0            29  94.60 90.70
PVT-EMCAD-B2            29  95.21 90.96
DIN (Noh et al. 2025)   -   97.00 93.85
"""

# Number of the table in the paper, its rows, its columns; None: the column of another data set.
_TABLES = {
    "synapse": (1, _SYNAPSE, ("Dice", "HD95", "Aorta", "GB", "KL", "KR", "Liver", "PC", "SP", "SM")),
    "acdc": (2, _ACDC, ("Dice", "RV", "Myo", "LV")),
    "clinicdb": (13, _BINARY, ("Dice", None)),
    "isic18": (13, _BINARY, (None, "Dice")),
}

#: Data sets of which the paper prints results.
PUBLISHED = tuple(_TABLES)


def published_rows(dataset: str) -> pandas.DataFrame:
    """Results of all methods on a data set, as the paper prints them.

    Methods keep the paper's order and spelling (but for one misprint). The numbers are from the paper's own test sets
    and, for DIN, from slices resized to 224 x 224: beside a cross-validation they give an idea and no more.

    Parameters
    ----------
    dataset : str
        A name of :data:`PUBLISHED`.

    Returns
    -------
    pandas.DataFrame
        One row per method. Columns: `method`; `source` (table of the paper and number of the method's reference in
        it, as "Table 1 [6]"; the paper's own method has none); `Dice`, the mean over the structures, in percent;
        `HD95`, to which the paper gives no unit; the Dice of each structure in percent, under the paper's name for
        it (none where there is one structure only). NaN where nothing is printed.

    Raises
    ------
    ValueError
        If the paper has no results for the data set.

    References
    ----------
    J. Noh, W. Jeon, J. Park, Dual Interaction Network with Cross-Image Attention for Medical Image Segmentation,
    Pattern Recognition Letters, 2025: Tables 1, 2 and 13.
    """
    import pandas

    if dataset not in _TABLES:
        raise ValueError(f"The paper has no results on '{dataset}'. It has: {', '.join(PUBLISHED)}.")
    number, text, columns = _TABLES[dataset]
    rows = []
    for line in text.strip().splitlines():
        method, reference, *values = line.rsplit(maxsplit=len(columns) + 1)
        source = f"Table {number}" if reference == "-" else f"Table {number} [{reference}]"
        # A table without HD95 leaves its column empty.
        row = {"method": method.strip(), "source": source, "Dice": float("nan"), "HD95": float("nan")}
        printed = zip(columns, values, strict=True)
        rows.append(row | {column: float(value) for column, value in printed if column and value != "-"})
    return pandas.DataFrame(rows)
