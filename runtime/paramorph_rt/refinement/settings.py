"""What a refinement does: its levels from coarse to fine. Without NumPy, for the command's help."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Level:
    """One resolution of the pair, and what is done on it.

    Attributes:
        spacing_mm: Of its voxels; along an axis on which the fixed image is coarser, that image's.
        iterations: How many steps the field takes.
        step: Length of a step's longest vector, in `spacing_mm`.
        force_sigma: Standard deviation of the Gaussian that smooths the force, in `spacing_mm`:
            the larger, the more fluid is the deformation.
        field_sigma: The same for the whole field after each step, which makes it elastic.
        feature_sigma: The same where features are compared, whose forces make fields rougher; times
            the smoothing that their model asks for.
        features: Weight of the features' force beside that of the local correlation, if the model
            has features and they are not much coarser than the level.
    """

    spacing_mm: float
    iterations: int
    step: float = 1.2
    force_sigma: float = 1.7
    field_sigma: float = 0.65
    feature_sigma: float = 0.8
    features: float = 3.0

    def __post_init__(self) -> None:
        if self.iterations < 0 or min(self.spacing_mm, self.step) <= 0:
            raise ValueError(
                f"refinement: expected positive spacings and steps and no negative number of "
                f"iterations, got {self}."
            )


#: Iterations at 1.5 mm, to which those of the other levels are in proportion.
DEFAULT_ITERATIONS = 7
_STEP = 1.5  # fewer, longer steps find as much in less time


def levels_of(iterations: int = DEFAULT_ITERATIONS) -> tuple[Level, ...]:
    """The usual levels, coarse to fine, with so many iterations at 1.5 mm; none at all for 0."""
    if iterations == 0:
        return ()
    few = -(-2 * iterations // 5)  # with more of them fields get rougher faster than better
    return (
        Level(6.0, 2 * iterations, step=1.0),
        Level(3.0, iterations, _STEP),
        Level(1.5, iterations, _STEP),
        Level(1.0, few, step=1.0, field_sigma=0.5, feature_sigma=0.6),
        Level(0.7, few, step=1.0, field_sigma=0.5, feature_sigma=0.6),
    )


DEFAULT_LEVELS = levels_of()
