"""The one way to write: beside its place, flushed, and put there as a whole or not at all.

What a killed process leaves are hidden folders `.paramorph-…`. Each is locked by the process that
writes into it, as long as it lives; the next that writes to the same place removes those of dead
ones, or finishes them if they were about to take their place.
"""

from __future__ import annotations

import ctypes
import errno
import json
import os
import platform
import re
import shutil
import sys
import threading
import time
import uuid
import weakref
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING

from ..errors import OutputError
from .interrupts import held

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

PREFIX = ".paramorph-"
_PLAN = ".plan.json"
# Whether a process of another machine lives cannot be seen; none writes results for as long.
_STALE_S = 86400.0
_LOCK_S, _STEP_S = 10.0, 0.01
_AT_FDCWD, _RENAME_EXCHANGE = -100, 2  # fcntl.h, linux/fs.h

_mine = threading.local()  # folders that a thread has locked
_live: set[str] = set()  # staging folders of this process, in which nobody else writes
_dropped: weakref.WeakSet[threading.Thread] = weakref.WeakSet()  # that may make no more of them
_gate = threading.Lock()  # to both


@contextmanager
def staged_file(path: Path) -> Iterator[Path]:
    """A file of the same name in a hidden folder, which becomes `path` when the block ends well.

    Raises:
        OutputError: Writing fails; nothing of the block's is left then.
    """
    # The name stays, because writers choose the form by its suffix, and name it in errors.
    try:
        with staging_folder(path.parent) as folder:
            yield folder / path.name
            with held():
                flush(folder)
                (folder / path.name).replace(path)
                _flush_one(path.parent)
    except OutputError:
        raise
    except OSError as err:
        raise OutputError(
            f"{path}: expected to write the result, got {err.strerror or err}; free the disk or "
            "choose another file name."
        ) from err


@contextmanager
def staging_folder(home: Path) -> Iterator[Path]:
    """A hidden folder in `home`, which is made if need be; it is gone when the block ends.

    Raises:
        OSError: It cannot be made.
    """
    made = [folder for folder in (home, *home.absolute().parents) if not folder.exists()]
    home.mkdir(parents=True, exist_ok=True)
    sweep(home)
    path = home / f"{PREFIX}{_host()}-{uuid.uuid4().hex}"
    key = os.path.realpath(path)
    with locked(home), _gate:
        if threading.current_thread() in _dropped:
            raise OSError(errno.ECANCELED, "the program ends")
        path.mkdir()
        lock = _lock(path)
        _live.add(key)
    try:
        yield path
    finally:
        with held():
            _live.discard(key)
            if not (path / _PLAN).exists():  # else an error stopped it, and the next run goes on
                shutil.rmtree(path, ignore_errors=True)
            if lock is not None:
                os.close(lock)
            for folder in made:
                with suppress(OSError):  # there is something in it now
                    folder.rmdir()


def abandon() -> None:
    """Remove what other threads have staged: the process ends before they can put it in its place.

    What a thread is putting there at this moment is left to the next run, which finishes it.
    """
    with _gate:
        _dropped.update(set(threading.enumerate()) - {threading.current_thread()})
    for path in map(Path, sorted(_live)):  # a folder before those in it
        if (path / _PLAN).exists():
            continue
        # Under another name, so that no thread moves a folder that is half removed.
        dropped = path.with_name(f"{PREFIX}{_host()}-{uuid.uuid4().hex}")
        with suppress(OSError):
            path.rename(dropped)
            shutil.rmtree(dropped, ignore_errors=True)


def flush(folder: Path) -> None:
    """Make the disk hold all of a folder, or say that it cannot.

    Raises:
        OSError: It cannot.
    """
    for home, _, names in os.walk(folder, topdown=False):
        for name in names:
            _flush_one(Path(home) / name)
        _flush_one(Path(home))


def replace_together(
    staging: Path, folder: Path, remove: Iterable[str], last: Sequence[str]
) -> None:
    """Move all files below `staging` to their places below `folder`; others there stay.

    It is all or nothing: from the moment that a plan lies in `staging`, whoever looks next (see
    `sweep`) finishes it. `last` are the files that vouch for the others, so they go first and come
    last: while they are there, everything is of one run.

    Args:
        staging: From `staging_folder(folder)` or of its parent; already flushed.
        folder: That gets the files.
        remove: Files, or folders that are empty then, to be removed, relative to it.
        last: Vouching files, relative to it.

    Raises:
        OSError: Before anything was changed: a folder is in the place of a file, or the reverse.
    """
    _check_places(staging, folder)
    files = _moves(staging)
    plan = {
        "folder": os.path.relpath(folder, staging),
        "remove": [name for name in (*last, *remove) if name not in files],
        "last": [name for name in last if name in files],
    }
    beginning = staging / f"{_PLAN}.partial"
    beginning.write_text(json.dumps(plan), encoding="utf-8")
    _flush_one(beginning)
    beginning.replace(staging / _PLAN)
    _finish(staging)


def sweep(home: Path) -> None:
    """Finish or remove what killed processes have left in a folder; never an error."""
    with suppress(OSError):
        leftovers = [p for p in home.iterdir() if p.name.startswith(PREFIX) and not p.is_symlink()]
        if leftovers:
            with locked(home):
                for path in leftovers:
                    with suppress(OSError, ValueError, KeyError, TypeError):
                        _tidy(path)


def swap(new: Path, old: Path) -> None:
    """Put a folder in the place of another, which is then where the new one was.

    In one step where the system has it (Linux, most file systems); else in two, between which an
    interrupt puts the old one back.

    Raises:
        OSError: Neither is possible; the old one stands.
    """
    with held():
        if not old.exists():
            new.rename(old)
        elif not _exchanged(new, old):
            aside = new.with_name(f"{new.name}.old")
            old.rename(aside)
            try:
                new.rename(old)
            except BaseException:
                aside.rename(old)
                raise
            aside.rename(new)


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """No other thread or process is in such a block for the same folder.

    Blocks of one thread may be nested. Where the file system has no locks, nothing is locked.
    """
    key, mine = os.path.realpath(folder), _mine.__dict__.setdefault("folders", set())
    if key in mine or key in _live:
        yield
        return
    deadline = time.monotonic() + _LOCK_S
    lock = None
    while time.monotonic() < deadline:
        try:
            lock = _lock(folder)
            break
        except BlockingIOError:
            time.sleep(_STEP_S)
    mine.add(key)
    try:
        yield
    finally:
        mine.remove(key)
        if lock is not None:
            os.close(lock)


def _lock(folder: Path) -> int | None:
    """A descriptor that locks a folder until it is closed; None where there are no locks.

    Raises:
        BlockingIOError: Somebody else has it.
    """
    if fcntl is None:
        return None
    try:
        number = os.open(folder, os.O_RDONLY)
    except OSError:
        return None
    try:
        fcntl.flock(number, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as err:
        os.close(number)
        if isinstance(err, BlockingIOError):
            raise
        return None
    return number


def _tidy(path: Path) -> None:
    match = re.fullmatch(rf"{re.escape(PREFIX)}(.*)-[0-9a-f]{{32}}", path.name)
    status = path.stat()
    if hasattr(os, "geteuid") and status.st_uid != os.geteuid():
        return  # a plan of somebody else's is nothing to follow
    lock = _lock(path) if match is not None and match[1] == _host() else None
    if lock is None:
        if time.time() - status.st_mtime > _STALE_S:
            shutil.rmtree(path, ignore_errors=True)
        return
    try:
        if (path / _PLAN).is_file():
            _finish(path)
        shutil.rmtree(path, ignore_errors=True)
    finally:
        os.close(lock)


def _finish(staging: Path) -> None:
    """Do what the plan says, from wherever it was left."""
    plan = json.loads((staging / _PLAN).read_text(encoding="utf-8"))
    folder, last = Path(os.path.normpath(staging / plan["folder"])), plan["last"]
    if plan["folder"] != ".." and Path(plan["folder"]).parts[:-1] != ("..",):
        raise ValueError("a plan for another place")
    _check_places(staging, folder)
    moves = _moves(staging)  # those that are still to be made
    for name in (*(name for name in last if name in moves), *plan["remove"]):
        _remove(_inside(folder, name))
    for name in sorted(moves, key=lambda name: (name in last, name)):
        target = _inside(folder, name)
        target.parent.mkdir(parents=True, exist_ok=True)
        (staging / name).replace(target)
    _flush_one(folder)
    (staging / _PLAN).unlink()


def _moves(staging: Path) -> list[str]:
    files = (path for path in staging.rglob("*") if not path.is_dir() or path.is_symlink())
    names = (path.relative_to(staging).as_posix() for path in files)
    return [name for name in names if not name.startswith(_PLAN)]


def _check_places(staging: Path, folder: Path) -> None:
    for name in _moves(staging):
        target = _inside(folder, name)
        for parent in target.relative_to(folder).parents:
            way = folder / parent
            if way != folder and (way.is_symlink() or (way.exists() and not way.is_dir())):
                raise OSError(errno.ENOTDIR, f"a link or a file at {way}, where a folder belongs")
        if target.is_dir() and not target.is_symlink():
            raise OSError(errno.EISDIR, f"a folder at {target}, where a file belongs")


def _inside(folder: Path, name: str) -> Path:
    path = Path(name)
    if path.is_absolute() or ".." in path.parts:
        raise ValueError(f"{name} is outside the folder")
    return folder / path


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        with suppress(OSError):  # somebody else's file is in it
            path.rmdir()
    else:
        path.unlink(missing_ok=True)


def _flush_one(path: Path) -> None:
    if path.is_symlink() or (path.is_dir() and sys.platform == "win32"):
        return
    number = os.open(path, os.O_RDONLY)
    try:
        os.fsync(number)
    except OSError as err:
        if err.errno not in (errno.EINVAL, errno.EROFS, errno.EBADF):  # file systems without it
            raise
    finally:
        os.close(number)


def _exchanged(new: Path, old: Path) -> bool:
    if sys.platform != "linux":
        return False
    try:
        exchange = ctypes.CDLL(None, use_errno=True).renameat2
    except (AttributeError, OSError):  # a C library without it
        return False
    names = os.fsencode(new), os.fsencode(old)
    answer: int = exchange(_AT_FDCWD, names[0], _AT_FDCWD, names[1], _RENAME_EXCHANGE)
    return answer == 0


def _host() -> str:
    return re.sub(r"[^A-Za-z0-9.]", "", platform.node())[:64] or "here"
