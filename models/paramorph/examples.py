"""What one training step of the feature network looks at: an image, and its labels as numbers."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

import numpy as np
import torch

from paramorph.data.subjects import DataError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

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
    imaged: bool  # or painted from a label map

    def changed(self, rng: torch.Generator) -> Example:
        """An example to train on; `rng` decides everything."""

    def unchanged(self) -> Example:
        """The example to validate on, always the same."""


@dataclass(frozen=True, eq=False)
class Examples:
    """What a feature network learns from.

    Attributes:
        labels: Number of each label that is learned, 0 of 0.
        training: Subjects to train on.
        validation: Subjects of which the labels are predicted, to see how far the training is.
        settings: Of the examples, recorded with the weights; another training goes on only from
            those of equal settings.
    """

    labels: Mapping[int, int]
    training: Sequence[Source]
    validation: Sequence[Source] = ()
    settings: Mapping[str, Any] = field(default_factory=dict)


class Imaged:
    """A subject's image with its labels.

    Args:
        subject: With labels.
        learned: Number of each label that is learned; 0 stays 0.
        augmentation: Of what is trained on.

    Raises:
        DataError: No labels.
    """

    imaged = True

    def __init__(
        self, subject: Subject, learned: Mapping[int, int], augmentation: Augmentation
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
        learned: Number of each label that is learned; all others are background.
        painter: Draws the images.
        augmentation: Moves the map, and changes the images' intensities.
        shape: Of the network grid.
    """

    imaged = False

    def __init__(
        self,
        label_map: LabelMap,
        every: Sequence[int],
        learned: Mapping[int, int],
        painter: Painter,
        augmentation: Augmentation,
        shape: tuple[int, int, int],
    ) -> None:
        self.name, self.painter, self.augmentation = label_map.name, painter, augmentation
        # Both kinds of numbers fit into bytes, which 250 maps in memory are glad of.
        self.every = _numbers(label_map.labels, {x: n for n, x in enumerate(every)}, 0).to(
            torch.uint8
        )
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


def numbered(labels: Sequence[int], merged: Sequence[Sequence[int]] = ()) -> dict[int, int]:
    """A number for each label, from 0 on; the labels of a group share that of its first."""
    first = {label: group[0] for group in merged for label in group}
    kept = sorted({first.get(label, label) for label in labels})
    number = {label: n for n, label in enumerate(kept)}
    return number | {label: number[one] for label, one in first.items() if one in number}


def _numbers(labels: np.ndarray, number: Mapping[int, int], other: int) -> Tensor:
    """Each label's number, `other` for those that have none."""
    table = np.full(int(max(labels.max(), *number)) + 1, other)
    table[list(number)] = list(number.values())
    return torch.from_numpy(table[labels])[None, None]
