"""The whole job on the phantoms, by us and by a peer."""

from __future__ import annotations

import json

import pytest

import end_to_end
import jobs
from jobs import Job


@pytest.fixture
def quick(phantoms, bundle, monkeypatch):
    """Options for one pair, one thread, the smallest warm-up."""
    monkeypatch.setattr(end_to_end, "WARM_UP_SIZE", 24)
    options = ["--folder", str(phantoms), "--pairs", "1", "--model", f"{bundle}:zero"]
    return [*options, "--threads", "1"]


@pytest.mark.slow
def test_jobs_are_done_judged_and_taken_apart(quick, results):
    pytest.importorskip("ants", reason="needs antspyx, of the extra benchmarks")
    assert end_to_end.BENCHMARK.main([*quick, "--methods", "unrefined,syn"]) == 0
    result = json.loads((results / "end-to-end.json").read_text(encoding="utf-8"))
    ours, theirs = result["summary"]
    assert (ours["job"], theirs["job"]) == ("ParaMorph, not refined", "ANTs SyN")
    assert ours["n"] == theirs["n"] == 1
    for row in (ours, theirs):
        assert row["stages"]["start-up"] > 0
        assert sum(row["stages"].values()) == pytest.approx(row["seconds"])
        assert row["peak_mb"] > 50
        assert row["cpu_seconds"] > 0
    assert {"load", "affine", "network", "warp", "metrics", "save"} < set(ours["stages"])
    assert set(theirs["stages"]) == {"start-up", "load", "register", "warp", "metrics", "save"}
    assert 0.3 < ours["dice"] < theirs["dice"] <= 1  # ours answers with no displacement
    faster = theirs["seconds"] / ours["seconds"]
    assert ours["faster_than_syn"] == pytest.approx(faster)
    assert theirs["faster_than_syn"] == 1
    assert "faster_than_greedy" not in ours
    page = (results / "end-to-end.md").read_text(encoding="utf-8")
    assert page == end_to_end.BENCHMARK.page(result, "end-to-end")
    assert "| times faster than ANTs SyN | of ANTs SyN's CPU |" in page


def test_a_job_that_fails_is_told(quick, results, bundle, monkeypatch):
    broken = Job("broken", model=str(bundle), refine="off", engine="onnxruntime:bf16")
    monkeypatch.setitem(jobs.JOBS, "broken", broken)
    assert end_to_end.BENCHMARK.main([*quick, "--methods", "unrefined,broken"]) == 0
    done, failed = json.loads((results / "end-to-end.json").read_text(encoding="utf-8"))["rows"]
    assert "error" not in done
    assert "onnxruntime: expected precision fp32" in failed["error"]
    page = (results / "end-to-end.md").read_text(encoding="utf-8")
    assert "left out above:\n\n- broken, a → b: " in page


def test_shares_are_of_the_same_pair_and_turn():
    def row(job, turn, seconds):
        figures = {
            "cpu_seconds": 2 * seconds,
            "peak_mb": 1.0,
            "dice": 0.5,
            "stages": {"warp": seconds},
        }
        known = {"job": job, "ours": job == "ours", "pair": "p", "turn": turn, "seconds": seconds}
        return known | figures

    greedy = "greedy"
    rows = [row("ours", 0, 2.0), row(greedy, 0, 40.0), row("ours", 1, 6.0), row(greedy, 1, 60.0)]
    rows += [{"job": "ours", "ours": True, "pair": "p", "turn": 2, "error": "killed by SIGKILL"}]
    ours, peer = end_to_end.summarise(rows)
    share = (2 / 40 + 6 / 60) / 2
    assert ours["faster_than_greedy"] == pytest.approx(1 / share)
    assert ours["cpu_of_greedy"] == pytest.approx(share)
    assert (ours["n"], ours["seconds"], ours["stages"]) == (2, 4.0, {"warp": 4.0})
    assert peer["faster_than_greedy"] == 1
    assert "faster_than_syn" not in ours


def test_unknown_method_is_one_sentence(capsys):
    assert end_to_end.BENCHMARK.main(["--methods", "ants"]) == 1
    assert "--methods: expected some of nothing" in capsys.readouterr().err
