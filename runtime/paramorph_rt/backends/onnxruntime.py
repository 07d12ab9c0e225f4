"""ONNX Runtime on the CPU: the engine of the base install."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import onnxruntime as ort

from ..errors import BackendError
from . import check_displacement

if TYPE_CHECKING:
    from pathlib import Path

    from jaxtyping import Float

    from . import Precision


class OnnxRuntimeBackend:
    """A bundle's ONNX file in an inference session.

    Args:
        network_path: A verified ONNX file.
        threads: Within one operator; None lets ONNX Runtime use all cores.

    Raises:
        BackendError: ONNX Runtime refuses the file.
    """

    name = "onnxruntime-cpu"
    precision: Precision = "fp32"

    def __init__(self, network_path: Path, threads: int | None = None) -> None:
        options = ort.SessionOptions()
        options.log_severity_level = 3  # errors; its warnings are about its own optimisations
        # The arena would keep the largest activations allocated for a second run.
        options.enable_cpu_mem_arena = False
        if threads is not None:
            options.intra_op_num_threads = threads
        self._path = network_path
        try:
            self._session = ort.InferenceSession(
                network_path, options, providers=["CPUExecutionProvider"]
            )
        except Exception as err:  # ONNX Runtime derives its errors from Exception directly
            raise BackendError(
                f"{network_path.name}: expected a network that ONNX Runtime {ort.__version__} "
                f"loads, got {_reason(err)}; update onnxruntime or export the bundle again."
            ) from err

    def run(
        self, moving: Float[np.ndarray, "i j k"], fixed: Float[np.ndarray, "i j k"]
    ) -> Float[np.ndarray, "3 i j k"]:
        """See `Backend.run`."""
        options = ort.RunOptions()
        # Else the graph's own warp would be computed too and thrown away.
        options.only_execute_path_to_fetches = True
        feeds = {"moving": moving[np.newaxis, np.newaxis], "fixed": fixed[np.newaxis, np.newaxis]}
        try:
            (displacement,) = self._session.run(["displacement"], feeds, options)
        except Exception as err:
            raise BackendError(
                f"{self._path.name}: expected a displacement for shape {moving.shape}, got "
                f"{_reason(err)}; check that the bundle was exported for this shape."
            ) from err
        return check_displacement(displacement, fixed.shape, self._path)


def _reason(err: Exception) -> str:
    return (str(err).splitlines() or [type(err).__name__])[0].rstrip(".")
