from __future__ import annotations

import base64
import dataclasses
import io
import json
import re
import sys
from html.parser import HTMLParser
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from PIL import Image

from paramorph_rt import Registration
from paramorph_rt.cli import main
from paramorph_rt.geometry.field import DisplacementField
from paramorph_rt.geometry.resample import resample_to_grid
from paramorph_rt.geometry.spaces import Grid, reoriented
from paramorph_rt.images.volume import Volume, load_labels, load_volume, save_labels, save_volume
from paramorph_rt.report import drawing, write_report
from paramorph_rt.report.figures import draw_figures
from paramorph_rt.report.slices import cut, load_pair
from paramorph_rt.report.tables import label_table, summary, verdict

from .phantoms import affine_of, centred_grid, head, head_labels, volume_of, world_points

ORIENTATIONS = ("RAS", "LAS", "LPS", "SPR", "oblique")
NASTY = "<img src=x onerror=alert(1)>\"'&.nii.gz"
PHONE = {"width": 360, "height": 740}


@pytest.fixture(scope="session")
def volumes() -> tuple[Volume, Volume, Volume, Volume]:
    """Moving and fixed image, and their labels; all axes of both differ."""
    moving = centred_grid("LPS", (46, 52, 40))
    fixed = centred_grid("oblique", (58, 60, 24), (0.9, 1.0, 2.5), centre=(2, -1, 1))
    return (
        volume_of(head, moving, "moving.nii.gz"),
        volume_of(head, fixed, "fixed.nii.gz"),
        volume_of(head_labels, moving, "moving_labels.nii.gz"),
        volume_of(head_labels, fixed, "fixed_labels.nii.gz"),
    )


@pytest.fixture(scope="session")
def result(bundle_path, volumes):
    return Registration(bundle_path)(*volumes, refine=0)


@pytest.fixture(scope="session")
def page_path(tmp_path_factory, result, volumes) -> Path:
    path = tmp_path_factory.mktemp("report") / "report.html"
    names = {1: "Right half", 2: "Left half"}
    write_report(path, result, *volumes, label_names=names, parameters={"affine": "rigid"})
    return path


class Parsed(HTMLParser):
    """All tags with their attributes, and all text."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data):
        self.text += data


def identity_result(fixed: Volume, result):
    """A result that moved nothing."""
    field = DisplacementField(fixed.grid, np.zeros((*fixed.grid.shape, 3), np.float32))
    return dataclasses.replace(
        result, warped=fixed, displacement=field, affine=np.eye(4), warped_labels=None
    )


def decoded(uri: str) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(uri.partition(",")[2]))))


def polygon_areas(path: str) -> list[float]:
    """Area of each closed line of relative SVG path data, by the shoelace formula."""
    areas = []
    for part in path.split("M")[1:]:
        start, _, moves = part.partition("l")
        numbers = [int(n) for n in re.findall(r"-?\d+", moves)]
        points = np.cumsum([list(map(int, start.split())), *np.reshape(numbers, (-1, 2))], axis=0)
        assert (points[0] == points[-1]).all()
        x, y = points.T
        areas.append(abs(x[:-1] @ y[1:] - x[1:] @ y[:-1]) / 2)
    return areas


# --- slices


@pytest.mark.parametrize("orientation", ORIENTATIONS)
def test_right_is_left_and_anterior_and_superior_are_up(orientation, result):
    """A spot at the patient's right, front and top lies where radiologists look for it."""
    grid = centred_grid(orientation, (44, 48, 52))
    points = world_points(grid)

    def spot_at(centre):
        return Volume(
            np.exp(-(((points - centre) / 5) ** 2).sum(-1)).astype(np.float32), grid, "spot"
        )

    spot, base = spot_at((8, 9, 10)), volume_of(head, grid)
    planes = cut(load_pair(identity_result(spot, result), spot, base), 5)
    for plane in planes:
        assert plane.size_mm[0] > 20
        centre = np.array(np.nonzero(plane.images["before"] > 0.5)).mean(axis=1)
        column, row, _ = centre / np.subtract(plane.grid.shape, 1)
        assert column < 0.45  # right in axial and coronal, anterior in sagittal slices
        assert row < 0.45  # anterior in axial, superior in the other slices


@pytest.mark.parametrize("orientation", ORIENTATIONS)
def test_slices_hold_the_voxels_of_the_fixed_image(orientation, result):
    spacing = (0.8, 1.0, 2.0)
    fixed = volume_of(head, centred_grid(orientation, (52, 50, 30), spacing))
    pair = load_pair(identity_result(fixed, result), fixed, fixed)
    image = nib.as_closest_canonical(nib.Nifti1Image(fixed.data, fixed.grid.affine))
    axial, coronal, sagittal = cut(pair, 3)
    for plane, axes in ((axial, (0, 1, 2)), (coronal, (0, 2, 1)), (sagittal, (1, 2, 0))):
        corner = np.linalg.inv(image.affine) @ np.append(plane.grid.world([0, 0, 1]), 1)
        voxel = np.rint(corner[:3]).astype(int)
        np.testing.assert_allclose(corner[:3], voxel, atol=1e-6)
        seen = np.moveaxis(image.get_fdata(), axes, (0, 1, 2))
        columns, rows, _ = plane.grid.shape
        i, j, k = voxel[list(axes)]
        expected = seen[i - columns + 1 : i + 1, j - rows + 1 : j + 1, k][::-1, ::-1]
        shown = plane.images["fixed"][..., 1]
        np.testing.assert_allclose(shown, pair.fixed_window(expected), atol=1e-5)
        zooms = np.array(image.header.get_zooms())[list(axes)]
        np.testing.assert_allclose(plane.size_mm, zooms[:2] * (columns, rows), rtol=1e-6)


def test_grey_values_mean_the_same_before_and_after(result, volumes):
    pair = load_pair(result, *volumes)
    bright = dataclasses.replace(pair, moving=Volume(2 * volumes[0].data, volumes[0].grid))
    assert bright.moving_window.high == pytest.approx(2 * pair.moving_window.high)
    for plane in cut(pair, 3):
        before, after = (plane.images[stage].max() for stage in ("before", "after"))
        assert before == pytest.approx(after, abs=0.1)


def test_grid_of_an_affine_alone_stays_regular(result, volumes):
    _, fixed, *_ = volumes
    turned = affine_of("oblique", (1.1, 0.9, 1.0), (3, -2, 1))
    still = DisplacementField(fixed.grid, np.zeros((*fixed.grid.shape, 3), np.float32))
    moved = dataclasses.replace(result, affine=turned, displacement=turned @ still)
    for plane in cut(load_pair(moved, *volumes), 3):
        columns, rows, _ = plane.grid.shape
        expected = np.empty_like(plane.lattice)
        expected[0] = (np.arange(columns) * plane.grid.spacing[0])[:, None, None]
        expected[1] = (np.arange(rows) * plane.grid.spacing[1])[None, :, None]
        np.testing.assert_allclose(plane.lattice, expected, atol=1e-3)


def test_result_on_another_grid_shows_the_same_slices(bundle_path, result, volumes):
    grid = centred_grid("RAS", (60, 66, 60))
    elsewhere = Registration(bundle_path)(*volumes, output_grid=grid, refine=0)
    pictures = [cut(load_pair(r, *volumes), 3)[0].images["after"] for r in (result, elsewhere)]
    # Interpolated once more, from 1 mm voxels; only the steep rim of the head may differ.
    assert np.abs(pictures[0] - pictures[1]).mean() < 0.02


# --- drawing


def test_contour_runs_midway_between_voxels():
    labels = np.zeros((9, 8), int)
    labels[2:6, 3:5] = 7
    labels[8, 7] = 9  # at the edge
    lines = drawing.label_lines(labels)
    areas = {label: polygon_areas(drawing.path(found, 2)) for label, found in lines.items()}
    # In half voxels: 4 per voxel, less the four corners that are cut by half a step each.
    assert areas == {7: [4 * (4 * 2 - 0.5)], 9: [4 * 0.5]}
    np.testing.assert_allclose(lines[7][0].min(axis=0), (1.5, 2.5))
    np.testing.assert_allclose(lines[9][0].max(axis=0), (8.5, 7.5))


def test_jacobian_colours_are_logarithmic_and_folds_stand_out():
    values = np.array([[0.25, 1.0, 4.0, 0.0, -3.0, 1e9]], np.float32)
    picture = drawing.jacobian(values)[:, 0]
    low, _, middle, _, high = map(drawing.rgb, drawing.JACOBIAN_COLOURS)
    fold = drawing.rgb(drawing.FOLDED_COLOUR)
    np.testing.assert_array_equal(picture, [low, middle, high, fold, fold, high])


def test_difference_is_black_where_images_agree_and_has_two_signs():
    image, fixed = np.array([[0.5, 1.0, 0.0]]), np.array([[0.5, 0.0, 1.0]])
    same, brighter, darker = drawing.difference(image, fixed)[:, 0].astype(int)
    assert not same.any()
    assert brighter[0] > brighter[2]  # orange
    assert darker[2] > darker[0]  # blue


def test_pictures_survive_their_coding():
    image = np.linspace(0, 1, 40)[:, None] * np.ones((1, 30))
    picture = drawing.grey(image)
    back = decoded(drawing.data_uri(picture))
    assert back.shape == (30, 40, 3)
    assert np.abs(back[..., 0].astype(int) - picture).mean() < 2


# --- tables


def test_table_shows_every_measure_per_label_and_none_as_a_dash():
    metrics = {
        "volume_change_percent": {"after": {"mean": -2.5, "labels": {"10": None, "9": -2.54}}},
        "dice": {
            "before": {"mean": 0.25, "labels": {"9": 0.25, "10": 0.0}},
            "after": {"mean": 0.5, "labels": {"9": 0.5, "10": 0.125}},
        },
        "my_measure": {"after": {"mean": 1.0, "labels": {"9": 1.0, "10": 2.0}}},
        "ncc": {"before": 0.1, "after": None},
        "definitions": {"dice": "overlap"},
    }
    table = label_table(metrics, {9: "nine"})
    assert [(m.heading, stages) for m, stages in table.groups] == [
        ("Dice", ["before", "after"]),
        ("Volume change (%)", ["after"]),
        ("my measure", ["after"]),
    ]
    assert table.stages == ["before", "after", "after", "after"]
    assert [(row.label, row.name) for row in table.rows] == [(9, "nine"), (10, "")]
    assert [text for text, _ in table.rows[0].cells] == ["0.250", "0.500", "−2.5", "1.000"]
    assert [text for text, _ in table.rows[1].cells] == ["0.000", "0.125", "–", "2.000"]
    assert table.means == ["0.250", "0.500", "−2.5", "1.000"]
    shown = {measure.title: values for measure, values in summary(metrics)}
    assert shown["NCC"] == [("before", "0.100")]
    assert shown["Dice"] == [("before", "0.250"), ("after", "0.500")]


def test_verdict_comes_from_the_warnings_that_the_terminal_has():
    stages = {stage: {"mean": mean} for stage, mean in (("before", 0.25), ("after", 0.5))}
    metrics = {"dice": stages, "warnings": [], "nonpositive_jacobian_percent": 0}
    good = verdict(metrics)
    assert (good.good, good.title, good.doubts) == (True, "No measure looks wrong", [])
    assert good.facts == [
        "The overlap of the labels (mean Dice, 1 is whole) rose from 0.250 to 0.500.",
        "No voxel is folded.",
    ]
    bad = verdict(metrics | {"warnings": ["look at it", "and at this"]})
    assert (bad.good, bad.doubts) == (False, ["look at it", "and at this"])
    assert bad.title == "Doubtful: 2 measures look wrong"


# --- the page as text


def test_page_refers_to_nothing_outside(page_path):
    parsed = Parsed(page_path)
    addresses = [a for _, attrs in parsed.tags for n, a in attrs.items() if n in ("href", "src")]
    assert len(addresses) > 100
    assert {re.match(r"#|data:image/webp;base64,", address) is None for address in addresses} == {
        False
    }
    ids = {attrs["id"] for _, attrs in parsed.tags if attrs.get("id")}
    assert {address[1:] for address in addresses if address.startswith("#")} <= ids


def test_page_says_what_metrics_json_says(page_path, result):
    text = Parsed(page_path).text
    rows = re.findall(
        r'<tr data-label="(\d+)">.*?</tr>', page_path.read_text(encoding="utf-8"), flags=re.DOTALL
    )
    dice = result.metrics["dice"]["after"]["labels"]
    assert rows == sorted(dice, key=int)
    for label, value in dice.items():
        row = re.search(
            rf'<tr data-label="{label}">.*?</tr>', page_path.read_text(encoding="utf-8"), re.DOTALL
        )
        assert f">{value:.3f}<" in row[0]
    assert f"{result.metrics['ncc']['after']:.3f}" in text
    for word in ("Right half", "rigid", "known-displacement", "58 × 60 × 24", "0.9 × 1 × 2.5"):
        assert word in text
    # The fixed image is turned by 20 degrees about two axes.
    assert re.search(r"turned by up to 2\d°", text)


def test_texts_from_outside_are_escaped(tmp_path, result, volumes, open_page):
    moving, fixed, *labels = volumes
    nasty = Volume(moving.data, moving.grid, NASTY)
    name = "</script><script>alert(2)</script>"
    metrics = result.metrics | {"warnings": [name], "model": NASTY}
    path = tmp_path / "report.html"
    write_report(
        path,
        dataclasses.replace(result, metrics=metrics),
        nasty,
        fixed,
        *labels,
        label_names={1: name},
        parameters={name: NASTY},
        slices=1,
    )
    parsed = Parsed(path)
    assert sum(tag == "script" for tag, _ in parsed.tags) == 1
    assert not any("onerror" in attrs for _, attrs in parsed.tags)
    assert not any(tag == "img" for tag, _ in parsed.tags)
    assert parsed.text.count(NASTY) >= 3
    page = open_page(path)  # a dialog or a script's error would fail
    assert page.inner_text("h1").startswith(NASTY)
    page.click("tr[data-label='1'] .pick")
    assert page.inner_text(".picked b") == f"1 {name}"


def test_page_without_labels_has_neither_contours_nor_table(tmp_path, bundle_path, volumes):
    result = Registration(bundle_path)(*volumes[:2], refine=0)
    path = tmp_path / "report.html"
    write_report(path, result, *volumes[:2], slices=2)
    parsed = Parsed(path)
    assert not any("data-label" in attrs for _, attrs in parsed.tags)
    assert "Fixed labels" not in parsed.text


# --- the page in a browser


def seam(page, plane: str = "axial") -> float:
    """Where the boundary is, from 0 to 1 of the slice's width."""
    line = page.locator(f".pane[data-plane={plane}] .seam")
    return float(line.get_attribute("x1")) / page.evaluate(
        f"document.querySelector('.pane[data-plane={plane}] .view > svg').viewBox.baseVal.width"
    )


def pixels(page, plane: str = "axial") -> np.ndarray:
    """What the pane's picture looks like, as int array."""
    shot = page.locator(f".pane[data-plane={plane}] .view > svg").screenshot()
    return np.asarray(Image.open(io.BytesIO(shot)).convert("RGB")).astype(int)


def test_mouse_moves_the_boundary_in_all_planes(open_page, page_path):
    page = open_page(page_path)
    first = pixels(page)
    box = page.locator(".pane[data-plane=axial] .view").bounding_box()
    page.mouse.move(box["x"] + 0.5 * box["width"], box["y"] + 0.5 * box["height"])
    page.mouse.down()
    page.mouse.move(box["x"] + 0.8 * box["width"], box["y"] + 0.5 * box["height"], steps=4)
    page.mouse.up()
    assert seam(page) == pytest.approx(0.8, abs=0.02)
    assert seam(page, "sagittal") == pytest.approx(0.8, abs=0.02)
    moved = pixels(page)
    width = moved.shape[1]
    # Only between the old and the new boundary another picture is seen.
    changed = np.abs(moved - first).max(axis=(0, 2))
    assert changed[int(0.52 * width) : int(0.78 * width)].max() > 50
    unchanged = changed[: int(0.48 * width)]
    assert np.median(unchanged) < 2  # rounding of colours
    assert unchanged.max() < 30  # and of places, here and there
    assert changed[int(0.83 * width) :].max() < 10


def test_keys_move_boundary_and_slice(open_page, page_path):
    page = open_page(page_path)
    pane = page.locator(".pane[data-plane=coronal]")
    at = pane.locator("output").inner_text()
    pane.locator(".wipe").focus()
    for _ in range(5):
        page.keyboard.press("ArrowLeft")
    assert seam(page, "coronal") == pytest.approx(0.45)
    first = pixels(page, "coronal")
    page.keyboard.press("ArrowUp")
    assert pane.locator("output").inner_text() != at
    assert np.abs(pixels(page, "coronal") - first).max() > 30
    page.keyboard.press("ArrowDown")
    assert pane.locator("output").inner_text() == at
    pane.locator(".slice input").focus()
    page.keyboard.press("Home")
    assert pane.locator(".slice input").input_value() == "0"


def test_everything_can_be_reached_by_tab(open_page, page_path):
    page = open_page(page_path)
    reached = set()
    for _ in range(60):
        page.keyboard.press("Tab")
        reached.add(
            page.evaluate(
                "(e => e.name || e.className || e.dataset.column || e.tagName)"
                "(document.activeElement)"
            )
        )
    assert {"left", "right", "view", "overlay", "wipe", "pick", "label", "SUMMARY"} <= reached


def test_each_view_and_overlay_draws_something_else(open_page, page_path):
    page = open_page(page_path)
    seen = [pixels(page)]
    for view in ("checkerboard", "difference", "jacobian"):
        page.locator(f"[name=view][value={view}]").check()
        seen.append(pixels(page))
    page.locator("[name=view][value=images]").check()
    for overlay in ("labels-fixed", "labels-moving", "grid"):
        page.locator(f"[name=overlay][value={overlay}]").check()
        seen.append(pixels(page))
    page.select_option("[name=left]", "fixed")
    seen.append(pixels(page))
    for n, first in enumerate(seen):
        for second in seen[n + 1 :]:
            assert (np.abs(first - second).max(axis=2) > 40).sum() > 20
    assert page.inner_text(".pane[data-plane=axial] .stage.left") == "Fixed"


def test_left_side_shows_what_it_says(open_page, page_path, result, volumes):
    """The picture in the page is the fixed image's middle slice, not mirrored."""
    page = open_page(page_path)
    page.locator("[name=overlay][value=outline]").uncheck()
    page.select_option("[name=left]", "fixed")
    page.locator(".pane[data-plane=axial] .wipe").evaluate(
        "e => { e.value = 100; e.dispatchEvent(new Event('input')) }"
    )
    page.add_style_tag(content=".edge, .stage, .ruler, .seam { display: none }")
    plane = cut(load_pair(result, *volumes), 11)[0]
    truth = Image.fromarray(drawing.grey(plane.images["fixed"][..., plane.count // 2]))
    shown = pixels(page)[..., 0]
    truth = np.asarray(truth.resize(shown.shape[::-1], Image.Resampling.BILINEAR))
    inner = (slice(6, -6), slice(6, -6))  # without the round corners

    def likeness(picture):
        return np.corrcoef(picture[inner].ravel(), truth[inner].ravel())[0, 1]

    assert likeness(shown) > 0.995
    assert max(likeness(shown[:, ::-1]), likeness(shown[::-1])) < 0.99


def test_table_sorts_by_any_column(open_page, page_path, result):
    page = open_page(page_path)
    dice = result.metrics["dice"]["after"]["labels"]
    shown = lambda: page.locator(".labels-table tbody .pick").all_inner_texts()  # noqa: E731
    assert shown() == sorted(dice, key=int)
    button = page.locator(".labels-table thead button", has_text="after").first
    button.click()
    assert shown() == sorted(dice, key=lambda label: dice[label])
    button.click()
    assert shown() == sorted(dice, key=lambda label: -dice[label])


def test_a_label_of_the_table_is_shown_alone(open_page, page_path):
    page = open_page(page_path)
    page.click("tr[data-label='7'] .pick")
    assert page.inner_text(".picked b") == "7"
    assert page.locator("[name=overlay][value=labels-fixed]").is_checked()
    opacity = "e => getComputedStyle(e).strokeOpacity"
    fixed = "#axial-labels-fixed-5 [data-label='{}']"
    assert page.locator(fixed.format(7)).evaluate(opacity) == "1"
    assert page.locator(fixed.format(1)).evaluate(opacity) == "0.12"
    page.click(".picked button")
    assert page.locator(fixed.format(1)).evaluate(opacity) == "1"


def test_phone_needs_no_scrolling_sideways(open_page, page_path):
    page = open_page(page_path, viewport=PHONE, has_touch=True, is_mobile=True)
    page.evaluate("document.querySelector('.sheet').open = true")
    assert page.evaluate("document.documentElement.scrollWidth") <= PHONE["width"]
    panes = page.locator(".pane").all()
    assert all(pane.bounding_box()["width"] > 0.8 * PHONE["width"] for pane in panes)


def test_phone_shows_the_column_after_first_and_the_others_when_asked(open_page, page_path):
    page = open_page(page_path, viewport={"width": 375, "height": 740}, is_mobile=True)
    row = page.locator(".labels-table tbody tr").first
    shown = row.locator("td[class^=at-]:visible")
    assert set(shown.evaluate_all("cells => cells.map(c => c.className)")) == {"at-after"}
    dice = shown.first.bounding_box()
    assert dice["x"] + dice["width"] <= 375
    headings = page.locator(".labels-table thead th.at-after").all_inner_texts()
    assert headings[0].strip() == "Dice"
    page.check(".stages input")
    assert row.locator("td.at-before:visible").count() >= 3


def test_panes_are_of_equal_height_and_scale(open_page, page_path):
    page = open_page(page_path, viewport={"width": 1200, "height": 900})
    boxes = [view.bounding_box() for view in page.locator(".view").all()]
    heights = [box["height"] for box in boxes]
    assert max(heights) - min(heights) < 1
    rulers = [ruler.bounding_box()["width"] for ruler in page.locator(".ruler").all()]
    assert max(rulers) - min(rulers) < 1.5


def test_verdict_comes_first(page_path, result):
    text = page_path.read_text(encoding="utf-8")
    title = verdict(result.metrics).title
    assert text.index(f">{title}</h2>") < text.index('id="summary-title"') < text.index("Slices")


def test_print_shows_all_slices_and_cuts_nothing_off(open_page, page_path):
    page = open_page(page_path)
    page.emulate_media(media="print")
    # Paper's width less the margins, in pixels of 1/96 inch: A4 upright, and Letter on its side.
    for width, sections in ((703, "section:not(.wide):not(.plates)"), (980, ".wide, .plates")):
        page.set_viewport_size({"width": width, "height": 900})
        beyond = page.evaluate(
            "([parts, width]) => [...document.querySelectorAll(parts)].flatMap(part =>"
            " [part, ...part.querySelectorAll('*')]).filter(e => e.getClientRects().length &&"
            " !e.closest('svg svg, .unseen') && e.getBoundingClientRect().right > width + 0.5)"
            ".map(e => e.outerHTML.slice(0, 80))",
            [sections, width],
        )
        assert beyond == []
    sides = page.evaluate(
        "[...document.querySelectorAll('.row figure')].map(e => [e.offsetWidth, e.offsetHeight])"
    )
    assert len(sides) == 10 * page.locator(".row:not(.heads)").count() >= 10 * 3 * 9
    assert np.min(sides) > 20
    assert not page.locator("form.controls").is_visible()
    pdf = page.pdf(prefer_css_page_size=True)
    assert len(re.findall(rb"/Type\s*/Page\b", pdf)) >= 4


def test_page_reads_without_scripts(open_page, page_path):
    page = open_page(page_path, java_script_enabled=False)
    assert page.locator(".pane .view > svg").first.is_visible()
    assert not page.locator("form.controls").is_visible()
    page.click(".sheet summary")
    assert page.locator(".row figure").first.is_visible()


def test_solid_view_draws_the_volumes(open_page, result, volumes, tmp_path):
    path = tmp_path / "report.html"
    write_report(path, result, *volumes, slices=1, solid=True)
    page = open_page(path)
    page.click("#solid .open")
    page.locator("#solid fieldset").first.wait_for(state="visible", timeout=120_000)
    page.wait_for_timeout(500)
    shot = Image.open(io.BytesIO(page.locator("#solid canvas").screenshot())).convert("L")
    assert (np.asarray(shot) > 60).mean() > 0.02


# --- figures and the command


def test_figures_are_large_enough_to_print(result, volumes):
    name, picture = next(draw_figures(load_pair(result, *volumes)))
    image = Image.open(io.BytesIO(picture))
    assert name == "registration.png"
    assert image.width == 2160  # 7.2 inches, two columns of a journal
    assert image.info["dpi"][0] == pytest.approx(300, abs=0.1)


@pytest.fixture
def command(tmp_path, bundle_path, volumes) -> list[str]:
    """A call of `infer` on files."""
    (tmp_path / "in").mkdir()
    options = ["infer", "--out-dir", str(tmp_path / "out"), "--model", str(bundle_path)]
    for option, volume in zip(
        ("--moving", "--fixed", "--moving-labels", "--fixed-labels"), volumes, strict=True
    ):
        path = tmp_path / "in" / volume.name
        (save_labels if "labels" in option else save_volume)(path, volume)
        options += [option, str(path)]
    return options


def test_command_writes_report_and_figures_beside_the_results(
    tmp_path, command, capsys, monkeypatch
):
    monkeypatch.setattr("paramorph_rt.report.figures.DPI", 60)  # the test above has one large
    names = tmp_path / "names.csv"
    names.write_text("7,Core of the head\n", encoding="utf-8")
    command += ["--report", "--figures", "--label-names", str(names), "--interpolation", "bspline"]
    assert main(command) == 0
    out = tmp_path / "out"
    text = Parsed(out / "report.html").text
    assert "Core of the head" in text
    assert "bspline" in text
    assert str(tmp_path) not in text  # a report goes to others; their folders are not theirs to see
    figures = {path.name: np.asarray(Image.open(path)) for path in (out / "figures").iterdir()}
    kinds = ("registration", "contours", "checkerboard", "difference", "grid", "jacobian")
    assert set(figures) == {f"{kind}.png" for kind in kinds}
    assert all(picture[..., :3].std() > 20 for picture in figures.values())
    seconds = json.loads((out / "metrics.json").read_text(encoding="utf-8"))["seconds"]
    assert {"report", "figures"} <= set(seconds)
    assert main(command) == 1
    assert "report.html" in capsys.readouterr().err
    assert main([*command[:-6], "--force"]) == 0  # --force clears pictures of another run
    assert not (out / "report.html").exists()
    assert not (out / "figures").exists()


@pytest.mark.parametrize(
    ("option", "module", "package"),
    [("--report", "jinja2", "Jinja2"), ("--figures", "matplotlib", "matplotlib")],
)
def test_missing_extra_is_said_before_anything_is_done(
    command, capsys, monkeypatch, tmp_path, option, module, package
):
    monkeypatch.setitem(sys.modules, module, None)
    monkeypatch.setattr("paramorph_rt.steps.load.load_volume", lambda path: 1 / 0)
    assert main([*command, option]) == 1
    message = capsys.readouterr().err
    assert f"reports and figures need {package}: expected the packages of its extra" in message
    assert 'run `python -m pip install "paramorph-rt[report]"`' in message
    assert not (tmp_path / "out").exists()


def test_report_of_real_brains_stays_under_5_mb(tmp_path, brains, result):
    moving, fixed = (load_volume(brains / f"{n}_t1.nii.gz") for n in (1003, 1004))
    labels = [load_labels(brains / f"{n}_labels.nii.gz") for n in (1003, 1004)]
    nearest = resample_to_grid(labels[0], fixed.grid, None, "nearest")
    unmoved = dataclasses.replace(
        identity_result(fixed, result), warped_labels=Volume(nearest, fixed.grid)
    )
    write_report(tmp_path / "report.html", unmoved, moving, fixed, *labels)
    assert 1e6 < (tmp_path / "report.html").stat().st_size < 5e6


def test_reorienting_moves_no_voxel():
    grid = Grid((5, 6, 7), affine_of("SPR", (1.0, 2.0, 3.0), (4, 5, 6)))
    data = np.arange(5 * 6 * 7).reshape(grid.shape)
    turned, where = reoriented(data, grid, "LPI")
    assert where.orientation == "LPI"
    index = np.argwhere(turned == data[1, 2, 3])[0]
    np.testing.assert_allclose(where.world(index), grid.world([1, 2, 3]))
