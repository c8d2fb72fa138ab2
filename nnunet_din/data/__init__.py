"""Where data come from: a synthetic cardiac MR phantom that needs no download, and converters for public data sets."""

from __future__ import annotations

from nnunet_din.data import acdc, clinicdb, isic18, synapse
from nnunet_din.data.phantom import LABELS, PhantomCase, make_case, write_dataset

__all__ = ["DATASETS", "LABELS", "PhantomCase", "make_case", "write_dataset"]

#: The data sets that `nnunet-din convert` knows. The next one is a file with a `RawDataset`, and a line here.
DATASETS = {
    "acdc": acdc.DATASET,
    "synapse": synapse.DATASET,
    "clinicdb": clinicdb.DATASET,
    "isic18": isic18.DATASET,
}
