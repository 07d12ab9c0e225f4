"""One network by one engine in a process of its own, which runs what it is sent, when it is sent.

As a script, that process; it loads numpy and what its engine needs, nothing else, so that its
memory is the engine's.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from typing import TYPE_CHECKING, Any, NamedTuple

from isolated import limited_to, peak_mb
from paramorph_rt.errors import BackendError, ParamorphError

if TYPE_CHECKING:
    import numpy as np
    from jaxtyping import Float

    Run = Callable[
        [Float[np.ndarray, "i j k"], Float[np.ndarray, "i j k"]], Float[np.ndarray, "3 i j k"]
    ]


@dataclass(frozen=True)
class Spec:
    """One network by one engine; all paths absolute.

    Attributes:
        engine: A key of `PYTORCH`, or `backend:precision` of the runtime.
        threads: For the engine.
        bundle: For the runtime.
        weights: That the bundle was exported from, for PyTorch.
    """

    engine: str
    threads: int
    bundle: str
    weights: str | None = None


class Answer(NamedTuple):
    """What one run gave and took."""

    displacement: Float[np.ndarray, "3 i j k"]
    seconds: float
    cpu_seconds: float  # of all threads
    peak_mb: float  # of the process so far


class Contender:
    """The other process, as this one sees it.

    Attributes:
        load_seconds: From files to an engine that is ready, its package's import included.
    """

    def __init__(self, engine: str, process: subprocess.Popen, connection: Connection) -> None:
        self._engine, self._process, self._connection = engine, process, connection
        self.load_seconds: float = self._answer()

    def run(self, moving: np.ndarray, fixed: np.ndarray) -> Answer:
        """One displacement of two volumes (i, j, k) on the network grid.

        Raises:
            BackendError: The engine failed, or its process ended.
        """
        self._connection.send((moving, fixed))
        return self._answer()

    def _answer(self) -> Any:
        try:
            answer = self._connection.recv()
        except EOFError as err:
            raise BackendError(
                f"{self._engine}: expected an answer, got the end of its process (exit code "
                f"{self._process.wait()}); see what it wrote above."
            ) from err
        if isinstance(answer, ParamorphError):
            raise answer
        return answer


@contextmanager
def contender(spec: Spec) -> Iterator[Contender]:
    """Start a process, and end it after the block.

    Raises:
        ParamorphError: It cannot load what it was asked for.
    """
    ours, theirs = Pipe()
    command = [sys.executable, __file__, str(theirs.fileno()), json.dumps(asdict(spec))]
    process = subprocess.Popen(
        command, pass_fds=[theirs.fileno()], env=limited_to(spec.threads), stdout=2
    )
    theirs.close()
    try:
        yield Contender(spec.engine, process, ours)
    finally:
        ours.close()  # which ends its loop
        process.wait()


def pytorch(spec: Spec) -> Run:
    """The training code's network in eager mode."""
    import torch

    from paramorph.checkpoint import load_weights

    return _by_torch(load_weights(spec.weights)[0].eval(), torch)


def transcription(spec: Spec) -> Run:
    """The network as its description has it, unoptimised, in eager mode."""
    import torch

    from paramorph.checkpoint import load_weights, reference_name
    from plain_transcription import PlainTranscription

    network, info = load_weights(spec.weights)
    config = info.network
    if config.window_return != "reference" or config.passes > 1 or config.integration_steps:
        raise BackendError(
            "transcription: expected weights of one pass that go back from windows as the "
            "reference's do, got others; leave it out of --contenders."
        )
    # Contiguous, as a checkpoint's weights are; the network's own lie channels last.
    state = {reference_name(n): t.contiguous() for n, t in network.state_dict().items()}
    return _by_torch(PlainTranscription(state, config.window, config.fusion), torch)


def _by_torch(network: Callable, torch: Any) -> Run:
    def run(moving: np.ndarray, fixed: np.ndarray) -> np.ndarray:
        with torch.inference_mode():
            volumes = (torch.from_numpy(v)[None, None] for v in (moving, fixed))
            return network(*volumes)[0].numpy()

    return run


def runtime(spec: Spec) -> Run:
    """The bundle's network, as `paramorph-rt infer` runs it."""
    from paramorph_rt.backends import choose_backend
    from paramorph_rt.bundle import load_bundle

    name, _, precision = spec.engine.partition(":")
    return choose_backend(load_bundle(spec.bundle), name, precision, spec.threads).run


PYTORCH: dict[str, Callable[[Spec], Run]] = {"pytorch": pytorch, "transcription": transcription}


def _serve(connection: Connection, spec: Spec) -> None:
    """Load, then run whatever comes until the connection closes."""
    try:
        start = time.perf_counter()
        run = PYTORCH.get(spec.engine, runtime)(spec)
        connection.send(time.perf_counter() - start)
        while True:
            volumes = connection.recv()
            start, spent = time.perf_counter(), time.process_time()
            displacement = run(*volumes)
            took = time.perf_counter() - start, time.process_time() - spent
            connection.send(Answer(displacement, *took, peak_mb()))
    except EOFError:
        pass
    except ParamorphError as err:
        connection.send(err)


if __name__ == "__main__":
    # Under its own name, by which the other process knows what it is sent.
    from contenders import Spec, _serve

    _serve(Connection(int(sys.argv[1])), Spec(**json.loads(sys.argv[2])))
