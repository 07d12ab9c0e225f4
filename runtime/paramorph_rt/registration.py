"""The story of a registration: volumes → affine → network → field → warped volume, metrics."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .backends import AUTO, Backend, check_no_request
from .backends.interface import Closable
from .bundle import AUTO_MODEL, NO_MODEL, Bundle, bundle_path, candidates, load_bundle
from .model import Model
from .quality.choice import choose, metric_for
from .quality.score import evidence_of
from .refinement.coarse_to_fine import Refined, refine
from .refinement.coarse_to_fine import engine as refinement_engine
from .refinement.settings import DEFAULT_LEVELS, Level
from .request import Metric, Options
from .result import RegistrationResult
from .results.schemas import METRICS
from .steps.align import Start, align
from .steps.brain_mask import strip
from .steps.invert import invert
from .steps.judge import cut_off, judge
from .steps.load import Images, Source, Sources, load
from .steps.measure import measure
from .steps.predict import Prediction, predict
from .steps.warp import Deformation, warp, warp_along
from .system.stopwatch import Stopwatch
from .system.threads import Later, itk_threads

if TYPE_CHECKING:
    import numpy as np
    from jaxtyping import Float

    from .geometry.resample import Interpolation
    from .geometry.spaces import Grid
    from .steps.affine import AffineKind


class Registration(Closable):
    """A model, ready to register pairs: calling it registers one.

    >>> register = Registration()  # doctest: +SKIP
    >>> result = register("moving.nii.gz", "fixed.nii.gz", inverse=True)  # doctest: +SKIP
    >>> result.metrics["ncc"]["after"], result.displacement.vectors_mm.shape  # doctest: +SKIP
    >>> result.save("OUT")  # doctest: +SKIP

    The model is loaded once; pairs may have any grids. `__call__` says what may be given, and what
    can go wrong; `RegistrationResult` what comes back. `close`, or the end of a `with` block, gives
    back the engines that it loaded, such as memory of a GPU.

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

    name = "registration"

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

    def __call__(  # the keyword arguments are those of `Sources` and `Options`
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
        metric: Metric = "auto",
        strip: bool = False,
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
            metric: That the refinement compares images by: "ncc", "mind" or "auto"; see
                `refinement.coarse_to_fine.refine`.
            strip: Extract the brain from images that have no mask, such as heads with skull.

        Raises:
            VolumeError: An input that cannot be trusted, labels or a mask of another grid, or no
                brain in an image that is to be stripped.
            AlignmentError: The two images do not overlap.
            BackendError: The network failed.
        """
        sources = Sources(
            moving,
            fixed,
            moving_labels,
            fixed_labels,
            moving_mask,
            fixed_mask,
            initial=initial,
            output_grid=output_grid,
            also=also,
            also_labels=also_labels,
            label_names=label_names,
        )
        options = Options(
            affine=affine if isinstance(affine, str) else "auto" if affine else "none",
            inverse=inverse,
            interpolation=interpolation,
            surfaces=surfaces,
            refine=refine if isinstance(refine, int) else tuple(refine),
            metric=metric,
            strip=strip,
        )
        return self.register(sources, options)

    def register(self, sources: Sources, options: Options) -> RegistrationResult:
        """Register the moving to the fixed image, and raise what `__call__` raises.

        Args:
            sources: What is registered.
            options: What is done with it. Of these, the model, its engine and the threads are this
                object's own, and reading and writing files are the caller's.
        """
        self._check_open()
        seconds, levels = Stopwatch({}), options.levels
        with itk_threads(self.threads):
            images = self._loaded(sources, options, seconds)
            models = self._started(levels)
            with seconds("affine"):
                start = align(images, options.affine, sources.initial)
            with seconds("checks"):
                flags = start.flags(images)
                choice = choose(models, start.moving, start.fixed, is_free=self.is_free)
            prediction = predict(choice.model, images, start.affine, levels, seconds)
            refined = self._refined(images, start, prediction, choice.model, options, seconds)
            deformation = Deformation(refined.field, start.affine)
            with seconds("warp"):
                warped = warp(images, deformation.on(images.fixed.grid), options.interpolation)
            with seconds("metrics"):
                metrics = _described(images, start, prediction, levels, refined.metric)
                metrics |= measure(images, start, warped, options.surfaces, sources.label_names)
                both = images.masked_fixed.image, warped.masked_image
                evidence = evidence_of(metrics, *both, deformation.field, [*flags, *choice.flags])
            inverse = invert(images, warped.field, metrics, seconds) if options.inverse else None
            if images.output_grid is not None:
                flags += cut_off(images.fixed, images.output_grid)
                with seconds("output grid"):
                    warped = warp(images, deformation.on(images.output_grid), options.interpolation)
            judge(metrics, evidence, flags, choice)
            also = warp_along(images, warped.field, options.interpolation, seconds)
        metrics["seconds"] = seconds.table
        return RegistrationResult(
            warped.image,
            warped.field,
            start.affine,
            warped.labels,
            metrics,
            inverse,
            also,
            images.brain_masks,
            self.threads,
        )

    def _loaded(self, sources: Sources, options: Options, seconds: Stopwatch) -> Images:
        with seconds("load"):
            images = load(sources)
        return strip(images, self.threads, seconds) if options.strip else images

    def _release(self) -> None:
        for model in self.models:
            model.close()

    def _started(self, levels: Sequence[Level]) -> list[Model]:
        """The models that a pair may get; the preferred one begins to load."""
        models = self.candidates(levels)
        for likely in models[:1]:
            likely.start(levels)
        return models

    def _refined(
        self,
        images: Images,
        start: Start,
        prediction: Prediction,
        model: Model | None,
        options: Options,
        seconds: Stopwatch,
    ) -> Refined:
        levels, metric = options.levels, metric_for(model, options.metric)
        if not levels or prediction.refinement is not None:
            return Refined(prediction.field, "ncc")
        with seconds("refine"):
            return refine(images, start.affine, prediction, levels, self.threads, metric)


def _described(
    images: Images,
    start: Start,
    prediction: Prediction,
    levels: Sequence[Level],
    metric: str,
) -> dict[str, Any]:
    """The metrics that say how the result came about."""
    return {
        "schema": METRICS,
        "moving": images.moving.name,
        "fixed": images.fixed.name,
        "warnings": [],
        "affine": start.alignment and start.alignment.as_metrics(),
        **prediction.as_metrics(),
        "refinement": _refinement(prediction, levels, metric),
    }


def _refinement(
    prediction: Prediction, levels: Sequence[Level], metric: str
) -> Mapping[str, Any] | None:
    if prediction.refinement is not None or not levels:
        return prediction.refinement
    features = prediction.features
    return {
        "engine": refinement_engine(),
        "features": features is not None,
        "smoothing": 1.0 if features is None else features.smoothing,
        "metric": metric,
        "levels": [asdict(level) for level in levels],
    }


def _bundles(model: str | Path | Bundle | None) -> list[Bundle]:
    if isinstance(model, Bundle):
        return [model]
    if model is None or model == AUTO_MODEL:
        return [load_bundle(path) for path in candidates()]
    return [] if model == NO_MODEL else [load_bundle(bundle_path(model))]
