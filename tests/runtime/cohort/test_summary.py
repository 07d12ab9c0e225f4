from __future__ import annotations

import csv
import json
from pathlib import Path

import numpy as np
import pytest

from paramorph_rt.cohort.pairs import Pair
from paramorph_rt.cohort.summary import statistics_of, write_summary
from paramorph_rt.cohort.work import Outcome
from paramorph_rt.request import Inputs

from .cohorts import A_TO_B, Page, cohort, write_table

EVIL = '<script>alert("x")&amp;'


def test_summary_escapes_names_and_needs_no_network(subjects, zero_bundle_path, tmp_path):
    (subjects / "bad.nii").write_text("no image", encoding="utf-8")
    name = EVIL.replace("/", "").replace('"', '""')
    table = write_table(
        subjects,
        f'name,moving,fixed,moving_labels,fixed_labels\n"{name}",{A_TO_B},a_labels.nii.gz,'
        f'b_labels.nii.gz\n"{name}2",bad.nii,b_t1.nii.gz,,\n',
    )
    assert cohort(zero_bundle_path, tmp_path / "out", table) == 1
    text = (tmp_path / "out/summary.html").read_text(encoding="utf-8")
    page = Page(text)
    assert not {"link", "img", "iframe"} & set(page.tags)
    assert page.tags.count("script") == 1
    assert page.links == []
    assert not any(word in text for word in ("http:", "https:", "url(", "@import"))
    assert EVIL.replace("/", "") in page.words
    assert any(word.startswith("failed: bad.nii: expected") for word in page.words)


def test_summary_has_the_worst_first(tmp_path):
    scores = {"middle": 0.5, "worst": 0.25, "best": 0.75, "odd": None}
    inputs = Inputs(Path("m"), Path("f"))
    pairs = [Pair(name, inputs, notes=(("site", "A"),)) for name in scores]
    pairs += [Pair("failed", inputs), Pair("waiting", inputs)]
    outcomes = {"failed": Outcome("failed", "failed", "f: expected x, got y; do z.")}
    for name, score in scores.items():
        folder = tmp_path / "pairs" / name
        folder.mkdir(parents=True)
        dice = {"after": {"mean": score, "labels": {"7": 0.1}}}
        metrics = {"dice": dice, "ncc": {"before": None}, "backend": "x", "seconds": {"load": 2}}
        (folder / "metrics.json").write_text(json.dumps(metrics), encoding="utf-8")
        (folder / "record.json").write_text('{"warnings": ["look at it"]}', encoding="utf-8")
        outcomes[name] = Outcome(name, "done")
    summary = write_summary(tmp_path, pairs, outcomes, seconds=120)
    order = ["failed", "waiting", "odd", "worst", "middle", "best"]
    assert [entry["name"] for entry in summary["results"]] == order
    assert json.loads((tmp_path / "summary.json").read_text(encoding="utf-8")) == summary
    counts = {key: summary[key] for key in ("pairs", "done", "kept", "failed", "not_run")}
    assert counts == {"pairs": 6, "done": 4, "kept": 0, "failed": 1, "not_run": 1}
    assert summary["pairs_per_minute"] == 2
    with (tmp_path / "summary.csv").open(newline="") as stream:
        rows = list(csv.DictReader(stream))
    assert [row["name"] for row in rows] == order
    assert rows[3]["dice.after.mean"] == "0.25"
    assert (rows[3]["site"], rows[3]["warnings"]) == ("A", "look at it")
    assert (rows[0]["note"], rows[0]["dice.after.mean"]) == (outcomes["failed"].note, "")
    assert "backend" not in rows[0]
    assert not any("labels" in column for column in rows[0])
    words = Page((tmp_path / "summary.html").read_text(encoding="utf-8")).words
    assert [word for word in words if word in order] == [*order, "best"]  # equal at the label


def written(out: Path, metrics: dict[str, tuple[dict, list[str]]]) -> dict:
    """The summary of pairs with these metrics and warnings."""
    for name, (content, warnings) in metrics.items():
        folder = out / "pairs" / name
        folder.mkdir(parents=True)
        (folder / "metrics.json").write_text(json.dumps(content), encoding="utf-8")
        (folder / "record.json").write_text(json.dumps({"warnings": warnings}), encoding="utf-8")
    pairs = [Pair(name, Inputs(Path("m"), Path("f"))) for name in metrics]
    return write_summary(out, pairs, {name: Outcome(name, "done") for name in metrics}, seconds=1)


def test_doubtful_pairs_come_before_good_ones_and_measures_are_not_mixed(tmp_path):
    def dice(mean: float, ncc: float) -> dict:
        return {"dice": {"after": {"mean": mean, "labels": {}}}, "ncc": {"after": ncc}}

    metrics = {
        "a": (dice(0.8, 0.97), []),
        "b": (dice(0.6, 0.98), []),
        "doubtful": (dice(0.9, 0.99), ["it looks odd"]),
        # No labels: among the best by its NCC, though that is larger than any Dice.
        "no labels, good": ({"ncc": {"after": 0.985}}, []),
        "no labels, bad": ({"ncc": {"after": 0.5}}, []),
    }
    summary = written(tmp_path, metrics)
    order = [entry["name"] for entry in summary["results"]]
    assert order[0] == "doubtful"
    assert set(order[1:3]) == {"no labels, bad", "b"}
    assert set(order[3:]) == {"a", "no labels, good"}


def test_labels_have_names_and_the_worst_comes_first(tmp_path):
    def of(good: float, bad: float) -> dict:
        values = {"4": good, "11": bad, "99": None}
        stage = {"mean": 0.5, "labels": values}
        return {"dice": {"before": stage, "after": stage}, "label_names": {"11": "Brain <Stem>"}}

    summary = written(tmp_path, {"x": (of(0.9, 0.5), []), "y": (of(0.8, 0.1), [])})
    labels = summary["labels"]
    assert list(labels) == ["11", "4"]
    assert (labels["11"]["name"], labels["11"]["worst_pair"]) == ("Brain <Stem>", "y")
    assert labels["11"]["dice.after"]["mean"] == pytest.approx(0.3)
    assert labels["4"]["dice.after"]["n"] == 2
    words = Page((tmp_path / "summary.html").read_text(encoding="utf-8")).words
    assert "11 Brain <Stem>" in words


def test_tables_of_the_summary_sort_the_worst_first(tmp_path, open_page):
    def of(value: float | None) -> dict:
        stage = {"mean": value, "labels": {"4": value, "11": 0.5}}
        return {"dice": {"after": stage}, "hd95_mm": {"after": {"mean": 10 * (value or 0.1)}}}

    written(tmp_path, {name: (of(v), []) for name, v in (("b", 0.5), ("a", 0.9), ("c", 0.7))})
    page = open_page(tmp_path / "summary.html")
    pairs = page.locator("table").first
    shown = lambda: pairs.locator("tbody td:first-child").all_inner_texts()  # noqa: E731
    assert shown() == ["b", "c", "a"]
    for heading, order in (
        ("HD95 (mm)", ["a", "c", "b"]),
        ("Dice after", ["b", "c", "a"]),
        ("Dice after", ["a", "c", "b"]),
        ("pair", ["a", "b", "c"]),
    ):
        pairs.locator("thead button", has_text=heading).click()
        assert shown() == order
    assert pairs.locator("[aria-sort]").get_attribute("aria-sort") == "ascending"


def test_summary_on_a_phone_and_by_keyboard(subjects, zero_bundle_path, tmp_path, open_page):
    (subjects / "bad.nii").write_text("no image", encoding="utf-8")
    rows = f"one,{A_TO_B}\ntwo,c_t1.nii.gz,b_t1.nii.gz\nbad,bad.nii,b_t1.nii.gz\n"
    table = write_table(subjects, f"name,moving,fixed\n{rows}")
    assert cohort(zero_bundle_path, tmp_path / "out", table, "--report") == 1
    page = open_page(tmp_path / "out/summary.html", viewport={"width": 360, "height": 640})
    assert page.evaluate("document.documentElement.scrollWidth") == 360
    note = page.locator(".note").bounding_box()
    assert note["x"] + note["width"] <= 360
    assert page.locator("svg a").count() > 2
    reached = []
    headings = page.locator("thead").first.locator("button").count()
    for _ in range(3 + headings):
        page.keyboard.press("Tab")
        reached.append(page.evaluate("document.activeElement.textContent.trim()"))
    assert reached[0].startswith("pair")  # the table, which the arrow keys scroll
    assert set(reached[-2:]) == {"one", "two"}
    page.keyboard.press("Enter")
    page.wait_for_url("**/report.html")


def test_statistics_are_those_of_numpy():
    entry = statistics_of([3.0, None, 1.0, 2.0, 10.0])
    assert entry is not None
    assert (entry["n"], entry["mean"], entry["median"], entry["max"]) == (4, 4.0, 2.5, 10.0)
    assert entry["sd"] == pytest.approx(np.std([3, 1, 2, 10], ddof=1))
    assert statistics_of([None]) is None
    assert statistics_of([1.0])["sd"] == 0.0
