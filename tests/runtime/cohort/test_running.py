"""Models and threads of a cohort; an interrupt, a cluster, and a worker that is killed."""

from __future__ import annotations

import json
import logging
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest

from paramorph_rt import loaded
from paramorph_rt.cohort import run as cohort_run
from paramorph_rt.cohort import work
from paramorph_rt.cohort.pairs import Pair
from paramorph_rt.cohort.run import run_cohort
from paramorph_rt.cohort.work import Outcome
from paramorph_rt.errors import CohortError

from ..phantoms import NETWORK_SHAPE
from .cohorts import ENVIRONMENT, a_to_b, cohort, inodes, long_table, statuses, wait_until


def test_one_model_load_and_one_network_at_a_time(subjects, options, tmp_path, monkeypatch):
    loads, running, most = [], [], []

    class Slow:
        name, precision, shapes = "slow", "fp32", (NETWORK_SHAPE,)

        def __init__(self) -> None:
            loads.append(threading.get_ident())

        def run(self, moving, fixed):
            running.append(threading.get_ident())
            most.append(len(running))
            assert running == loads  # in the thread that loaded it
            time.sleep(0.05)
            running.pop()
            return np.zeros((3, *fixed.shape), np.float32)

    monkeypatch.setattr(loaded, "choose_backend", lambda *_: Slow())
    loaded._load.cache_clear()
    pairs = [a_to_b(subjects, str(n)) for n in range(6)]
    outcomes = list(run_cohort(pairs, options, tmp_path / "out", at_once=3))
    loaded._load.cache_clear()
    assert [outcome.status for outcome in outcomes] == ["done"] * 6
    assert (len(loads), max(most)) == (1, 1)


def test_pairs_at_once_are_bounded(subjects, options, tmp_path, monkeypatch):
    lock, counts = threading.Lock(), [0, 0]

    def slow(pair: Pair, **_: object) -> Outcome:
        with lock:
            counts[0] += 1
            counts[1] = max(counts)
        time.sleep(0.02)
        with lock:
            counts[0] -= 1
        return Outcome(pair.name, "done")

    monkeypatch.setattr(cohort_run, "run_pair", slow)
    pairs = [a_to_b(subjects, str(n)) for n in range(12)]
    outcomes = list(run_cohort(pairs, options, tmp_path / "out", at_once=4))
    assert sorted(outcome.name for outcome in outcomes) == sorted(pair.name for pair in pairs)
    assert counts[1] == 4


def test_warnings_belong_to_their_pair(subjects, options, tmp_path, monkeypatch):
    real, barrier = work._run_pair, threading.Barrier(2)

    def warn(pair: Pair, *rest: object) -> object:
        barrier.wait(10)
        logging.getLogger("paramorph_rt.steps.affine").warning("%s looks odd", pair.name)
        barrier.wait(10)
        return real(pair, *rest)

    monkeypatch.setattr(work, "_run_pair", warn)
    pairs = [a_to_b(subjects, n) for n in "xy"]
    outcomes = list(run_cohort(pairs, options, tmp_path / "out", at_once=2))
    assert {o.name: o.warnings for o in outcomes} == {n: (f"{n} looks odd",) for n in "xy"}
    record = json.loads((tmp_path / "out/pairs/x/record.json").read_text(encoding="utf-8"))
    assert record["warnings"] == ["x looks odd"]


def test_ctrl_c_finishes_what_is_under_way_and_a_restart_goes_on(
    subjects, zero_bundle_path, tmp_path
):
    out, table = tmp_path / "out", long_table(subjects, 24)
    words = ["cohort", table, "--out-dir", out, "--model", zero_bundle_path, "--no-affine"]
    words += ["--backend", "onnxruntime", "--threads", 1]
    process = subprocess.Popen(
        [sys.executable, "-m", "paramorph_rt", *map(str, words)],
        env=ENVIRONMENT,
        stderr=subprocess.PIPE,
        stdout=subprocess.PIPE,
        encoding="utf-8",
    )
    wait_until(lambda: len(inodes(out)) >= 2)
    process.send_signal(signal.SIGINT)
    _, error = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "finishing the pairs under way" in error
    assert "Traceback" not in error
    finished = inodes(out)
    assert 2 <= len(finished) < 24
    assert not list(out.glob("pairs/.paramorph-*"))
    said = statuses(out)
    assert {name for name, status in said.items() if status == "done"} == set(finished)
    assert set(said.values()) == {"done", "not run"}
    assert cohort(zero_bundle_path, out, table) == 0
    assert inodes(out).items() >= finished.items()
    assert sorted(statuses(out).values()) == ["done"] * (24 - len(finished)) + ["kept"] * len(
        finished
    )


@pytest.fixture
def cluster(tmp_path):
    """A scheduler's address, and two worker processes of one thread."""
    pytest.importorskip("distributed", reason="needs the extra cluster")
    programs = []

    def start(*words: str) -> subprocess.Popen:
        command = [sys.executable, "-m", "distributed.cli." + words[0], *words[1:]]
        process = subprocess.Popen(
            command,
            cwd=tmp_path,
            env=ENVIRONMENT,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        programs.append(process)
        return process

    file = tmp_path / "scheduler.json"
    options = ["--host", "127.0.0.1", "--port", "0", "--no-dashboard", "--no-show"]
    start("dask_scheduler", *options, "--scheduler-file", str(file))
    wait_until(file.exists)
    address = json.loads(file.read_text(encoding="utf-8"))["address"]
    options = ["--nthreads", "1", "--no-nanny", "--no-dashboard", "--host", "127.0.0.1"]
    workers = [start("dask_worker", address, *options) for _ in range(2)]
    yield address, workers
    for process in programs:
        process.kill()
        process.wait()


def test_killed_worker_loses_nothing_and_does_nothing_twice(
    cluster, subjects, zero_bundle_path, tmp_path
):
    address, workers = cluster
    out, table = tmp_path / "out", long_table(subjects, 24)
    before_the_kill = {}

    def kill() -> None:
        both_work = lambda: len(set(processes(out).values())) == 2  # noqa: E731
        wait_until(lambda: both_work() and len(inodes(out)) >= 6, seconds=300)
        workers[0].kill()
        workers[0].wait()
        before_the_kill.update(inodes(out))

    killer = threading.Thread(target=kill)
    killer.start()
    code = cohort(zero_bundle_path, out, table, "--scheduler", address)
    killer.join()
    assert code == 0
    assert 6 <= len(before_the_kill) < 24, "killed too late to tell"
    assert len(inodes(out)) == 24
    assert inodes(out).items() >= before_the_kill.items()
    assert {p.poll() for p in workers} == {-signal.SIGKILL, None}
    # One interpreter each: what a worker did, it did with its one model.
    assert len(set(processes(out).values())) == 2
    again = cohort(zero_bundle_path, out, table, "--scheduler", address)
    assert (again, set(statuses(out).values())) == (0, {"kept"})


def processes(out: Path) -> dict[str, int]:
    """Which process registered each finished pair."""
    records = [
        json.loads(path.read_text(encoding="utf-8")) for path in out.glob("pairs/[!.]*/record.json")
    ]
    return {record["name"]: record["process"] for record in records}


def test_no_scheduler_is_one_sentence(subjects, options, tmp_path, monkeypatch):
    pytest.importorskip("distributed", reason="needs the extra cluster")
    monkeypatch.setattr(cohort_run, "CONNECT_SECONDS", 0.2)
    pairs = [a_to_b(subjects, "x")]
    for address in ("tcp://127.0.0.1:9", "nonsense://x"):
        with pytest.raises(CohortError, match=f"{address}: expected a Dask scheduler"):
            next(run_cohort(pairs, options, tmp_path / "out", scheduler=address))


class Workers:
    """A client of workers whose versions are these."""

    def __init__(self, *versions: dict[str, str] | Exception) -> None:
        self._versions = versions

    def run(self, function) -> dict[str, dict[str, str]]:
        for found in self._versions:
            if isinstance(found, Exception):
                raise found
        return dict(zip("ab", self._versions, strict=False))


def test_workers_must_have_the_same_software():
    old, new = {"numpy": "2.3", "openvino": "2025.0"}, {"numpy": "2.3", "openvino": "2026.4"}
    cohort_run._check_versions(Workers(new, new), "tcp://x:1")
    cohort_run._check_versions(Workers(), "tcp://x:1")
    with pytest.raises(CohortError, match=r"same software .* got openvino 202\d.\d and 202\d"):
        cohort_run._check_versions(Workers(old, new), "tcp://x:1")
    missing = ModuleNotFoundError("No module named 'paramorph_rt'")
    with pytest.raises(CohortError, match="expected workers that have paramorph-rt, got Module"):
        cohort_run._check_versions(Workers(missing), "tcp://x:1")
