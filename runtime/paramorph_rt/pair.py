"""A pair of files, registered as a request says."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

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
from .report import pictures
from .request import Inputs, Options, parameters
from .result import RegistrationResult
from .results.bids import bids_names
from .results.outputs import PLAIN, Names
from .results.provenance import provenance_of
from .steps.load import Sources
from .transforms import Images
from .transforms.formats import read_start
from .transforms.itk import write_composite

if TYPE_CHECKING:
    import numpy as np
    from jaxtyping import Float

    from .registration import Registration


def check(options: Options) -> None:
    """Check all that can be checked before there is a result.

    Raises:
        MissingDependencyError: Pictures without the extra "report".
        EvaluationError: The table of label names cannot be used.
        VolumeError: The orientation of Analyze images is none.
    """
    pictures.check(options)
    if options.analyze_orientation is not None:
        check_orientation(options.analyze_orientation)
    names_of_labels(options)


def names_of_labels(options: Options) -> dict[int, str]:
    """As far as there is a table of them."""
    return {} if options.label_names is None else load_label_names(options.label_names)


def names_of(inputs: Inputs, options: Options, out_dir: Path) -> Names:
    """The names of a pair's results in their folder.

    Raises:
        OutputError: Two of them would have one name.
    """
    return bids_names(inputs, options, out_dir) if options.bids_names else PLAIN


def register_pair(
    register: Registration,
    inputs: Inputs,
    options: Options,
    names: Names = PLAIN,
    facts: Mapping[str, Any] | None = None,
) -> tuple[RegistrationResult, dict[str, Callable[[Path], None]]]:
    """Register a pair; nothing is written yet.

    Args:
        register: What registers it, see `loaded`.
        inputs: Its files.
        options: What is done with it.
        names: Of its results.
        facts: Of its provenance, as far as they are known already.

    Returns:
        The result, and the `extras` to be saved with it: pictures, and the warped series.

    Raises:
        ParamorphError: As a call of `Registration`; or the moving file is no series, or the initial
            transform or the output grid cannot be read.
    """
    sources, series = _sources(inputs, options)
    result = register.register(sources, options)
    result.metrics["provenance"] = provenance_of(inputs, options, register, facts)
    extras = pictures.drawings(options, result, sources, parameters(inputs, options))
    if options.itk_composite:
        parts = result.displacement, result.affine
        extras["composite"] = lambda folder: write_composite(folder / names.composite, *parts)
    if series is not None and options.apply_to_all:
        extras["series"] = _series_writer(series, result, options.interpolation, names)
    return result, extras


def _sources(inputs: Inputs, options: Options) -> tuple[Sources, Series | None]:
    """What is registered, and the series that the moving image stands for."""
    moving, series = _moving(inputs.moving, options)
    image, labels = (partial(_source, load, options) for load in (load_volume, load_labels))
    mask = partial(_source, partial(load_labels, may_be_empty=True), options)
    sources = Sources(
        moving=moving,
        fixed=image(inputs.fixed),
        moving_labels=labels(inputs.moving_labels),
        fixed_labels=labels(inputs.fixed_labels),
        initial=_initial(inputs, options, moving),
        moving_mask=mask(inputs.moving_mask),
        fixed_mask=mask(inputs.fixed_mask),
        output_grid=_output_grid(inputs, options, series),
        also=[image(path) for path in inputs.also],
        also_labels=[labels(path) for path in inputs.also_labels],
        label_names=names_of_labels(options),
    )
    return sources, series


def _initial(
    inputs: Inputs, options: Options, moving: Path | Volume
) -> Float[np.ndarray, "4 4"] | None:
    if inputs.initial_transform is None:
        return None
    images = Images()
    if options.initial_format is not None:  # one of those that may refer to the images
        orientation = options.analyze_orientation
        grid = moving.grid if isinstance(moving, Volume) else load_grid(moving, orientation)
        images = Images(load_grid(inputs.fixed, orientation), grid)
    return read_start(inputs.initial_transform, options.initial_format, images)


def _moving(path: Path, options: Options) -> tuple[Path | Volume, Series | None]:
    """The image that is registered, and the series that it stands for."""
    if not options.is_series:
        return _source(load_volume, options, path), None
    series = load_series(path)
    if options.reference_volume is None:
        return series.mean(), series
    try:
        return series[options.reference_volume], series
    except IndexError as err:
        raise VolumeError(str(err)) from err


def _source(load: Callable[..., Volume], options: Options, path: Path | None) -> Any:
    """A path, or the volume of a file whose header may lack the orientation."""
    if path is None or options.analyze_orientation is None:
        return path
    return load(path, orientation=options.analyze_orientation)


def _output_grid(inputs: Inputs, options: Options, series: Series | None) -> Grid | None:
    if options.output_grid == "fixed":
        return None
    if options.output_grid == "moving":
        if series is not None:
            return series.grid
        return load_grid(inputs.moving, options.analyze_orientation)
    return load_grid(options.output_grid, options.analyze_orientation)


def _series_writer(
    series: Series, result: RegistrationResult, interpolation: Interpolation, names: Names
) -> Callable[[Path], None]:
    def write(folder: Path) -> None:
        field = result.displacement
        volumes = warp_volumes(((volume, interpolation) for volume in iter(series)), field)
        save_series(folder / names.series, volumes, field.grid, series)

    return write
