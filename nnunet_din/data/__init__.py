"""Data that the package brings along: a synthetic cardiac MR phantom that needs no download."""

from __future__ import annotations

from nnunet_din.data.phantom import LABELS, PhantomCase, make_case, write_dataset

__all__ = ["LABELS", "PhantomCase", "make_case", "write_dataset"]
