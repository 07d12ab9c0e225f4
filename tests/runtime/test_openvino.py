"""Graphs and warps with known answers in OpenVINO; networks are in tests/export."""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import numpy_helper, parser
from scipy.ndimage import map_coordinates

from paramorph_rt.errors import BackendError

from .phantoms import smooth_displacement_vox

ov = pytest.importorskip("openvino", reason="needs openvino, of the extra openvino")

from paramorph_rt.backends import openvino as openvino_backend  # noqa: E402
from paramorph_rt.backends import openvino_graph  # noqa: E402
from paramorph_rt.backends.openvino import OpenVinoBackend, has_bf16  # noqa: E402
from paramorph_rt.backends.openvino_cache import KEPT, CompiledFile, PartHeader  # noqa: E402
from paramorph_rt.backends.openvino_graph import warp_model  # noqa: E402

needs_bf16 = pytest.mark.skipif(not has_bf16(), reason="needs a CPU with bf16")

#: Two warps, of which the second samples a field by what the first gave. `own` is computed before
#: the first warp and read after both; `warped` is not asked for.
TWO_WARPS = """
    own = Mul (fixed, fixed)
    first = Add (field, own)
    once = paramorph.GridSample3D (moving, first)
    thrice = Concat <axis: int = 1> (once, own, once)
    second = Mul (thrice, scale)
    moved = paramorph.GridSample3D (first, second)
    sum = Add (second, moved)
    displacement = Sub (sum, own)
    warped = paramorph.GridSample3D
        <padding: string = "zeros", align_corners: int = 0> (moving, displacement)
"""
#: A warp between two convolutions, which bfloat16 is for.
WARP_BETWEEN = """
    field = Conv (fixed, last_axis)
    once = paramorph.GridSample3D (moving, field)
    displacement = Conv (once, all_axes)
    warped = Add (moving, fixed)
"""
#: At half resolution, a thousandth is added, convolved and kept alone: bfloat16 has too few digits.
THOUSANDTH = """
    half = Conv <strides: ints = [2, 2, 2]> (moving, one)
    more = Add (half, thousandth)
    same = Conv (more, one)
    rest = Sub (same, half)
    displacement = ConvTranspose
        <strides: ints = [2, 2, 2], output_padding: ints = [1, 1, 1]> (rest, thousands)
    warped = Add (moving, fixed)
"""
WEIGHTS = {
    "last_axis": np.reshape([0, 0, 1], (3, 1, 1, 1, 1)),
    "all_axes": np.ones((3, 1, 1, 1, 1)),
}


IN_BF16 = pytest.param("bf16", 0.1, marks=needs_bf16)


def write_graph(path: Path, body: str, shape: tuple[int, ...], **constants) -> Path:
    d, h, w = shape
    model = parser.parse_model(f"""
        <ir_version: 10, opset_import: ["" : 20, "paramorph" : 1]>
        known (float[1,1,{d},{h},{w}] moving, float[1,1,{d},{h},{w}] fixed)
            => (float[1,3,{d},{h},{w}] displacement, float[1,1,{d},{h},{w}] warped)
        {{ {body} }}""")
    for name, value in constants.items():
        model.graph.initializer.append(numpy_helper.from_array(np.float32(value), name))
    onnx.save(model, path)
    return path


def sampled(volume: np.ndarray, displacement: np.ndarray) -> np.ndarray:
    """Each channel of `volume` (c, i, j, k) at p + displacement(p), by SciPy."""
    at = displacement + np.indices(volume.shape[1:])
    return np.stack([map_coordinates(v, at, order=1, mode="nearest") for v in volume])


@pytest.mark.parametrize("channels", [1, 3])
def test_warp_is_trilinear_and_goes_on_with_the_border(channels):
    generator = np.random.default_rng(1)
    shape = (5, 6, 7)
    volume = generator.random((channels, *shape), np.float32)
    displacement = generator.normal(0, 4, (3, *shape)).astype(np.float32)
    displacement[:, 0] = 0  # exactly on voxels, the last ones too
    displacement[:, 1] = np.round(displacement[:, 1])
    compiled = ov.Core().compile_model(
        warp_model((1, channels, *shape)), "CPU", {"INFERENCE_PRECISION_HINT": "f32"}
    )
    warped = compiled([volume[None], displacement[None]])[0][0]
    np.testing.assert_allclose(warped, sampled(volume, displacement), atol=1e-5)


@pytest.mark.parametrize(("precision", "atol"), [("fp32", 1e-4), IN_BF16])
def test_graph_that_samples_volumes(tmp_path, precision, atol):
    shape = (9, 10, 11)
    generator = np.random.default_rng(2)
    moving, fixed = generator.random((2, *shape), np.float32)
    field = smooth_displacement_vox(shape)
    path = write_graph(tmp_path / "g.onnx", TWO_WARPS, shape, field=field[None], scale=[3.0])
    own = fixed**2
    first = field + own
    once = sampled(moving[None], first)[0]
    second = 3 * np.stack([once, own, once])
    expected = second + sampled(first, second) - own
    backend = OpenVinoBackend(path, 1, precision)
    for order in "CF":  # preprocessing gives either
        found = backend.run(np.asarray(moving, order=order), np.asarray(fixed, order=order))
        np.testing.assert_allclose(found, expected, atol=atol)
    assert (backend.name, backend.precision) == ("openvino-cpu", precision)


def test_several_threads_may_run_the_network(tmp_path):
    shape = (32, 33, 34)
    field = smooth_displacement_vox(shape)
    path = write_graph(tmp_path / "g.onnx", TWO_WARPS, shape, field=field[None], scale=[3.0])
    backend = OpenVinoBackend(path, threads=1)
    pairs = np.random.default_rng(3).random((8, 2, *shape), np.float32)
    expected = [backend.run(*pair) for pair in pairs]
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda pair: backend.run(*pair), pairs))
    np.testing.assert_array_equal(found, expected)


@needs_bf16
def test_coordinates_stay_float32_in_bf16(tmp_path):
    """bfloat16 knows whole numbers only from 128 on: a quarter of a voxel would be lost."""
    shape = (4, 4, 192)
    moving = np.tile(np.float32([0, 1]), (4, 4, 96))  # its samples are exact in bfloat16
    path = write_graph(tmp_path / "g.onnx", WARP_BETWEEN, shape, **WEIGHTS)
    backend = OpenVinoBackend(path, threads=1, precision="bf16")
    found = backend.run(moving, np.full(shape, 0.25, np.float32))
    expected = np.where(moving == 0, 0.25, 0.75)
    expected[..., -1] = 1  # the border
    np.testing.assert_allclose(found, np.stack(3 * [expected]), atol=1e-3)
    assert backend.precision == "bf16"


@needs_bf16
@pytest.mark.parametrize(("most", "kept"), [(10**6, 1), (0, 0)])
def test_half_resolution_stays_float32_in_bf16_where_it_is_small(tmp_path, monkeypatch, most, kept):
    monkeypatch.setattr(openvino_graph, "MOST_IN_FLOAT", most)
    shape = (4, 6, 8)
    one, thousands = np.ones((1, 1, 1, 1, 1)), np.full((1, 3, 1, 1, 1), 1024)
    path = write_graph(
        *(tmp_path / "g.onnx", THOUSANDTH, shape),
        **{"one": one, "thousandth": one / 1024, "thousands": thousands},
    )
    backend = OpenVinoBackend(path, threads=1, precision="bf16")
    found = backend.run(np.ones(shape, np.float32), np.zeros(shape, np.float32))
    assert (found[:, ::2, ::2, ::2] == kept).all()


def test_cpu_without_bf16(tmp_path, monkeypatch):
    monkeypatch.setattr("paramorph_rt.backends.openvino.has_bf16", lambda core: False)
    with pytest.raises(BackendError, match=r"computes in bf16, got .*; choose --precision fp32"):
        OpenVinoBackend(tmp_path / "g.onnx", precision="bf16")


@pytest.mark.parametrize(
    "options",
    ['padding: string = "zeros"', "align_corners: int = 0", 'interpolation: string = "nearest"'],
)
def test_other_rules_of_sampling_inside_the_network_are_refused(tmp_path, options):
    body = WARP_BETWEEN.replace("GridSample3D", f"GridSample3D <{options}>")
    path = write_graph(tmp_path / "g.onnx", body, (4, 5, 6), **WEIGHTS)
    with pytest.raises(BackendError, match=r"g.onnx: expected a network .* inside the network"):
        OpenVinoBackend(path)


def test_operator_that_openvino_does_not_know(tmp_path):
    body = WARP_BETWEEN.replace("Conv (", "paramorph.Unheard (")
    path = write_graph(tmp_path / "g.onnx", body, (4, 5, 6), **WEIGHTS)
    with pytest.raises(BackendError, match=r"compiles, got .*Unheard") as caught:
        OpenVinoBackend(path)
    assert "\n" not in str(caught.value)


@pytest.fixture
def kept_network(tmp_path, monkeypatch):
    """Loads a network whose compiled form is kept in `cache`, and what `compilations` it took."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    shape = (9, 10, 11)
    path = write_graph(
        tmp_path / "g.onnx",
        *(TWO_WARPS, shape),
        field=smooth_displacement_vox(shape)[None],
        scale=[3.0],
    )
    compilations = []

    def cut(*args):
        compilations.append(args)
        return openvino_graph.parts_from_onnx(*args)

    monkeypatch.setattr(openvino_backend, "parts_from_onnx", cut)

    def load(sha256: str | None = "ab" * 32, precision: str = "fp32") -> np.ndarray:
        backend = OpenVinoBackend(path, 1, precision, sha256)
        return backend.run(*np.random.default_rng(4).random((2, *shape), np.float32))

    load.cache, load.compilations = tmp_path / "cache/paramorph-rt", compilations
    return load


def test_compiled_networks_are_kept(kept_network):
    first = kept_network()
    np.testing.assert_array_equal(kept_network(), first)
    assert len(kept_network.compilations) == 1
    assert [file.suffix for file in kept_network.cache.iterdir()] == [".openvino"]
    kept_network("cd" * 32)  # another network of this name
    kept_network(None)  # of which nobody knows the hash
    assert len(kept_network.compilations) == 3
    assert len(list(kept_network.cache.iterdir())) == 2


@needs_bf16
def test_each_precision_keeps_its_own(kept_network):
    for precision in ("bf16", "fp32", "bf16"):
        kept_network(precision=precision)
    assert len(kept_network.compilations) == len(list(kept_network.cache.iterdir())) == 2


def flipped(content: bytes) -> bytes:
    return bytes([content[0] ^ 1]) + content[1:]


@pytest.mark.parametrize(
    "harm", [flipped, lambda c: c[:-9], lambda c: c[: len(c) // 2], lambda c: c[:3], lambda c: b""]
)
def test_damaged_compiled_network_is_made_again(kept_network, caplog, harm):
    first = kept_network()
    (file,) = kept_network.cache.iterdir()
    file.write_bytes(harm(file.read_bytes()))
    np.testing.assert_array_equal(kept_network(), first)
    assert len(kept_network.compilations) == 2
    assert "is damaged" in caplog.text
    kept_network()
    assert len(kept_network.compilations) == 2


def test_compiled_network_that_openvino_refuses_is_made_again(kept_network, caplog):
    first = kept_network()
    (file,) = kept_network.cache.iterdir()
    core = ov.Core()
    strange = CompiledFile(file.with_name("g.onnx"), "ab" * 32, "fp32", core)
    assert strange.path == file
    header = PartHeader(("moving",), ("displacement",), False)
    strange.write([(header, memoryview(b"not a network"))], "displacement")
    np.testing.assert_array_equal(kept_network(), first)
    assert "is refused" in caplog.text
    assert len(kept_network.compilations) == 2


@pytest.mark.parametrize("place", ["a file", "no home"])
def test_network_runs_where_nothing_can_be_kept(kept_network, monkeypatch, place):
    if place == "a file":
        kept_network.cache.parent.mkdir()
        kept_network.cache.write_bytes(b"")
    else:
        monkeypatch.delenv("XDG_CACHE_HOME")
        monkeypatch.setattr("os.path.expanduser", lambda path: path)  # as for a user without one
    kept_network()
    kept_network()
    assert len(kept_network.compilations) == 2


def test_compiled_networks_used_last_stay(kept_network):
    for number in range(KEPT):
        kept_network(f"{number}" * 64)
    files = sorted(kept_network.cache.iterdir(), key=lambda file: file.stat().st_mtime_ns)
    for age, file in enumerate(reversed(files), 1):
        os.utime(file, (0, 10**9 - age))
    kept_network("0" * 64)  # the oldest is used again
    kept_network("9" * 64)  # one too many
    assert len(list(kept_network.cache.iterdir())) == KEPT
    kept_network("0" * 64)
    assert len(kept_network.compilations) == KEPT + 1
    kept_network("1" * 64)
    assert len(kept_network.compilations) == KEPT + 2


def test_what_killed_processes_left_goes_after_a_day(kept_network):
    kept_network.cache.mkdir(parents=True)
    old, new = (kept_network.cache / f".paramorph-elsewhere-{n * 32}" for n in "12")
    for folder in (old, new):
        folder.mkdir()
    os.utime(old, (0, 0))
    kept_network()
    assert not old.exists()
    assert new.exists()  # perhaps somebody writes it


def test_kept_network_has_the_threads_that_are_asked_for(kept_network):
    kept_network()
    (file,) = kept_network.cache.iterdir()
    for threads in (1, 2):
        backend = OpenVinoBackend(file.with_name("g.onnx"), threads, sha256="ab" * 32)
        counts = {step._compiled.get_property("INFERENCE_NUM_THREADS") for step in backend._steps}
        assert counts == {min(threads, len(os.sched_getaffinity(0)))}
    assert len(kept_network.compilations) == 1
