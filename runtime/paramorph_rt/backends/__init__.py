"""Inference engines behind one small interface, one per module, and the choice between them."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Literal, Protocol, cast

from ..errors import BackendError, ParamorphError

if TYPE_CHECKING:
    from pathlib import Path

    import numpy as np
    from jaxtyping import Float

    from ..bundle import Bundle

log = logging.getLogger(__name__)

AUTO = "auto"
BACKENDS = ("openvino", "onnxruntime")  # in the order in which "auto" tries them
PRECISIONS = ("fp32", "bf16")

Precision = Literal["fp32", "bf16"]


class Backend(Protocol):
    """Something that runs a bundle's network.

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

        Args:
            moving: float32 in [0, 1] on the network grid.
            fixed: float32 in [0, 1] on the network grid.

        Raises:
            BackendError: The engine failed, or its output is not finite.
        """
        ...


def choose_backend(
    bundle: Bundle, name: str = AUTO, precision: str = AUTO, threads: int | None = None
) -> Backend:
    """Load a bundle's network into an engine.

    Args:
        bundle: A verified bundle.
        name: One of `BACKENDS`; "auto" takes the first that is installed and accepts the network,
            and logs why it skipped others.
        precision: One of `PRECISIONS`; "auto" is fp32.
        threads: None uses all cores.

    Raises:
        BackendError: An unknown name or precision, a precision that the engine or this CPU lacks,
            or a network that the engine refuses.
        MissingDependencyError: The named engine is not installed.
    """
    _check_known("backend", name, BACKENDS)
    _check_known("precision", precision, PRECISIONS)
    wanted = cast("Precision", "fp32" if precision == AUTO else precision)
    if name != AUTO:
        return _load(name, bundle, wanted, threads)
    *better, last = BACKENDS
    for candidate in better:
        try:
            return _load(candidate, bundle, wanted, threads)
        except ParamorphError as err:
            log.info("backend %s skipped: %s", candidate, err)
    return _load(last, bundle, wanted, threads)


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


def _load(name: str, bundle: Bundle, precision: Precision, threads: int | None) -> Backend:
    """One of `BACKENDS`; each imports its engine only here."""
    path = bundle.verified_path(bundle.network().file)
    if name == "openvino":
        from .openvino import OpenVinoBackend

        return OpenVinoBackend(path, threads, precision)
    from .onnxruntime import OnnxRuntimeBackend

    if precision != OnnxRuntimeBackend.precision:
        raise BackendError(
            f"onnxruntime: expected precision {OnnxRuntimeBackend.precision}, got {precision}; "
            "choose --backend openvino (pip install 'paramorph-rt[openvino]')."
        )
    return OnnxRuntimeBackend(path, threads)


def _check_known(what: str, given: str, known: tuple[str, ...]) -> None:
    if given not in (AUTO, *known):
        raise BackendError(
            f"{what}: expected one of {', '.join((AUTO, *known))}, got {given}; choose another."
        )
