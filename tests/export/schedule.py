"""What an engine of TensorRT for RTX will launch, read off its own text: no GPU is needed.

The engine holds the program of its compiler, in `main` every launch and every wait for a stream.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field

SHORTEST_TEXT = 64  # characters; shorter runs are chance, or names


@dataclass(frozen=True)
class Launch:
    """A kernel, by the compiler's names."""

    kind: str
    name: str

    @property
    def group(self) -> str:
        """What it is for."""
        if "mha" in self.name:
            return "attention"
        if self.kind == "corrltn" or "Corr" in self.name:
            return "convolution"
        if self.kind == "fully_connected" or "Fc" in self.name:
            return "linear"
        return "others"


@dataclass
class Schedule:
    """The launches of an engine, in their order."""

    launches: list[Launch] = field(default_factory=list)
    waits: int = 0  # for other streams, and signals to them


def schedule_of(engine: bytes) -> Schedule:
    """Read an engine's own program, which has to be there."""
    schedule = Schedule()
    lines = iter(_lines(engine))
    assert "main {" in lines, "no text of an engine's program"
    for line in lines:
        if line.startswith("}"):
            return schedule
        if match := re.match(r'\s*([a-z_]+)=\{ name="?([^" ]*)"?', line):
            kind, name = match.groups()
            if kind in ("wait", "signal"):
                schedule.waits += 1
            else:
                schedule.launches.append(Launch(kind, name))
    raise AssertionError("the text of an engine's program has no end")


def _lines(engine: bytes) -> Iterator[str]:
    """Of all readable text."""
    pattern = rb"[\t\n\x20-\x7e]{%d,}" % SHORTEST_TEXT
    for match in re.finditer(pattern, engine):
        yield from match[0].decode("ascii").split("\n")
