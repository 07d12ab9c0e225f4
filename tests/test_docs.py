"""The documents: their commands exist, their blocks of code run, the reference is current.

Blocks of `sh` and `python` run in the order of their page, in a folder of small volumes. One that
cannot run says so above it: ``<!-- not run: REASON -->``; its commands are parsed all the same.
README.md is read without its installation and training, which `.ci/run` does.
"""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
import pytest
from markdown_it import MarkdownIt

from paramorph_rt.cli import build_parser
from paramorph_rt.cli.layout import parsers_of
from paramorph_rt.geometry.field import DisplacementField
from paramorph_rt.images.volume import save_labels, save_volume
from paramorph_rt.transforms import Images
from paramorph_rt.transforms.formats import write_transform

from .runtime.phantoms import centred_grid, head, head_labels, volume_of, write_bundle

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
README = ROOT / "README.md"
PAGES = [README, *sorted(DOCS.glob("*.md"))]
PROGRAM = Path(sys.executable).with_name("paramorph-rt")
# What a block may call and still be run here.
RUNNABLE = {"paramorph-rt", "cd"}


@dataclass(frozen=True)
class Block:
    """A block of code in a page."""

    page: Path
    line: int
    language: str
    text: str
    not_run: str

    def __str__(self) -> str:
        return f"{self.page.name}:{self.line}"

    @property
    def commands(self) -> list[list[str]]:
        return list(commands_of(self.text))

    @property
    def runs(self) -> bool:
        if self.not_run or self.language not in ("sh", "python"):
            return False
        return self.language == "python" or {Path(words[0]).name for words in self.commands} <= (
            RUNNABLE
        )


def blocks_of(page: Path) -> Iterator[Block]:
    reason = ""
    for token in MarkdownIt().parse(page.read_text(encoding="utf-8")):
        if token.type == "html_block":
            found = re.fullmatch(r"<!-- not run: (.+) -->\s*", token.content)
            reason = found[1] if found else ""
        elif token.type == "fence":
            text = re.sub(r"\[(--[^]]*)\]", r"\1", token.content)  # what is optional
            yield Block(page, token.map[0] + 1, token.info.strip(), text, reason)
            reason = ""


def commands_of(script: str) -> Iterator[list[str]]:
    """Words of each command of a shell script without redirections and assignments."""
    for line in script.replace("\\\n", " ").splitlines():
        words = shlex.split(line.partition(" > ")[0], comments=True)
        while words and re.fullmatch(r"\w+=.*", words[0]):
            del words[0]
        if words:
            yield words


BLOCKS = [block for page in PAGES for block in blocks_of(page)]


def check_command(words: list[str]) -> None:
    """Fail if a command of ours does not exist or has no such option."""
    program, *arguments = words
    if Path(program).name == "paramorph-rt":
        try:
            build_parser().parse_args(arguments)
        except SystemExit as err:
            if err.code:
                pytest.fail(shlex.join(words))
    elif Path(program).name == "python":
        known = options_of(arguments[0])
        assert {word.split("=")[0] for word in arguments if word.startswith("--")} <= known


@cache
def options_of(script: str) -> set[str]:
    """Long options that a script of this project names in its help."""
    command = [sys.executable, str(ROOT / script), "--help"]
    told = subprocess.run(command, capture_output=True, encoding="utf-8", check=True).stdout
    return set(re.findall(r"--[a-z][a-z-]*", told))


@pytest.mark.parametrize("block", [b for b in BLOCKS if b.language == "sh"], ids=str)
def test_commands_exist_with_these_options(block):
    assert block.commands
    for words in block.commands:
        check_command(words)


@pytest.mark.parametrize("parser", list(parsers_of(build_parser())), ids=lambda p: p.prog)
def test_examples_in_help_texts_can_be_called(parser):
    epilog = (parser.epilog or "").replace("\\\n", " ")
    examples = [line for line in epilog.splitlines() if line.startswith("  paramorph-rt")]
    assert examples or parser.prog == "paramorph-rt transform"
    for line in examples:
        for words in commands_of(line):
            check_command(words)


def test_an_option_that_does_not_exist_is_found(capsys):
    with pytest.raises(pytest.fail.Exception, match="--nothing"):
        check_command(["paramorph-rt", "info", "--nothing"])
    with pytest.raises(AssertionError, match="--nothing"):
        check_command([".venv/bin/python", "models/train.py", "--nothing"])


def test_a_block_that_does_not_run_says_why():
    assert [str(b) for b in BLOCKS if b.language == "sh" and not b.runs and not b.not_run] == []


def test_reference_of_the_command_line_is_current(monkeypatch):
    monkeypatch.syspath_prepend(DOCS)
    from cli_reference import PAGE, reference

    assert PAGE.read_text(encoding="utf-8") == reference(), "run make docs"


def test_map_of_the_modules_is_current(monkeypatch):
    monkeypatch.syspath_prepend(DOCS)
    from module_map import PAGE, page

    assert PAGE.read_text(encoding="utf-8") == page(), "run make docs"


def test_every_page_is_in_the_index():
    linked = set(re.findall(r"\]\(([\w-]+\.md)\)", (DOCS / "index.md").read_text(encoding="utf-8")))
    assert linked == {page.name for page in DOCS.glob("*.md")} - {"index.md"}


@pytest.fixture(scope="module")
def volumes(tmp_path_factory) -> Path:
    """A folder with the files that the pages name."""
    folder = tmp_path_factory.mktemp("docs")
    spacing = (1.5, 1.5, 1.5)
    moving = centred_grid("RAS", (30, 34, 28), spacing, centre=(2, -1, 1))
    fixed = centred_grid("LAS", (32, 34, 30), spacing)
    for part in ("demo", "examples/colin27", "subjects", "BIDS_DIR/sub-01/anat", ".venv/bin"):
        (folder / part).mkdir(parents=True)
    (folder / ".venv/bin/paramorph-rt").symlink_to(PROGRAM)
    for grid, images, labels in (
        (
            moving,
            (
                *("moving", "m", "M", "t2", "sub-01_T1w", "subjects/a", "examples/colin27/ch2bet"),
                "BIDS_DIR/sub-01/anat/sub-01_T1w",
            ),
            ("moving_labels", "moving_mask", "ml", "ML", "examples/colin27/aal"),
        ),
        (
            fixed,
            ("fixed", "f", "F", "mni", "tpl-MNI152_T1w", "subjects/b", "demo/mni152"),
            ("fixed_labels", "fixed_mask", "fl", "FL"),
        ),
    ):
        for name in images:
            save_volume(folder / f"{name}.nii.gz", volume_of(head, grid))
        for name in labels:
            save_labels(folder / f"{name}.nii.gz", volume_of(head_labels, grid))
    field = DisplacementField(fixed, np.full((*fixed.shape, 3), 0.5, np.float32))
    affine = np.eye(4)
    for name, transform in (
        ("1Warp.nii.gz", field),
        ("0GenericAffine.mat", affine),
        ("demo/displacement.nii.gz", field),
        ("demo/affine.tfm", affine),
    ):
        write_transform(folder / name, transform, "itk", Images())
    (folder / "pairs.csv").write_text(
        "moving,fixed\nmoving.nii.gz,fixed.nii.gz\n", encoding="utf-8"
    )
    (folder / "names.csv").write_text("label,name\n1,right\n2,left\n7,core\n", encoding="utf-8")
    write_bundle(folder / "BUNDLE", np.zeros((3, 20, 24, 16), np.float32))
    return folder


# An index and a reference; test_tutorial, test_signatures and test_reproducible do what others say.
NOTHING_RUNS = ("index", "cli", "tutorial", "signed-models", "reproducibility", "refused")


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_blocks_run(page, volumes, tmp_path, monkeypatch):
    monkeypatch.setenv("PARAMORPH_MODEL", str(volumes / "BUNDLE"))
    monkeypatch.setenv("PATH", f"{PROGRAM.parent}{os.pathsep}{os.environ['PATH']}")
    ran = [block for block in blocks_of(page) if block.runs]
    assert ran or page.stem in NOTHING_RUNS
    for number, block in enumerate(ran):
        # The README shows ways to choose from, other pages one session.
        if number == 0 or page == README:
            monkeypatch.chdir(shutil.copytree(volumes, tmp_path / str(number), symlinks=True))
        if block.language == "python":
            code = compile(block.text, str(block), "exec")
            exec(code, {"__name__": str(block)})
        else:
            command = ["bash", "-euo", "pipefail", "-c", block.text]
            result = subprocess.run(command, capture_output=True, encoding="utf-8", check=False)
            assert result.returncode == 0, f"{block}: {result.stderr}"
