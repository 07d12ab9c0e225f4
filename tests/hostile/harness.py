"""Running a command as a user does, and the promises that hold for whatever it was given."""

from __future__ import annotations

import hashlib
import json
import os
import signal
import stat
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
#: Python of the environment under test: this one, or that of an installed wheel.
PYTHON = os.environ.get("PARAMORPH_HOSTILE_PYTHON", sys.executable)
IS_ANOTHER = sys.executable != PYTHON
#: How much more than the fast part is run, such as random cases.
SCALE = int(os.environ.get("PARAMORPH_HOSTILE_SCALE", "1"))
TIMEOUT_S = 40
#: No small input may need more than this, whatever its header announces.
MOST_MB = 1800


def needs(*modules: str) -> pytest.MarkDecorator:
    """Skips a test where the environment under test lacks one of these packages."""
    seek = (
        "import importlib.util, sys; sys.exit(not all(map(importlib.util.find_spec, sys.argv[1:])))"
    )
    lacks = subprocess.run([PYTHON, "-c", seek, *modules], env=environment(), check=False)
    reason = f"{PYTHON} lacks one of {', '.join(modules)}"
    return pytest.mark.skipif(bool(lacks.returncode), reason=reason)


def environment() -> dict[str, str]:
    """As developers have it; an installed wheel is found without their paths."""
    without = "PYTHONPATH" if IS_ANOTHER else ""
    kept = {name: value for name, value in os.environ.items() if name != without}
    return kept | {"OMP_NUM_THREADS": "1"}


@dataclass(frozen=True)
class Outcome:
    """How a process ended.

    Attributes:
        code: Its exit code; -N where signal N ended it.
        out: What it printed.
        err: The same on stderr.
        seconds: It took.
        peak_mb: Its largest resident memory.
        timed_out: Whether it was ended for it.
    """

    code: int
    out: str
    err: str
    seconds: float
    peak_mb: float
    timed_out: bool

    @property
    def sentence(self) -> str:
        """The last line on stderr."""
        return (self.err.splitlines() or [""])[-1]


class Program:
    """`paramorph-rt`, and the scripts of the other wings, each call in a process of its own."""

    def __init__(self, scratch: Path, *preloaded: str) -> None:
        self._scratch = scratch
        command = [PYTHON, str(Path(__file__).with_name("zygote.py")), *preloaded]
        self._zygote = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment()
        )

    def __call__(self, *words: object, cwd: Path, timeout: float = TIMEOUT_S, **how) -> Outcome:
        """Run a command line; `how` as `zygote` takes it."""
        files = {name: self._scratch / name for name in ("stdout", "stderr")}
        for path in files.values():
            path.unlink(missing_ok=True)
            path.touch()
            path.chmod(0o666)
        streams = {name: str(path) for name, path in files.items()}
        request = {"words": ["paramorph-rt", *map(str, words)], "cwd": str(cwd)}
        if words and str(words[0]).endswith(".py"):
            request["words"] = list(map(str, words))
        request |= {**streams, "timeout": timeout, **how}
        assert self._zygote.stdin is not None
        assert self._zygote.stdout is not None
        self._zygote.stdin.write(json.dumps(request).encode() + b"\n")
        self._zygote.stdin.flush()
        answer = json.loads(self._zygote.stdout.readline())
        out, err = (path.read_text(encoding="utf-8", errors="replace") for path in files.values())
        return Outcome(out=out, err=err, **answer)

    def close(self) -> None:
        """End it."""
        assert self._zygote.stdin is not None
        self._zygote.stdin.close()
        self._zygote.wait(timeout=30)


def snapshot(folder: Path) -> dict[str, str]:
    """Every path below a folder with its kind and content, so that any change shows."""
    found = {}
    for home, folders, files in os.walk(folder):
        for name in (*folders, *files):
            path = Path(home) / name
            found[os.fsdecode(os.fsencode(path.relative_to(folder)))] = _state(path)
    return found


def _state(path: Path) -> str:
    status = path.lstat()
    if stat.S_ISLNK(status.st_mode):
        return f"link to {os.readlink(path)}"
    if not stat.S_ISREG(status.st_mode):
        return oct(stat.S_IFMT(status.st_mode))
    with path.open("rb") as stream:
        return f"{status.st_size} {hashlib.file_digest(stream, 'sha256').hexdigest()}"


def check_refused(outcome: Outcome, naming: str = "", most_mb: float = MOST_MB) -> None:
    """One clear sentence and exit code 1, soon, and in bounded memory."""
    check_bounded(outcome, most_mb)
    assert outcome.code == 1, (outcome.code, outcome.err[-2000:])
    lines = outcome.err.splitlines()
    assert len(lines) == 1, outcome.err[-3000:]
    check_sentence(lines[0])
    assert naming in lines[0], lines[0]


def check_sentence(line: str) -> None:
    """Who speaks, what was expected, what came, what to do."""
    assert line.startswith("paramorph-rt: "), line
    assert ": expected " in line, line
    assert "got" in line or "found" in line, line
    assert line.endswith("."), line
    assert len(line) < 1500, line


def check_bounded(outcome: Outcome, most_mb: float = MOST_MB) -> None:
    """No hang, no crash, no flood, no defect."""
    assert not outcome.timed_out, f"no end after {outcome.seconds:.0f} s"
    assert outcome.code >= 0, (
        f"ended by {signal.Signals(-outcome.code).name}: {outcome.err[-2000:]}"
    )
    assert outcome.code not in (70, 99, 120), outcome.err[-3000:]
    assert "Traceback" not in outcome.err, outcome.err[-3000:]
    assert outcome.peak_mb < most_mb, f"{outcome.peak_mb:.0f} MB"
