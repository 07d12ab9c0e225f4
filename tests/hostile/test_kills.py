"""A kill at any moment: results are whole, or the next run makes them so; nothing is left."""

from __future__ import annotations

import json
import random
import signal
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from .harness import SCALE, Program, snapshot

QUICK = ("--quiet", "--no-affine", "--model", "none", "--refine", "off")
#: The fast part kills before every eighth change, each signal before others.
STEP = 8 if SCALE == 1 else 1
SIGNALS = (signal.SIGKILL, signal.SIGTERM, signal.SIGINT)


def infer(good, out, *more):
    return ("infer", "-m", good / "moving.nii.gz", "-f", good / "fixed.nii.gz", "-o", out, *more)


def of_results(folder) -> dict[str, str]:
    """What was written, but for the times in it."""
    found = snapshot(folder)
    for name in [name for name in found if name.endswith((".json", ".html"))]:
        found[name] = "json"
    return found


@pytest.mark.parametrize("how", SIGNALS, ids=lambda number: number.name)
def test_killed_before_each_change_of_a_new_folder(how, program, good, place):
    """There is nothing, or everything, and nothing else after the next run."""
    assert program(*infer(good, "whole", *QUICK), cwd=place).code == 0
    whole = of_results(place / "whole")
    for number in range(int(how) % STEP, 40, STEP):
        out = place / f"OUT{number}"
        outcome = program(*infer(good, out, *QUICK), cwd=place, kill_at=number, kill_signal=how)
        if outcome.code == 0:
            break
        assert outcome.code == (-9 if how == signal.SIGKILL else 128 + how), outcome.err
        assert not out.exists() or of_results(out) == whole
        if how != signal.SIGKILL:
            assert not [name for name in snapshot(place) if ".paramorph" in name]
    else:
        raise AssertionError("no end of changes")
    assert number >= STEP
    assert not [name for name in snapshot(place) if ".paramorph" in name]


@pytest.mark.parametrize("how", SIGNALS, ids=lambda number: number.name)
def test_killed_before_each_change_of_earlier_results(how, program, good, place):
    """All is of the earlier run or all of the new one; else nothing vouches, and the next mends."""
    more = ("--also", good / "fixed_mask.nii.gz")
    assert program(*infer(good, "old", *QUICK, *more), cwd=place).code == 0
    assert program(*infer(good, "new", *QUICK, "--interpolation", "nearest"), cwd=place).code == 0
    old, new = of_results(place / "old"), of_results(place / "new")
    assert old != new
    for number in range(int(how) % STEP, 60, STEP):
        out = place / "OUT"
        assert program(*infer(good, out, *QUICK, *more, "--force"), cwd=place).code == 0
        (out / "mine.txt").write_text("mine", encoding="utf-8")
        words = infer(good, out, *QUICK, "--interpolation", "nearest", "--force")
        outcome = program(*words, cwd=place, kill_at=number, kill_signal=how)
        there = of_results(out)
        there.pop("mine.txt")
        if outcome.code == 0:
            assert there == new
            break
        clean = {name: state for name, state in there.items() if ".paramorph" not in name}
        if how == signal.SIGKILL:
            assert clean in (old, new) or "metrics.json" not in clean
        else:
            assert there in (old, new)
        again = program(*infer(good, out, *QUICK), cwd=place)  # looks, finishes, and refuses
        assert again.code == 1
        there = of_results(out)
        assert there.pop("mine.txt")
        assert there in (old, new), number
    else:
        raise AssertionError("no end of changes")
    assert number > 6


@pytest.mark.parametrize("how", SIGNALS, ids=lambda number: number.name)
def test_killed_at_random_moments(how, program, good, place):
    chance = random.Random(int(how))
    whole = None
    for number in range(4 * SCALE):
        out = place / f"OUT{number}"
        after = chance.uniform(0, 0.6)
        words = (
            *infer(good, out, "--quiet", "--model", "none", "--refine", "2"),
            "--itk-composite",
        )
        impatient = [(after + wait, int(how)) for wait in (0.02, 0.04)] if number % 2 else []
        outcome = program(*words, cwd=place, signals=[(after, int(how)), *impatient])
        # Before the program has begun, a signal ends the process by itself.
        assert outcome.code in (0, -int(how), 128 + how), outcome.err
        assert "Traceback" not in outcome.err
        if out.exists():
            names = set(snapshot(out))
            whole = whole or names
            assert names == whole
            json.loads((out / "metrics.json").read_text(encoding="utf-8"))
        else:
            assert outcome.code != 0
    assert program(*infer(good, "last", *QUICK), cwd=place).code == 0
    assert not [name for name in snapshot(place) if ".paramorph" in name]


@pytest.mark.parametrize("number", range(3, 30, 3))
def test_a_cohort_killed_in_the_middle_goes_on(number, program, good, place):
    rows = "".join(f"p{n},{good}/moving.nii.gz,{good}/fixed.nii.gz\n" for n in range(2))
    (place / "pairs.csv").write_text("name,moving,fixed\n" + rows, encoding="utf-8")
    words = ("cohort", "pairs.csv", "--out-dir", "OUT", "--at-once", "1", *QUICK)
    assert program(*words, cwd=place).code == 0
    killed = program(*words, "--force", cwd=place, kill_at=number, kill_signal=signal.SIGKILL)
    assert killed.code in (-9, 0)
    outcome = program(*words, "--json", cwd=place)
    assert outcome.code == 0, outcome.err
    summary = json.loads(outcome.out)
    assert summary["kept"] == 2, "a finished pair was done again"
    assert not [name for name in snapshot(place) if ".paramorph" in name]


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGINT], ids=lambda number: number.name)
def test_a_repository_keeps_the_old_until_the_new_stands(how, program, place):
    words = ("triton", "--out-dir", "REPO", "-q")
    assert program(*words, cwd=place).code == 0
    whole = snapshot(place / "REPO")
    models = {name for name in whole if "/" not in name}
    for number in range(40):
        outcome = program(*words, "--force", cwd=place, kill_at=number, kill_signal=how)
        there = {k: v for k, v in snapshot(place / "REPO").items() if not k.startswith(".para")}
        assert there == whole
        if outcome.code == 0:
            break
    assert number > len(models)
    assert snapshot(place / "REPO") == whole


def test_two_runs_into_one_folder(open_folder, good, place):
    """Without --force one of them wins; with it, all of the results are of one of them."""
    scratch = [open_folder / f"streams-{n}" for n in range(2)]
    for folder in scratch:
        folder.mkdir(exist_ok=True)
    programs = [Program(folder) for folder in scratch]
    kinds = ("linear", "nearest")
    try:
        truth = {}
        for kind, program in zip(kinds, programs, strict=True):
            words = infer(good, kind, *QUICK, "--interpolation", kind)
            assert program(*words, cwd=place).code == 0
            truth[kind] = of_results(place / kind)
        for number in range(4 * SCALE):
            for is_there in (False, True):
                for force in ((), ("--force",)):
                    out = place / f"OUT-{number}-{is_there}-{len(force)}"
                    if is_there:
                        out.mkdir()

                    def run(which, out=out, force=force):
                        words = infer(good, out, *QUICK, "--interpolation", kinds[which], *force)
                        return programs[which](*words, cwd=place)

                    with ThreadPoolExecutor(2) as pool:
                        outcomes = list(pool.map(run, range(2)))
                    codes = sorted(outcome.code for outcome in outcomes)
                    assert codes == [0, 0 if force else 1], [o.err for o in outcomes]
                    there = of_results(out)
                    winners = [k for k, o in zip(kinds, outcomes, strict=True) if o.code == 0]
                    assert there in [truth[kind] for kind in winners]
        assert not [name for name in snapshot(place) if ".paramorph" in name]
    finally:
        for program in programs:
            program.close()


def test_a_living_run_is_not_swept_away(open_folder, program, good, place):
    """Another run beside it, and the folder that it writes into is still there."""
    (open_folder / "streams-slow").mkdir(exist_ok=True)
    slow = Program(open_folder / "streams-slow")
    stop = [(0.0, int(signal.SIGSTOP))]
    try:
        with ThreadPoolExecutor(1) as pool:
            for after in (0.05, 0.2):
                signals = [(after, int(signal.SIGSTOP)), (after + 1.5, int(signal.SIGCONT))]
                first = pool.submit(
                    lambda signals=signals: slow(
                        *infer(good, f"slow{len(signals)}{signals[0][0]}", *QUICK),
                        cwd=place,
                        signals=signals,
                    )
                )
                time.sleep(0.5)
                assert program(*infer(good, f"quick{after}", *QUICK), cwd=place).code == 0
                assert first.result().code == 0
    finally:
        slow.close()
    assert stop


def test_a_cohort_that_is_ended_leaves_no_folders(program, good, place):
    """SIGTERM drops the pairs under way, whose threads go on until the process is gone."""
    rows = "".join(f"p{n},{good}/moving.nii.gz,{good}/fixed.nii.gz\n" for n in range(6))
    (place / "pairs.csv").write_text("name,moving,fixed\n" + rows, encoding="utf-8")
    words = ("cohort", "pairs.csv", "--at-once", "3", *QUICK, "--out-dir")
    how, codes = signal.SIGTERM, set()
    for number in range(3, 15, 2):
        out = place / f"OUT{number}"
        outcome = program(*words, out, cwd=place, kill_at=number, kill_signal=int(how))
        codes.add(outcome.code)
        assert outcome.code in (0, 128 + how), outcome.err
        assert "Traceback" not in outcome.err
        assert not [name for name in snapshot(place) if ".paramorph" in name]
    assert 128 + how in codes
