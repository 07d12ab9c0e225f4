"""Fixtures of all tests."""

from __future__ import annotations

import pytest


@pytest.fixture(scope="session", autouse=True)
def _cache_folder_of_the_tests(tmp_path_factory):
    """What engines keep between runs stays out of the user's cache folder, in subprocesses, too."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        yield
