"""What an engine of TensorRT for RTX will launch, by its own text: no GPU is needed.

The engine holds the program of its compiler: every tensor with its type, dimensions and strides,
and in `main` every launch with what it reads and writes. From these come launches, bytes and
floating point operations, and a modelled time, which is a model and no measurement.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

BYTES = {"half": 2, "bfloat16": 2, "float": 4, "int32": 4, "int64": 8, "bool": 1, "int8": 1}
#: Seconds that a launch costs at least, in a CUDA graph.
LAUNCH_SECONDS = 2e-6
#: Share of a card's arithmetic that its convolutions reach.
EFFICIENCY = 0.55
_SHORTEST_TEXT = 64  # characters; shorter runs are chance, or names


@dataclass(frozen=True)
class Card:
    """What the model knows of a card."""

    name: str
    bytes_per_second: float
    flop_per_second: float  # half in, float32 sums, by tensor cores


#: NVIDIA's numbers; the laptop's at the clock that its power allows, about.
CARDS = (Card("RTX 3080", 760e9, 59.5e12), Card("RTX 3080 Laptop", 448e9, 40e12))


@dataclass(frozen=True)
class Tensor:
    """A tensor of the engine's program."""

    dims: tuple[int, ...]
    type: str

    @property
    def bytes(self) -> int:
        """If its elements lie side by side."""
        return math.prod(self.dims) * BYTES.get(self.type, 4)


@dataclass(frozen=True)
class Launch:
    """A kernel with the tensors that it reads and writes."""

    kind: str
    name: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]


@dataclass
class Schedule:
    """The launches of an engine, in their order."""

    tensors: dict[str, Tensor] = field(default_factory=dict)
    launches: list[Launch] = field(default_factory=list)

    def bytes_of(self, launch: Launch) -> int:
        """Read and written, each tensor once."""
        names = {*launch.inputs, *launch.outputs}  # some kernels name what they read twice
        return sum(self.tensors[name].bytes for name in names if name in self.tensors)

    def flop_of(self, launch: Launch) -> int:
        """Of products of matrices, convolutions included; two for each product."""
        if not launch.outputs or launch.outputs[0] not in self.tensors:
            return 0
        known = [n for n in launch.inputs if n in self.tensors]
        inputs = [self.tensors[n] for n in known]
        weights = [self.tensors[n] for n in known if n.endswith("const")]
        given = math.prod(self.tensors[launch.outputs[0]].dims)
        if "mha" in launch.name:
            return 0  # attention's are one in a hundred
        if launch.kind == "corrltn" or "Corr" in launch.name:
            kernels = [w for w in weights[:1] if len(w.dims) == 5]
            return 2 * given * math.prod(kernels[0].dims[1:]) if kernels else 0
        if launch.kind == "fully_connected" or "Fc" in launch.name:
            return 2 * given * inputs[0].dims[-1] if inputs and weights else 0
        return 0

    def seconds_of(self, launch: Launch, card: Card) -> float:
        """Modelled: the longer of moving and computing, and the launch itself."""
        moving = self.bytes_of(launch) / card.bytes_per_second
        is_float = bool(launch.inputs) and (
            self.tensors.get(launch.inputs[0], Tensor((), "half")).type == "float"
        )
        rate = card.flop_per_second * EFFICIENCY / (2 if is_float else 1)
        return max(moving, self.flop_of(launch) / rate) + LAUNCH_SECONDS

    def summary(self) -> dict[str, float | int | dict]:
        """For a result file."""
        return {
            "launches": len(self.launches),
            "gigabytes": sum(map(self.bytes_of, self.launches)) / 1e9,
            "modelled_ms": {
                card.name: 1e3 * sum(self.seconds_of(launch, card) for launch in self.launches)
                for card in CARDS
            },
        }


def schedule_of(engine: bytes) -> Schedule:
    """Read an engine's own program.

    Raises:
        ValueError: There is none: an engine of another library or of a version that tells nothing.
    """
    schedule = Schedule()
    inside = complete = False
    for line in _lines(engine):
        if found := re.match(r"\s*(?:sub_)?tensor=\{(.*)", line):
            _read_tensor(found[1], schedule)
        elif line == "main {" and not complete:
            inside = True
        elif inside and line.startswith("}"):
            inside, complete = False, True
        elif inside:
            _read_launch(line, schedule)
    if not complete:
        raise ValueError("expected the text of an engine's program, found none")
    return schedule


def _lines(engine: bytes) -> Iterator[str]:
    """Of all readable text."""
    pattern = rb"[\t\n\x20-\x7e]{%d,}" % _SHORTEST_TEXT
    for found in re.finditer(pattern, engine):
        yield from found[0].decode("ascii").split("\n")


def _read_tensor(text: str, schedule: Schedule) -> None:
    name = re.search(r'name="([^"]*)"', text)
    dims = re.search(r"dims=\{ ([0-9 ]*)\}", text)
    kind = re.search(r"type=([a-z0-9]+)", text)
    if name and dims and kind:
        schedule.tensors[name[1]] = Tensor(tuple(map(int, dims[1].split())), kind[1])


def _read_launch(line: str, schedule: Schedule) -> None:
    found = re.match(r'\s*([a-z_]+)=\{ name="?([^" ]*)"?(.*)', line)
    if found is None or found[1] in ("wait", "signal"):  # for other streams, or to them
        return
    kind, name, rest = found.groups()
    inputs = _names(rest, "input_args") or _names(rest, "input")
    outputs = _names(rest, "output_args") or _names(rest, "output")
    schedule.launches.append(Launch(kind, name, inputs, outputs))


def _names(text: str, key: str) -> tuple[str, ...]:
    found = re.search(rf"\b{key}=\{{ ?([^}}]*)\}}", text)
    return tuple(re.findall(r'"([^"]*)"', found[1])) if found else ()
