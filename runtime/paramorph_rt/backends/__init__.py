"""Inference engines behind one small interface, one per module."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    import numpy as np
    from jaxtyping import Float


class Backend(Protocol):
    """Something that runs a bundle's network."""

    name: str

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
