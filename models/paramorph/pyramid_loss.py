"""What one pair costs a pyramid network: images, codes of all labels, and a smooth displacement.

Codes of a few values stand for all labels at once, so that a step can compare more than a hundred
structures for the price of a few. All is compared at half resolution, where the displacement is;
coarser displacements are held to coarser codes, and features must tell those of their own image.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch
import torch.nn.functional as F

from paramorph.label_codes import label_codes
from paramorph.losses import loss_terms
from paramorph.warp import warp

if TYPE_CHECKING:
    import random
    from collections.abc import Callable, Sequence

    from jaxtyping import Float
    from torch import Tensor

    from paramorph.augmentation import Augmentation, Change
    from paramorph.config import PyramidConfig
    from paramorph.data import Subject
    from paramorph.losses import LossConfig
    from paramorph.pyramid import Estimate

    Codes = Float[Tensor, "1 c d h w"]

#: Of the codes' weight, what those at each of the coarser displacements count.
COARSE_SHARE = 1 / 3


class PyramidLoss:
    """The loss of a pair under a pyramid network that is being trained.

    Args:
        estimate: Of the network, in the precision of the training.
        config: Its configuration.
        loss: The terms.
        augmentation: Of both images.
        device: Where it is computed.
        subjects: All that are trained on, whose labels the codes are for.
    """

    forward_method = "estimate"

    def __init__(
        self,
        estimate: Callable[[Tensor, Tensor], Estimate],
        config: PyramidConfig,
        loss: LossConfig,
        augmentation: Augmentation,
        device: torch.device,
        subjects: Sequence[Subject],
    ) -> None:
        self.estimate, self.config = estimate, config
        self.loss, self.augmentation, self.device = loss, augmentation, device
        present = [np.unique(s.labels) for s in subjects if s.labels is not None]
        self.known = np.unique(np.concatenate([[0], *present])) if loss.uses_labels else None
        if self.known is not None:
            codes = label_codes(len(self.known), config.codes)
            self.codes = codes.T.to(device)  # (labels, values)

    def terms(self, moving: Subject, fixed: Subject, rng: random.Random) -> dict[str, Tensor]:
        """The loss's terms; `rng` decides everything random."""
        generator = torch.Generator().manual_seed(rng.getrandbits(60))
        shape = torch.Size(moving.image.shape)
        changes = self.augmentation.draw(shape, generator, self.device)
        source, target = (
            change.image(torch.from_numpy(subject.image)[None, None].to(self.device))
            for change, subject in zip(changes, (moving, fixed), strict=True)
        )
        estimate = self.estimate(source, target)
        displacements = [u.float() for u in estimate.displacements]
        finest = displacements[-1]
        warped = warp(halved(source), finest)
        terms = loss_terms(self.loss, warped, halved(target), finest)
        if self.known is not None:
            codes = [
                self._codes(change, subject)
                for change, subject in zip(changes, (moving, fixed), strict=True)
            ]
            terms["codes"] = self._codes_apart(codes, displacements)
            told = estimate.codes.float()
            terms["anatomy"] = mismatch(told, torch.cat([halved(each) for each in codes]))
        return terms

    def _codes(self, change: Change, subject: Subject) -> Codes:
        """Of the labels of an image that was changed."""
        numbers = torch.from_numpy(np.searchsorted(self.known, subject.labels))[None, None]
        changed = change.labels(numbers.to(self.device))
        return self.codes[changed[0, 0]].movedim(-1, 0)[None]

    def _codes_apart(self, codes: Sequence[Codes], displacements: Sequence[Tensor]) -> Tensor:
        """How far warped codes are from fixed ones, by the result and by coarser displacements."""
        moving, fixed = map(halved, codes)
        apart = mismatch(warp(moving, displacements[-1]), fixed)
        for displacement in reversed(displacements[: len(self.config.widths) - 1]):
            moving, fixed = halved(moving), halved(fixed)
            apart = apart + COARSE_SHARE * mismatch(warp(moving, displacement), fixed)
        return apart


def mismatch(codes: Codes, others: Codes) -> Tensor:
    """Mean squared distance of the codes of two maps."""
    return (codes - others).square().sum(1).mean()


def halved(volume: Tensor) -> Tensor:
    """At half the resolution, by means of eight voxels."""
    return F.avg_pool3d(volume, 2)
