"""Fixtures of all tests."""

from __future__ import annotations

import locale
import os
from contextlib import suppress

import pytest

# Beside other processes of the same run, a thread per core and process would only wait for one
# another. Read when PyTorch is imported, here and in subprocesses.
if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ.setdefault("OMP_NUM_THREADS", "1")


@pytest.fixture(scope="session", autouse=True)
def _cache_folder_of_the_tests(tmp_path_factory):
    """What engines keep between runs stays out of the user's cache folder, in subprocesses, too."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(autouse=True)
def _text_is_utf8():
    """Libraries set the process to the locale C, in which others of them read their own files."""
    with suppress(locale.Error):
        locale.setlocale(locale.LC_CTYPE, "C.UTF-8")
