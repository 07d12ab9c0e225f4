"""The door for packages that only an extra brings: one sentence where one is missing, no telemetry.

Whatever is imported through it, also transitively, is either there or a `MissingDependencyError`.
"""

from __future__ import annotations

import os
import re
import sys
from contextlib import contextmanager
from importlib import import_module
from typing import TYPE_CHECKING

from ..errors import MissingDependencyError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from types import ModuleType

_FOLDERS = re.compile(r"(?:[A-Za-z]:)?(?:[/\\][^/\\:*?\"'<>|()\n]+)+[/\\]")
_OPENVINO_TELEMETRY = "openvino_telemetry"


def install_command(extra: str | None = None) -> str:
    """What to type for an extra, or for the base install."""
    wanted = f'"paramorph-rt[{extra}]"' if extra else "paramorph-rt"
    return f"`python -m pip install {wanted}`"


def import_optional(module: str, extra: str | None, subject: str) -> ModuleType:
    """A module that an extra brings.

    Args:
        module: Its full name.
        extra: Of paramorph-rt; None for the base install.
        subject: Who needs it, for the message.

    Raises:
        MissingDependencyError: It, something that it imports, or a library that it loads is not
            there.
    """
    try:
        with needs(extra, subject), telemetry_off():
            return import_module(module)
    except (OSError, RuntimeError) as err:  # as packages of engines do without their libraries
        if isinstance(err, MissingDependencyError):
            raise
        raise _missing(err, extra, subject) from err


@contextmanager
def needs(extra: str | None, subject: str) -> Iterator[None]:
    """Imports in this block need an extra; see `import_optional`."""
    try:
        yield
    except MissingDependencyError:
        raise
    except ImportError as err:
        raise _missing(err, extra, subject) from err


@contextmanager
def telemetry_off() -> Iterator[None]:
    """Engines' packages that are imported in this block write no identity and look up no host.

    ONNX Runtime reads a variable. OpenVINO sends nothing where its package `openvino_telemetry` is
    not installed, so the block hides that. Neither writes into the user's home, as other ways to
    opt out do. Who set the variable, or imported OpenVINO before, has decided otherwise.
    """
    os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
    loaded: dict[str, ModuleType | None] = sys.modules  # type: ignore[assignment]
    before = {name: loaded[name] for name in (_OPENVINO_TELEMETRY,) if name in loaded}
    loaded[_OPENVINO_TELEMETRY] = None  # importing it fails now
    try:
        yield
    finally:
        loaded.pop(_OPENVINO_TELEMETRY, None)
        loaded.update(before)


def _missing(err: Exception, extra: str | None, subject: str) -> MissingDependencyError:
    what = f"the packages of its extra {extra}" if extra else "the packages of the base install"
    said = (str(err).splitlines() or [type(err).__name__])[0]
    got = _FOLDERS.sub("", said).rstrip(".")  # where Python is installed helps nobody
    return MissingDependencyError(
        f"{subject}: expected {what}, got {got[:1].lower()}{got[1:]}; run {install_command(extra)}."
    )
