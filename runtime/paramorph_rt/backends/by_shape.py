"""A bundle's networks of several shapes as one backend."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING

from ..errors import BackendError
from .interface import Closable

if TYPE_CHECKING:
    from collections.abc import Mapping

    import numpy as np
    from jaxtyping import Float

    from .interface import Load, Network, Shape


class NetworksByShape(Closable):
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
            self._check_open()
            if shape not in self._loaded:
                self._loaded[shape] = self._loads[shape]()
            return self._loaded[shape]

    def run(
        self, moving: Float[np.ndarray, "i j k"], fixed: Float[np.ndarray, "i j k"]
    ) -> Float[np.ndarray, "3 i j k"]:
        """See `Network.run`."""
        return self.at(fixed.shape).run(moving, fixed)

    def _release(self) -> None:
        with self._loading:
            for network in self._loaded.values():
                network.close()
            self._loaded.clear()
