"""Which of a bundle's TensorRT engines fits a GPU and the version of the library."""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING, Any

from ..bundle import PORTABLE
from ..errors import BackendError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from ..bundle import Bundle, EngineEntry
    from ..bundle.names import Flavour

#: Compute capability from which on a portable engine of TensorRT for RTX may be tried. NVIDIA names
#: 8.0, 8.6, 8.9, 12.0 and later; others refuse it, if they do, when it is loaded.
OLDEST_OF_PORTABLE = (8, 0)


def engines_for(
    bundle: Bundle, flavour: Flavour, precision: str, compute_capability: str
) -> list[EngineEntry]:
    """The engines of a bundle that a GPU could run, each with the right version of the library.

    Raises:
        BackendError: There is none.
    """
    engines = list(bundle.engines)
    build = _build_command(bundle, flavour, compute_capability)
    targets = [compute_capability]
    if _numbers(compute_capability) >= OLDEST_OF_PORTABLE:
        targets.append(PORTABLE)
    for what, *values in (
        ("flavour", flavour),
        ("shape", bundle.inputs.grid.shape),
        ("precision", precision),
        ("compute_capability", *targets),
    ):
        engines = _those(engines, what, values, f"{bundle.name}: expected an engine", build)
    return engines


def engine_of_version(engines: list[EngineEntry], version: str, bundle: Bundle) -> EngineEntry:
    """The one of `engines_for` that the installed library built.

    Raises:
        BackendError: Another version built them; the message holds the command that builds anew.
    """
    first = engines[0]
    for engine in engines:
        if same_version(engine.version, version):
            return engine
    build = _build_command(bundle, first.flavour, first.compute_capability)
    subject = f"{first.file}: expected an engine of {first.flavour}"
    return _those(engines, "version", [version], subject, build)[0]


def same_version(built: str, installed: str) -> bool:
    """Whether two versions are one, as far as both are known.

    Python's package of TensorRT says "10.3.0" or "10.7.0.post1" of what its library calls
    10.3.0.26 and 10.7.0.23.
    """
    pairs = zip(_numbers(built), _numbers(installed), strict=False)
    return all(one == other for one, other in pairs)


def _numbers(version: str) -> tuple[int, ...]:
    """Those in front: "10.7.0.post1" → (10, 7, 0)."""
    parts = itertools.takewhile(str.isdigit, version.split("."))
    return tuple(int(part) for part in parts)


def _those(
    engines: list[EngineEntry], what: str, values: Sequence[Any], subject: str, build: str
) -> list[EngineEntry]:
    """In the order of the values."""
    chosen = [e for value in values for e in engines if getattr(e, what) == value]
    if not chosen:
        others = ", ".join(dict.fromkeys(str(getattr(engine, what)) for engine in engines))
        raise BackendError(
            f"{subject} for {what.replace('_', ' ')} {values[0]}, got {others or 'no engine'}; "
            f"build it: {build}"
        )
    return chosen


def _build_command(bundle: Bundle, flavour: str, compute_capability: str) -> str:
    if bundle.comes_along:
        return f"make engine in a clone of the project, then --model build/bundles/{bundle.name}"
    target = compute_capability
    if target != PORTABLE:
        target = f"sm{target.replace('.', '')}"
    return (
        f"python export/build_engine.py --bundle {bundle.folder} --flavour {flavour} --target "
        f"{target}"
    )
