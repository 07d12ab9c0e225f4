"""Which model a pair gets: the first that was made for both of its images, or none.

What a model was made for is said by its bundle (`domain`), nothing of it here.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ..bundle import NO_MODEL
from .domain import misfits
from .flags import Flag

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from ..model import Model
    from .looks import Look

#: What going without a model makes up for; the others stay doubts of the result.
MENDED = ("small", "border", "coarse", "contrast")
#: What the affine alone makes no better.
NO_REASON = ("left_right",)

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Choice:
    """What a pair gets, and why.

    Attributes:
        model: None is the affine alone, which the refinement goes on from.
        flags: Why a pair does not suit the first of all candidates.
        doubts: Those of the flags that the choice does not make up for, and what else about the
            pair does not suit the model that it gets.
        reason: A sentence, where a candidate was passed over.
    """

    model: Model | None
    flags: tuple[Flag, ...] = ()
    doubts: tuple[Flag, ...] = ()
    reason: str | None = None

    def as_metrics(self) -> dict[str, Any]:
        """For metrics.json."""
        return {
            "name": NO_MODEL if self.model is None else self.model.bundle.name,
            "reason": self.reason,
        }


def choose(models: Sequence[Model], moving: Look, fixed: Look, *, is_free: bool) -> Choice:
    """Choose for a pair.

    Args:
        models: Candidates, the preferred first.
        moving: What the moving image looks like.
        fixed: The same of the fixed one.
        is_free: Whether another than the first may be chosen, or none.
    """
    if not models:
        return Choice(None)
    first, why = models[0], tuple(_misfits(models[0], moving, fixed))
    if not is_free or not any(map(_is_reason, why)):
        return Choice(first, why, why)
    others = (model for model in models[1:] if _suits(model, moving, fixed))
    fitting = next(others, None)
    if fitting is None:
        doubts = tuple(flag for flag in why if flag.name not in MENDED)
    else:
        doubts = tuple(_misfits(fitting, moving, fixed))
    instead = "the affine alone" if fitting is None else fitting.bundle.name
    names = ", ".join(sorted({f"{flag.name} ({flag.of})" for flag in why if _is_reason(flag)}))
    bundle = first.bundle
    forced = bundle.name if bundle.comes_along else bundle.folder
    reason = (
        f"model: {first.bundle.name} was not made for this pair: {names}; it starts from "
        f"{instead}, and --model {forced} takes the model all the same."
    )
    log.info("%s", reason)
    return Choice(fitting, why, doubts, reason)


def metric_for(model: Model | None, wanted: str) -> str:
    """What the refinement compares images by: a model that knows one contrast vouches for it.

    Args:
        model: Of the pair; None is the affine alone.
        wanted: As of `refinement.coarse_to_fine.refine`.
    """
    knows = model is not None and model.domain is not None and model.domain.ranks is not None
    return "ncc" if wanted == "auto" and knows else wanted


def _is_reason(flag: Flag) -> bool:
    return flag.name not in NO_REASON


def _suits(model: Model, moving: Look, fixed: Look) -> bool:
    return not any(map(_is_reason, _misfits(model, moving, fixed)))


def _misfits(model: Model, moving: Look, fixed: Look) -> Iterator[Flag]:
    """Of both images, one after the other, as far as they are asked for."""
    if model.domain is not None:
        yield from misfits(moving, "moving", model.domain)
        yield from misfits(fixed, "fixed", model.domain)
