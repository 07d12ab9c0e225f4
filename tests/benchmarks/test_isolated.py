from __future__ import annotations

import sys
import time

from isolated import run_isolated, run_measured


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


def measured(code: str, timeout_s: float = 60) -> dict:
    return run_measured([sys.executable, "-c", code], threads=1, timeout_s=timeout_s)


def test_a_command_is_measured_from_start_to_end_without_what_this_process_takes():
    ours = b"x" * 400_000_000  # what a child would inherit the peak of
    busy = "import time; x = b'x' * 200_000_000; end = time.process_time() + 0.3\n"
    usage = measured(busy + "while time.process_time() < end: pass")
    assert 200 < usage["peak_mb"] < 300 < len(ours)
    assert 0.3 < usage["cpu_seconds"] < 3
    assert usage["seconds"] > 0.3


def test_a_command_that_fails_says_why():
    assert measured("raise ValueError('odd')") == {"error": "ValueError: odd"}
    assert measured("import os; os.abort()") == {"error": "killed by SIGABRT"}


def test_a_command_that_takes_too_long_is_stopped(tmp_path):
    late = f"import time; time.sleep(2); open({str(tmp_path / 'late')!r}, 'w')"
    assert measured(late, timeout_s=0.5) == {"error": "stopped after 0.5 s"}
    time.sleep(2)
    assert not (tmp_path / "late").exists()
