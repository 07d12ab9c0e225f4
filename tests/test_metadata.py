"""What the project says of itself in several places is the same."""

from __future__ import annotations

import configparser
import re
from pathlib import Path

ROOT = Path(__file__).parents[1]


def test_citation_and_package_have_one_version():
    setup = configparser.ConfigParser()
    setup.read(ROOT / "setup.cfg", encoding="utf-8")
    citation = (ROOT / "CITATION.cff").read_text(encoding="utf-8")
    assert re.findall(r"^version: (.+)$", citation, re.M) == [setup["metadata"]["version"]]


def test_licence_of_the_model_is_the_same_everywhere():
    setup = (ROOT / "setup.cfg").read_text(encoding="utf-8")
    card = (ROOT / "models/weights/brain-t1-small.md").read_text(encoding="utf-8")
    assert "CC-BY-NC-4.0" in setup
    assert re.match(r"---\nlicense: cc-by-nc-4.0\n", card)


def test_container_recipes_take_what_the_package_is_built_of():
    """Folders that setup.cfg names are not left out of a container's build."""
    setup = configparser.ConfigParser()
    setup.read(ROOT / "setup.cfg", encoding="utf-8")
    folders = [
        line.split("=")[1].strip() for line in setup["options"]["package_dir"].split("\n")[1:]
    ]
    licences = [f for f in setup["metadata"]["license_files"].split("\n") if f and "*" not in f]
    kept = re.findall(r"^!(.+)$", (ROOT / ".dockerignore").read_text(encoding="utf-8"), re.M)
    copied = re.findall(r"^    (\S+) /source", (ROOT / "paramorph-rt.def").read_text(), re.M)
    for needed in (
        "setup.cfg",
        "setup.py",
        "pyproject.toml",
        "README.md",
        "MANIFEST.in",
        *folders,
        *licences,
    ):
        for recipe in (kept, copied):
            assert any(needed == each or needed.startswith(f"{each}/") for each in recipe), needed
