from __future__ import annotations

import json

import reproducibility


def test_runs_of_one_pair_are_compared(phantoms, bundle, results):
    options = ["--engines", "onnxruntime:fp32", "--threads", "1", "--model", str(bundle)]
    assert reproducibility.BENCHMARK.main([str(phantoms), *options]) == 0
    result = json.loads((results / "reproducibility.json").read_text(encoding="utf-8"))
    assert result["pair"] == "a → b"
    (row,) = result["rows"]
    assert (row["equal"], row["mean_mm"], row["max_mm"]) == ("2 of 2", 0, 0)
    assert f"| {row['bits']} |" in (results / "reproducibility.md").read_text(encoding="utf-8")
