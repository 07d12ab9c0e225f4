"""What the project says of itself in several places is the same."""

from __future__ import annotations

import configparser
import json
import re
from pathlib import Path

ROOT = Path(__file__).parents[1]


def test_citation_and_package_have_one_version():
    setup = configparser.ConfigParser()
    setup.read(ROOT / "setup.cfg", encoding="utf-8")
    citation = (ROOT / "CITATION.cff").read_text(encoding="utf-8")
    assert re.findall(r"^version: (.+)$", citation, re.M) == [setup["metadata"]["version"]]


def test_licences_of_the_models_are_the_same_everywhere():
    setup = (ROOT / "setup.cfg").read_text(encoding="utf-8")
    bundles = [*ROOT.glob("runtime/paramorph_rt/bundles/*/manifest.json")]
    assert len(bundles) == 3
    for path in bundles:
        manifest = json.loads(path.read_text(encoding="utf-8"))
        card = f"models/weights/{manifest['name']}.md"
        licence = re.match(r"---\nlicense: (\S+)\n", (ROOT / card).read_text(encoding="utf-8"))[1]
        assert manifest["card"]["license"] == licence
        assert licence in setup.lower()
        assert f"    {card}\n" in setup


def test_every_folder_of_modules_is_packaged():
    setup = configparser.ConfigParser()
    setup.read(ROOT / "setup.cfg", encoding="utf-8")
    wings = [line.split(" = ") for line in setup["options"]["package_dir"].split("\n")[1:]]
    folders = {
        ".".join([package, *path.parent.relative_to(ROOT / folder).parts])
        for package, folder in wings
        for path in (ROOT / folder).rglob("__init__.py")
    }
    assert len(wings) == 3
    assert set(setup["options"]["packages"].split()) == folders


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
