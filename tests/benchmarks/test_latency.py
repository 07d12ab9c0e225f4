"""The network by several engines, in turns, on the phantoms."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

import latency
from bundles import named_bundles, weights_of
from contenders import Spec
from isolated import Answer, worker
from latency import check_leads
from paramorph.checkpoint import WeightsInfo, load_weights, save_weights
from paramorph_rt.bundle import load_bundle
from paramorph_rt.errors import BackendError, BundleError
from paramorph_rt.system.files import sha256_of
from record import BenchmarkError

from ..models.conftest import make_network
from ..runtime.phantoms import read_manifest, write_bundle, write_manifest


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    """Those of a small network."""
    network = make_network(depths=(2, 2, 4, 2), window=(2, 3, 2))
    path = tmp_path_factory.mktemp("weights") / "small.safetensors"
    save_weights(path, network.state_dict(), WeightsInfo("small", network.config, (32, 32, 32)))
    return path


@pytest.fixture
def volumes():
    return tuple(np.random.default_rng(2).random((2, 32, 64, 32), np.float32))


def contender(spec: Spec):
    return worker("contenders:runner", spec, threads=1)


def result_of(row, baseline="pytorch"):
    rows = [{"contender": baseline, "threads": 2, "times_faster": 1.0}, row]
    return {"baseline": baseline, "networks": [{"name": "net", "rows": rows}]}


def leading(times_faster, contender="openvino:bf16"):
    return {"contender": contender, "threads": 2, "times_faster": times_faster}


def test_contenders_are_compared_then_timed_then_compared_with_an_older_result(
    phantoms, bundle, results, capsys
):
    pytest.importorskip("openvino", reason="needs openvino, of the extra openvino")
    arguments = ["--folder", str(phantoms), "--model", f"{bundle}:zero", "--threads", "1"]
    arguments += ["--contenders", "onnxruntime:fp32,openvino:fp32", "--runs", "3"]
    assert latency.BENCHMARK.main(arguments) == 0
    path = results / "latency.json"
    result = json.loads(path.read_text(encoding="utf-8"))
    (network,) = result["networks"]
    assert (network["name"], network["shape"]) == ("zero", [20, 24, 16])
    first, second = network["rows"]
    assert (first["contender"], second["contender"]) == ("onnxruntime:fp32", "openvino:fp32")
    assert first["times_faster"] == 1
    for row in (first, second):
        assert row["n"] == len(row["seconds"]) == 3
        assert 0 < row["median_seconds"] <= row["p90_seconds"] <= row["p99_seconds"]
        assert row["peak_mb"] > 50
        assert 0.3 < row["dice"] < 1
    assert second["max_difference_vox"] == second["dice_change"] == 0
    page = (results / "latency.md").read_text(encoding="utf-8")
    assert page == latency.BENCHMARK.page(result, "latency")
    assert "| openvino:fp32 | 1 |" in page

    second["times_faster"] *= 1000
    older = results / "older.json"
    older.write_text(json.dumps(result), encoding="utf-8")
    capsys.readouterr()
    arguments[arguments.index("3")] = "1"
    assert latency.BENCHMARK.main([*arguments, "--compare", str(older)]) == 1
    shown = capsys.readouterr()
    assert "expected every lead at least 0.85 of what it was, got openvino:fp32" in shown.err
    assert "| zero | openvino:fp32 | 1 |" in shown.out


def test_pytorch_runs_in_a_process_of_its_own(weights, volumes, tmp_path):
    with contender(Spec("pytorch", 1, str(tmp_path), str(weights))) as running:
        found = running(*volumes)
        assert running.loaded.seconds > 0
    network, _ = load_weights(weights)
    with torch.inference_mode():
        expected = network.eval()(*(torch.from_numpy(v)[None, None] for v in volumes))[0]
    np.testing.assert_allclose(found.result, expected, atol=1e-4)
    assert np.abs(found.result).max() > 0.05
    assert found.cpu_seconds > 0


def test_an_engine_with_another_output_is_not_timed(phantoms, weights, results, tmp_path):
    """A bundle that says it is from these weights, and answers something else."""
    wrong = np.full((3, 32, 32, 32), 0.5, np.float32)
    bundle = write_bundle(tmp_path / "bundle", wrong)
    manifest = read_manifest(bundle) | {"provenance": {"weights_sha256": sha256_of(weights)}}
    write_manifest(bundle, manifest)
    arguments = ["--model", str(bundle), "--weights", str(weights), "--folder", str(phantoms)]
    arguments += ["--contenders", "pytorch,onnxruntime:fp32", "--runs", "1", "--threads", "1"]
    assert latency.BENCHMARK.main(arguments) == 0
    (network,) = json.loads((results / "latency.json").read_text(encoding="utf-8"))["networks"]
    first, second = network["rows"]
    assert first["n"] == 1
    assert "expected the first contender's displacement within" in second["error"]
    assert "seconds" not in second
    page = (results / "latency.md").read_text(encoding="utf-8")
    assert "left out above:\n\n- onnxruntime:fp32, 1: " in page


def test_unknown_contender_is_one_sentence(results, capsys):
    assert latency.BENCHMARK.main(["--contenders", "pytorch,abacus:fp32"]) == 1
    said = capsys.readouterr().err
    assert said.startswith("latency.py: --contenders: expected some of pytorch, ")
    assert "got abacus:fp32" in said
    assert not results.exists()


def test_error_of_the_other_process_is_raised_here(tmp_path):
    with (
        pytest.raises(BundleError, match="expected a bundle"),
        contender(Spec("onnxruntime:fp32", 1, str(tmp_path))),
    ):
        pass


def test_end_of_the_other_process_is_told(tmp_path):
    with (
        pytest.raises(BackendError, match=r"runner: expected an answer, .* \(exit code 1\)"),
        contender(Spec("pytorch", 1, str(tmp_path), weights=None)),
    ):
        pass


def test_weights_are_found_by_their_hash(bundle, weights):
    with pytest.raises(BenchmarkError, match="expected the weights of SHA-256 unknown"):
        weights_of(load_bundle(bundle), [weights])


def test_two_bundles_of_one_name_are_refused(bundle):
    assert list(named_bundles([f"{bundle}:a", f"{bundle}:b"])) == ["a", "b"]
    with pytest.raises(BenchmarkError, match="known-displacement: expected one bundle of that"):
        named_bundles([str(bundle), str(bundle)])


def test_lead_is_of_the_same_turn():
    answers = [Answer(None, s, 2 * s, 100 + s) for s in (1.0, 4.0, 2.0)]
    row = latency._figures(answers, [3.0, 8.0, 2.0])
    assert row["times_faster"] == 2.0
    assert (row["median_seconds"], row["median_cpu_seconds"], row["n"]) == (2.0, 4.0, 3)
    assert row["p90_seconds"] == pytest.approx(3.6)
    assert row["peak_mb"] == 102


def test_only_a_lead_that_shrinks_too_much_fails(capsys):
    older = result_of(leading(8.0))
    check_leads(result_of(leading(7.0)), older)
    check_leads(result_of(leading(16.0)), older)
    with pytest.raises(BenchmarkError, match=r"got openvino:bf16 with 2 threads 0\.75; run again"):
        check_leads(result_of(leading(6.0)), older)


def test_results_that_cannot_be_compared():
    with pytest.raises(BenchmarkError, match="compared with pytorch, got none of them"):
        check_leads(result_of(leading(1)), result_of(leading(1), "abacus"))
    with pytest.raises(BenchmarkError, match="got none of them"):
        check_leads(result_of(leading(1)), result_of(leading(1, "cuda:fp16")))
