"""What one pair costs: augmented, registered in both directions, and weighed term by term."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch

from paramorph.losses import common_label_masks, label_dice_loss, loss_terms
from paramorph.warp import compose, warp

if TYPE_CHECKING:
    import random
    from collections.abc import Callable, Sequence

    from torch import Tensor

    from paramorph.augmentation import Augmentation
    from paramorph.config import NetworkConfig
    from paramorph.data import Subject
    from paramorph.losses import LossConfig


class PairLoss:
    """The loss of a pair under a network that is being trained.

    Args:
        both_ways: Of the network, in the precision of the training.
        config: Its configuration: number of passes, and how volumes are sampled.
        loss: The terms.
        augmentation: Of both images.
        device: Where it is computed.
        subjects: All that are trained on.
    """

    forward_method = "both_ways"

    def __init__(
        self,
        both_ways: Callable[[Tensor, Tensor], tuple[Tensor, Tensor]],
        config: NetworkConfig,
        loss: LossConfig,
        augmentation: Augmentation,
        device: torch.device,
        subjects: Sequence[Subject] = (),
    ) -> None:
        self.both_ways, self.config = both_ways, config
        self.loss, self.augmentation, self.device = loss, augmentation, device

    def terms(self, moving: Subject, fixed: Subject, rng: random.Random) -> dict[str, Tensor]:
        """The loss's terms over both directions; `rng` decides everything random."""
        generator = torch.Generator().manual_seed(rng.getrandbits(60))
        source, target, masks = self._augmented(moving, fixed, generator)
        torch.manual_seed(rng.getrandbits(60))  # drop path

        # One pass is learned at a time: the one after a random number of earlier passes.
        before = None
        for _ in range(rng.randrange(self.config.passes)):
            with torch.no_grad():
                further, _ = self.both_ways(self._warp(source, before), target)
            before = _after(before, further.float())
        warped_before = self._warp(source, before)
        to_moving, to_fixed = self.both_ways(warped_before, target)

        directions = [
            (source, target, _after(before, to_moving.float()), masks),
            (target, warped_before, to_fixed.float(), None),
        ]
        means: dict[str, Tensor] = {}
        for image, goal, displacement, labels in directions:
            terms = loss_terms(self.loss, self._warp(image, displacement), goal, displacement)
            if labels is not None:
                terms["labels"] = label_dice_loss(self._warp(labels[0], displacement), labels[1])
            for name, term in terms.items():
                share = 1 if name == "labels" else len(directions)
                means[name] = means.get(name, 0) + term / share
        return means

    def _augmented(
        self, moving: Subject, fixed: Subject, rng: torch.Generator
    ) -> tuple[Tensor, Tensor, tuple[Tensor, Tensor] | None]:
        """Both volumes as the network sees them, and masks of some labels where labels count."""
        images = self._tensor(moving.image), self._tensor(fixed.image)
        changes = self.augmentation.draw(images[0].shape[2:], rng, self.device)
        changed = [change.image(image) for change, image in zip(changes, images, strict=True)]
        masks = None
        if self.loss.labels:
            maps = (self._tensor(s.labels.astype(np.int32)) for s in (moving, fixed))
            moved = [change.labels(labels) for change, labels in zip(changes, maps, strict=True)]
            masks = common_label_masks(*moved, self.loss.label_count, rng)
        return changed[0], changed[1], masks

    def _warp(self, volume: Tensor, displacement: Tensor | None) -> Tensor:
        if displacement is None:
            return volume
        return warp(volume, displacement, self.config.sampling)

    def _tensor(self, array: np.ndarray) -> Tensor:
        return torch.from_numpy(array)[None, None].to(self.device)


def _after(before: Tensor | None, displacement: Tensor) -> Tensor:
    return displacement if before is None else compose(before, displacement)
