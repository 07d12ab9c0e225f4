"""Where models come from: those of this package, $PARAMORPH_MODEL, or a path."""

from __future__ import annotations

import os
from pathlib import Path

from ..errors import BundleError
from .names import MANIFEST

DEFAULT_NAME = "brain-t1-small"
#: Stands for a model where none is wanted: the refinement alone.
NO_MODEL = "none"
#: Stands for the first of the shipped models that was made for a pair, or none.
AUTO_MODEL = "auto"
SHIPPED = Path(__file__).parents[1] / "bundles"


def default_bundle_path() -> Path:
    """The bundle used when none is named: $PARAMORPH_MODEL, or the one of this package.

    Raises:
        BundleError: Neither exists.
    """
    if chosen := os.environ.get("PARAMORPH_MODEL"):
        return Path(chosen)
    path = SHIPPED / DEFAULT_NAME
    if not path.is_dir():
        raise BundleError(
            f"{DEFAULT_NAME}: expected the model that comes with paramorph-rt, found none; run "
            "`python -m pip install --force-reinstall paramorph-rt`, or name a bundle."
        )
    return path


def candidates() -> list[Path]:
    """What "auto" chooses from: $PARAMORPH_MODEL alone, or the models of this package.

    Raises:
        BundleError: There is none.
    """
    first = default_bundle_path()
    if first.parent != SHIPPED:
        return [first]
    others = sorted(path.parent for path in SHIPPED.glob(f"*/{MANIFEST}"))
    return [first, *(path for path in others if path != first)]


def bundle_path(model: str | Path | None) -> Path:
    """The folder of a bundle: by its path, or the name of a shipped model; None: the default one.

    Raises:
        BundleError: None is named, and there is none.
    """
    if model is None:
        return default_bundle_path()
    path, shipped = Path(model), SHIPPED / Path(model).name
    by_name = len(path.parts) == 1 and not path.exists() and (shipped / MANIFEST).is_file()
    return shipped if by_name else path
