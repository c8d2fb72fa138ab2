"""Converters of public data sets, from their official archives."""

from __future__ import annotations

from nnunet_din.data.converters import acdc, clinicdb, isic18, synapse

#: The data sets that `nnunet-din convert` knows. The next one is a file with a `RawDataset`, and a line here.
DATASETS = {
    "acdc": acdc.DATASET,
    "synapse": synapse.DATASET,
    "clinicdb": clinicdb.DATASET,
    "isic18": isic18.DATASET,
}
