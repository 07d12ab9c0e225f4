"""What commands tell and how they end, whichever they are."""

from __future__ import annotations

import logging
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from paramorph_rt import loaded, result
from paramorph_rt.cli import build_parser, main
from paramorph_rt.cli.completion import SHELLS
from paramorph_rt.cli.layout import commands_of, parsers_of
from paramorph_rt.images.volume import save_volume

from .phantoms import centred_grid, head, volume_of

COMMANDS = [parser for parser in parsers_of(build_parser()) if not commands_of(parser)]


@pytest.fixture
def words(tmp_path, zero_bundle_path) -> list[str]:
    """A good call of `infer` into OUT in `tmp_path`."""
    grid = centred_grid("RAS", (30, 34, 28), (1.5, 1.5, 1.5))
    fixed = volume_of(head, grid)
    moving = replace(fixed, data=np.roll(fixed.data, 1, axis=1))  # or it warns of equal voxels
    for name, volume in (("moving", moving), ("fixed", fixed)):
        save_volume(tmp_path / f"{name}.nii.gz", volume)
    files = {name: str(tmp_path / f"{name}.nii.gz") for name in ("moving", "fixed")}
    words = ["infer", "--moving", files["moving"], "--fixed", files["fixed"], "--no-affine"]
    return [*words, "--model", str(zero_bundle_path), "--out-dir", str(tmp_path / "OUT")]


def leftovers(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()} - {"moving.nii.gz", "fixed.nii.gz"}


def test_quiet_tells_nothing_when_all_is_well(words, capsys):
    assert main([*words, "--quiet"]) == 0
    captured = capsys.readouterr()
    assert "results in" in captured.out
    assert captured.err == ""


def test_quiet_tells_warnings_and_errors(words, capsys, monkeypatch):
    spoken = loaded.load_bundle

    def warn(path):
        logging.getLogger("paramorph_rt.steps").warning("this looks wrong")
        return spoken(path)

    monkeypatch.setattr(loaded, "load_bundle", warn)
    assert main([*words, "--quiet"]) == 0
    assert capsys.readouterr().err == "this looks wrong\n"
    assert main([*words, "-q"]) == 1
    assert "pass --force" in capsys.readouterr().err


def test_only_verbose_tells_what_was_skipped_and_where_an_error_came_from(words, capsys):
    assert main(words) == 0
    usual = capsys.readouterr().err
    assert "backend: " in usual
    assert "skipped" not in usual
    loaded._load.cache_clear()  # as in a new process
    assert main([*words, "--force", "--verbose"]) == 0
    assert "skipped" in capsys.readouterr().err
    assert main(words) == 1
    assert "Traceback" not in capsys.readouterr().err
    assert main([*words, "-v"]) == 1
    error = capsys.readouterr().err
    assert "Traceback" in error
    assert error.splitlines()[-1].startswith("paramorph-rt: ")


def test_quiet_cohort_tells_failures_only(words, tmp_path, zero_bundle_path, capsys):
    (tmp_path / "pairs.csv").write_text(
        "moving,fixed\nmoving.nii.gz,fixed.nii.gz\n", encoding="utf-8"
    )
    call = ["cohort", str(tmp_path / "pairs.csv"), "--out-dir", str(tmp_path / "COHORT")]
    call += ["--model", str(zero_bundle_path), "--no-affine", "--quiet"]
    assert main(call) == 0
    assert capsys.readouterr().err == ""
    (tmp_path / "fixed.nii.gz").write_bytes(b"no image")
    assert main(call) == 1
    first, *_ = capsys.readouterr().err.splitlines()
    assert first.startswith("moving_to_fixed failed: fixed.nii.gz: expected")


@pytest.mark.parametrize(
    ("raised", "code", "said"),
    [
        (ZeroDivisionError("by us"), 70, "ZeroDivisionError: by us\nThis is a defect of paramorph"),
        (KeyboardInterrupt(), 130, "interrupted"),
        (MemoryError("Unable to allocate 9 GiB"), 1, "memory: expected enough, got: Unable"),
    ],
    ids=["defect", "interrupted", "memory"],
)
def test_whatever_happens_while_saving_leaves_nothing(
    words, tmp_path, capsys, monkeypatch, raised, code, said
):
    def fail(*_):
        assert any(path.name.startswith(".paramorph") for path in tmp_path.iterdir())
        raise raised

    monkeypatch.setattr(result, "write_affine", fail)
    assert main(words) == code
    error = capsys.readouterr().err
    assert f"paramorph-rt: {said}" in error
    assert "Traceback" not in error
    assert leftovers(tmp_path) == set()
    assert main([*words, "--verbose"]) == code
    assert "Traceback" in capsys.readouterr().err


def test_reader_that_goes_away(tmp_path):
    program = (
        "import sys, os; from paramorph_rt.cli import messages\n"
        "import argparse\n"
        "def many(args):\n"
        "    for _ in range(10**5): print('line')\n"
        "sys.exit(messages.run(argparse.Namespace(run=many, quiet=False, verbose=False)))"
    )
    with subprocess.Popen(
        [sys.executable, "-c", program], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as process:
        assert process.stdout.readline() == b"line\n"
        process.stdout.close()
        assert process.stderr.read() == b""
        assert process.wait() == 141


def ran(program: str, **streams) -> subprocess.CompletedProcess:
    """A fresh interpreter's way through a program."""
    options = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE} | streams
    command = [sys.executable, "-c", program]
    return subprocess.run(command, encoding="utf-8", check=False, timeout=120, **options)


def test_nothing_is_told_after_the_explanation():
    program = (
        "import argparse, logging, sys, threading\n"
        "from paramorph_rt.cli import messages\n"
        "from paramorph_rt.errors import ParamorphError\n"
        "late = logging.getLogger('paramorph_rt.backends.openvino').warning\n"
        "def fail(args):\n"
        "    threading.Timer(0.3, late, ['made again']).start()\n"
        "    raise ParamorphError('why')\n"
        "sys.exit(messages.run(argparse.Namespace(run=fail, quiet=False, verbose=False)))"
    )
    done = ran(program)
    assert (done.returncode, done.stderr) == (1, "paramorph-rt: why\n")


SHELL = shutil.which("sh")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
@pytest.mark.parametrize("unbuffered", ["", "1"])
@pytest.mark.parametrize(
    ("words", "redirection", "code", "said"),
    [
        ("completion bash", ">&-", 0, ""),
        ("completion bash", ">/dev/full", 1, "stdout: expected .* No space left on device"),
        ("transform convert none.tfm --out o.tfm", ">&-", 1, "none.tfm: expected a transform"),
        ("transform convert none.tfm --out o.tfm", "2>&-", 1, ""),
        ("transform convert none.tfm --out o.tfm", "2>/dev/full", 1, ""),
    ],
)
def test_streams_that_take_nothing(
    tmp_path, monkeypatch, words, redirection, code, said, unbuffered
):
    monkeypatch.setenv("PYTHONUNBUFFERED", unbuffered)
    line = f"exec {sys.executable} -m paramorph_rt {words} {redirection}"
    done = subprocess.run(
        [SHELL, "-c", line], cwd=tmp_path, capture_output=True, encoding="utf-8", check=False
    )
    assert done.returncode == code
    assert done.stdout == ""
    assert re.fullmatch(rf"(paramorph-rt: {said}.*\n)?", done.stderr)
    assert bool(done.stderr) == bool(said)


def test_what_an_encoding_lacks_is_a_question_mark():
    program = (
        "import argparse, sys; from paramorph_rt.cli import messages\n"
        "tell = lambda args: print('96 \\xd7 128')\n"
        "sys.exit(messages.run(argparse.Namespace(run=tell, quiet=False, verbose=False)) or 0)"
    )
    done = ran(program, env={**os.environ, "PYTHONIOENCODING": "ascii"})
    assert (done.stdout, done.stderr) == ("96 ? 128\n", "")


def test_a_name_that_no_file_can_have_is_one_sentence(words, capsys):
    assert main([*words, "--moving", "x" * 300 + ".nii.gz"]) == 1
    last = capsys.readouterr().err.splitlines()[-1]
    assert re.fullmatch(r"paramorph-rt: x+\.nii\.gz: expected .* File name too long; .*", last)


SIGNALS = ("SIGINT", "SIGTERM", "SIGHUP")


@pytest.mark.parametrize("name", SIGNALS)
def test_a_signal_while_saving_leaves_nothing(words, tmp_path, name):
    program = (
        "import os, signal, sys, time\n"
        "from paramorph_rt import result\n"
        "from paramorph_rt.__main__ import program\n"
        "def stop(*_):\n"
        f"    os.kill(os.getpid(), signal.{name})\n"
        "    time.sleep(1)\n"
        "result.write_affine = stop\n"
        f"sys.argv[1:] = {words!r}\n"
        "sys.exit(program())"
    )
    done = ran(program)
    assert done.returncode == 128 + getattr(signal, name)
    assert done.stderr.splitlines()[-1] == "paramorph-rt: interrupted"
    assert leftovers(tmp_path) == set()


def test_an_import_ends_before_a_signal_interrupts(tmp_path):
    (tmp_path / "slow.py").write_text(
        "import os, signal, time\n"
        "os.kill(os.getpid(), signal.SIGINT)\n"
        "time.sleep(0.3)\n"
        "whole = True\n",
        encoding="utf-8",
    )
    program = (
        f"import sys, time; sys.path.append({str(tmp_path)!r})\n"
        "from paramorph_rt.system.interrupts import stop_on_signals\n"
        "stop_on_signals()\n"
        "try:\n"
        "    import slow\n"
        "    time.sleep(10)\n"
        "except KeyboardInterrupt as stop:\n"
        "    print(slow.whole, stop.number)"
    )
    assert ran(program).stdout == "True 2\n"


def test_a_signal_that_is_ignored_stays_so():
    program = (
        "import os, signal; from paramorph_rt.system.interrupts import stop_on_signals\n"
        "signal.signal(signal.SIGHUP, signal.SIG_IGN)  # as nohup does\n"
        "stop_on_signals()\n"
        "os.kill(os.getpid(), signal.SIGHUP)\n"
        "print('on')"
    )
    assert ran(program).stdout == "on\n"


def test_an_executor_that_starts_a_thread_is_not_interrupted():
    """Else the thread is lost to it, and the interpreter waits for the thread for ever."""
    program = (
        "import os, signal, threading\n"
        "from concurrent.futures import ThreadPoolExecutor\n"
        "from paramorph_rt.system.interrupts import stop_on_signals\n"
        "from paramorph_rt.system.threads import submitted\n"
        "stop_on_signals()\n"
        "begin = threading.Thread.start\n"
        "def start(thread):\n"
        "    begin(thread)\n"
        "    os.kill(os.getpid(), signal.SIGINT)\n"
        "threading.Thread.start = start\n"
        "pool = ThreadPoolExecutor(1)\n"
        "try:\n"
        "    submitted(pool, int)\n"
        "except KeyboardInterrupt:\n"
        "    print('interrupted')"
    )
    assert ran(program).stdout == "interrupted\n"


@pytest.mark.parametrize("seconds", [0.06, 0.12, 0.2, 0.3])
def test_an_early_ctrl_c_is_one_line(words, tmp_path, seconds):
    command = [sys.executable, "-m", "paramorph_rt", *words]
    process = subprocess.Popen(
        command, stderr=subprocess.PIPE, stdout=subprocess.PIPE, encoding="utf-8"
    )
    # The interpreter itself must have started, or the default traceback is Python's.
    status = Path(f"/proc/{process.pid}/status")
    if not status.exists():
        pytest.skip("needs /proc")
    while not caught(status):
        time.sleep(0.001)
    time.sleep(seconds)
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=60)
    assert (process.returncode, said.splitlines()[-1:]) in (
        (130, ["paramorph-rt: interrupted"]),
        (0, said.splitlines()[-1:]),  # a fast machine was done
    )
    assert "Traceback" not in said


def caught(status: Path) -> bool:
    """Whether a process has a handler of ours: Python itself has none for SIGTERM."""
    if not status.exists():
        return True
    (line,) = re.findall(r"^SigCgt:\s*(\w+)", status.read_text(encoding="utf-8"), re.MULTILINE)
    return bool(int(line, 16) >> (signal.SIGTERM - 1) & 1)


@pytest.mark.parametrize(
    "line", [["infer"], ["infer", "--moving", "m"], ["evaluate", "--bad"], ["bad"], ["transform"]]
)
def test_wrong_usage_is_one_line(line, capsys):
    with pytest.raises(SystemExit, match="2"):
        main(line)
    assert re.fullmatch(r"paramorph-rt.*: .+; see paramorph-rt.* --help\n", capsys.readouterr().err)


@pytest.mark.parametrize("parser", COMMANDS, ids=lambda parser: parser.prog)
def test_every_command_takes_quiet_or_verbose(parser):
    group = parser._mutually_exclusive_groups[-1]
    assert [a.option_strings[-1] for a in group._group_actions] == ["--quiet", "--verbose"]


@pytest.mark.parametrize("parser", list(parsers_of(build_parser())), ids=lambda p: p.prog)
def test_every_option_is_explained(parser):
    unexplained = [a.dest for a in parser._actions if not a.help and not commands_of(parser)]
    assert unexplained == []
    values = [a for a in parser._actions if a.option_strings and a.nargs != 0]
    assert [a.dest for a in values if not (a.choices or a.metavar)] == []


def test_help_wraps_prose_and_keeps_examples(monkeypatch, capsys):
    monkeypatch.setenv("COLUMNS", "80")
    with pytest.raises(SystemExit, match="0"):
        main(["infer", "--help"])
    printed = capsys.readouterr().out
    prose, examples = printed.split("\nexamples:\n")
    assert max(map(len, prose.splitlines())) <= 80
    assert re.search(r"^  paramorph-rt infer .+ \\$\n^      --", examples, re.MULTILINE)


@pytest.mark.parametrize("shell", SHELLS)
def test_completion_script_is_printed(shell, capsys):
    assert main(["completion", shell]) == 0
    script = capsys.readouterr().out
    assert "--moving-labels" in script
    if shutil.which(shell):
        check = subprocess.run([shell, "-n"], input=script, encoding="utf-8", check=False)
        assert check.returncode == 0


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        (["coh"], {"cohort"}),
        (["transform", "co"], {"compose", "convert"}),
        (["infer", "--moving-l"], {"--moving-labels"}),
        (["infer", "--affine", ""], {"rigid", "similarity", "affine"}),
        (["infer", "--moving", "so"], {"some.nii.gz"}),
        (["infer", "--out-dir", "f"], {"folder"}),
    ],
    ids=lambda value: " ".join(sorted(value) if isinstance(value, set) else value),
)
@pytest.mark.skipif(shutil.which("bash") is None, reason="needs bash")
def test_bash_completes(tmp_path, capsys, line, expected):
    assert main(["completion", "bash"]) == 0
    script = capsys.readouterr().out
    (tmp_path / "some.nii.gz").touch()
    (tmp_path / "file").touch()
    (tmp_path / "folder").mkdir()
    (function,) = re.findall(r"-F (\w+)", script)
    words = " ".join(f"'{word}'" for word in ("paramorph-rt", *line))
    script += f"\nCOMP_WORDS=({words}); COMP_CWORD={len(line)}; {function} || true\n"
    script += 'printf "%s\\n" "${COMPREPLY[@]}"\n'
    result = subprocess.run(
        ["bash"], input=script, capture_output=True, encoding="utf-8", cwd=tmp_path, check=True
    )
    assert set(result.stdout.split()) == expected, result.stderr


ENDING = """
import atexit, sys, threading, time
from paramorph_rt import cli

class Held:
    def __del__(self):
        print("freed")

def late():
    time.sleep(0.3)
    print("thread")

def main():
    global held
    held = Held()
    atexit.register(print, "exit")
    threading.Thread(target=late).start()
    {end}
    print("main", end=" ")
    return 3

cli.main = main
cli._has_gpu = lambda: {gpu}
sys.exit(cli.console())
"""


@pytest.mark.parametrize(
    ("end", "gpu", "code", "said"),
    [
        ("", False, 3, "main thread exit"),
        ("", True, 3, "main thread exit freed"),
        ("sys.exit(2)", False, 2, "thread exit freed"),
    ],
)
def test_program_ends_when_all_has_run(end, gpu, code, said):
    program = ENDING.replace("{end}", end).replace("{gpu}", str(gpu))
    command = [sys.executable, "-c", program]
    done = subprocess.run(command, stdout=subprocess.PIPE, encoding="utf-8", check=False)
    assert (done.returncode, done.stdout.split()) == (code, said.split())
