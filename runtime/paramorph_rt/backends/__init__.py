"""Inference engines behind one small interface, one per module, and the choice between them."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Literal, Protocol, cast

from ..bundle import NO_MODEL
from ..errors import BackendError, MissingDependencyError, ParamorphError, needs
from ..system.optional import import_optional

if TYPE_CHECKING:
    from pathlib import Path

    import numpy as np
    from jaxtyping import Float

    from ..bundle import Bundle
    from .tensorrt import Flavour

log = logging.getLogger(__name__)

AUTO = "auto"
BACKENDS = ("onnxruntime", "cuda", "tensorrt", "tensorrt-rtx", "openvino")

Precision = Literal["fp32", "fp16", "bf16"]
PRECISIONS: tuple[Precision, ...] = ("fp32", "fp16", "bf16")


Shape = tuple[int, int, int]


class Network(Protocol):
    """A network in an engine, at one shape.

    Attributes:
        name: Engine and device.
        precision: What it computes in; the displacement is float32 either way.
    """

    name: str
    precision: Precision

    def run(
        self, moving: Float[np.ndarray, "i j k"], fixed: Float[np.ndarray, "i j k"]
    ) -> Float[np.ndarray, "3 i j k"]:
        """Displacement in voxels of the network grid, fixed → moving, channel = axis.

        A network of features gives those instead: (2, channels, i, j, k), the moving image's first.

        Args:
            moving: float32 in [0, 1] on the network grid.
            fixed: float32 in [0, 1] on the network grid.

        Raises:
            BackendError: The engine failed, or its output is not finite.
        """
        ...


class Backend(Network, Protocol):
    """Something that runs a bundle's networks.

    Attributes:
        shapes: Of the volumes that it takes, at least one.
    """

    shapes: tuple[Shape, ...]


Load = Callable[[], Network]


class NetworksByShape:
    """A bundle's networks of several shapes as one backend.

    The first is loaded at once, which shows whether it can be; each other when a pair of its shape
    comes. Loaded networks stay. Several threads may call it.

    Args:
        loads: What loads the network of a shape.

    Raises:
        BackendError: The engine refuses the first network.
    """

    def __init__(self, loads: Mapping[Shape, Load]) -> None:
        self.shapes = tuple(loads)
        self._loads = loads
        self._loaded: dict[Shape, Network] = {}
        self._loading = threading.Lock()
        first = self.at(self.shapes[0])
        self.name, self.precision = first.name, first.precision

    def at(self, shape: Shape) -> Network:
        """The network of a shape.

        Raises:
            BackendError: There is none, or the engine refuses it.
        """
        if shape not in self._loads:
            raise BackendError(
                f"{self.name}: expected volumes of shape {' or '.join(map(str, self.shapes))}, got "
                f"{shape}; prepare them for one of these, or export the bundle with --shape."
            )
        with self._loading:
            if shape not in self._loaded:
                self._loaded[shape] = self._loads[shape]()
            return self._loaded[shape]

    def run(
        self, moving: Float[np.ndarray, "i j k"], fixed: Float[np.ndarray, "i j k"]
    ) -> Float[np.ndarray, "3 i j k"]:
        """See `Network.run`."""
        return self.at(fixed.shape).run(moving, fixed)


@dataclass(frozen=True)
class Way:
    """One way to run a network: an engine library on a device.

    Attributes:
        backend: The one of `BACKENDS` that it serves; some have two ways.
        name: Of the `Backend` that it loads.
        precisions: That it can be asked for.
        unasked: Those that "auto" tries, in this order.
        prepare: Checks all that can be checked without loading (bundle, precision, threads) and
            returns what loads the network of the bundle's grid; raises what is in the way.
    """

    backend: str
    name: str
    precisions: tuple[Precision, ...]
    unasked: tuple[Precision, ...]
    prepare: Callable[[Bundle, Precision, int | None], Load]

    @property
    def extra(self) -> str | None:
        """Of this package, which brings the library; None for the base install."""
        return None if self.backend == "onnxruntime" else self.backend

    def loads(self, bundle: Bundle, precision: Precision, threads: int | None) -> dict[Shape, Load]:
        """What loads the network of each shape that can be run this way.

        Raises:
            ParamorphError: What is in the way of the first, if none can be run.
        """
        loads: dict[Shape, Load] = {}
        reasons: list[ParamorphError] = []
        for shape in bundle.shapes:
            try:
                with needs(self.extra, self.backend):
                    load = self.prepare(bundle.at(shape), precision, threads)
                loads[shape] = partial(self._load, load)
            except ParamorphError as err:
                reasons.append(err)
        if not loads:
            raise reasons[0]
        return loads

    def _load(self, load: Load) -> Network:
        with needs(self.extra, self.backend):
            return load()


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
    skipped: dict[Way, ParamorphError] = {}
    for way, loads in _prepared(bundle, name, precision, threads, skipped):
        try:
            backend = NetworksByShape(loads)
        except (BackendError, MissingDependencyError) as err:
            skipped.setdefault(way, err)
            continue
        _log_choice(backend, skipped)
        return backend
    raise _reason(name, skipped)


def choose_features(
    bundle: Bundle, name: str = AUTO, precision: str = AUTO, threads: int | None = None
) -> NetworksByShape:
    """Load a bundle's feature networks; arguments and errors as of `choose_backend`.

    An engine that was named for the registration and has no features to run leaves them to the CPU.
    """
    try:
        return choose_backend(bundle.of_features, name, precision, threads)
    except ParamorphError as err:
        if name == AUTO and precision == AUTO:
            raise
        log.info("features: on the CPU, as %s", err)
        return choose_backend(bundle.of_features, AUTO, AUTO, threads)


def check_request(bundle: Bundle, name: str, precision: str, threads: int | None) -> None:
    """Refuse what `choose_backend` could not load, as far as that shows without loading.

    Raises:
        ParamorphError: As `choose_backend`.
    """
    skipped: dict[Way, ParamorphError] = {}
    if not any(_prepared(bundle, name, precision, threads, skipped)):
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


def _prepared(
    bundle: Bundle,
    name: str,
    precision: str,
    threads: int | None,
    skipped: dict[Way, ParamorphError],
) -> Iterator[tuple[Way, dict[Shape, Load]]]:
    """The ways that nothing is known to be in the way of, fastest first; `skipped` gets others."""
    _check_known("backend", name, BACKENDS)
    _check_known("precision", precision, PRECISIONS)
    for way in ways_to_run(name, precision):
        for wanted in _precisions(way, bundle, precision):
            try:
                loads = way.loads(bundle, wanted, threads)
            except ParamorphError as err:
                skipped.setdefault(way, err)
                continue
            yield way, loads


def _reason(name: str, skipped: dict[Way, ParamorphError]) -> ParamorphError:
    """The first way of a named engine is the one to mend; of all engines the last needs least."""
    return list(skipped.values())[-1 if name == AUTO else 0]


def _precisions(way: Way, bundle: Bundle, precision: str) -> tuple[Precision, ...]:
    """What to try; of "auto" only what the bundle holds, so that a lack of it is no reason."""
    if precision != AUTO:
        return (cast("Precision", precision),)
    held = {n.precision for n in bundle.networks} | {e.precision for e in bundle.engines}
    return tuple(p for p in way.unasked if p in held) or way.unasked


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


def check_output(
    values: Float[np.ndarray, "b c i j k"], output: str, shape: tuple[int, ...], path: Path
) -> Float[np.ndarray, "*b c i j k"]:
    """What `Network.run` returns, if the engine gave that.

    Args:
        values: What an engine gave.
        output: As of `Bundle`.
        shape: Of the fixed image.
        path: The network's file, for the message.

    Raises:
        BackendError: Another shape, or values that are not finite.
    """
    import numpy as np

    if output == "displacement":
        return check_displacement(values, shape, path)
    if (
        values.ndim != 5
        or len(values) != 2
        or values.shape[2:] != shape
        or not np.isfinite(values).all()
    ):
        raise BackendError(
            f"{path.name}: expected finite features of two images of shape {shape}, got shape "
            f"{values.shape} or values that are not finite; verify the bundle and the input images."
        )
    return values


def check_displacement(
    displacement: Float[np.ndarray, "1 3 i j k"], shape: tuple[int, ...], path: Path
) -> Float[np.ndarray, "3 i j k"]:
    """The only displacement of a batch, if it is one.

    Args:
        displacement: What an engine gave.
        shape: Of the fixed image.
        path: The network's file, for the message.

    Raises:
        BackendError: Another shape, or values that are not finite.
    """
    import numpy as np

    if displacement.shape != (1, 3, *shape) or not np.isfinite(displacement).all():
        raise BackendError(
            f"{path.name}: expected finite displacements of shape {(1, 3, *shape)}, got shape "
            f"{displacement.shape} or values that are not finite; verify the bundle and the input "
            "images."
        )
    return displacement[0]


def prove(network: Network, shape: Shape) -> Network:
    """Run once, on a ramp: what a GPU's libraries lack shows only then, and kernels get compiled.

    Raises:
        BackendError: It does not run.
    """
    import numpy as np

    ramp = np.linspace(0, 1, int(np.prod(shape)), dtype=np.float32).reshape(shape)
    network.run(ramp, ramp)
    return network


def _engine(flavour: Flavour) -> Callable[[Bundle, Precision, int | None], Load]:
    def prepare(bundle: Bundle, precision: Precision, threads: int | None) -> Load:
        from .gpu import find_gpu
        from .tensorrt import EngineBackend, engine_of_version, engines_for, import_library

        engines = engines_for(bundle, flavour, precision, find_gpu().compute_capability)
        library = import_library(flavour)
        entry = engine_of_version(engines, library.__version__, bundle)
        return lambda: EngineBackend(bundle, entry, library)

    return prepare


def _onnxruntime_on_gpu(provider: str) -> Callable[[Bundle, Precision, int | None], Load]:
    def prepare(bundle: Bundle, precision: Precision, threads: int | None) -> Load:
        from .gpu import find_gpu

        find_gpu()
        from .onnxruntime import OnnxRuntimeBackend, check_provider

        entry = bundle.network(precision, device="gpu")
        check_provider(provider)

        def load() -> Network:
            if entry.device != "gpu" and provider != "CUDAExecutionProvider":
                log.warning(
                    "%s: rewritten for CPUs, it may take ten times the memory in %s; export the "
                    "bundle with --fp32-for-gpus.",
                    entry.file,
                    provider,
                )
            path = bundle.verified_network(entry)
            backend = OnnxRuntimeBackend(path, threads, provider, precision, bundle.output)
            return prove(backend, entry.shape)

        return load

    return prepare


def _openvino(bundle: Bundle, precision: Precision, threads: int | None) -> Load:
    module = import_optional(f"{__name__}.openvino", "openvino", "openvino")
    module.check_precision(precision)
    entry = bundle.network()  # float32, which OpenVINO rounds by itself
    sha256 = bundle.network_sha256(entry)

    def load() -> Network:
        path = bundle.verified_network(entry)
        return module.OpenVinoBackend(path, threads, precision, sha256, bundle.output)

    return load


def _onnxruntime(bundle: Bundle, precision: Precision, threads: int | None) -> Load:
    module = import_optional(f"{__name__}.onnxruntime", None, "onnxruntime")
    entry = bundle.network(precision)

    def load() -> Network:
        path = bundle.verified_network(entry)
        return module.OnnxRuntimeBackend(path, threads, output=bundle.output)

    return load


_CUDA, _TENSORRT, _TENSORRT_RTX = (
    _onnxruntime_on_gpu(f"{provider}ExecutionProvider")
    for provider in ("CUDA", "Tensorrt", "NvTensorRTRTX")
)
_ON_GPU: tuple[Precision, ...] = ("fp16", "fp32")
# Fastest first. Engines that are built already come before those that ONNX Runtime's providers
# build from the network at every start, and these after CUDA, which starts at once.
WAYS = (
    Way("tensorrt", "tensorrt", PRECISIONS, _ON_GPU, _engine("tensorrt")),
    Way("tensorrt-rtx", "tensorrt-rtx", PRECISIONS, _ON_GPU, _engine("tensorrt-rtx")),
    # Without bf16: ONNX Runtime has no such kernels for LeakyRelu, Resize, InstanceNormalization.
    Way("cuda", "onnxruntime-cuda", _ON_GPU, _ON_GPU, _CUDA),
    Way("tensorrt-rtx", "onnxruntime-tensorrt-rtx", PRECISIONS, _ON_GPU, _TENSORRT_RTX),
    # Weakly typed: in fp16 it would round sampling coordinates as well.
    Way("tensorrt", "onnxruntime-tensorrt", ("fp32",), ("fp32",), _TENSORRT),
    Way("openvino", "openvino-cpu", ("fp32", "bf16"), ("fp32",), _openvino),
    Way("onnxruntime", "onnxruntime-cpu", ("fp32",), ("fp32",), _onnxruntime),
)


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
