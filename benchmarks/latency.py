"""The network on the CPU by every engine and precision, in turns: seconds, memory, differences.

Each contender has a process of its own, loaded once, and its output is compared with the first
contender's before anything is timed. Then they run in turns, so that a busy machine is busy for
all: what counts is how many times faster than the first one each is, within the same turn. Several
networks (sizes, exports) and numbers of threads are measured one after the other.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np

from benchmark import CORES, MODELS, Benchmark, option, runs
from bundles import named_bundles, weights_of
from colin import SIDE_MM, write_colin_pair
from contenders import PYTORCH, Spec
from isolated import Answer, Worker, empty_cache, worker
from paramorph_export.pairs import Pair, pair_of, pairs_of
from paramorph_rt.backends import WAYS
from paramorph_rt.bundle import Bundle
from paramorph_rt.errors import ParamorphError
from record import (
    BenchmarkError,
    Result,
    Row,
    check_known,
    read_result,
    weights_sha256,
    write_result,
)
from tables import differences, failures, markdown_table

DEFAULT = (PYTORCH, "onnxruntime:fp32", "openvino:fp32", "openvino:bf16")
# Mean difference as a share of the largest displacement, beyond which it is not the same network.
MOST_DIFFERENCE = {"fp32": 1e-3, "other": 2e-2}
MOST_LOST = 0.15  # of a lead; less may be noise
AT_LEAST = 3  # turns, however long they take
PAUSE_SECONDS = 0.2  # in which threads of the one before fall asleep
COLUMNS = (
    ("contender", "contender", ""),
    ("threads", "threads", "d"),
    ("network, s", "median_seconds", ".2f"),
    ("p90", "p90_seconds", ".2f"),
    ("p99", "p99_seconds", ".2f"),
    ("n", "n", "d"),
    ("CPU, s", "median_cpu_seconds", ".2f"),
    ("times faster", "times_faster", ".2f"),
    ("loading, s", "load_seconds", ".1f"),
    ("peak MB", "peak_mb", ".0f"),
    ("mean difference, voxel", "mean_difference_vox", ".1e"),
    ("p99.9", "p999_difference_vox", ".1e"),
    ("largest", "max_difference_vox", ".1e"),
)
LEAD_COLUMNS = (
    ("network", "network", ""),
    ("contender", "contender", ""),
    ("threads", "threads", "d"),
    ("times faster before", "before", ".2f"),
    ("now", "after", ".2f"),
    ("now / before", "change", ".2f"),
)
DICE_COLUMNS = (("Dice", "dice", ".4f"), ("change of Dice", "dice_change", "+.1e"))


def cases_of(folder: Path | None, bundle: Bundle) -> list[Pair]:
    """The labelled pairs of a folder; without one, Colin27 and itself deformed."""
    if folder is not None:
        return pairs_of(folder, bundle.inputs)
    with TemporaryDirectory() as name:
        case = write_colin_pair(Path(name), SIDE_MM)
        colin = pair_of(case.moving, case.fixed, bundle.inputs)
        return [replace(colin, name="Colin27 → itself, deformed")]


def measure(
    bundle: Bundle, cases: Sequence[Pair], args: argparse.Namespace, threads: int
) -> list[Row]:
    """Each contender on one network with so many threads: its figures, or its `error`."""
    engines = args.contenders.split(",")
    weights = str(weights_of(bundle, args.weights)) if PYTORCH in engines else None
    outputs: dict[str, list[np.ndarray]] = {}
    rows = {engine: {"contender": engine, "threads": threads} for engine in engines}
    with ExitStack() as stack:
        running: dict[str, Worker] = {}
        for engine in engines:
            _say(f"{bundle.name}, {threads} threads: {engine} …")
            spec = Spec(engine, threads, str(bundle.folder), weights)
            try:
                # Of a stack of its own, so that one which fails ends at once.
                with ExitStack() as own:
                    started = own.enter_context(worker("contenders:runner", spec, threads=threads))
                    output = [_answer(started, case).result for case in cases]
                    rows[engine] |= _checked(engine, output, outputs.get(engines[0]))
                    stack.enter_context(own.pop_all())
            except ParamorphError as err:
                if engine == engines[0]:  # with which all others are compared
                    raise
                rows[engine]["error"] = str(err)
                continue
            running[engine], outputs[engine] = started, output
            rows[engine]["load_seconds"] = started.loaded.seconds
        answers = _in_turns(running, cases, args.runs, args.seconds)
    baseline = [answer.seconds for answer in answers[engines[0]]]
    for engine, each in answers.items():
        rows[engine] |= _figures(each, baseline)
    if args.folder is not None:
        _add_dice(rows, outputs, cases, bundle.sampling)
    return list(rows.values())


def _answer(running: Worker, case: Pair) -> Answer:
    return running(case.prepared.moving, case.prepared.fixed)


def _checked(
    engine: str, output: Sequence[np.ndarray], expected: Sequence[np.ndarray] | None
) -> dict[str, float]:
    """Differences from the first contender's output, small enough to be the same network's."""
    if expected is None:
        return {"largest_displacement_vox": float(max(abs(u).max() for u in output))}
    difference = differences(expected, output)
    is_full = engine == PYTORCH or engine.endswith(":fp32")
    allowed = MOST_DIFFERENCE["fp32" if is_full else "other"]
    allowed *= float(max(abs(u).max() for u in expected))
    if not difference["mean_difference_vox"] <= allowed:  # nor NaN
        raise BenchmarkError(
            f"{engine}: expected the first contender's displacement within {allowed:.1e} voxel on "
            f"average, got {difference['mean_difference_vox']:.1e}; correct it before timing it."
        )
    return difference


def _in_turns(
    running: Mapping[str, Worker], cases: Sequence[Pair], runs: int, seconds: float
) -> dict[str, list[Answer]]:
    """Up to `runs` turns; none starts after `seconds`, once there were `AT_LEAST`."""
    answers: dict[str, list[Answer]] = {engine: [] for engine in running}
    order = list(running)
    started = time.perf_counter()
    for turn in range(runs):
        if turn >= AT_LEAST and time.perf_counter() - started > seconds:
            break
        for engine in order:
            time.sleep(PAUSE_SECONDS)
            answers[engine].append(_answer(running[engine], cases[turn % len(cases)]))
        order = order[1:] + order[:1]  # so that nobody always follows the same one
        _say(f"turn {turn + 1}")
    return answers


def _figures(answers: Sequence[Answer], baseline: Sequence[float]) -> Row:
    seconds = [answer.seconds for answer in answers]
    return {
        "median_seconds": statistics.median(seconds),
        "p90_seconds": float(np.quantile(seconds, 0.9)),
        "p99_seconds": float(np.quantile(seconds, 0.99)),
        "n": len(seconds),
        "median_cpu_seconds": statistics.median(answer.cpu_seconds for answer in answers),
        "times_faster": statistics.median(b / s for b, s in zip(baseline, seconds, strict=True)),
        "peak_mb": answers[-1].peak_mb,
        "seconds": seconds,
    }


def _add_dice(
    rows: Mapping[str, Row],
    outputs: Mapping[str, Sequence[np.ndarray]],
    cases: Sequence[Pair],
    sampling: str,
) -> None:
    reference: np.ndarray | None = None
    for engine, output in outputs.items():
        dice = np.array([case.dice(u, sampling) for case, u in zip(cases, output, strict=True)])
        reference = dice if reference is None else reference
        change = dice - reference
        rows[engine] |= {"dice": float(dice.mean()), "dice_change": float(change.mean())}
        rows[engine]["largest_dice_change"] = float(max(change, key=abs))


def check_leads(new: Result, old: Result) -> None:
    """Print how each contender's lead over the first changed; below 1 is slower.

    Leads and not seconds, which differ between machines and days.

    Raises:
        BenchmarkError: A contender lost more of its lead than `MOST_LOST`, or the two results have
            nothing in common.
    """
    before = _leads(old)
    rows = [
        {
            **dict(zip(("baseline", "network", "contender", "threads"), key, strict=True)),
            **{"before": before[key], "after": lead, "change": lead / before[key]},
        }
        for key, lead in _leads(new).items()
        if key in before
    ]
    if not rows:
        raise BenchmarkError(
            "--compare: expected networks, contenders and threads of this run in the older "
            f"result, compared with {new['baseline']}, got none of them; compare with another."
        )
    print(markdown_table(rows, LEAD_COLUMNS))
    if slower := [row for row in rows if row["change"] < 1 - MOST_LOST]:
        what = ", ".join(
            f"{r['contender']} with {r['threads']} threads {r['change']:.2f}" for r in slower
        )
        raise BenchmarkError(
            f"--compare: expected every lead at least {1 - MOST_LOST:.2f} of what it was, got "
            f"{what}; run again, and look for the change if it stays."
        )


def _leads(result: Result) -> dict[tuple[str, str, str, int], float]:
    """By first contender, network, contender and threads."""
    first = result["baseline"]
    return {
        (first, network["name"], row["contender"], row["threads"]): row["times_faster"]
        for network in result["networks"]
        for row in network["rows"]
        if "error" not in row and row["contender"] != first
    }


def body(result: Result) -> str:
    """The text of a result's page."""
    text = (
        f"Seconds are those of the network alone, on {', '.join(result['pairs'])}. Times faster "
        f"is the median, over the turns, of {result['baseline']}'s seconds by the contender's own. "
        "Memory is the whole process's, packages included. Differences of the displacement, as "
        f"lengths, are to {result['baseline']}.\n"
    )
    for network in result["networks"]:
        measured = [row for row in network["rows"] if "error" not in row]
        columns = [*COLUMNS, *(c for c in DICE_COLUMNS if c[1] in measured[0])]
        text += (
            f"\n## {network['name']}\n\n{_network_text(network)} at "
            f"{' × '.join(map(str, network['shape']))}; displacements of up to "
            f"{measured[0]['largest_displacement_vox']:.1f} voxels.\n\n"
            + markdown_table(measured, columns)
            + failures(network["rows"], "contender", "threads")
        )
    return text


def _network_text(network: Row) -> str:
    if network["embed_dim"] is None:
        return "A pyramid network"
    return f"{network['embed_dim']} channels, {network['passes']} pass(es)"


def headline(result: Result) -> dict[str, float]:
    """Leads of the runtime's engines with the most threads."""
    return {
        f"times faster than {first}, {contender}": lead
        for (first, _, contender, _), lead in _leads(result).items()
    }


@empty_cache()
def run(args: argparse.Namespace) -> Iterator[Path]:
    """Measure; compare with an older result."""
    engines = args.contenders.split(",")
    runtime = (f"{way.backend}:{p}" for way in WAYS for p in way.precisions)
    check_known("--contenders", engines, (PYTORCH, *runtime))
    older = read_result(args.compare) if args.compare else None
    bundles = named_bundles(args.model)
    networks = []
    for label, bundle in bundles.items():
        cases = cases_of(args.folder, bundle)
        networks.append(
            {
                "name": label,
                "weights_sha256": weights_sha256(bundle),
                "embed_dim": bundle.configuration.get("embed_dim"),
                "passes": bundle.configuration.get("passes", 1),
                "shape": list(bundle.inputs.grid.shape),
                "rows": [row for n in args.threads for row in measure(bundle, cases, args, n)],
            }
        )
    names = [case.name for case in cases]
    content = {"baseline": engines[0], "pairs": names, "networks": networks}
    yield write_result(args.name, content, ["openvino"])
    if older:
        check_leads(content, older)


OPTIONS = (
    MODELS,
    option("--weights", type=Path, action="append", default=[], help="of one that is not shipped"),
    option(
        "--contenders",
        default=",".join(DEFAULT),
        help=f"{PYTORCH}, or backend:precision; the first is compared with",
    ),
    option("--folder", type=Path, help="labelled volumes, for Dice (default: Colin27)"),
    option("--threads", type=int, nargs="+", default=[CORES], help="(default: all cores)"),
    runs(20, "turns at most"),
    option("--seconds", type=float, default=300, help="of turns, about"),
    option("--compare", type=Path, metavar="JSON", help="older result; fails on a lesser lead"),
)
BENCHMARK = Benchmark(run, body, OPTIONS, headline=headline)


def _say(what: str) -> None:
    print(what, file=sys.stderr, flush=True)


if __name__ == "__main__":
    BENCHMARK.exit()
