"""Station 3 of a registration: the pair is prepared for a model, and the model's networks run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from ..bundle import NO_MODEL, IntensitySpec
from ..geometry.field import DisplacementField
from .foreground import foreground_box
from .preparation import prepare_pair

if TYPE_CHECKING:
    from jaxtyping import Float

    from ..backends import Backend
    from ..geometry.spaces import Grid
    from ..images.volume import Volume
    from ..model import Model
    from ..refinement.images import Features
    from ..refinement.settings import Level
    from ..system.stopwatch import Stopwatch
    from .load import Images

# Without a model: what the refinement takes for 0 and 1.
INTENSITY = IntensitySpec(0.0, 99.8)
#: Around the foreground, where there is no network to say how much of the image is to be seen.
MARGIN_MM = 8.0


@dataclass(frozen=True, eq=False)
class Prediction:
    """What a model gives for a pair, on the grid of its network.

    Attributes:
        name: Of the model.
        engine: That ran it; None without a model.
        view: The network's grid, or the part of the fixed image that is registered.
        field: Without the affine; zeros where the model gives features alone.
        intensity: Percentiles that become 0 and 1.
        features: Of both images.
        refinement: By the network itself, for metrics.json; None if the field is yet to be refined.
        spacing_growth: As of `PreparedPair`.
    """

    name: str
    engine: Backend | None
    view: Grid
    field: DisplacementField
    intensity: IntensitySpec
    features: Features | None = None
    refinement: Mapping[str, Any] | None = None
    spacing_growth: float = 1.0

    def as_metrics(self) -> dict[str, Any]:
        """For metrics.json."""
        network_grid = {
            "shape": list(self.view.shape),
            "spacing_mm": self.view.spacing.round(6).tolist(),
            "spacing_growth": round(self.spacing_growth, 6),
        }
        return {
            "model": self.name,
            "backend": self.engine and self.engine.name,
            "precision": self.engine and self.engine.precision,
            "network_grid": network_grid if self.engine else None,
        }


def _without_model(images: Images) -> Prediction:
    """No displacement, over the foreground of the fixed image."""
    view = view_over(images.masked_fixed.image)
    still = DisplacementField(view, np.zeros((*view.shape, 3), np.float32))
    return Prediction(NO_MODEL, None, view, still, INTENSITY)


def view_over(fixed: Volume) -> Grid:
    """A field of view over the foreground of an image, along its own axes, at 1 mm."""
    low, high = (np.array(corner) for corner in foreground_box(fixed))
    margin = np.ceil(MARGIN_MM / fixed.grid.spacing)
    box = fixed.grid.cropped(low - margin, high + margin)
    return box.with_shape(np.maximum(1, np.round(box.spacing * box.shape)).astype(int).tolist())


def predict(
    model: Model | None,
    images: Images,
    affine: Float[np.ndarray, "4 4"],
    levels: Sequence[Level],
    seconds: Stopwatch,
) -> Prediction:
    """What a model gives for a pair: features if the refinement compares them, else a field.

    Args:
        model: Whose networks run; None gives no displacement.
        images: The pair.
        affine: Fixed world mm → moving world mm (RAS).
        levels: Of the refinement.
        seconds: Gets the stages.

    Raises:
        BackendError: The engine cannot be loaded, or the network failed.
    """
    if model is None:
        return _without_model(images)
    if not model.is_ready(levels):
        with seconds("load network"):
            model.engine(levels)
    inputs, engine = model.bundle.inputs, model.engine(levels)
    with seconds("preprocess"):
        both = images.masked_moving, images.masked_fixed
        pair = prepare_pair(*both, affine, inputs, engine.shapes)
    with seconds("features" if model.has_features(levels) else "network"):
        field, features = model.run(pair, levels)
    return Prediction(
        model.bundle.name,
        engine,
        pair.grid,
        field,
        inputs.intensity,
        features,
        model.refinement,
        pair.spacing_growth,
    )
