"""Which engine runs a bundle: the fastest that works here, or the one that is named."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, NamedTuple, cast

from ..bundle import NO_MODEL, PRECISIONS, Precision
from ..errors import BackendError, MissingDependencyError, ParamorphError
from .by_shape import NetworksByShape
from .interface import Backend, Load, Shape
from .ways import WAYS, Way

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from ..bundle import Bundle

log = logging.getLogger(__name__)

AUTO = "auto"
BACKENDS = ("onnxruntime", "cuda", "tensorrt", "tensorrt-rtx", "openvino")


def choose_backend(
    bundle: Bundle, name: str = AUTO, precision: str = AUTO, threads: int | None = None
) -> NetworksByShape:
    """Load a bundle's networks into an engine: that of its grid at once, others when needed.

    Args:
        bundle: A verified bundle.
        name: One of `BACKENDS`; "auto" takes the fastest that works here, and logs which that is
            and why it skipped others. What runs on a GPU has run once when it is returned.
        precision: One of `PRECISIONS`; "auto" is fp32 on the CPU, and on a GPU fp16 if the bundle
            has it (the export measures it, and writes none that strays).
        threads: None uses all cores.

    Raises:
        BackendError: An unknown name or precision, or a request that cannot be met: no GPU, no
            engine for it or for this version of its library, a precision that the engine or this
            CPU lacks, a network that is refused.
        BundleError: A file of the bundle was altered.
        MissingDependencyError: The named engine is not installed.
    """
    return _chosen(_Request(bundle, name, precision, threads, _held_by_default))


def choose_features(
    bundle: Bundle, name: str = AUTO, precision: str = AUTO, threads: int | None = None
) -> NetworksByShape:
    """Load a bundle's feature networks; arguments and errors as of `choose_backend`.

    Precision "auto" is bf16 where the engine and the CPU have it: features steer a search, whose
    result hardly moves (benchmarks/results/accuracy-brain-t1-validation.md). An engine that was
    named for the registration and has no features to run leaves them to the CPU.
    """
    features = bundle.of_features
    try:
        return _chosen(_Request(features, name, precision, threads, _fastest_of_features))
    except ParamorphError as err:
        if name == AUTO and precision == AUTO:
            raise
        log.info("features: on the CPU, as %s", err)
        return _chosen(_Request(features, AUTO, AUTO, threads, _fastest_of_features))


def check_request(bundle: Bundle, name: str, precision: str, threads: int | None) -> None:
    """Refuse what `choose_backend` could not load, as far as that shows without loading.

    Raises:
        ParamorphError: As `choose_backend`.
    """
    skipped: dict[Way, ParamorphError] = {}
    request = _Request(bundle, name, precision, threads, _held_by_default)
    if not any(_prepared(request, skipped)):
        raise _reason(name, skipped)


def check_no_request(name: str, precision: str) -> None:
    """Refuse an engine or a precision of a network where there is none, as without a model.

    Raises:
        BackendError: One was named.
    """
    for what, given in (("backend", name), ("precision", precision)):
        if given != AUTO:
            raise BackendError(
                f"model {NO_MODEL}: expected no {what}, as no network runs, got {given}; "
                f"leave --{what} out, or choose a model."
            )


class _Request(NamedTuple):
    bundle: Bundle
    name: str
    precision: str
    threads: int | None
    by_default: Callable[[Way, Bundle], tuple[Precision, ...]]

    def precisions(self, way: Way) -> tuple[Precision, ...]:
        """Those to try, in this order."""
        if self.precision == AUTO:
            return self.by_default(way, self.bundle)
        return (cast("Precision", self.precision),)


def _chosen(request: _Request) -> NetworksByShape:
    skipped: dict[Way, ParamorphError] = {}
    for way, loads in _prepared(request, skipped):
        try:
            backend = NetworksByShape(loads)
        except (BackendError, MissingDependencyError) as err:
            skipped.setdefault(way, err)
            continue
        _log_choice(backend, skipped)
        return backend
    raise _reason(request.name, skipped)


def _prepared(
    request: _Request, skipped: dict[Way, ParamorphError]
) -> Iterator[tuple[Way, dict[Shape, Load]]]:
    """The ways that nothing is known to be in the way of, fastest first; `skipped` gets others."""
    _check_known("backend", request.name, BACKENDS)
    _check_known("precision", request.precision, PRECISIONS)
    for way in ways_to_run(request.name, request.precision):
        for precision in request.precisions(way):
            try:
                loads = way.loads(request.bundle, precision, request.threads)
            except ParamorphError as err:
                skipped.setdefault(way, err)
                continue
            yield way, loads


def _reason(name: str, skipped: dict[Way, ParamorphError]) -> ParamorphError:
    """The first way of a named engine is the one to mend; of all engines the last needs least."""
    return list(skipped.values())[-1 if name == AUTO else 0]


def _held_by_default(way: Way, bundle: Bundle) -> tuple[Precision, ...]:
    """Only what the bundle holds, so that a lack of it is no reason."""
    held = {n.precision for n in bundle.networks} | {e.precision for e in bundle.engines}
    return tuple(p for p in way.by_default if p in held) or way.by_default


def _fastest_of_features(way: Way, bundle: Bundle) -> tuple[Precision, ...]:
    """An engine that makes bf16 of float32 by itself does so, if this CPU can."""
    return ("bf16", *way.by_default) if way.makes_bf16 else _held_by_default(way, bundle)


def ways_to_run(name: str, precision: str) -> list[Way]:
    """The ways that could meet a request, fastest first.

    Raises:
        BackendError: The named engine never computes in that precision.
    """
    ways = [way for way in WAYS if name in (AUTO, way.backend)]
    able = [way for way in ways if precision in (AUTO, *way.precisions)]
    if not able:
        known = dict.fromkeys(p for way in ways for p in way.precisions)
        raise BackendError(
            f"{name}: expected precision {' or '.join(known)}, got {precision}; choose another "
            "--precision or --backend."
        )
    return able


def _log_choice(backend: Backend, skipped: dict[Way, ParamorphError]) -> None:
    reasons: dict[str, list[str]] = {}
    for way, err in skipped.items():
        reasons.setdefault(str(err), []).append(way.name)
    for reason, names in reasons.items():
        log.debug("skipped %s: %s", ", ".join(names), reason)
    log.info("backend: %s in %s", backend.name, backend.precision)


def _check_known(what: str, given: str, known: tuple[str, ...]) -> None:
    if given not in (AUTO, *known):
        raise BackendError(
            f"{what}: expected one of {', '.join((AUTO, *known))}, got {given}; choose another."
        )
