"""What one training step of the feature network looks at: an image, and its labels as numbers."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, NamedTuple, Protocol

import numpy as np
import torch

from paramorph.data.subjects import DataError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from jaxtyping import Float, Int, Integer
    from torch import Tensor

    from paramorph.augmentation import Augmentation
    from paramorph.data import Subject
    from paramorph.data.label_maps import LabelMap
    from paramorph.synthesis import Painter

#: Of the training subjects that must have a label for it to be learned.
LEAST_SHARE = 0.3
#: Number of a label that is neither learned nor background: no loss there.
IGNORED = -1


class Example(NamedTuple):
    """An image in [0, 1], and the numbers of its voxels' labels."""

    image: Float[Tensor, "1 1 d h w"]
    numbers: Int[Tensor, "1 1 d h w"]


class Source(Protocol):
    """Where examples of one subject come from."""

    name: str

    def changed(self, rng: torch.Generator) -> Example:
        """An example to train on; `rng` decides everything."""

    def unchanged(self) -> Example:
        """The example to validate on, always the same."""


class Imaged:
    """A subject's image with its labels.

    Args:
        subject: With labels.
        learned: Label of each number.
        augmentation: Of what is trained on.

    Raises:
        DataError: No labels.
    """

    def __init__(
        self, subject: Subject, learned: Sequence[int], augmentation: Augmentation
    ) -> None:
        check_labelled(subject)
        self.name, self.augmentation = subject.name, augmentation
        self.image = torch.from_numpy(subject.image)[None, None]
        self.numbers = _numbers(subject.labels, learned, IGNORED)

    def changed(self, rng: torch.Generator) -> Example:
        change, _ = self.augmentation.draw(self.image.shape[2:], rng)
        return Example(change.image(self.image), change.labels(self.numbers))

    def unchanged(self) -> Example:
        return Example(self.image, self.numbers)


class Painted:
    """Images painted from a label map.

    Args:
        label_map: What is painted.
        every: All labels of all maps; those of `painter`.
        learned: Label of each number of the examples; all other labels are background in them.
        painter: Draws the images.
        augmentation: Moves the map, and changes the images' intensities.
        shape: Of the network grid.
    """

    def __init__(
        self,
        label_map: LabelMap,
        every: Sequence[int],
        learned: Sequence[int],
        painter: Painter,
        augmentation: Augmentation,
        shape: tuple[int, int, int],
    ) -> None:
        self.name, self.painter, self.augmentation = label_map.name, painter, augmentation
        # Both kinds of numbers fit into bytes, which 250 maps in memory are glad of.
        self.every = _numbers(label_map.labels, every, 0).to(torch.uint8)
        self.learned = _numbers(np.array(every), learned, 0).flatten()
        self.extent, self.shape = torch.tensor(label_map.extent), torch.Size(shape)

    def changed(self, rng: torch.Generator) -> Example:
        change, _ = self.augmentation.draw(self.shape, rng)
        numbers = change.labels(self.every, self.extent).long()
        image, shown = self.painter(numbers, rng)
        return Example(change.intensities(image), self.learned[numbers] * shown)

    def unchanged(self) -> Example:
        return self.changed(torch.Generator().manual_seed(sum(self.name.encode())))


def check_labelled(subject: Subject) -> None:
    """Refuse a subject without labels by a DataError."""
    if subject.labels is None:
        raise DataError(
            f"{subject.name}: expected labels, from which features are learned, got none; add its "
            "label map."
        )


def common_labels(maps: Sequence[Integer[np.ndarray, "i j k"]]) -> list[int]:
    """0 and the labels of at least `LEAST_SHARE` of the maps, ascending."""
    counts = Counter(label for labels in maps for label in np.unique(labels).tolist())
    return sorted({0, *(x for x, n in counts.items() if n >= LEAST_SHARE * len(maps))})


def _numbers(labels: np.ndarray, known: Sequence[int], other: int) -> Tensor:
    """Position in `known` of each label, `other` for those that are not in it."""
    numbers = np.full(int(max(labels.max(), *known)) + 1, other)
    numbers[list(known)] = np.arange(len(known))
    return torch.from_numpy(numbers[labels])[None, None]
