"""The story told once: two volumes → affine → network → field → warped volume and metrics."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from dataclasses import field as dataclass_field
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import numpy as np

from .backends import AUTO, Backend, check_no_request
from .bundle import (
    AUTO_MODEL,
    NO_MODEL,
    Bundle,
    IntensitySpec,
    bundle_path,
    candidates,
    load_bundle,
)
from .errors import OutputError, VolumeError
from .geometry.field import DisplacementField
from .geometry.inverse import consistency_mm, invert_field
from .geometry.resample import Interpolation, resample_to_grid
from .geometry.spaces import Grid
from .geometry.warp import warp_volume, warp_volumes
from .images.label_names import names_of_labels
from .images.volume import (
    Volume,
    check_image,
    check_labels,
    check_mask,
    check_same_grid,
    load_labels,
    load_mask,
    load_volume,
    nifti_name,
    save_labels,
    save_volume,
)
from .metrics.definitions import definitions_of
from .metrics.deformation import regularity
from .metrics.doubts import flags_of
from .metrics.overlap import present_labels
from .metrics.summary import compare_images, compare_labels
from .metrics.surface import NSD_TOLERANCE_MM
from .model import Model
from .quality import checks
from .quality.choice import choose
from .quality.flags import Flag
from .quality.looks import look_of
from .quality.score import evidence_of, score_of
from .refinement.coarse_to_fine import engine as refinement_engine
from .refinement.coarse_to_fine import refine as refined
from .refinement.coarse_to_fine import view_over
from .refinement.images import Features
from .refinement.settings import DEFAULT_LEVELS, Level, levels_of
from .results import outputs
from .results.schemas import METRICS
from .steps.affine import FLAGS as SAID_BY_AFFINE
from .steps.affine import AffineKind, Alignment, align_affine
from .steps.foreground import masked, share_outside
from .steps.preparation import prepare_pair
from .system.threads import Later, in_parallel, itk_threads, mapped
from .transforms.itk import write_affine, write_displacement

if TYPE_CHECKING:
    from jaxtyping import Bool, Float

    from .quality.looks import Look

log = logging.getLogger(__name__)

Source = str | Path | Volume
# SSIM of three stages would take as long as all other metrics without labels.
INFER_MEASURES = ("ncc", "mse")
# Without a model: what the refinement takes for 0 and 1.
INTENSITY = IntensitySpec(0.0, 99.8)
# Share of the fixed foreground that an output grid may lack without a warning.
LEAST_LOSS = 0.001


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
        threads: For whatever is still to be done, such as writing; None is all cores.
    """

    warped: Volume
    displacement: DisplacementField
    affine: Float[np.ndarray, "4 4"]
    warped_labels: Volume | None
    metrics: dict[str, Any]
    inverse: DisplacementField | None = None
    also: dict[str, Volume] = dataclass_field(default_factory=dict)
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
            names: What the files are called, such as `bids.bids_names` decides.

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
            outputs.write_json(folder / names.metrics, self.metrics)
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
        yield partial(write_affine, folder / names.affine, self.affine)


class Registration:
    """A model, ready to register pairs: calling it registers one.

    >>> register = Registration()  # doctest: +SKIP
    >>> result = register("moving.nii.gz", "fixed.nii.gz", inverse=True)  # doctest: +SKIP
    >>> result.metrics["ncc"]["after"], result.displacement.vectors_mm.shape  # doctest: +SKIP
    >>> result.save("OUT")  # doctest: +SKIP

    The model is loaded once; pairs may have any grids. `__call__` says what may be given, and what
    can go wrong; `RegistrationResult` what comes back.

    Args:
        bundle: A bundle, its path, or the name of a shipped one; "none" is no model: pairs are
            refined from their affine alone; None or "auto" is for each pair the first shipped model
            that was made for such images, or none (`quality.choice`).
        threads: For networks, refinement and resampling; None uses all cores.
        backend: Name of an inference engine, see `choose_backend`, or one that is loaded already,
            or `Later`: from when the images have been read.
        precision: Of the networks, see there too; a loaded engine has its own.
        features: The engine of the feature networks, where `backend` is no name.

    Attributes:
        models: From which each pair gets the first that suits; empty is none.
        is_free: Whether a pair may get none of them; else it gets the first in any case.

    Raises:
        BundleError: The bundle is missing, altered or of an unknown format.
        BackendError: No such backend or precision here, or the engine refuses a network.
        MissingDependencyError: The backend is not installed.
    """

    def __init__(
        self,
        bundle: str | Path | Bundle | None = None,
        threads: int | None = None,
        backend: str | Backend | Later[Backend] = AUTO,
        precision: str = AUTO,
        features: Backend | Later[Backend] | None = None,
    ) -> None:
        self.threads = threads
        self.is_free = bundle in (None, AUTO_MODEL)
        if bundle == NO_MODEL and isinstance(backend, str):
            check_no_request(backend, precision)
        if isinstance(backend, str):
            self.models = [Model.of(b, backend, precision, threads) for b in _bundles(bundle)]
            self.ready()
        else:
            self.models = [Model(b, backend, features) for b in _bundles(bundle)]

    @classmethod
    def with_models(
        cls, models: Sequence[Model], threads: int | None = None, *, is_free: bool = False
    ) -> Registration:
        """A registration with models that somebody else loads."""
        register = cls(NO_MODEL, threads)
        register.models, register.is_free = list(models), is_free
        return register

    @property
    def bundle(self) -> Bundle | None:
        """Of the first model."""
        return self.models[0].bundle if self.models else None

    @property
    def backend(self) -> Backend:
        """The engine of the first model's network; one that is still loading is waited for."""
        return self.models[0].engine(())

    def ready(self, levels: Sequence[Level] = DEFAULT_LEVELS) -> None:
        """Wait until what most calls need is loaded; raises whatever is wrong with it."""
        for model in self.candidates(levels)[:1]:
            model.engine(levels)

    def candidates(self, levels: Sequence[Level]) -> list[Model]:
        """The models that a pair may get, the preferred first; one that was named in any case."""
        return [model for model in self.models if model.serves(levels) or not self.is_free]

    def __call__(
        self,
        moving: Source,
        fixed: Source,
        moving_labels: Source | None = None,
        fixed_labels: Source | None = None,
        affine: bool | AffineKind = True,
        *,
        initial: Float[np.ndarray, "4 4"] | None = None,
        moving_mask: Source | None = None,
        fixed_mask: Source | None = None,
        inverse: bool = False,
        output_grid: Grid | None = None,
        interpolation: Interpolation = "linear",
        also: Sequence[Source] = (),
        also_labels: Sequence[Source] = (),
        surfaces: bool = True,
        label_names: Mapping[int, str] | None = None,
        refine: int | Sequence[Level] = DEFAULT_LEVELS,
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
            moving_mask: On the grid of `moving`. Where it is 0, the image counts as background;
                holes in it, such as a lesion that is left out, drive nothing: the affine search
                skips them, and the network sees the fixed image there. Metrics of images count
                where both masks are not 0. All of the image is warped.
            fixed_mask: The same for `fixed`.
            inverse: Also find the inverse field.
            output_grid: Where warped images, labels and the displacement lie, in the fixed world;
                metrics are measured on the fixed grid all the same.
            interpolation: Of the images; labels take the nearest voxel.
            also: More images in the moving image's world, each on any grid, to be warped along.
            also_labels: The same for label maps.
            surfaces: Measure the distances between the surfaces of labels; of the more than 100
                labels of a brain that takes longer than registering it.
            label_names: By label, to go into the metrics.
            refine: Levels of the refinement, or how many iterations the usual ones have at 1.5 mm;
                0 leaves the field as the network gave it.

        Raises:
            VolumeError: An input that cannot be trusted, or labels or a mask of another grid.
            AlignmentError: The two images do not overlap.
            BackendError: The network failed.
        """
        seconds = Stopwatch({})
        with itk_threads(self.threads):
            with seconds("load"):
                moving, fixed = mapped(_image, (moving, fixed))
                moving_labels, fixed_labels = in_parallel(
                    partial(_labels, moving_labels, moving), partial(_labels, fixed_labels, fixed)
                )
                masks: dict[str, Any] = {
                    "moving_mask": _mask(moving_mask, moving),
                    "fixed_mask": _mask(fixed_mask, fixed),
                }
                _check_labels_can_be_compared(moving_labels, fixed_labels)
                companions = _companions(also, also_labels)
            levels = levels_of(refine) if isinstance(refine, int) else tuple(refine)
            models = self.candidates(levels)
            for likely in models[:1]:
                likely.start(levels)
            with seconds("affine"):
                to_moving = np.eye(4) if initial is None else initial
                alignment: Alignment | None = None
                with ThreadPoolExecutor(1) as meanwhile:
                    looking = meanwhile.submit(_looks, moving, fixed, **masks)
                    if affine:
                        kind = "auto" if affine is True else affine
                        alignment = align_affine(moving, fixed, kind, initial, **masks)
                        to_moving = alignment.affine
                looks = looking.result()
            choice = choose(models, *looks, is_free=self.is_free)
            flags = [
                *(alignment.flags if alignment else ()),
                *checks.content(looks[0], "moving"),
                *checks.content(looks[1], "fixed"),
                *checks.of_pair(*looks, poses=bool(affine) and initial is None),
                *checks.identical(moving, fixed),
            ]
            if choice.model is not None and not choice.model.is_ready(levels):
                with seconds("load network"):
                    choice.model.engine(levels)
            model = self._run(choice.model, moving, fixed, to_moving, masks, levels, seconds)
            by_model = model.field
            if levels:
                with seconds("refine"):
                    by_model = refined(
                        moving,
                        fixed,
                        to_moving,
                        model.view,
                        levels,
                        model.intensity,
                        start=model.field,
                        features=model.features,
                        threads=self.threads,
                        **masks,
                    )
            with seconds("warp"):
                field = by_model.resampled_to(fixed.grid).composed_with_affine(to_moving)
                warped, warped_labels = _warped(moving, moving_labels, field, interpolation)
            with seconds("metrics"):
                metrics = _describe(moving, fixed, model, alignment, levels)

                def of_images() -> dict[str, Any]:
                    stages = _stages(moving, fixed, to_moving, warped, "linear")
                    counting = _where_masks_count(**masks, field=field)
                    return compare_images(fixed, stages, INFER_MEASURES, counting)

                def of_labels() -> dict[str, Any]:
                    if not (moving_labels and warped_labels and fixed_labels):
                        return {}
                    stages = _stages(moving_labels, fixed, to_moving, warped_labels, "nearest")
                    tables = compare_labels(fixed_labels, moving_labels, stages, surfaces=surfaces)
                    return tables | ({"nsd_tolerance_mm": NSD_TOLERANCE_MM} if surfaces else {})

                for measured in in_parallel(of_images, of_labels, lambda: regularity(field)):
                    metrics |= measured
                metrics["definitions"] = definitions_of(metrics)
                if label_names and "dice" in metrics:
                    present = metrics["dice"]["after"]["labels"]
                    metrics["label_names"] = names_of_labels(present, label_names)
                seen = masked(fixed, masks["fixed_mask"])
                doubted = [*flags, *choice.flags]
                evidence = evidence_of(metrics, seen, warped, by_model, doubted)
            back: DisplacementField | None = None
            if inverse:
                with seconds("inverse"):
                    found = invert_field(field, moving.grid)
                    metrics["inverse_consistency_mm"] = consistency_mm(found, field, moving, fixed)
                    back = found.field
            if output_grid is not None:
                # Whatever image gave the grid, the results lie in the fixed image's world.
                output_grid = replace(output_grid, world_code=fixed.grid.world_code)
                flags += _cut_off(fixed, output_grid)
                with seconds("output grid"):
                    field = by_model.resampled_to(output_grid).composed_with_affine(to_moving)
                    warped, warped_labels = _warped(moving, moving_labels, field, interpolation)
            metrics["quality"] = {
                "score": score_of(evidence),
                "evidence": evidence,
                "choice": choice.as_metrics(),
            }
            _judge(metrics, [*flags, *choice.flags], [*flags, *choice.doubts])
            carried: dict[str, Volume] = {}
            if companions:
                with seconds("also"):
                    each = [(volume, how or interpolation) for volume, how in companions]
                    carried = {volume.name: volume for volume in warp_volumes(each, field)}
        metrics["seconds"] = seconds.table
        return RegistrationResult(
            *(warped, field, to_moving, warped_labels, metrics),
            inverse=back,
            also=carried,
            threads=self.threads,
        )

    def _run(
        self,
        model: Model | None,
        moving: Volume,
        fixed: Volume,
        to_moving: Float[np.ndarray, "4 4"],
        masks: Mapping[str, Volume | None],
        levels: Sequence[Level],
        seconds: Stopwatch,
    ) -> ByModel:
        """What the model says of a pair: features if the refinement wants them, else a field."""
        if model is None:
            view = view_over(fixed, masks["fixed_mask"])
            still = DisplacementField(view, np.zeros((*view.shape, 3), np.float32))
            return ByModel(NO_MODEL, None, view, still, INTENSITY)
        bundle, engine = model.bundle, model.engine(levels)
        with seconds("preprocess"):
            pair = prepare_pair(moving, fixed, to_moving, bundle.inputs, engine.shapes, **masks)
        with seconds("features" if model.has_features(levels) else "network"):
            field, features = model.run(pair, levels)
        return ByModel(
            *(bundle.name, engine, pair.grid, field, bundle.inputs.intensity),
            features=features,
            spacing_growth=pair.spacing_growth,
        )


def _bundles(model: str | Path | Bundle | None) -> list[Bundle]:
    if isinstance(model, Bundle):
        return [model]
    if model is None or model == AUTO_MODEL:
        return [load_bundle(path) for path in candidates()]
    return [] if model == NO_MODEL else [load_bundle(bundle_path(model))]


@dataclass(frozen=True, eq=False)
class ByModel:
    """What a model says of a pair, on the grid of its network.

    Attributes:
        name: Of the model.
        engine: That ran it; None without a model.
        view: The network's grid, or what is seen of the fixed image.
        field: Without the affine; zeros where features are all that it gives.
        intensity: Percentiles that become 0 and 1.
        features: Of both images.
        spacing_growth: As of `PreparedPair`.
    """

    name: str
    engine: Backend | None
    view: Grid
    field: DisplacementField
    intensity: IntensitySpec
    features: Features | None = None
    spacing_growth: float = 1.0


def _describe(
    moving: Volume,
    fixed: Volume,
    model: ByModel,
    alignment: Alignment | None,
    levels: Sequence[Level],
) -> dict[str, Any]:
    network_grid = {
        "shape": list(model.view.shape),
        "spacing_mm": model.view.spacing.round(6).tolist(),
        "spacing_growth": round(model.spacing_growth, 6),
    }
    return {
        "schema": METRICS,
        "moving": moving.name,
        "fixed": fixed.name,
        "warnings": [],
        "affine": alignment and alignment.as_metrics(),
        "model": model.name,
        "backend": model.engine and model.engine.name,
        "precision": model.engine and model.engine.precision,
        "network_grid": network_grid if model.engine else None,
        "refinement": {
            "engine": refinement_engine(),
            "features": model.features is not None,
            "levels": [asdict(level) for level in levels],
        }
        if levels
        else None,
    }


def _looks(
    moving: Volume, fixed: Volume, moving_mask: Volume | None, fixed_mask: Volume | None
) -> list[Look]:
    """Of both images, as far as their masks leave them."""
    return mapped(look_of, (masked(moving, moving_mask), masked(fixed, fixed_mask)))


def _judge(metrics: dict[str, Any], flags: Sequence[Flag], doubts: Sequence[Flag]) -> None:
    """Add to the metrics what was found, and say all that makes the result doubtful.

    Args:
        metrics: Of the result.
        flags: All that the checks before found.
        doubts: Those of them that are still doubts now.
    """
    after = flags_of(metrics)
    metrics["quality"]["flags"] = [flag.as_metrics() for flag in (*flags, *after)]
    metrics["warnings"] = [flag.sentence for flag in (*doubts, *after)]
    for flag in (*doubts, *after):
        if flag.name not in SAID_BY_AFFINE:
            log.warning("%s", flag.sentence)


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


def _cut_off(fixed: Volume, grid: Grid) -> Iterator[Flag]:
    """What results on a grid lack of the fixed image, if it is worth a warning."""
    share = share_outside(fixed, grid)
    if share >= LEAST_LOSS:
        yield Flag(
            "cut_off",
            "fixed",
            f"{100 * share:.1f} % of what {fixed.name} shows lies outside the output grid, and "
            "results end there; choose a grid that covers it, such as --output-grid fixed.",
            *(share, LEAST_LOSS),
        )


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


def _warped(
    moving: Volume, labels: Volume | None, field: DisplacementField, interpolation: Interpolation
) -> tuple[Volume, Volume | None]:
    """The moving image and its labels, if there are any, on the grid of the field."""
    what: list[tuple[Volume, Interpolation]] = [(moving, interpolation)]
    if labels:
        what.append((labels, "nearest"))
    image, *warped_labels = warp_volumes(what, field)
    return image, next(iter(warped_labels), None)


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
    companions = [(replace(v, name=nifti_name(v.name)), how) for v, how in companions]
    names = [volume.name for volume, _ in companions]
    for name in names:
        if names.count(name) > 1 or Path(name).name != name:
            raise OutputError(
                f"{name}: expected a file name of its own for each volume that is warped along, "
                "got two of this or a path; rename it."
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


def _mask(source: Source | None, image: Volume) -> Volume | None:
    if source is None:
        return None
    if not isinstance(source, Volume):
        return load_mask(source, image)
    check_mask(source, image)
    return source


def _where_masks_count(
    moving_mask: Volume | None, fixed_mask: Volume | None, field: DisplacementField
) -> Bool[np.ndarray, "i j k"] | None:
    """Voxels of the fixed grid that both masks leave, the moving one's after all."""
    warped = moving_mask and warp_volume(moving_mask, field, "nearest")
    counting = [mask.data != 0 for mask in (warped, fixed_mask) if mask is not None]
    return np.logical_and.reduce(counting) if counting else None


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
