"""A pair by its files: what belongs to it, what is asked of it, and how it is registered."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .backends import AUTO
from .errors import VolumeError
from .geometry.resample import Interpolation
from .geometry.spaces import Grid
from .geometry.warp import warp_volumes
from .images.analyze import check_orientation
from .images.label_names import load_label_names
from .images.volume import (
    Series,
    Volume,
    load_grid,
    load_labels,
    load_series,
    load_volume,
    save_series,
)
from .loaded import loaded
from .refinement.settings import DEFAULT_ITERATIONS, levels_of
from .registration import Registration, RegistrationResult
from .report.pictures import Pictures
from .results.bids import bids_names
from .results.outputs import PLAIN, Names
from .results.provenance import provenance_of
from .steps.affine import AffineKind
from .transforms import Images
from .transforms.formats import read_start
from .transforms.itk import write_composite

if TYPE_CHECKING:
    import numpy as np
    from jaxtyping import Float

SINGLE = (
    *("moving", "fixed", "moving_labels", "fixed_labels"),
    *("moving_mask", "fixed_mask", "initial_transform"),
)
SEVERAL = ("also", "also_labels")


@dataclass(frozen=True)
class Pair:
    """Two images to be registered, and all that belongs to them alone.

    Attributes:
        name: Of the folder of results; no other pair has it.
        moving: Image to be warped.
        fixed: Image to match.
        moving_labels: Label map of the moving image.
        fixed_labels: Label map of the fixed image.
        moving_mask: Voxels of the moving image that count are not 0.
        fixed_mask: The same for the fixed image.
        initial_transform: Linear transform, fixed → moving, where the affine search starts.
        also: More images in the moving image's world, warped along.
        also_labels: The same for label maps.
        notes: Other columns of the table, which go into the summary.
    """

    name: str
    moving: Path
    fixed: Path
    moving_labels: Path | None = None
    fixed_labels: Path | None = None
    moving_mask: Path | None = None
    fixed_mask: Path | None = None
    initial_transform: Path | None = None
    also: tuple[Path, ...] = ()
    also_labels: tuple[Path, ...] = ()
    notes: tuple[tuple[str, str], ...] = ()

    def files(self) -> dict[str, Path]:
        """Every file that is read, by what it is."""
        found = {role: getattr(self, role) for role in SINGLE if getattr(self, role)}
        for role in SEVERAL:
            found |= {f"{role} {n}": path for n, path in enumerate(getattr(self, role), 1)}
        return found


@dataclass(frozen=True)
class Settings:
    """What is asked of one pair or of many; see `Registration` for what is not told here.

    Attributes:
        itk_composite: Affine and field are also written into one file of ITK's.
        initial_format: Of initial transforms, a name of `transforms.formats.FORMATS`; None asks
            the file.
        output_grid: "fixed", "moving" or the path of an image.
        model: Bundle, or "none".
        refine: Iterations of the refinement at 1.5 mm; 0 is none.
        label_names: Table of the names of labels, for metrics, tables and reports.
        pictures: Drawn into each pair's folder.
        bids_names: Results are called as BIDS derivatives.
        apply_to_all: The moving file is a series, all of which is warped.
        reference_volume: Which volume of it is registered, from 0; None is the mean of all.
        analyze_orientation: Where the voxels' axes of Analyze images point, such as "LAS".
    """

    model: Path | str | None = None
    backend: str = AUTO
    precision: str = AUTO
    threads: int | None = None
    affine: bool | AffineKind = True
    inverse: bool = False
    itk_composite: bool = False
    initial_format: str | None = None
    output_grid: str = "fixed"
    interpolation: Interpolation = "linear"
    surfaces: bool = True
    refine: int = DEFAULT_ITERATIONS
    label_names: Path | None = None
    pictures: Pictures = field(default_factory=Pictures)
    bids_names: bool = False
    apply_to_all: bool = False
    reference_volume: int | None = None
    analyze_orientation: str | None = None

    def registration(self, wait: bool = True) -> Registration:
        """The model, loaded once in this process; pairs that use it at once wait for each other.

        Args:
            wait: As for `loaded`.
        """
        return loaded(
            self.model, self.threads, self.backend, self.precision, wait, levels_of(self.refine)
        )

    def check(self) -> None:
        """Check all that can be checked before there is a result.

        Raises:
            MissingDependencyError: Pictures without the extra "report".
            EvaluationError: The table of label names cannot be used.
            VolumeError: The orientation of Analyze images is none.
        """
        self.pictures.check()
        if self.analyze_orientation is not None:
            check_orientation(self.analyze_orientation)
        self.names_of_labels()

    def names_of_labels(self) -> dict[int, str]:
        """As far as there is a table of them."""
        return {} if self.label_names is None else load_label_names(self.label_names)

    @property
    def of_series(self) -> bool:
        """Whether the moving file is a series."""
        return self.apply_to_all or self.reference_volume is not None


def names_of(pair: Pair, settings: Settings, out_dir: Path) -> Names:
    """What the results of a pair are called in their folder.

    Raises:
        OutputError: Two of them would have one name.
    """
    if not settings.bids_names:
        return PLAIN
    return bids_names(
        *(pair.moving, pair.fixed, out_dir),
        moving_labels=pair.moving_labels,
        also=pair.also,
        also_labels=pair.also_labels,
        output_grid=settings.output_grid,
        series=settings.apply_to_all,
    )


def register_pair(
    register: Registration,
    pair: Pair,
    settings: Settings,
    names: Names = PLAIN,
    facts: Mapping[str, Any] | None = None,
) -> tuple[RegistrationResult, dict[str, Callable[[Path], None]]]:
    """Register a pair; nothing is written yet.

    Args:
        register: What registers it.
        pair: Its files.
        settings: What is asked of it.
        names: Of its results.
        facts: Of its provenance, as far as they are known already.

    Returns:
        The result, and the `extras` to be saved with it: pictures, and the warped series.

    Raises:
        ParamorphError: As a call of `Registration`; or the moving file is not the series, or the
            initial transform or the output grid not what was asked for.
    """
    moving, series = _moving(pair.moving, settings)
    image, labels = (partial(_source, load, settings) for load in (load_volume, load_labels))
    mask = partial(_source, partial(load_labels, may_be_empty=True), settings)
    inputs = moving, image(pair.fixed), labels(pair.moving_labels), labels(pair.fixed_labels)
    result = register(
        *inputs,
        settings.affine,
        initial=_initial(pair, settings, moving),
        moving_mask=mask(pair.moving_mask),
        fixed_mask=mask(pair.fixed_mask),
        inverse=settings.inverse,
        output_grid=_output_grid(pair, settings, series),
        interpolation=settings.interpolation,
        also=[image(path) for path in pair.also],
        also_labels=[labels(path) for path in pair.also_labels],
        surfaces=settings.surfaces,
        refine=settings.refine,
        label_names=settings.names_of_labels(),
    )
    result.metrics["provenance"] = provenance_of(pair, settings, register, facts)
    extras = dict(settings.pictures.of(result, *inputs, _parameters(pair, settings)))
    if settings.itk_composite:
        parts = result.displacement, result.affine
        extras["composite"] = lambda folder: write_composite(folder / names.composite, *parts)
    if series is not None and settings.apply_to_all:
        extras["series"] = _series_writer(series, result, settings.interpolation, names)
    return result, extras


def _initial(
    pair: Pair, settings: Settings, moving: Path | Volume
) -> Float[np.ndarray, "4 4"] | None:
    if pair.initial_transform is None:
        return None
    images = Images()
    if settings.initial_format is not None:  # one of those that may refer to the images
        orientation = settings.analyze_orientation
        on = moving.grid if isinstance(moving, Volume) else load_grid(moving, orientation)
        images = Images(load_grid(pair.fixed, orientation), on)
    return read_start(pair.initial_transform, settings.initial_format, images)


def _parameters(pair: Pair, settings: Settings) -> dict[str, object]:
    """What was asked for, as a report shows it."""
    affine: str | bool = settings.affine
    if isinstance(affine, bool):
        affine = "affine" if affine else "none"
    found = {
        "affine": affine,
        "initial transform": pair.initial_transform and pair.initial_transform.name,
        "output grid": Path(settings.output_grid).name,
        "interpolation": settings.interpolation,
        "inverse": "yes" if settings.inverse else None,
        "refinement": "off" if settings.refine == 0 else f"{settings.refine} iterations",
        "threads": settings.threads,
        "warped along": ", ".join(path.name for path in (*pair.also, *pair.also_labels)),
    }
    return {name: value for name, value in found.items() if value}


def _moving(path: Path, settings: Settings) -> tuple[Path | Volume, Series | None]:
    """What is registered, and the series that it stands for."""
    if not settings.of_series:
        return _source(load_volume, settings, path), None
    series = load_series(path)
    if settings.reference_volume is None:
        return series.mean(), series
    try:
        return series[settings.reference_volume], series
    except IndexError as err:
        raise VolumeError(str(err)) from err


def _source(load: Callable[..., Volume], settings: Settings, path: Path | None) -> Any:
    """A path, or the volume of a file whose orientation the settings may have to tell."""
    if path is None or settings.analyze_orientation is None:
        return path
    return load(path, orientation=settings.analyze_orientation)


def _output_grid(pair: Pair, settings: Settings, series: Series | None) -> Grid | None:
    if settings.output_grid == "fixed":
        return None
    if settings.output_grid == "moving":
        if series is not None:
            return series.grid
        return load_grid(pair.moving, settings.analyze_orientation)
    return load_grid(settings.output_grid, settings.analyze_orientation)


def _series_writer(
    series: Series, result: RegistrationResult, interpolation: Interpolation, names: Names
) -> Callable[[Path], None]:
    def write(folder: Path) -> None:
        field = result.displacement
        volumes = warp_volumes(((volume, interpolation) for volume in iter(series)), field)
        save_series(folder / names.series, volumes, field.grid, series)

    return write
