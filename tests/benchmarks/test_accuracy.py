from __future__ import annotations

import json
from importlib.metadata import PackageNotFoundError

import pytest

import accuracy
from accuracy import Contender, contenders, measure, summarise
from evaluation import load_pair
from pairs import BenchmarkError, labelled_pairs
from paramorph_rt.errors import BundleError, MissingDependencyError
from report import accuracy_picture, accuracy_table, markdown_table

FIGURES = {
    **{"hd95_mm": 4.0, "assd_mm": 1.0, "ncc": 0.9},
    **{"nonpositive_jacobian_percent": 0.125, "sd_log_jacobian": 0.5},
}
ROWS = [
    {"pair": "p → q", "method": "ANTs SyN", "dice": 0.5, "seconds": 80, "peak_mb": 900, **FIGURES},
    {"pair": "q → p", "method": "ANTs SyN", "dice": 0.7, "seconds": 120, "peak_mb": 700, **FIGURES},
    {
        "pair": "p → q",
        "method": "ours",
        "dice": 0.75,
        "seconds": 4,
        "network_seconds": 1,
        **FIGURES,
    },
    {"pair": "q → p", "method": "ours", "error": "killed by SIGKILL"},
]


def test_summary_takes_means_and_medians_of_what_was_done():
    summary = summarise(ROWS)
    assert summary["ANTs SyN"]["dice"] == pytest.approx(0.6)
    assert summary["ANTs SyN"]["seconds"] == 100
    assert summary["ANTs SyN"]["network_seconds"] is None
    assert summary["ours"]["dice"] == 0.75
    assert (summary["ours"]["pairs"], summary["ours"]["failed"]) == (1, 1)
    assert summary["ours"]["seconds_over_syn"] == 0.04


def test_without_syn_there_is_no_ratio_to_it():
    assert summarise(ROWS[2:])["ours"]["seconds_over_syn"] is None


def test_markdown_table_has_a_dash_for_nothing():
    columns = (("method", "name", ""), ("Dice", "dice", ".2f"))
    rows = [{"name": "ours", "dice": 0.756}, {"name": "theirs", "dice": None}, {"name": "lost"}]
    assert markdown_table(rows, columns) == (
        "| method | Dice |\n| --- | ---: |\n| ours | 0.76 |\n| theirs | – |\n| lost | – |\n"
    )


def test_page_names_figures_and_failures():
    result = {
        **{"summary": summarise(ROWS), "rows": ROWS, "pairs": 2, "threads": 1},
        **{"processor": "a processor", "commit": "abc", "versions": {"numpy": "2", "torch": None}},
    }
    page = accuracy_table(result, "accuracy-x")
    assert "| ours | 0.750 | 4.00 | 1.00 | 0.900 | 0.125 | 0.500 | 4.0 | 1.0 | 0.04 | – |" in page
    assert "- ours, q → p: killed by SIGKILL" in page
    assert "numpy 2." in page
    assert "torch" not in page


def test_picture_names_every_method_that_has_a_time(tmp_path):
    nothing = {"pair": "p → q", "method": "nothing", "dice": 0.2, "seconds": 0.0}
    accuracy_picture([nothing, *ROWS], tmp_path / "picture.svg")
    text = (tmp_path / "picture.svg").read_text(encoding="utf-8")
    assert all(name in text for name in ("ANTs SyN", "ours", "nothing: 0.200"))


def test_ours_is_asked_for_once_per_model_and_engine(bundle):
    found = contenders(["nothing", "paramorph"], ["onnxruntime:fp32"], [str(bundle), f"{bundle}:b"])
    assert [c.title for c in found] == [
        "no registration",
        "ParaMorph known-displacement, onnxruntime:fp32",
        "ParaMorph b, onnxruntime:fp32",
    ]
    assert {c.model for c in found[1:]} == {str(bundle)}


@pytest.mark.parametrize(
    ("methods", "engines", "models", "message"),
    [
        (["magic"], [], [], "--methods: expected some of nothing, affine, .*, got magic"),
        (["paramorph"], ["abacus:fp3"], ["M"], "--ours: expected some of onnx.*, got abacus:fp3"),
        (["paramorph"], ["onnxruntime:fp32"], ["M", "M"], "got 2; tell them apart by --model"),
    ],
)
def test_what_cannot_be_run_is_said_before_anything_is(bundle, methods, engines, models, message):
    with pytest.raises(BenchmarkError, match=message):
        contenders(methods, engines, [str(bundle) for _ in models])


def test_a_model_that_is_none_is_said(tmp_path):
    with pytest.raises(BundleError, match="expected a bundle"):
        contenders(["paramorph"], ["onnxruntime:fp32"], [f"{tmp_path / 'absent'}:label"])


def test_a_missing_peer_is_said(monkeypatch):
    def absent(package):
        raise PackageNotFoundError(package)

    monkeypatch.setattr(accuracy, "version", absent)
    with pytest.raises(
        MissingDependencyError, match=r"found none; pip install -e '\.\[benchmarks\]"
    ):
        contenders(["syn"], [], [])


def test_a_method_that_fails_is_a_row(phantoms):
    (moving, fixed), _ = labelled_pairs(phantoms)
    broken = Contender("ours", "paramorph", "/nowhere", "onnxruntime:fp32")
    row = measure(broken, moving, fixed, load_pair(moving, fixed), threads=1, timeout_s=60)
    assert (row["pair"], row["method"]) == ("a → b", "ours")
    assert "expected a bundle" in row["error"]
    assert "dice" not in row


def test_a_field_that_cannot_be_judged_is_a_row(phantoms):
    (moving, fixed), _ = labelled_pairs(phantoms)
    pair = load_pair(fixed, moving)  # judged on the grid of the other image
    row = measure(Contender("x", "nothing"), moving, fixed, pair, threads=1, timeout_s=60)
    assert "expected it on the grid of a_t1.nii.gz" in row["error"]


def test_a_whole_run(phantoms, bundle, results, tmp_path, monkeypatch):
    (tmp_path / "pairs.csv").write_text("moving,fixed\na,b\n", encoding="utf-8")
    command = [str(phantoms), "--pairs", str(tmp_path / "pairs.csv"), "--name", "made-up"]
    command += ["--methods", "nothing,paramorph", "--model", f"{bundle}:zero", "--threads", "1"]
    monkeypatch.setattr("sys.argv", ["accuracy.py", *command])
    assert accuracy.main() == 0
    result = json.loads((results / "accuracy-made-up.json").read_text(encoding="utf-8"))
    nothing, ours = result["rows"]
    assert ours["method"] == "ParaMorph zero, onnxruntime:fp32"
    # The network does nothing, but the affine before it helps.
    assert ours["dice"] > nothing["dice"] + 0.05
    assert 0 <= ours["network_seconds"] < ours["seconds"]
    assert ours["peak_mb"] > 50
    page = (results / "accuracy-made-up.md").read_text(encoding="utf-8")
    assert f"| ParaMorph zero, onnxruntime:fp32 | {ours['dice']:.3f} |" in page
    assert (results / "accuracy-made-up.svg").exists()


def test_a_wrong_folder_is_one_line(tmp_path, monkeypatch, capsys, bundle):
    command = ["accuracy.py", str(tmp_path), "--methods", "nothing", "--model", str(bundle)]
    monkeypatch.setattr("sys.argv", command)
    assert accuracy.main() == 1
    assert capsys.readouterr().err.startswith("accuracy.py: ")
