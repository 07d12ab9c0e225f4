"""What every inference engine offers: run a network on a pair, and close."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Protocol

from ..bundle import Precision
from ..errors import BackendError

if TYPE_CHECKING:
    from pathlib import Path
    from typing import Self

    import numpy as np
    from jaxtyping import Float

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

    def close(self) -> None:
        """Give back what the engine holds; it runs no more. A second call does nothing."""
        ...


class Backend(Network, Protocol):
    """Something that runs a bundle's networks.

    Attributes:
        shapes: Of the volumes that it takes, at least one.
    """

    shapes: tuple[Shape, ...]


Load = Callable[[], Network]


class Closable:
    """An explicit end, by `close` or by a `with` block; a second one does nothing.

    Subclasses have a `name` for the message, and give back what they hold in `_release`.
    """

    name: str
    _is_closed = False

    def close(self) -> None:
        """Give back what it holds; it runs no more."""
        if not self._is_closed:
            self._is_closed = True
            self._release()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _release(self) -> None:
        raise NotImplementedError

    def _check_open(self) -> None:
        if self._is_closed:
            raise BackendError(
                f"{self.name}: expected an open engine, got one that was closed; load it again."
            )


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
