"""The enhanced channels of a patch whose intensities are augmented."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from batchgeneratorsv2.transforms.base.basic_transform import BasicTransform
from torch import Tensor

from nnunet_din.enhancement import enhance


class EnhanceAugmented(BasicTransform):
    """Augments the intensities of a patch, and replaces its enhanced channels by the enhancement of the result.

    Augmented apart from the originals, they would show no network the enhancement of a noisy image, which is what it
    gets of one in prediction. The statistics of the enhancement are those of the patch, where preprocessing takes those
    of the whole image: both are the same where the patch is the image.

    Parameters
    ----------
    transforms
        Transforms of intensities.
    enhancements
        Keyword arguments of :func:`nnunet_din.enhancement.enhance`, one set for each enhanced version.
    """

    def __init__(self, transforms: Sequence[BasicTransform], enhancements: Sequence[dict]):
        super().__init__()
        self.transforms = list(transforms)
        self.enhancements = list(enhancements)

    def apply(self, data_dict: dict, **params) -> dict:
        """Take a patch ``image`` ``(versions * C, *size)``, which is 0 in all channels outside the image."""
        inside = data_dict["image"].any(0).numpy()
        for transform in self.transforms:
            data_dict = transform(**data_dict)
        data_dict["image"] = self._enhanced(data_dict["image"], inside)
        return data_dict

    def _enhanced(self, image: Tensor, inside: np.ndarray) -> Tensor:
        original = image[: len(image) // (1 + len(self.enhancements))]
        shape = (-1, *(1,) * (4 - original.ndim), *original.shape[1:])  # (C, Z, H, W)
        slices, mask = original.numpy().reshape(shape), inside.reshape(shape[1:])
        versions = [original]
        for arguments in self.enhancements:
            enhanced = enhance(slices, mask=None if mask.all() else mask, **arguments)
            enhanced[:, ~mask] = 0  # as preprocessing and nnU-Net's padding leave it
            versions.append(torch.from_numpy(enhanced).reshape(original.shape))
        return torch.cat(versions)
