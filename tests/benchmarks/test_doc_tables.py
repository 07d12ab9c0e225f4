"""Tables in the documentation equal what their results give."""

from __future__ import annotations

import json
import re

import pytest

import doc_tables
import history
import record
from record import BenchmarkError

NAME = "accuracy-brain-t1-validation"
FIGURES = {"dice": 0.5672, "seconds": 2.94, "sd_log_jacobian": 0.1251}
MARKED = f"before\n\n<!-- table: {NAME} -->\n| old |\n<!-- end -->\n\nafter\n"


@pytest.fixture
def project(tmp_path, results):
    """A README with an old table, and the result that it is made from."""
    results.mkdir()
    committed = doc_tables.ROOT / "benchmarks" / "results" / f"{NAME}.json"
    result = json.loads(committed.read_text(encoding="utf-8"))
    result["processor"] = "AMD EPYC"
    for method in ("ParaMorph, ONNX Runtime", "ANTs SyN"):
        result["summary"][method] |= {**FIGURES, "nonpositive_jacobian_percent": 0.0381}
    (results / f"{NAME}.json").write_text(json.dumps(result), encoding="utf-8")
    page = doc_tables.benchmark_of(NAME).page(result, NAME)
    (results / f"{NAME}.md").write_text(page, encoding="utf-8")
    (tmp_path / "README.md").write_text(MARKED, encoding="utf-8")
    return tmp_path


def test_committed_tables_are_what_their_results_give():
    assert [path.name for path, _ in doc_tables.outdated()] == []


def test_readme_has_its_table():
    text = (doc_tables.ROOT / "README.md").read_text(encoding="utf-8")
    assert [found[2] for found in doc_tables.BLOCK.finditer(text)].count(NAME) == 1


def test_what_stands_between_the_marks_is_made_from_the_result(project):
    ((path, text),) = doc_tables.outdated(project)
    assert path == project / "README.md"
    assert text.startswith(f"before\n\n<!-- table: {NAME} -->\n| two cores of AMD EPYC | Dice |")
    assert "| **ParaMorph**, ONNX Runtime | 0.567 | 0.125 | 0.0381 | 0.0000 | 2.9 | " in text
    assert text.endswith("|\n<!-- end -->\n\nafter\n")
    assert "| old |" not in text
    assert doc_tables.updated(text) == text


def test_another_number_in_the_result_outdates_the_table(project):
    path = record.RESULTS / f"{NAME}.json"
    result = json.loads(path.read_text(encoding="utf-8"))
    text = doc_tables.updated(MARKED)
    result["summary"]["affine"]["dice"] += 0.1
    path.write_text(json.dumps(result), encoding="utf-8")
    assert doc_tables.updated(text) != text


def test_check_writes_nothing_and_fails(project, monkeypatch, capsys):
    monkeypatch.setattr(
        doc_tables, "outdated", lambda _=None: iter([(project / "README.md", "new")])
    )
    assert doc_tables.main(["--check"]) == 1
    assert "got others in README.md" in capsys.readouterr().err
    assert (project / "README.md").read_text(encoding="utf-8") == MARKED
    assert doc_tables.main([]) == 0
    assert (project / "README.md").read_text(encoding="utf-8") == "new"


def test_page_beside_a_result_is_checked_too(project):
    (project / "README.md").unlink()
    (record.RESULTS / f"{NAME}.md").write_text("typed by hand\n", encoding="utf-8")
    ((path, text),) = doc_tables.outdated(project)
    assert path.name == f"{NAME}.md"
    assert "| ANTs SyN | 0.567 |" in text


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("wishes", "wishes: expected the result of one of accuracy, .*correct the mark"),
        ("end-to-end", "end-to-end: expected a result of .*, found none; measure it first"),
        ("affine", "affine: expected a result of accuracy, latency, "),
    ],
)
def test_tables_that_cannot_be_made(project, name, message):
    with pytest.raises(BenchmarkError, match=message):
        doc_tables.updated(MARKED.replace(NAME, name))


def test_readme_names_every_benchmark_and_no_other():
    home = doc_tables.ROOT / "benchmarks"
    text = (home / "README.md").read_text(encoding="utf-8")
    named = set(re.findall(r"\b(\w+\.py)\b", text))
    assert named - {"to_onnx.py"} <= {path.name for path in home.glob("*.py")}
    assert {benchmark.script.name for benchmark in doc_tables.all_benchmarks()} <= named


def test_result_of_nobody_is_refused():
    with pytest.raises(BenchmarkError, match="other: expected the result of one of accuracy, "):
        doc_tables.benchmark_of("other")


def test_history_is_drawn(results):
    results.mkdir()
    result = {"commit": "1a2b3c4", "cores": 2, "processor": "AMD EPYC"}
    for date, seconds in (("2026-02-01", 4.0), ("2026-01-01", 5.0)):
        history.append("latency", result, {"seconds, ours": seconds}, date)
    assert [line["numbers"]["seconds, ours"] for line in history.read()] == [5.0, 4.0]
    history.main()
    assert ">1a2b3c4<" in (results / "history.svg").read_text(encoding="utf-8")
