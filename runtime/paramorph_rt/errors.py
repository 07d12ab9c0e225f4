"""Every error that a user can cause or mend: one base, few children.

A message is one sentence: *subject: expected …, got …; do …*.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager


class ParamorphError(Exception):
    """Base of all errors raised on purpose; the command line prints it as one line."""


def exit_code(program: str, command: Callable[[], object], extra: str | None = None) -> int:
    """Run a command line's work: 0, or 1 after printing an error of ours as one line to stderr.

    Args:
        program: Its name, which starts the line.
        command: The work.
        extra: That its imports need.
    """
    from .optional import needs

    try:
        with needs(extra, "imports"):
            command()
    except ParamorphError as err:
        print(f"{program}: {err}", file=sys.stderr)
        return 1
    return 0


@contextmanager
def imports_of(program: str, extra: str) -> Iterator[None]:
    """Imports of a script that an extra brings; without them it ends in one line, exit code 1."""
    from .optional import needs

    try:
        with needs(extra, "imports"):
            yield
    except ParamorphError as err:
        sys.exit(f"{program}: {err}")


class VolumeError(ParamorphError, ValueError):
    """An image or label map that cannot be trusted."""


class BundleError(ParamorphError, ValueError):
    """A model bundle that is missing, altered or of an unknown format."""


class AlignmentError(ParamorphError, ValueError):
    """Two volumes that cannot be brought together."""


class TransformError(ParamorphError, ValueError):
    """A transform that cannot be read, written, joined or inverted."""


class CohortError(ParamorphError, ValueError):
    """A list of pairs that cannot be registered as it stands, or not all of it."""


class EvaluationError(ParamorphError, ValueError):
    """Landmarks, names or a choice of files from which no metric can be taken."""


class OutputError(ParamorphError, OSError):
    """Results that cannot be written where they were asked for."""


class BackendError(ParamorphError, RuntimeError):
    """An inference engine that refused its model or its input."""


class MissingDependencyError(ParamorphError, ImportError):
    """An optional package that is needed here and not installed."""
