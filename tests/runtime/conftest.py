"""Fixtures of the runtime tests."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest

from paramorph_rt import loaded

from .phantoms import NETWORK_SHAPE, smooth_displacement_vox, write_bundle

SHARED_DATA = Path(__file__).parents[2] / "../shared/data"


@pytest.fixture(autouse=True)
def _every_test_is_a_new_process():
    """What is loaded once in a process is loaded once in a test."""
    loaded._load.cache_clear()


@pytest.fixture(scope="session")
def bundle_path(tmp_path_factory) -> Path:
    """A bundle that answers with `smooth_displacement_vox`."""
    folder = tmp_path_factory.mktemp("bundles") / "smooth"
    return write_bundle(folder, smooth_displacement_vox())


@pytest.fixture(scope="session")
def zero_bundle_path(tmp_path_factory) -> Path:
    """A bundle that answers with no displacement."""
    folder = tmp_path_factory.mktemp("bundles") / "zero"
    return write_bundle(folder, np.zeros((3, *NETWORK_SHAPE), np.float32))


@pytest.fixture(scope="session")
def brains() -> Path:
    """The folder of real validation brains."""
    folder = SHARED_DATA / "brain_t1/validation"
    if not folder.is_dir():
        pytest.skip("needs the real volumes of ../shared/data")
    return folder


@pytest.fixture(scope="session")
def browser():
    """Headless Chromium: the machine's own, or Playwright's."""
    playwright = pytest.importorskip("playwright.sync_api", reason="needs playwright")
    found = shutil.which("chromium") or shutil.which("google-chrome")
    graphics = ["--use-angle=swiftshader", "--enable-unsafe-swiftshader"]
    with playwright.sync_playwright() as driver:
        try:
            started = driver.chromium.launch(
                executable_path=found, args=["--no-sandbox", *graphics]
            )
        except playwright.Error as err:
            pytest.skip(f"needs Chromium: {err.message.splitlines()[0]}")
        yield started
        started.close()


@pytest.fixture
def open_page(browser):
    """Opens files offline; at the end nothing must have gone to the network or the console."""
    said, asked, contexts = [], [], []

    def opened(path: Path, **options):
        options = {"viewport": {"width": 960, "height": 700}} | options
        contexts.append(browser.new_context(offline=True, **options))
        contexts[-1].set_default_timeout(120_000)  # a busy machine draws slowly
        page = contexts[-1].new_page()
        page.on("console", lambda message: said.append(message.text))
        page.on("pageerror", lambda error: said.append(str(error)))
        page.on("dialog", lambda dialog: said.append(dialog.message))
        page.on("request", lambda request: asked.append(request.url))
        page.goto(path.as_uri())
        return page

    yield opened
    for context in contexts:
        context.close()
    assert said == []
    assert [url[:80] for url in asked if not url.startswith(("file:", "data:", "blob:"))] == []
