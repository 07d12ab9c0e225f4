"""Runs commands, each in a process forked from this one, which has imported what they need.

So a case costs hundredths of a second and still has its own process: a hang, an abort or a flood of
memory ends that one alone. Reads requests as JSON lines from stdin, answers to stdout. Its words
are further modules to be imported first.
"""

from __future__ import annotations

import json
import os
import resource
import runpy
import signal
import sys
import time
from contextlib import suppress
from pathlib import Path

# Nothing of these may start a thread: one that runs would not be there after a fork.
PRELOADED = (
    *(
        "nibabel",
        "scipy",
        "SimpleITK",
        "onnxruntime",
        "isal.igzip",
        "csv",
        "json",
        "encodings.utf_8_sig",
    ),
    *("paramorph_rt.registration", "paramorph_rt.pair", "paramorph_rt.evaluation"),
    *("paramorph_rt.cohort.run", "paramorph_rt.cohort.summary", "paramorph_rt.cohort.dataset"),
    *("paramorph_rt.transforms.formats", "paramorph_rt.cli", "paramorph_rt.triton", "tqdm"),
)
NOBODY = 65534
# What changes a folder, by the name of its audit event.
CHANGES = ("os.rename", "os.remove", "os.rmdir", "os.mkdir", "os.link", "os.symlink", "shutil.")


def main() -> None:
    for name in (*PRELOADED, *sys.argv[1:]):
        try:
            __import__(name)
        except ImportError:
            continue
    told = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    for line in sys.stdin:
        told.write(json.dumps(_answer(json.loads(line))) + "\n")
        told.flush()


def _answer(request: dict) -> dict:
    start = time.monotonic()
    child = os.fork()
    if child == 0:
        try:
            _become(request)
            code = _program(request)
        except SystemExit as end:
            code = end.code if isinstance(end.code, int) else int(end.code is not None)
        except BaseException:
            sys.excepthook(*sys.exc_info())
            code = 99
        for stream in (sys.stdout, sys.stderr):
            with suppress(OSError, AttributeError):
                stream.flush()
        os._exit(code)
    signals = [(start + after, number) for after, number in request.get("signals", ())]
    deadline, timed_out = start + request["timeout"], False
    while True:
        done, status, usage = os.wait4(child, os.WNOHANG)
        if done:
            break
        now = time.monotonic()
        for due in [entry for entry in signals if entry[0] <= now]:
            signals.remove(due)
            os.kill(child, due[1])
        if now > deadline and not timed_out:
            timed_out = True
            os.kill(child, signal.SIGKILL)
        time.sleep(0.001)
    return {
        "code": os.waitstatus_to_exitcode(status),
        "seconds": time.monotonic() - start,
        "peak_mb": usage.ru_maxrss / 1024,
        "timed_out": timed_out,
    }


def _become(request: dict) -> None:
    """What a shell would have set up."""
    os.setsid()
    os.chdir(request["cwd"])
    os.environ.update(request.get("env", {}))
    streams = {0: os.devnull, 1: request["stdout"], 2: request["stderr"]}
    for number, path in streams.items():
        if path is None:
            os.close(number)
            continue
        opened = os.open(path, os.O_RDWR | os.O_CREAT if number else os.O_RDONLY, 0o666)
        os.dup2(opened, number)
        if opened != number:
            os.close(opened)
    if limit := request.get("address_mb"):
        resource.setrlimit(resource.RLIMIT_AS, (limit * 2**20, limit * 2**20))
    if limit := request.get("file_bytes"):
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
    if request.get("nobody"):
        os.setgroups([])
        os.setgid(NOBODY)
        os.setuid(NOBODY)
    if (number := request.get("kill_at")) is not None:
        _kill_before_change(number, request["kill_signal"])


def _kill_before_change(number: int, how: int) -> None:
    left = number

    def watch(event: str, _: tuple) -> None:
        nonlocal left
        if event.startswith(CHANGES):
            if left == 0:
                left = -1
                os.kill(os.getpid(), how)
            left -= left > 0

    sys.addaudithook(watch)


def _program(request: dict) -> int:
    """What the console script does, from its first line on."""
    signal.signal(signal.SIGINT, signal.default_int_handler)
    for name, number in (("stdin", 0), ("stdout", 1), ("stderr", 2)):
        try:
            os.fstat(number)
        except OSError:
            setattr(sys, name, None)
            continue
        mode = "r" if number == 0 else "w"
        setattr(sys, name, open(number, mode, encoding="utf-8", closefd=False))  # noqa: SIM115
    program, *words = (os.fsdecode(os.fsencode(word)) for word in request["words"])
    if program.endswith(".py"):
        sys.argv = [program, *words]
        sys.path.insert(0, str(Path(program).parent))
        runpy.run_path(program, run_name="__main__")
        return 0
    from paramorph_rt.__main__ import program as run

    sys.argv = [program, *words]
    return run()


if __name__ == "__main__":
    main()
