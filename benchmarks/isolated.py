"""Run a method in its own process, so that its memory, threads and crashes are its own.

Two ways: `run_measured` measures a command from start to end; a `worker` loads something once and
is then called again and again. Each ends with a result and what it took, or with the reason why
there is none.

As a script, the other process. It needs the standard library alone, and what its target needs.
"""

from __future__ import annotations

import json
import os
import resource
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib import import_module
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from pathlib import Path
from tempfile import NamedTemporaryFile, TemporaryDirectory
from typing import Any, NamedTuple

from costs import peak_mb, timed

THREAD_VARIABLES = (
    "ITK_GLOBAL_DEFAULT_NUMBER_OF_THREADS",
    *(f"{library}_NUM_THREADS" for library in ("OMP", "OPENBLAS", "MKL")),
)


@contextmanager
def empty_cache() -> Iterator[None]:
    """An empty cache folder for the engines, in this process and its children."""
    from unittest.mock import patch  # here, as it takes memory that a worker shall not have

    with TemporaryDirectory() as folder, patch.dict(os.environ, XDG_CACHE_HOME=folder):
        yield


def limited_to(threads: int) -> dict[str, str]:
    """The environment of a command that shall use so many threads."""
    return os.environ | {name: str(threads) for name in THREAD_VARIABLES}


def run_isolated(command: Sequence[str], threads: int, timeout_s: float) -> str | None:
    """Run a command with so many threads and so much time.

    Returns:
        None if it ended well, else what went wrong, in a line.
    """
    try:
        done = subprocess.run(
            command,
            env=limited_to(threads),
            timeout=timeout_s,
            capture_output=True,
            encoding="utf-8",
            errors="replace",
            check=False,
        )
    except subprocess.TimeoutExpired:
        return f"stopped after {timeout_s:g} s"
    if done.returncode > 0:
        lines = done.stderr.strip().splitlines() or [_ending(done.returncode)]
        return lines[-1][:300]
    return _ending(done.returncode) if done.returncode else None


def run_measured(
    command: Sequence[str], threads: int, timeout_s: float
) -> dict[str, float] | dict[str, str]:
    """Run a command as `run_isolated` does, and measure its process from start to end.

    Returns:
        `seconds` on the clock, `cpu_seconds` of all its threads and `peak_mb` (10⁶ bytes); or
        `error`.
    """
    with NamedTemporaryFile("r", encoding="utf-8") as report:
        # What the system says of a process's memory begins with that of the process which started
        # it, so a small one (-S) does.
        script = [sys.executable, "-S", __file__, "measure", report.name, str(timeout_s), *command]
        # The script stops the command; killed itself, it would leave the command running.
        if error := run_isolated(script, threads, timeout_s + 60):
            return {"error": error}
        return json.load(report)


class Answer(NamedTuple):
    """What one call in another process returned and took."""

    result: Any
    seconds: float
    cpu_seconds: float  # of all threads
    peak_mb: float  # of the process so far, 10⁶ bytes


class Worker:
    """The other process, as this one sees it.

    Attributes:
        loaded: The answer to the first call, which loads.
    """

    def __init__(
        self, name: str, process: subprocess.Popen, connection: Connection, timeout_s: float | None
    ) -> None:
        self._name, self._process, self._connection = name, process, connection
        self._timeout_s = timeout_s
        self.loaded: Answer = self._answer()

    def __call__(self, *arguments: Any) -> Answer:
        """Call what was loaded.

        Raises:
            BackendError: It failed, took too long, or its process ended.
        """
        self._connection.send(arguments)
        return self._answer()

    def _answer(self) -> Answer:
        from paramorph_rt.errors import BackendError, ParamorphError

        if not self._connection.poll(self._timeout_s):
            self._process.kill()
            raise BackendError(f"{self._name}: stopped after {self._timeout_s:g} s")
        try:
            answer = self._connection.recv()
            if isinstance(answer, Answer):
                return answer
        except EOFError:
            answer = "the end of its process"
        if isinstance(answer, ParamorphError):
            raise answer
        raise BackendError(
            f"{self._name}: expected an answer, got {answer} ({_ending(self._process.wait())})"
        )


@contextmanager
def worker(
    target: str, *arguments: Any, threads: int, timeout_s: float | None = None
) -> Iterator[Worker]:
    """Start a process, and end it after the block.

    Args:
        target: The "module:function" that the process calls first. If it returns a function, that
            is what the worker calls from then on.
        arguments: Of the first call.
        threads: Of the process.
        timeout_s: Of each call; None waits for ever.

    Raises:
        ParamorphError: The first call refused; see `Worker.__call__` for other failures.
    """
    ours, theirs = Pipe()
    command = [sys.executable, __file__, "serve", str(theirs.fileno()), target]
    process = subprocess.Popen(
        command, pass_fds=[theirs.fileno()], env=limited_to(threads), stdout=2
    )
    theirs.close()
    try:
        ours.send(arguments)
        yield Worker(target, process, ours, timeout_s)
    finally:
        ours.close()  # which ends its loop
        process.wait()


def call_isolated(
    target: str, *arguments: Any, threads: int, timeout_s: float | None = None
) -> Answer:
    """Call a "module:function" once, in a process of its own; see `worker`."""
    with worker(target, *arguments, threads=threads, timeout_s=timeout_s) as running:
        return running.loaded


def _ending(code: int) -> str:
    return f"killed by {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"


def _function(target: str) -> Any:
    module, _, name = target.partition(":")
    return getattr(import_module(module), name)


def _serve(descriptor: str, target: str) -> None:
    """Answer calls until the connection closes."""
    connection = Connection(int(descriptor))
    function = None
    while True:
        try:
            arguments = connection.recv()
        except EOFError:
            return
        try:
            function = function or _function(target)
            result, *took = timed(lambda: function(*arguments))  # noqa: B023
        except Exception as err:
            from paramorph_rt.errors import ParamorphError

            refused = isinstance(err, ParamorphError)
            connection.send(err if refused else f"{type(err).__name__}: {err}"[:300])
            if refused:
                return
            raise
        if callable(result):
            function, result = result, None
        connection.send(Answer(result, *took, peak_mb()))


def _measure(report: str, timeout_s: str, *command: str) -> None:
    try:
        code, seconds, _ = timed(lambda: subprocess.call(command, timeout=float(timeout_s)))
    except subprocess.TimeoutExpired as err:
        sys.exit(f"stopped after {err.timeout:g} s")
    if code:
        sys.exit(_ending(code) if code < 0 else code)
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    usage = {
        "seconds": seconds,
        "cpu_seconds": used.ru_utime + used.ru_stime,
        "peak_mb": used.ru_maxrss * 1024 / 1e6,
    }
    Path(report).write_text(json.dumps(usage), encoding="utf-8")


if __name__ == "__main__":
    import isolated  # under its own name, by which the other process knows what it is sent

    getattr(isolated, f"_{sys.argv[1]}")(*sys.argv[2:])
