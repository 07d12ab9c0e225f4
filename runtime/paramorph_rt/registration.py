"""The story told once: two volumes → affine → network → field → warped volume and metrics."""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from dataclasses import field as dataclass_field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from . import outputs
from .affine import AffineKind, align_affine
from .backends import AUTO, choose_backend
from .bundle import Bundle, default_bundle_path, load_bundle
from .errors import OutputError, VolumeError
from .field import DisplacementField, field_from_network
from .inverse import consistency_mm, invert_field
from .metrics.deformation import nonpositive_jacobian_percent, sd_log_jacobian
from .metrics.overlap import present_labels
from .metrics.summary import compare_images, compare_labels
from .preprocess import Interpolation, PreparedPair, prepare_pair, resample_to_grid
from .spaces import Grid
from .threads import itk_threads
from .transforms.itk import write_affine, write_displacement
from .volume import (
    Volume,
    check_image,
    check_labels,
    check_same_grid,
    load_labels,
    load_volume,
    save_labels,
    save_volume,
)
from .warp import warp_volume

if TYPE_CHECKING:
    from jaxtyping import Float

log = logging.getLogger(__name__)

Source = str | Path | Volume
NIFTI_SUFFIXES = (".nii", ".nii.gz")


@dataclass(frozen=True, eq=False)
class RegistrationResult:
    """Everything a registration found, on the fixed image's own grid.

    Attributes:
        warped: The moving image, interpolated once from its original voxels.
        displacement: Complete field, affine included, fixed → moving.
        affine: Fixed world mm → moving world mm (RAS), before the network.
        warped_labels: The moving labels (nearest neighbour), if they were given.
        metrics: What metrics.json holds.
        inverse: Moving → fixed, on the moving image's grid, if it was asked for.
        also: Whatever was warped along, by file name.
    """

    warped: Volume
    displacement: DisplacementField
    affine: Float[np.ndarray, "4 4"]
    warped_labels: Volume | None
    metrics: dict[str, Any]
    inverse: DisplacementField | None = None
    also: dict[str, Volume] = dataclass_field(default_factory=dict)

    def save(self, out_dir: str | Path, force: bool = False) -> None:
        """Write all results into a folder, or nothing if anything fails.

        Args:
            out_dir: Created if it does not exist.
            force: Replace the results of an earlier run; other files always stay.

        Raises:
            OutputError: The folder holds results and `force` is not set, or cannot be written.
        """
        seconds = Stopwatch(self.metrics["seconds"])
        with outputs.staged_outputs(Path(out_dir), force) as folder:
            with seconds("save"):
                save_volume(folder / outputs.WARPED, self.warped)
                write_displacement(folder / outputs.DISPLACEMENT, self.displacement)
                write_affine(folder / outputs.AFFINE, self.affine)
                if self.warped_labels is not None:
                    save_labels(folder / outputs.WARPED_LABELS, self.warped_labels)
                if self.inverse is not None:
                    write_displacement(folder / outputs.INVERSE, self.inverse)
                for name, volume in self.also.items():
                    (folder / outputs.ALSO).mkdir(exist_ok=True)
                    save_volume(folder / outputs.ALSO / name, volume)
            text = json.dumps(self.metrics, indent=2)
            (folder / outputs.METRICS).write_text(text + "\n", encoding="utf-8")


class Registration:
    """A model, ready to register pairs.

    Args:
        bundle: A bundle, or the path of one; None is the default bundle.
        threads: For the network and for resampling; None uses all cores.
        backend: Inference engine, see `choose_backend`.
        precision: Of the network, see there too.

    Raises:
        BundleError: The bundle is missing, altered or of an unknown format.
        BackendError: No such backend or precision here, or the engine refuses the network.
        MissingDependencyError: The backend is not installed.
    """

    def __init__(
        self,
        bundle: str | Path | Bundle | None = None,
        threads: int | None = None,
        backend: str = AUTO,
        precision: str = AUTO,
    ) -> None:
        if not isinstance(bundle, Bundle):
            bundle = load_bundle(default_bundle_path() if bundle is None else bundle)
        self.bundle = bundle
        self.threads = threads
        self.backend = choose_backend(bundle, backend, precision, threads)

    def __call__(
        self,
        moving: Source,
        fixed: Source,
        moving_labels: Source | None = None,
        fixed_labels: Source | None = None,
        affine: bool | AffineKind = True,
        *,
        initial: Float[np.ndarray, "4 4"] | None = None,
        inverse: bool = False,
        output_grid: Grid | None = None,
        interpolation: Interpolation = "linear",
        also: Sequence[Source] = (),
        also_labels: Sequence[Source] = (),
    ) -> RegistrationResult:
        """Register the moving to the fixed image.

        Args:
            moving: Path or volume, on any grid.
            fixed: Path or volume; the results lie on its grid, unless `output_grid` is given.
            moving_labels: On the grid of `moving`; warped along.
            fixed_labels: On the grid of `fixed`; with `moving_labels`, both are compared.
            affine: Align the two affinely first, by which kind of transform (True is "auto");
                without, they must overlap in the world.
            initial: Fixed world mm → moving world mm (RAS), where the affine search starts; without
                a search, the affine itself.
            inverse: Also find the inverse field.
            output_grid: Where warped images, labels and the displacement lie, in the fixed world;
                metrics are measured on the fixed grid all the same.
            interpolation: Of the images; labels take the nearest voxel.
            also: More images in the moving image's world, each on any grid, to be warped along.
            also_labels: The same for label maps.

        Raises:
            VolumeError: An input that cannot be trusted, or labels of another grid.
            AlignmentError: The two images do not overlap.
            BackendError: The network failed.
        """
        seconds = Stopwatch({})
        with itk_threads(self.threads):
            with seconds("load"):
                moving, fixed = (_image(source) for source in (moving, fixed))
                moving_labels = _labels(moving_labels, moving)
                fixed_labels = _labels(fixed_labels, fixed)
                _check_labels_can_be_compared(moving_labels, fixed_labels)
                companions = _companions(also, also_labels)
            with seconds("affine"):
                to_moving = np.eye(4) if initial is None else initial
                if affine:
                    kind = "auto" if affine is True else affine
                    to_moving = align_affine(moving, fixed, kind, initial)
            with seconds("preprocess"):
                pair = prepare_pair(moving, fixed, to_moving, self.bundle.inputs)
            with seconds("network"):
                displacement_vox = self.backend.run(pair.moving, pair.fixed)
            with seconds("warp"):
                by_network = field_from_network(displacement_vox, pair.grid, self.bundle.sampling)
                field = by_network.resampled_to(fixed.grid).composed_with_affine(to_moving)
                warped = warp_volume(moving, field, interpolation)
                warped_labels = moving_labels and warp_volume(moving_labels, field, "nearest")
            with seconds("metrics"):
                metrics = self._describe(moving, fixed, pair)
                stages = _stages(moving, fixed, to_moving, warped, "linear")
                metrics["ncc"] = compare_images(fixed, stages)
                if moving_labels and warped_labels and fixed_labels:
                    stages = _stages(moving_labels, fixed, to_moving, warped_labels, "nearest")
                    metrics |= compare_labels(fixed_labels, moving_labels, stages)
                metrics["nonpositive_jacobian_percent"] = nonpositive_jacobian_percent(field)
                metrics["sd_log_jacobian"] = sd_log_jacobian(field)
            back: DisplacementField | None = None
            if inverse:
                with seconds("inverse"):
                    found = invert_field(field, moving.grid)
                    metrics["inverse_consistency_mm"] = consistency_mm(found, moving, fixed.grid)
                    back = found.field
            if output_grid is not None:
                with seconds("output grid"):
                    field = by_network.resampled_to(output_grid).composed_with_affine(to_moving)
                    warped = warp_volume(moving, field, interpolation)
                    warped_labels = moving_labels and warp_volume(moving_labels, field, "nearest")
            carried = {}
            if companions:
                with seconds("also"):
                    for volume, how in companions:
                        carried[volume.name] = warp_volume(volume, field, how or interpolation)
        metrics["seconds"] = seconds.table
        return RegistrationResult(
            warped, field, to_moving, warped_labels, metrics, inverse=back, also=carried
        )

    def _describe(self, moving: Volume, fixed: Volume, pair: PreparedPair) -> dict[str, Any]:
        return {
            "moving": moving.name,
            "fixed": fixed.name,
            "model": self.bundle.name,
            "backend": self.backend.name,
            "precision": self.backend.precision,
            "network_grid": {
                "shape": list(pair.grid.shape),
                "spacing_mm": pair.grid.spacing.round(6).tolist(),
                "spacing_growth": round(pair.spacing_growth, 6),
            },
        }


class Stopwatch:
    """Seconds per stage, into a table and onto the log."""

    def __init__(self, table: dict[str, float]) -> None:
        self.table = table

    @contextmanager
    def __call__(self, stage: str) -> Iterator[None]:
        log.info("%s …", stage)
        start = time.perf_counter()
        yield
        self.table[stage] = round(time.perf_counter() - start, 3)
        log.info("%s: %.1f s", stage, self.table[stage])


def _stages(
    moving: Volume,
    fixed: Volume,
    affine: Float[np.ndarray, "4 4"],
    warped: Volume,
    interpolation: Interpolation,
) -> dict[str, np.ndarray]:
    """The moving data on the fixed grid before, after the affine, and after all."""
    # Not smoothed, because the warp does not smooth either.
    before, aligned = (
        resample_to_grid(moving, fixed.grid, transform, interpolation, smooth=False)
        for transform in (None, affine)
    )
    return {"before": before, "affine": aligned, "after": warped.data}


def _image(source: Source) -> Volume:
    if not isinstance(source, Volume):
        return load_volume(source)
    volume = Volume(source.data.astype(np.float32), source.grid, source.name)
    check_image(volume)
    return volume


def _companions(
    images: Sequence[Source], labels: Sequence[Source]
) -> list[tuple[Volume, Interpolation | None]]:
    """What is warped along, and its interpolation if that must be one."""
    companions: list[tuple[Volume, Interpolation | None]] = []
    companions += [(_image(source), None) for source in images]
    for source in labels:
        volume = source if isinstance(source, Volume) else load_labels(source)
        check_labels(volume)
        companions.append((volume, "nearest"))
    names = [volume.name for volume, _ in companions]
    for name in names:
        if names.count(name) > 1 or Path(name).name != name or not name.endswith(NIFTI_SUFFIXES):
            raise OutputError(
                f"{name}: expected a .nii or .nii.gz file name of its own for each volume that is "
                "warped along, got another name or two of this; rename it."
            )
    return companions


def _labels(source: Source | None, image: Volume) -> Volume | None:
    if source is None:
        return None
    if isinstance(source, Volume):
        check_labels(source)
    labels = source if isinstance(source, Volume) else load_labels(source)
    check_same_grid(image, labels)
    return labels


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
