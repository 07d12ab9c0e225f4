"""The result of a registration, and the files that it is saved in."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from .images.volume import Volume, save_labels, save_volume
from .results import outputs
from .results.json_files import write_json
from .system.stopwatch import Stopwatch
from .system.threads import in_parallel, itk_threads
from .transforms.itk import write_affine, write_displacement

if TYPE_CHECKING:
    import numpy as np
    from jaxtyping import Float

    from .geometry.field import DisplacementField


@dataclass(frozen=True, eq=False)
class RegistrationResult:
    """Everything that a registration gives, on the fixed image's own grid.

    Attributes:
        warped: The moving image, interpolated once from its original voxels.
        displacement: Complete field, affine included, fixed → moving.
        affine: Fixed world mm → moving world mm (RAS), before the network.
        warped_labels: The moving labels (nearest neighbour), if they were given.
        metrics: What metrics.json holds.
        inverse: Moving → fixed, on the moving image's grid, if it was requested.
        also: Whatever was warped along, by file name.
        brain_masks: Of "moving" and "fixed", on their grids, as far as they were extracted.
        threads: For what is still to be done, such as writing; None is all cores.
    """

    warped: Volume
    displacement: DisplacementField
    affine: Float[np.ndarray, "4 4"]
    warped_labels: Volume | None
    metrics: dict[str, Any]
    inverse: DisplacementField | None = None
    also: dict[str, Volume] = field(default_factory=dict)
    brain_masks: dict[str, Volume] = field(default_factory=dict)
    threads: int | None = None

    def save(
        self,
        out_dir: str | Path,
        force: bool = False,
        extras: Mapping[str, Callable[[Path], None]] = MappingProxyType({}),
        names: outputs.Names = outputs.PLAIN,
    ) -> None:
        """Write all results into a folder, or nothing if anything fails.

        Args:
            out_dir: Created if it does not exist.
            force: Replace the results of an earlier run; other files always stay.
            extras: What else writes into the folder, such as a report, by the name of its stage.
            names: Of the files, such as `bids.bids_names` makes them.

        Raises:
            OutputError: The folder holds results and `force` is not set, or cannot be written.
        """
        seconds = Stopwatch(self.metrics["seconds"])
        with (
            itk_threads(self.threads),
            outputs.staged_outputs(Path(out_dir), force, names) as folder,
        ):
            with seconds("save"):
                outputs.make_folders(folder, names, self.also)
                in_parallel(*self._writers(folder, names))
            for stage, write in extras.items():
                with seconds(stage):
                    write(folder)
            write_json(folder / names.metrics, self.metrics)
            outputs.finish_names(folder, names)

    def _writers(self, folder: Path, names: outputs.Names) -> Iterator[Callable[[], None]]:
        """What writes each file, that which takes longest first."""
        yield partial(write_displacement, folder / names.displacement, self.displacement)
        if self.inverse is not None:
            yield partial(write_displacement, folder / names.inverse, self.inverse)
        yield partial(save_volume, folder / names.warped, self.warped)
        if self.warped_labels is not None:
            yield partial(save_labels, folder / names.warped_labels, self.warped_labels)
        for name, volume in self.also.items():
            yield partial(save_volume, folder / names.also_warped(name), volume)
        for which, mask in self.brain_masks.items():
            yield partial(save_labels, folder / names.brain_masks[which], mask)
        yield partial(write_affine, folder / names.affine, self.affine)
