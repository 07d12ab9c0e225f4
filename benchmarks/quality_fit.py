"""The score's coefficients, fitted to what raters would accept."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
from scipy.optimize import minimize

from record import Row

# What the score is fitted to, and the sign that each part's weight must have.
PARTS = dict.fromkeys(("uncertainty_coefficient", "overlap", "ncc"), 1)
PARTS |= dict.fromkeys(("roughness", "folds", "reach", "doubts"), -1)
# Beyond it, more is no worse.
MOST = {"roughness": 1.0, "folds": 1.0}
# Of what no part can know anything.
UNSEEN = ("mirrored",)
RIDGE = 0.05


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
