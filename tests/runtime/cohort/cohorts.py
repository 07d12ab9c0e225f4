"""Small cohorts, run by the command, and what is left of them."""

from __future__ import annotations

import json
import os
import time
from html.parser import HTMLParser
from pathlib import Path

from paramorph_rt.cli import main
from paramorph_rt.cohort.pairs import Pair
from paramorph_rt.request import Inputs

ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "ITK_GLOBAL_DEFAULT_NUMBER_OF_THREADS": "1"}
A_TO_B = "a_t1.nii.gz,b_t1.nii.gz"


def a_to_b(subjects: Path, name: str) -> Pair:
    return Pair(name, Inputs(subjects / "a_t1.nii.gz", subjects / "b_t1.nii.gz"))


def cohort(model: Path, out: Path, *words: object) -> int:
    options = ["--model", model, "--out-dir", out, "--backend", "onnxruntime", "--threads", 1]
    return main(["cohort", *map(str, [*words, *options]), "--no-affine"])


def write_table(folder: Path, text: str | bytes) -> Path:
    table = folder / "pairs.csv"
    table.write_bytes(text if isinstance(text, bytes) else text.encode())
    return table


def statuses(out: Path) -> dict[str, str]:
    summary = json.loads((out / "summary.json").read_text(encoding="utf-8"))
    return {entry["name"]: entry["status"] for entry in summary["results"]}


def inodes(out: Path) -> dict[str, int]:
    """Of each finished pair's metrics; a pair that is done again gets another."""
    return {path.parent.name: path.stat().st_ino for path in out.glob("pairs/[!.]*/metrics.json")}


def long_table(subjects: Path, count: int) -> Path:
    rows = "".join(f"p{n:02},{A_TO_B}\n" for n in range(count))
    return write_table(subjects, f"name,moving,fixed\n{rows}")


def wait_until(condition, seconds: float = 60) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited too long"
        time.sleep(0.01)


class Page(HTMLParser):
    """What a browser would fetch, run or be confused by."""

    VOID = frozenset({"meta", "br", "hr", "img", "link", "input"})

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[str] = []
        self.links: list[str] = []
        self.words: list[str] = []
        self.feed(text)
        self.close()
        assert not self.open

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        for name, value in attributes:
            assert not name.startswith("on")
            if name in ("href", "src"):
                self.links.append(value)
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.words.append(data)
