"""The TensorRT plugin: its arithmetic on the host against PyTorch, its library against TensorRT's
own headers. What only a GPU can show is in `benchmarks/plugin_kernel.py`."""

from __future__ import annotations

import itertools
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
from onnx import defs

from paramorph.warp import grid_sample_3d
from paramorph_export.grid_sample import OP_TYPE, SCHEMA
from paramorph_rt.errors import MissingDependencyError

EXPORT = Path(__file__).parents[2] / "export"
OPTIONS = list(itertools.product(["linear", "nearest"], ["border", "zeros"], [True, False]))
NUMPY = {torch.float32: np.float32, torch.float16: np.float16}
# Along axes of 2^k + 1 voxels, positions at quarter voxels survive PyTorch's normalisation exactly,
# and the weights times whole numbers add up exactly: no tolerance is needed.
EXACT_SHAPE = (3, 5, 9)

Sample = Callable[..., torch.Tensor]


@pytest.fixture(scope="session")
def sample(tmp_path_factory) -> Sample:
    """The header's arithmetic, called like `grid_sample_3d`; any read out of bounds aborts it."""
    compiler = shutil.which(os.environ.get("CXX", "g++"))
    if compiler is None:
        pytest.skip("no C++ compiler (g++, or $CXX)")
    program = tmp_path_factory.mktemp("plugin") / "plugin_host"
    command = [compiler, "-std=c++17", "-Wall", "-Wextra", "-Werror", "-O1", "-ffp-contract=off"]
    command += ["-fsanitize=address,undefined,float-cast-overflow", "-fno-sanitize-recover=all"]
    source = Path(__file__).with_name("plugin_host.cpp")
    command += ["-I", str(EXPORT / "plugin"), str(source), "-o", str(program)]
    subprocess.run(command, check=True)

    def run(volume, displacement, interpolation, padding, align_corners):
        type_name = {torch.float32: "float", torch.float16: "half"}[volume.dtype]
        shape = (*volume.shape, *displacement.shape[2:])
        options = [type_name, interpolation, padding, str(int(align_corners)), *map(str, shape)]
        data = volume.numpy().tobytes() + displacement.numpy().tobytes()
        done = subprocess.run([program, *options], input=data, stdout=subprocess.PIPE, check=True)
        values = np.frombuffer(done.stdout, NUMPY[volume.dtype]).copy()
        return torch.from_numpy(values).reshape(*volume.shape[:2], *displacement.shape[2:])

    return run


@pytest.fixture(scope="session")
def build_plugin() -> ModuleType:
    sys.path.insert(0, str(EXPORT))
    try:
        import build_plugin
    finally:
        sys.path.pop(0)
    return build_plugin


@pytest.fixture(scope="session")
def library(build_plugin) -> Path:
    """The plugin, as `make plugin` builds it, with the probe beside it."""
    try:
        options = [
            *build_plugin.cuda_options(),
            *build_plugin.header_options(build_plugin.DOWNLOADED_HEADERS),
        ]
        build_plugin.cmake()
    except MissingDependencyError as err:
        pytest.skip(str(err))
    build_dir = build_plugin.BUILD / "plugin"
    build_plugin.build(build_dir, options, ["paramorph_plugin", "plugin_probe"])
    return build_dir / build_plugin.LIBRARY


@pytest.fixture(scope="session")
def answers(library) -> dict:
    """What the library says to a program that knows TensorRT's headers but not its libraries."""
    probe = library.with_name("plugin_probe")
    done = subprocess.run([probe, library], capture_output=True, encoding="utf-8", check=True)
    return json.loads(done.stdout)


def whole_numbers(*shape: int, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, shape, generator=generator).float()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize(("interpolation", "padding", "align_corners"), OPTIONS)
def test_arithmetic_equals_pytorch(sample, dtype, interpolation, padding, align_corners):
    generator = torch.Generator().manual_seed(0)
    volume = torch.rand(2, 3, 5, 6, 7, generator=generator).to(dtype)
    displacement = torch.randn(2, 3, 4, 8, 9, generator=generator) * 2  # many fall outside
    options = (interpolation, padding, align_corners)
    expected = grid_sample_3d(volume, displacement, *options)
    assert expected.count_nonzero() > expected.numel() / 8
    warped = sample(volume, displacement, *options)
    assert warped.dtype == dtype
    # float32: PyTorch's positions pass through normalised coordinates; half: one rounding apart
    tolerance = 2e-5 if dtype == torch.float32 else 1e-3
    torch.testing.assert_close(warped, expected, atol=tolerance, rtol=0)


@pytest.mark.parametrize(("interpolation", "padding", "align_corners"), OPTIONS)
def test_borders_and_ties_are_exactly_those_of_pytorch(
    sample, interpolation, padding, align_corners
):
    volume = whole_numbers(4, 2, *EXACT_SHAPE)
    generator = torch.Generator().manual_seed(1)
    steps = torch.randint(-20, 21, (4, 3, *EXACT_SHAPE), generator=generator)
    displacement = steps / 4
    options = (interpolation, padding, align_corners)
    expected = grid_sample_3d(volume, displacement, *options)
    assert torch.equal(sample(volume, displacement, *options), expected)


@pytest.mark.parametrize(("interpolation", "padding", "align_corners"), OPTIONS)
def test_no_displacement_is_too_wild(sample, interpolation, padding, align_corners):
    volume = whole_numbers(4, 1, *EXACT_SHAPE)
    wild = torch.tensor([0.0, 0.5, -1.0, 1e6, -1e6, 3e9, -3e9, 1e30, -1e30, torch.inf, -torch.inf])
    generator = torch.Generator().manual_seed(2)
    chosen = torch.randint(0, len(wild), (4, 3, *EXACT_SHAPE), generator=generator)
    options = (interpolation, padding, align_corners)
    expected = grid_sample_3d(volume, wild[chosen], *options)
    assert torch.equal(sample(volume, wild[chosen], *options), expected)


@pytest.mark.parametrize(("interpolation", "padding", "align_corners"), OPTIONS)
def test_nan_reads_zero_or_the_low_border(sample, interpolation, padding, align_corners):
    volume = whole_numbers(4, 1, *EXACT_SHAPE)
    generator = torch.Generator().manual_seed(3)
    nan = torch.rand(4, 3, *EXACT_SHAPE, generator=generator) < 0.3
    displacement = torch.zeros(nan.shape)
    options = (interpolation, padding, align_corners)
    expected = grid_sample_3d(volume, displacement.masked_fill(nan, -1e6), *options)
    assert torch.equal(sample(volume, displacement.masked_fill(nan, torch.nan), *options), expected)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize("interpolation", ["linear", "nearest"])
def test_zero_displacement_is_exactly_the_identity(sample, dtype, interpolation):
    volume = torch.rand(1, 2, 5, 6, 7, generator=torch.Generator().manual_seed(4)).to(dtype)
    zero = torch.zeros(1, 3, 5, 6, 7)
    for padding in ("border", "zeros"):
        assert torch.equal(sample(volume, zero, interpolation, padding, True), volume)


def test_library_offers_the_operator_to_tensorrt_10(answers):
    assert answers["tensorrt"] >= 10
    assert (answers["count"], answers["kind"]) == (1, "PLUGIN CREATOR_V3ONE")
    assert (answers["name"], answers["version"]) == (OP_TYPE, "1")
    # TensorRT's ONNX parser looks there for nodes without a `plugin_namespace`
    assert answers["namespace"] == ""


def test_fields_are_the_attributes_of_the_onnx_node(answers):
    python_type = {defs.OpSchema.AttrType.STRING: str, defs.OpSchema.AttrType.INT: int}
    attributes = {name: python_type[a.type] for name, a in SCHEMA.attributes.items()}
    assert {name: type(value) for name, value in answers["fields"]} == attributes
    arguments = torch.ops.paramorph.grid_sample_3d.default._schema.arguments
    defaults = {a.name: a.default_value for a in arguments if a.has_default_value()}
    assert dict(answers["defaults"]) == defaults


def test_options_survive_serialising_cloning_and_attaching(answers):
    assert len(answers["lives"]) == 8
    for given, attached, _ in answers["lives"]:
        assert attached == given
    assert len({identity for *_, identity in answers["lives"]}) == 8


def test_unknown_attributes_are_refused_in_one_sentence(answers):
    assert answers["refusals"] == [
        'GridSample3D: expected interpolation "linear" or "nearest", got "cubic"',
        'GridSample3D: expected padding "border" or "zeros", got "reflection"',
        "GridSample3D: expected padding as text",
        "GridSample3D: expected align_corners 0 or 1, got 2",
        "GridSample3D: expected align_corners as one int32",
        "GridSample3D: expected the attributes interpolation, padding and align_corners, got mode",
    ]


def test_volumes_are_float_or_half_and_coordinates_float(answers):
    supported = [["float", "float", "float"], ["half", "float", "half"]]
    assert answers["formats"] == {"linear": supported, "others": 0}
    assert answers["half in, half out"] is True


def test_output_has_the_volumes_channels_and_the_displacements_size(answers):
    assert answers["output shape"] == [2, 4, 8, 9, 10]


def test_shapes_that_cannot_be_sampled_are_refused(answers):
    shapes = {name: rest for name, *rest in answers["shapes"]}
    assert shapes.pop("good") == [0, 0, ""]
    assert shapes.pop("other size") == [0, 0, ""]
    assert shapes.pop("wildcards")[0] == 0  # known later, when it runs
    knowable_early = {"rank 4", "two components", "batches differ", "long axis"}
    for name, (configured, changed, message) in shapes.items():
        assert configured == (name in knowable_early), name
        assert changed == 1, name
        assert message.startswith("GridSample3D: expected "), name


def test_library_holds_code_for_every_card(library, build_plugin):
    cuobjdump = build_plugin.in_wheel("nvidia-cuda-cuobjdump", "bin/cuobjdump")
    cuobjdump = cuobjdump or shutil.which("cuobjdump")
    if cuobjdump is None:
        pytest.skip("no cuobjdump; `make plugin` brings it")
    command = [cuobjdump, "--list-elf", "--list-ptx", library]
    listed = subprocess.run(command, capture_output=True, encoding="utf-8", check=True).stdout
    files = [line.rsplit(".", 2)[-2:] for line in listed.splitlines() if "file" in line]
    code = {architecture for architecture, kind in files if kind == "cubin"}
    assert code == {"sm_75", "sm_80", "sm_86", "sm_89", "sm_90", "sm_120"}
    assert ["sm_120", "ptx"] in files  # for cards to come


@pytest.mark.parametrize(("major", "count"), [(10, 1), (11, 0), (None, 1)])
def test_another_tensorrt_is_refused_by_name(library, tmp_path, major, count):
    """Its logger has other functions; loaded as everybody loads it, visible to nobody else."""
    compiler = shutil.which("cc") or pytest.skip("needs a C compiler")
    code = "import ctypes, sys\n"
    if major is not None:
        tensorrt = tmp_path / f"libnvinfer.so.{major}"
        (tmp_path / "empty.c").write_text("", encoding="utf-8")
        command = [compiler, "-shared", "-fPIC", f"-Wl,-soname,{tensorrt.name}"]
        subprocess.run([*command, tmp_path / "empty.c", "-o", tensorrt], check=True)
        code += f"kept = ctypes.CDLL({str(tensorrt)!r})\n"
    code += f"plugin, count = ctypes.CDLL({str(library)!r}), ctypes.c_int32(-1)\n"
    code += "plugin.getCreators(ctypes.byref(count)); print(count.value)"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, encoding="utf-8", check=True
    )
    assert int(done.stdout) == count
    refusal = (
        "GridSample3D: expected TensorRT 10, whose headers this library was compiled with, got"
    )
    assert done.stderr.startswith(f"{refusal} TensorRT 11; build" if count == 0 else "")


def test_missing_headers_are_one_sentence(build_plugin, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("CUDACXX", sys.executable)  # any program: only the headers are missing
    assert build_plugin.main(["--tensorrt", str(tmp_path), "--build-dir", str(tmp_path / "b")]) == 1
    error = capsys.readouterr().err
    assert "expected TensorRT's headers, found no NvInferRuntime.h; run `make plugin`" in error
    assert error.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


def test_missing_compiler_is_one_sentence(build_plugin, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("CUDACXX", "no-such-nvcc")
    assert build_plugin.main(["--build-dir", str(tmp_path / "b")]) == 1
    error = capsys.readouterr().err
    assert "no-such-nvcc: expected a CUDA compiler, found none; run `make plugin`" in error
    assert error.count("\n") == 1
    assert list(tmp_path.iterdir()) == []
