"""Where data come from: a synthetic cardiac MR phantom that needs no download, and converters for public data sets."""

from nnunet_din.data.phantom import LABELS, PhantomCase, make_case, write_dataset

__all__ = ["LABELS", "PhantomCase", "make_case", "write_dataset"]
