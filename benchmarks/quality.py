"""How well a result's own score and the checks before tell good registrations from failed ones.

Ordinary pairs and pairs with planted failures (troubles.py) are registered. Dice says which result
a rater would accept; the score is fitted to that on some sets (`CALIBRATION`), and judged on others
(`JUDGED`). `--fit` writes its coefficients to `quality/score.json`. Most brains are at 2 mm and
without the network, which takes a quarter of the time; others are as users have them.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np
from scipy.optimize import minimize

from benchmark import RESUME, Benchmark, option
from paramorph_rt import Registration
from paramorph_rt.bundle import NO_MODEL, default_bundle_path, load_bundle
from paramorph_rt.errors import ParamorphError
from paramorph_rt.model import Model
from paramorph_rt.quality import score
from paramorph_rt.quality.choice import choose
from paramorph_rt.quality.looks import look_of
from paramorph_rt.steps.foreground import masked
from quality_page import body
from quality_pairs import SETS, tasks
from record import Row, Rows, weights_sha256
from troubles import Planted

SCORE_FILE = Path(__file__).parents[1] / "runtime/paramorph_rt/quality/score.json"
# What the score is fitted to, and the sign that each part's weight must have.
PARTS = dict.fromkeys(("uncertainty_coefficient", "overlap", "ncc"), 1)
PARTS |= dict.fromkeys(("roughness", "folds", "reach", "doubts"), -1)
# Beyond it, more is no worse.
MOST = {"roughness": 1.0, "folds": 1.0}
# Of what no part can know anything.
UNSEEN = ("mirrored",)
RIDGE = 0.05


def measure(register: Registration, task: Planted, limit: float, models: Sequence[Model]) -> Row:
    """Register a pair; what a rater would say, and what is known without labels.

    Args:
        register: As by default, or without a network.
        task: The pair.
        limit: Mean Dice that is accepted.
        models: Those that the default would choose from.
    """
    labels = (task.moving_labels, task.fixed_labels)
    if task.network is not None:
        register = _with_network(task)
    try:
        result = register(task.moving, task.fixed, *labels, surfaces=False, **task.options)
    except ParamorphError as err:
        return {"refused": str(err), "accepted": False}
    metrics = result.metrics
    row: Row = {f"dice_{stage}": entry["mean"] for stage, entry in metrics.get("dice", {}).items()}
    evidence = metrics["quality"]["evidence"]
    flags = [f"{flag['name']} ({flag['of']})" for flag in metrics["quality"]["flags"]]
    if not register.models:
        seen = masked(task.moving, task.options.get("moving_mask"))
        choice = choose(models, look_of(seen), look_of(task.fixed), is_free=True)
        flags += [f"{flag.name} ({flag.of})" for flag in choice.flags]
        evidence |= {"doubts": len(score.DOUBTS & {flag.partition(" ")[0] for flag in flags})}
    return row | {
        "accepted": not task.doomed and row.get("dice_after", 0.0) >= limit,
        "model": metrics["model"],
        "flags": flags,
        "evidence": evidence,
    }


def _with_network(task: Planted) -> Registration:
    bundle = load_bundle(default_bundle_path())
    assert task.network is not None
    displacement = task.network(bundle.inputs.grid.shape)

    class Rubbish:
        name, precision, shapes = "rubbish", "fp32", bundle.shapes

        def run(self, _moving: np.ndarray, _fixed: np.ndarray) -> np.ndarray:
            return displacement

    return Registration.with_models([Model(bundle, Rubbish())], 1)  # type: ignore[arg-type]


def fitted(rows: Iterable[Row]) -> Row:
    """A logistic model of `accepted`, with signs that are known beforehand, from calibration rows.

    Both kinds count the same in sum. Ridge and bounds keep it tame; SciPy finds the minimum.
    """
    known = [
        row
        for row in rows
        if row["group"] == "calibration" and "evidence" in row and row["case"] not in UNSEEN
    ]
    values = np.array([[_number(r["evidence"][p], PARTS[p]) for p in PARTS] for r in known])
    low, high = np.percentile(values, 2, axis=0), np.percentile(values, 98, axis=0)
    high = np.minimum(high, [MOST.get(part, np.inf) for part in PARTS])
    scale = np.maximum(high - low, 1e-6)
    inputs = (values.clip(low, high) - low) / scale
    accepted = np.array([r["accepted"] for r in known], float)
    weights = np.where(accepted == 1, 0.5 / accepted.sum(), 0.5 / (1 - accepted).sum())

    def loss(x: np.ndarray) -> float:
        logits = x[0] + inputs @ x[1:]
        return float(
            weights @ (np.logaddexp(0, logits) - accepted * logits) + RIDGE / 100 * (x[1:] @ x[1:])
        )

    bounds = [(None, None), *((0, None) if sign > 0 else (None, 0) for sign in PARTS.values())]
    solution = minimize(loss, np.zeros(1 + len(PARTS)), method="L-BFGS-B", bounds=bounds).x
    parts = {
        name: {
            "weight": round(float(solution[n + 1] / scale[n]), 4),
            "range": [round(float(low[n]), 4), round(float(high[n]), 4)],
        }
        for n, name in enumerate(PARTS)
    }
    intercept = solution[0] - float((solution[1:] * low / scale).sum())
    return {
        "from": "benchmarks/quality.py --fit, which wrote benchmarks/results/quality.json",
        "pairs": len(known),
        "accepted": int(accepted.sum()),
        "intercept": round(intercept, 4),
        "parts": {name: part for name, part in parts.items() if part["weight"]},
    }


def _number(value: float | None, sign: int) -> float:
    return (-1.0 if sign > 0 else 1e3) if value is None else value


def run(args: argparse.Namespace) -> Iterator[Path]:
    """Measure what the result lacks; fit with `--fit`."""
    auto, none = Registration(None, args.threads), Registration(NO_MODEL, args.threads)
    assert auto.bundle is not None
    content = {"model": auto.bundle.name, "weights_sha256": weights_sha256(auto.bundle)}
    rows = Rows(args.name, content, resume=args.resume)
    for keys, task in tasks(args.data):
        if rows.without(**keys):
            kind = SETS[keys["set"]]
            register = none if kind.coarse else auto
            rows.note(keys | measure(register, task, kind.limit, auto.models))
    if args.fit:
        SCORE_FILE.write_text(json.dumps(fitted(rows), indent=1) + "\n", encoding="utf-8")
        score.coefficients.cache_clear()  # the page is of these
    yield rows.write()


OPTIONS = (
    option("data", type=Path, metavar="DATA", help="folder of all sets, as for accuracy.py"),
    option("--fit", action="store_true", help="fit the score to the calibration's rows"),
    RESUME,
    option("--threads", type=int, help="default: all cores"),
)
BENCHMARK = Benchmark(run, body, OPTIONS)

if __name__ == "__main__":
    BENCHMARK.exit()
