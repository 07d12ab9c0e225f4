from __future__ import annotations

import sys

from isolated import run_isolated


def python(code: str, timeout_s: float = 60) -> str | None:
    return run_isolated([sys.executable, "-c", code], threads=3, timeout_s=timeout_s)


def test_a_good_end_says_nothing():
    assert python("print('much')") is None


def test_an_exception_says_its_last_line():
    assert python("x = 1\nraise ValueError('odd image')") == "ValueError: odd image"


def test_silence_says_its_exit_code():
    assert python("raise SystemExit(3)") == "exit code 3"


def test_a_crash_says_its_signal():
    assert python("import os; os.abort()") == "killed by SIGABRT"


def test_too_long_is_stopped():
    assert python("import time; time.sleep(60)", timeout_s=0.5) == "stopped after 0.5 s"


def test_every_library_is_told_the_number_of_threads():
    code = (
        "import os, SimpleITK as sitk\n"
        "assert sitk.ProcessObject.GetGlobalDefaultNumberOfThreads() == 3\n"
        "assert os.environ['OMP_NUM_THREADS'] == '3'\n"
    )
    assert python(code) is None
