"""Every error that a user can cause or mend: one base, few children.

A message is one sentence: *subject: expected …, got …; do …*.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

_FOLDERS = re.compile(r"(?:[A-Za-z]:)?(?:[/\\][^/\\:*?\"'<>|()\n]+)+[/\\]")


class ParamorphError(Exception):
    """Base of all errors raised on purpose; the command line prints it as one line."""


def exit_code(program: str, command: Callable[[], object], extra: str | None = None) -> int:
    """Run a command line's work: 0, or 1 after printing what a user can mend as a line to stderr.

    Args:
        program: Its name, which starts the line.
        command: The work.
        extra: That its imports need.
    """
    try:
        with needs(extra, "imports"):
            command()
    except KeyboardInterrupt:
        print(f"{program}: interrupted", file=sys.stderr)
        return 130
    except Exception as err:
        sentence = explained(err)
        if sentence is None:
            raise
        print(f"{program}: {one_line(sentence)}", file=sys.stderr)
        return 1
    return 0


@contextmanager
def imports_of(program: str, extra: str) -> Iterator[None]:
    """Imports of a script that an extra brings; without them it ends in one line, exit code 1."""
    try:
        with needs(extra, "imports"):
            yield
    except ParamorphError as err:
        sys.exit(f"{program}: {err}")


def explained(err: Exception) -> str | None:
    """The sentence for an error that a user can cause or mend; None for a defect of ours."""
    text = str(err)
    if isinstance(err, ParamorphError):
        return text
    # torch has no type of its own for it.
    if isinstance(err, MemoryError) or "can't allocate memory" in text:
        return f"memory: expected enough, got: {text or 'none'}; free some, or crop images."
    if isinstance(err, RuntimeError) and "can't start new thread" in text:
        return f"threads: expected enough, got: {text}; raise the limit, or pass --threads 1."
    if isinstance(err, RecursionError):
        return "input: expected JSON of some levels, got one nested too deeply; check the file."
    if isinstance(err, UnicodeError):
        return f"text: expected characters of the encoding, got others ({text}); set PYTHONUTF8=1."
    if isinstance(err, OSError):  # the system's, whatever it is; only printing names no file
        deleted = isinstance(err, FileNotFoundError) and err.filename is None
        where = "working folder" if deleted else err.filename or "stdout"
        return (
            f"{where}: expected to read or write there, got {err.strerror or text}; check the "
            "path, its permissions and the disk."
        )
    return None


def one_line(text: str) -> str:
    """The same without line breaks and other control characters, which names may have."""
    return "".join(c if c.isprintable() else repr(c)[1:-1] for c in text)


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


def install_command(extra: str | None = None) -> str:
    """What to type for an extra, or for the base install."""
    wanted = f'"paramorph-rt[{extra}]"' if extra else "paramorph-rt"
    return f"`python -m pip install {wanted}`"


@contextmanager
def needs(extra: str | None, subject: str) -> Iterator[None]:
    """Imports in this block need an extra.

    Args:
        extra: Of paramorph-rt; None for the base install.
        subject: Who needs it, for the message.

    Raises:
        MissingDependencyError: An import failed.
    """
    try:
        yield
    except MissingDependencyError:
        raise
    except ImportError as err:
        raise missing(err, extra, subject) from err


def missing(err: Exception, extra: str | None, subject: str) -> MissingDependencyError:
    """The sentence for an import that failed; arguments as of `needs`."""
    what = f"the packages of its extra {extra}" if extra else "the packages of the base install"
    said = (str(err).splitlines() or [type(err).__name__])[0]
    got = _FOLDERS.sub("", said).rstrip(".")  # where Python is installed helps nobody
    return MissingDependencyError(
        f"{subject}: expected {what}, got {got[:1].lower()}{got[1:]}; run {install_command(extra)}."
    )
