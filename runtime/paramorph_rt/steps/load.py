"""Station 1 of a registration: everything is read and checked."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from ..errors import OutputError, VolumeError
from ..images.checks import check_image, check_labels, check_mask, check_same_grid
from ..images.volume import Volume, load_labels, load_mask, load_volume, nifti_name
from ..metrics.overlap import present_labels
from ..system.threads import in_parallel, mapped
from .foreground import MaskedImage

if TYPE_CHECKING:
    from jaxtyping import Float

    from ..geometry.resample import Interpolation
    from ..geometry.spaces import Grid


Source = str | Path | Volume


@dataclass(frozen=True, eq=False)
class Sources:
    """What a registration is given: paths, or volumes that are loaded already.

    Attributes:
        moving: On any grid.
        fixed: On any grid.
        moving_labels: On the grid of `moving`.
        fixed_labels: On the grid of `fixed`.
        moving_mask: On the grid of `moving`.
        fixed_mask: On the grid of `fixed`.
        initial: Fixed world mm → moving world mm (RAS).
        output_grid: In the fixed world; None is the fixed image's own.
        also: Images in the moving image's world, each on any grid.
        also_labels: The same for label maps.
        label_names: By label.
    """

    moving: Source
    fixed: Source
    moving_labels: Source | None = None
    fixed_labels: Source | None = None
    moving_mask: Source | None = None
    fixed_mask: Source | None = None
    initial: Float[np.ndarray, "4 4"] | None = None
    output_grid: Grid | None = None
    also: Sequence[Source] = ()
    also_labels: Sequence[Source] = ()
    label_names: Mapping[int, str] | None = None


@dataclass(frozen=True, eq=False)
class Images:
    """The volumes of a registration; fields as of `Sources`.

    Attributes:
        also: With the interpolation, if it does not depend on the options.
        output_grid: Whatever image gave it, the results lie in the fixed image's world.
        brain_masks: Those of the masks that were made here, by "moving" and "fixed".
    """

    moving: Volume
    fixed: Volume
    moving_labels: Volume | None
    fixed_labels: Volume | None
    moving_mask: Volume | None
    fixed_mask: Volume | None
    also: Sequence[tuple[Volume, Interpolation | None]]
    output_grid: Grid | None
    brain_masks: dict[str, Volume] = field(default_factory=dict)

    @cached_property
    def masked_moving(self) -> MaskedImage:
        """The moving image with its mask."""
        return MaskedImage(self.moving, self.moving_mask)

    @cached_property
    def masked_fixed(self) -> MaskedImage:
        """The fixed image with its mask."""
        return MaskedImage(self.fixed, self.fixed_mask)


def load(sources: Sources) -> Images:
    """Read all that is not loaded yet, and check everything.

    Raises:
        VolumeError: An image that cannot be registered, labels or a mask of another grid, or label
            maps that have no label in common.
        OutputError: Two volumes that are warped along have one name.
    """
    moving, fixed = mapped(_image, (sources.moving, sources.fixed))
    moving_labels, fixed_labels = in_parallel(
        partial(_labels, sources.moving_labels, moving),
        partial(_labels, sources.fixed_labels, fixed),
    )
    moving_mask, fixed_mask = _mask(sources.moving_mask, moving), _mask(sources.fixed_mask, fixed)
    _check_labels_can_be_compared(moving_labels, fixed_labels)
    grid = sources.output_grid
    return Images(
        moving,
        fixed,
        moving_labels,
        fixed_labels,
        moving_mask,
        fixed_mask,
        also=_also(sources),
        output_grid=grid and replace(grid, world_code=fixed.grid.world_code),
    )


def _image(source: Source) -> Volume:
    if not isinstance(source, Volume):
        return load_volume(source)
    volume = Volume(source.data.astype(np.float32), source.grid, source.name)
    check_image(volume)
    return volume


def _labels(source: Source | None, image: Volume) -> Volume | None:
    if source is None:
        return None
    if isinstance(source, Volume):
        check_labels(source)
    labels = source if isinstance(source, Volume) else load_labels(source)
    check_same_grid(image, labels)
    return labels


def _mask(source: Source | None, image: Volume) -> Volume | None:
    if source is None:
        return None
    if not isinstance(source, Volume):
        return load_mask(source, image)
    check_mask(source, image)
    return source


def _also(sources: Sources) -> list[tuple[Volume, Interpolation | None]]:
    volumes: list[tuple[Volume, Interpolation | None]] = []
    volumes += [(_image(source), None) for source in sources.also]
    for source in sources.also_labels:
        labels = source if isinstance(source, Volume) else load_labels(source)
        check_labels(labels)
        volumes.append((labels, "nearest"))
    volumes = [(replace(v, name=nifti_name(v.name)), how) for v, how in volumes]
    _check_names([volume.name for volume, _ in volumes])
    return volumes


def _check_names(names: Sequence[str]) -> None:
    for name in names:
        if names.count(name) > 1 or Path(name).name != name:
            raise OutputError(
                f"{name}: expected a file name of its own for each volume that is warped along, "
                "got two of this or a path; rename it."
            )


def _check_labels_can_be_compared(moving: Volume | None, fixed: Volume | None) -> None:
    if fixed is None:
        return
    if moving is None:
        raise VolumeError(
            f"{fixed.name}: expected moving labels to compare it with, got none; pass both label "
            "maps or only the moving one."
        )
    if not present_labels(moving.data) & present_labels(fixed.data):
        raise VolumeError(
            f"{moving.name}: expected labels in common with {fixed.name}, got none; check that "
            "both use the same label numbers."
        )
