"""The door for packages that only an extra brings: one sentence where one is missing, no telemetry.

Whatever is imported through it, also transitively, is either there or a `MissingDependencyError`.
"""

from __future__ import annotations

import os
import sys
from contextlib import contextmanager
from importlib import import_module
from typing import TYPE_CHECKING

from ..errors import MissingDependencyError, missing, needs

if TYPE_CHECKING:
    from collections.abc import Iterator
    from types import ModuleType

_OPENVINO_TELEMETRY = "openvino_telemetry"


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
        raise missing(err, extra, subject) from err


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
