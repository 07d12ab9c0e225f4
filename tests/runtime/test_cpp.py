"""The C interface: its refusals, and its results by a fake TensorRT and a fake driver built here.
What only a GPU and NVIDIA's own library can show is in `benchmarks/gpu_pending.md`."""

from __future__ import annotations

import configparser
import hashlib
import json
import os
import re
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from textwrap import dedent
from typing import Any

import numpy as np
import onnxruntime
import pytest

from paramorph_rt import Registration
from paramorph_rt.backends import choose_backend
from paramorph_rt.bundle import default_bundle_path, load_bundle
from paramorph_rt.errors import BundleError
from paramorph_rt.images.volume import save_volume
from paramorph_rt.transforms.itk import read_displacement

from .cpp_build import (
    BUILD,
    ROOT,
    SOURCE,
    WARNINGS,
    built_example,
    built_library,
    call,
    checked,
    cmake,
    cpp_settings,
    installed,
    onnxruntime_of_the_wheel,
)
from .phantoms import (
    NETWORK_SHAPE,
    centred_grid,
    head,
    replace_file,
    smooth_displacement_vox,
    volume_of,
)
from .phantoms import write_bundle as write_network_bundle

HERE = Path(__file__).parent / "cpp"
SHAPE = (4, 5, 6)
SANITIZERS = "-fsanitize=address,undefined -fno-sanitize-recover=all"
# The status codes of paramorph.h.
ARGUMENT, BUNDLE, NO_ENGINE, DEPENDENCY, BACKEND = range(1, 6)

Client = Callable[..., Any]


@pytest.fixture(scope="session")
def settings() -> dict[str, str]:
    return cpp_settings()


@pytest.fixture(scope="session")
def library() -> Path:
    return built_library()


@pytest.fixture(scope="session")
def headers(settings) -> list[str]:
    """Compiler options for the headers of TensorRT and CUDA."""
    folders = settings["TENSORRT_INCLUDE_DIR"], settings["CUDA_INCLUDE_DIR"]
    return [option for folder in folders for option in ("-isystem", folder)]


@pytest.fixture(scope="session")
def fakes(settings, headers, tmp_path_factory) -> Path:
    """A folder with a driver and with TensorRTs of both flavours, for LD_LIBRARY_PATH."""
    folder = tmp_path_factory.mktemp("fakes")
    (folder / "stubs.h").write_text(stubs(Path(settings["TENSORRT_INCLUDE_DIR"])), encoding="utf-8")
    compiler = [settings["CMAKE_CXX_COMPILER"], "-std=c++17", "-O1", "-g", "-shared", "-fPIC"]
    compiler += [*headers, "-I", folder, "-Wall", "-Wno-deprecated-declarations"]
    driver = folder / "libcuda.so.1"
    checked(*compiler, HERE / "fake_cuda.cpp", "-o", driver, f"-Wl,-soname,{driver.name}")
    tensorrt = folder / "libnvinfer.so.10"
    checked(*compiler, HERE / "fake_tensorrt.cpp", driver, "-o", tensorrt)
    shutil.copy(tensorrt, folder / "libtensorrt_rtx.so.10")
    return folder


def stubs(include: Path) -> str:
    """For each interface that the fake offers, a class whose functions all end the program."""
    text = "".join(
        (include / f"NvInfer{name}.h").read_text(encoding="utf-8")
        for name in ("Impl", "RuntimeCommon")
    )
    classes = []
    for name in ("VRuntime", "VCudaEngine", "VExecutionContext", "IPluginRegistry"):
        body = re.search(rf"^class {name}\b[^;{{]*{{(.*?)^}};", text, re.MULTILINE | re.DOTALL)[1]
        lines = [
            found[0] if found[0].startswith("#") else f"{found[1]} override {{ std::abort(); }}"
            for found in re.finditer(
                r"^#.*|virtual ([^;]*?)\s*= 0;", re.sub(r"//.*", "", body), re.MULTILINE
            )
        ]
        inside = "\n".join(lines)
        classes.append(f"class {name}Stub : public {name} {{\npublic:\n{inside}\n}};")
    return (
        "namespace nvinfer1 { namespace apiv {\n"
        + "\n".join(classes)
        + "\n} using namespace apiv; }\n"
    )


def engine_entry(folder: Path, file: str, line: str, **changes: Any) -> tuple[dict, dict]:
    """An engine file, its entry among the engines and its entry among the files."""
    path = folder / file
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(line, encoding="utf-8")
    entry = {
        "file": file,
        "flavour": "tensorrt",
        "version": "10.14.1.48",
        "compute_capability": "8.6",
        "precision": "fp16",
        "shape": [int(n) for n in line.split()[1:4]],
    }
    recorded = {"sha256": hashlib.sha256(line.encode()).hexdigest(), "bytes": len(line)}
    return {**entry, **changes}, recorded


def write_bundle(folder: Path, variant: str = "", **changes: Any) -> Path:
    """A bundle at `SHAPE` with one fake engine; `changes` go into its entry."""
    folder.mkdir(parents=True)
    line = f"fake {' '.join(map(str, SHAPE))} {variant}\n"
    add_engine(folder, *engine_entry(folder, "engines/a.engine", line, **changes))
    return folder


def add_engine(folder: Path, entry: dict, recorded: dict) -> None:
    path = folder / "manifest.json"
    manifest = json.loads(path.read_text(encoding="utf-8")) if path.exists() else empty_manifest()
    manifest["engines"].append(entry)
    manifest["files"][entry["file"]] = recorded
    path.write_text(json.dumps(manifest), encoding="utf-8")


def empty_manifest() -> dict:
    return {
        "format": "paramorph-bundle",
        "format_version": 2,
        "name": "toy",
        "grid": {"shape": SHAPE, "spacing_mm": [1.5, 2, 2.5], "orientation": "RAS"},
        "intensity": {"lower_percentile": 0.5, "upper_percentile": 99.8},
        "displacement": {
            "unit": "voxel",
            "channel_order": "axis",
            "direction": "fixed-to-moving",
        },
        "sampling": {"convention": "exact"},
        "networks": [],
        "engines": [],
        "files": {},
    }


def edit(folder: Path, change: Callable[[dict], object]) -> None:
    path = folder / "manifest.json"
    manifest = json.loads(path.read_text(encoding="utf-8"))
    change(manifest)
    path.write_text(json.dumps(manifest), encoding="utf-8")


@pytest.fixture(scope="session")
def bundle(tmp_path_factory) -> Path:
    return write_bundle(tmp_path_factory.mktemp("cpp") / "bundle")


@pytest.fixture
def client(library, fakes) -> Client:
    """Runs a few lines of Python in a process with the fakes; returns what they `answer`."""

    def run(code: str, *args: object, **environment: str) -> Any:
        variables = {
            **os.environ,
            "LD_LIBRARY_PATH": str(fakes),
            "LIBPARAMORPH": str(library),
            "PYTHONPATH": str(HERE),
            **environment,
        }
        program = "import sys; from client import *\n" + dedent(code)
        return json.loads(checked(sys.executable, "-c", program, *args, env=variables))

    return run


def test_arrays_go_in_and_come_out_in_their_order(client, bundle):
    found = client(
        """
        with Engine(sys.argv[1]) as engine:
            moving, fixed = random_pair(engine.shape)
            results = engine.register(moving, fixed)
            again = engine.register(fixed, moving)  # another pair on the same engine
            alone, untouched = engine.register(moving, fixed, warped=False)
            equal = lambda got, want: [bool((g == w).all()) for g, w in zip(got, want)]
            answer({
                "first": equal(results, expected(moving, fixed)),
                "second": equal(again, expected(fixed, moving)),
                "without warped": [bool((alone == results[0]).all()), not untouched.any()],
                "shapes": [a.shape for a in results],
            })
        """,
        bundle,
    )
    assert found == {
        "first": [True, True],
        "second": [True, True],
        "without warped": [True, True],
        "shapes": [[3, *SHAPE], [*SHAPE]],
    }


def test_engine_tells_what_preprocessing_must_know(client, bundle):
    info = client(
        """
        with Engine(sys.argv[1]) as engine:
            plain = lambda v: v.decode() if isinstance(v, bytes) else list(v) if hasattr(
                v, "__len__") else v
            answer({name: plain(getattr(engine.info, name)) for name, _ in Info._fields_[1:]})
        """,
        bundle,
    )
    assert info == {
        "name": "toy",
        "file": "engines/a.engine",
        "flavour": "tensorrt",
        "version": "10.14.1.48",
        "compute_capability": "8.6",
        "device": "Fake GPU",
        "precision": "fp16",
        "orientation": "RAS",
        "sampling": "exact",
        "shape": [*SHAPE],
        "has_warped": 1,
        "spacing_mm": [1.5, 2, 2.5],
        "lower_percentile": 0.5,
        "upper_percentile": 99.8,
        "device_memory": 1000 + 6 * 4 * np.prod(SHAPE),
        "channels": 0,
        "smoothing": 1.0,
    }


def test_callers_stream_orders_the_work(client, bundle):
    found = client(
        """
        engine = Engine(sys.argv[1])
        cuda().cuCtxPushCurrent_v2(None)
        pairs = []
        for stream in (new_stream(), engine.stream, None):
            arrays = [DeviceArray(s) for s in (engine.shape, engine.shape, (3, *engine.shape),
                                               engine.shape)]
            pair = random_pair(engine.shape)
            for array, values in zip(arrays, pair):
                array.values[:] = values
            pairs.append((stream, arrays, expected(*pair)))
        there = lambda: [bool((arrays[2].values == want[0]).all() and (arrays[3].values == want[1])
                              .all()) for _, arrays, want in pairs]
        for stream, arrays, _ in pairs[:2]:
            engine.register_async(*[a.address for a in arrays], stream=stream)
        before = there()
        # the second waits for the first on another stream: one engine, one set of activations
        assert cuda().cuStreamSynchronize(ctypes.c_void_p(engine.stream)) == 0
        after_second = there()
        stream, arrays, _ = pairs[2]
        engine.register_async(*[a.address for a in arrays[:3]], None, stream=stream)
        assert cuda().cuStreamSynchronize(None) == 0
        displacement_only = bool((arrays[2].values == pairs[2][2][0]).all())
        warped_untouched = bool(np.isnan(arrays[3].values).all())
        engine.__exit__()
        cuda().cuStreamDestroy_v2(ctypes.c_void_p(pairs[0][0]))
        for _, arrays, _ in pairs:
            for array in arrays:
                array.free()
        cuda().cuCtxPopCurrent_v2(None)
        answer([before, after_second, displacement_only, warped_untouched, cuda().fake_alive()])
        """,
        bundle,
    )
    assert found == [[False] * 3, [True, True, False], True, True, 0]


def test_what_a_failed_launch_left_behind_is_waited_for(client, bundle):
    """Its work uses the memory that the next registration needs."""
    assert client(
        """
        engine = Engine(sys.argv[1])
        cuda().cuCtxPushCurrent_v2(None)
        shapes = engine.shape, engine.shape, (3, *engine.shape)
        first, second = ([DeviceArray(shape) for shape in shapes] for _ in range(2))
        for array in (*first[:2], *second[:2]):
            array.values[:] = 1
        os.environ["FAKE_FAIL"] = "the end of enqueueV3"
        addresses = [a.address for a in first]
        refused = refusal(engine.register_async, *addresses, None, stream=new_stream())
        os.environ["FAKE_FAIL"] = ""
        engine.register_async(*[a.address for a in second], None, stream=engine.stream)
        before = bool(np.isnan(first[2].values).all())
        assert cuda().cuStreamSynchronize(ctypes.c_void_p(engine.stream)) == 0
        answer([refused[0], before, [float(a[2].values.min()) for a in (first, second)]])
        """,
        bundle,
    ) == [BACKEND, True, [11, 11]]


def test_closing_waits_for_what_was_enqueued(client, bundle):
    assert client(
        """
        engine = Engine(sys.argv[1])
        cuda().cuCtxPushCurrent_v2(None)
        shapes = engine.shape, engine.shape, (3, *engine.shape)
        arrays = [DeviceArray(shape) for shape in shapes]
        arrays[0].values[:], arrays[1].values[:] = 1, 2
        stream = new_stream()
        engine.register_async(*[a.address for a in arrays], None, stream=stream)
        engine.__exit__()
        answer([float(arrays[2].values[c].min()) for c in range(3)])
        """,
        bundle,
    ) == [21, 22, 23]


def test_arrays_that_the_gpu_cannot_use_are_refused(client, bundle):
    found = client(
        """
        with Engine(sys.argv[1]) as engine:
            cuda().cuCtxPushCurrent_v2(None)
            good = DeviceArray((3, *engine.shape)).address
            host = np.zeros((3, *engine.shape), np.float32)
            cases = {
                "host": (good, host.ctypes.data, good, None),
                "unaligned": (good, good, good, good + 8),
                "short": (good, good, DeviceArray(engine.shape).address, None),
                "null": (good, None, good, good),
            }
            answer({name: refusal(engine.register_async, *args) for name, args in cases.items()})
        """,
        bundle,
    )
    assert {status for status, _ in found.values()} == {ARGUMENT}
    assert found["host"][1] == (
        "fixed: expected memory of Fake GPU, got an address elsewhere; for volumes in host memory "
        "call paramorph_register."
    )
    unaligned = "warped: expected an address aligned to 256 bytes, got one aligned to 8;"
    assert found["unaligned"][1].startswith(unaligned)
    assert "expected three arrays, got NULL" in found["null"][1]
    needed = 12 * int(np.prod(SHAPE))
    assert f"displacement: expected {needed} bytes of memory of Fake GPU, got" in found["short"][1]


def test_engine_without_warped_gives_the_displacement_alone(client, tmp_path):
    has_warped, same, refused = client(
        """
        with Engine(sys.argv[1]) as engine:
            pair = random_pair(engine.shape)
            displacement, _ = engine.register(*pair, warped=False)
            same = bool((displacement == expected(*pair)[0]).all())
            answer([engine.info.has_warped, same, refusal(engine.register, *pair)])
        """,
        write_bundle(tmp_path / "bundle", "no-warped"),
    )
    assert (has_warped, same) == (0, True)
    assert refused[0] == ARGUMENT
    assert "engines/a.engine gives the displacement alone" in refused[1]


def test_engine_is_chosen_for_the_machine_and_the_request(client, tmp_path):
    folder = write_bundle(tmp_path / "bundle", flavour="tensorrt-rtx")
    line, larger = "fake 4 5 6", "fake 6 7 8"
    for name, text, changes in [
        ("old", line, {"version": "10.13.0.35"}),
        ("other-card", line, {"compute_capability": "8.9"}),
        ("half", line, {}),
        ("full", line, {"precision": "fp32"}),
        ("large", larger, {}),
    ]:
        add_engine(folder, *engine_entry(folder, f"engines/{name}", text, **changes))
    chosen, refused = client(
        """
        requests = [{}, {"precision": "fp32"}, {"shape": (6, 7, 8)}]
        chosen = []
        for request in requests:
            with Engine(sys.argv[1], **request) as engine:
                chosen.append([engine.info.file.decode(), engine.shape])
        refused = [refusal(Engine, sys.argv[1], **request)
                   for request in ({"precision": "bf16"}, {"shape": (1, 2, 3)}, {"device": 1},
                                   {"device": -1})]
        for name, value in (("FAKE_CAPABILITY", "12.0"), ("FAKE_VERSION", "10.15.0.1")):
            os.environ[name] = value
            refused.append(refusal(Engine, sys.argv[1]))
        answer([chosen, refused])
        """,
        folder,
    )
    assert chosen == [
        ["engines/half", [4, 5, 6]],
        ["engines/full", [4, 5, 6]],
        ["engines/large", [6, 7, 8]],
    ]
    command = f"`python export/build_engine.py --bundle {folder} --flavour tensorrt"
    assert refused == [
        [
            NO_ENGINE,
            "toy: expected an engine of precision bf16, got fp16, fp32; choose another in "
            f"options.precision, or build it with {command}`.",
        ],
        [
            NO_ENGINE,
            "toy: expected an engine of shape (1, 2, 3), got (4, 5, 6), (6, 7, 8); choose another "
            "in options.shape, or export the bundle at it.",
        ],
        [ARGUMENT, "device: expected the number of one of 1 GPUs, got 1; they count from 0."],
        [ARGUMENT, "device: expected the number of one of 1 GPUs, got -1; they count from 0."],
        [
            NO_ENGINE,
            "toy: expected an engine for compute capability 12.0 (Fake GPU), got 8.6, 8.9; build "
            f"one with {command} --target sm120`.",
        ],
        [
            NO_ENGINE,
            "toy: expected an engine built by the installed tensorrt 10.15.0.1, got 10.13.0.35, "
            f"10.14.1.48; build it again with {command}`, or install the version that built it.",
        ],
    ]


def with_plugin(folder: Path, content: bytes = b"GridSample3D") -> Path:
    """The bundle, whose engine now needs a plugin's library."""
    (folder / "plugin.so").write_bytes(content)
    recorded = {"sha256": hashlib.sha256(content).hexdigest(), "bytes": len(content)}

    def change(manifest: dict) -> None:
        manifest["engines"][0]["plugin"] = "plugin.so"
        manifest["files"]["plugin.so"] = recorded

    edit(folder, change)
    return folder


def test_plugin_of_the_bundle_is_loaded_before_its_engine(client, tmp_path):
    good = with_plugin(write_bundle(tmp_path / "good", "plugin"))
    other = with_plugin(write_bundle(tmp_path / "other", "plugin"), b"another")
    altered = with_plugin(write_bundle(tmp_path / "altered", "plugin"))
    (altered / "plugin.so").write_bytes(b"GridSample3E")
    untold = write_bundle(tmp_path / "untold", "plugin")
    refused, opened = client(
        """
        refused = [refusal(Engine, folder) for folder in sys.argv[2:]]
        with Engine(sys.argv[1]) as engine, Engine(sys.argv[1]) as second:
            opened = [e.info.file.decode() for e in (engine, second)]
        answer([refused, opened])
        """,
        good,
        other,
        altered,
        untold,
    )
    assert opened == ["engines/a.engine"] * 2
    (status, sentence), (altered_status, altered_sentence), (untold_status, untold_sentence) = (
        refused
    )
    assert status == DEPENDENCY
    assert sentence.startswith(
        f"{other / 'plugin.so'}: expected a library of GridSample3D for tensorrt 10.14, got none"
    )
    assert altered_status == BUNDLE
    assert "plugin.so: expected SHA-256" in altered_sentence
    assert untold_status == BACKEND
    assert "expected an engine from TensorRT, got none (Plugin not found)" in untold_sentence


@pytest.mark.parametrize(
    ("built", "installed", "fits"),
    [
        ("10.14.1", "10.14.1.48", True),  # as older packages of Python tell it
        ("10.14.1.post1", "10.14.1.48", True),
        ("10.14.1.48.post1", "10.14.1.48", True),
        ("10.14.2", "10.14.1.48", False),
        ("10.14.1.4", "10.14.1.48", False),
        ("post1", "10.14.1.48", False),
    ],
)
def test_versions_are_one_as_far_as_both_are_told(client, tmp_path, built, installed, fits):
    folder = write_bundle(tmp_path / "bundle", version=built)
    code = "e = Engine(sys.argv[1]); e.__exit__(); answer(0)"
    if not fits:
        code = "answer(refusal(Engine, sys.argv[1])[0])"
    assert client(code, folder, FAKE_VERSION=installed) == (0 if fits else NO_ENGINE)


def test_portable_engine_is_for_cards_that_have_none_of_their_own(client, tmp_path):
    folder = write_bundle(tmp_path / "bundle", compute_capability="portable")
    add_engine(folder, *engine_entry(folder, "engines/own", "fake 4 5 6"))
    code = "e = Engine(sys.argv[1]); f = e.info.file.decode(); e.__exit__(); answer(f)"
    for capability, file in {"8.6": "own", "8.9": "a.engine", "12.0": "a.engine"}.items():
        assert client(code, folder, FAKE_CAPABILITY=capability) == f"engines/{file}"
    code = "answer(refusal(Engine, sys.argv[1]))"
    status, sentence = client(code, folder, FAKE_CAPABILITY="7.5")
    assert status == NO_ENGINE
    assert "for compute capability 7.5 (Fake GPU), got 8.6, portable; build one" in sentence


def test_headers_that_are_too_old_are_refused_by_name(settings, headers, tmp_path):
    """As those of 10.0, in which a function has another name."""
    old = shutil.copytree(settings["TENSORRT_INCLUDE_DIR"], tmp_path / "old")
    version = old / "NvInferVersion.h"
    version.write_text(
        re.sub(r"(NV_TENSORRT_MINOR|TRT_MINOR_ENTERPRISE) \d+", r"\1 0", version.read_text()),
        encoding="utf-8",
    )
    compiler = [settings["CMAKE_CXX_COMPILER"], "-std=c++17", "-fsyntax-only", "-isystem", old]
    compiler += [*headers[2:], "-I", SOURCE / "include", SOURCE / "src" / "tensorrt.cpp"]
    done = call(*compiler)
    assert done.returncode != 0
    assert "expected the headers of TensorRT 10.1 or newer, or of TensorRT for RTX" in done.stderr


def test_displacement_that_is_not_finite_is_refused(client, tmp_path):
    status, sentence = client(
        """
        with Engine(sys.argv[1]) as engine:
            answer(refusal(engine.register, *random_pair(engine.shape)))
        """,
        write_bundle(tmp_path / "bundle", "nan"),
    )
    assert status == BACKEND
    assert sentence.startswith("engines/a.engine: expected finite displacements, got values that")


@pytest.mark.parametrize("variant", ["half", "another-shape", "another-output"])
def test_engine_of_another_network_is_refused(client, tmp_path, variant):
    status, sentence = client(
        "answer(refusal(Engine, sys.argv[1]))", write_bundle(tmp_path / "bundle", variant)
    )
    assert status == BUNDLE
    assert "expected float32 moving and fixed (1, 1, D, H, W), displacement" in sentence
    assert "at (4, 5, 6), got another " in sentence


def test_every_failure_is_one_sentence_and_leaves_nothing_behind(client, bundle):
    opening = ["cuDeviceGet", "cuDevicePrimaryCtxRetain", "cuCtxPushCurrent", "cuMemAlloc"]
    opening += ["cuStreamCreate", "cuEventCreate", "createInferRuntime", "deserializeCudaEngine"]
    opening += ["createExecutionContext"]
    running = ["cuMemcpyHtoDAsync", "cuMemcpyDtoHAsync", "cuStreamSynchronize", "enqueueV3"]
    running += ["setTensorAddress", "cuStreamWaitEvent", "cuEventRecord"]
    found = client(
        """
        opening, running = json.loads(sys.argv[2])
        found = {}
        for name in opening:
            os.environ["FAKE_FAIL"] = name
            found[name] = [*refusal(Engine, sys.argv[1]), cuda().fake_alive()]
        for name in running:
            os.environ["FAKE_FAIL"] = ""
            with Engine(sys.argv[1]) as engine:
                pair = random_pair(engine.shape)
                os.environ["FAKE_FAIL"] = name
                refused = refusal(engine.register, *pair)
                assert cuda().fake_pending() == 0  # the arrays are the caller's again
                os.environ["FAKE_FAIL"] = ""
                assert (engine.register(*pair)[1] == expected(*pair)[1]).all()  # the next works
            found[name] = [*refused, cuda().fake_alive()]
        os.environ["FAKE_FAIL"] = ""
        engine = Engine(sys.argv[1])
        os.environ["FAKE_FAIL"] = "cuCtxPushCurrent"  # the GPU is gone
        engine.__exit__()
        answer(found)
        """,
        bundle,
        json.dumps([opening, running]),
    )
    assert [*found] == opening + running
    for name, (status, sentence, alive) in found.items():
        assert (name, status, alive) == (name, BACKEND, 0)
        assert re.fullmatch(r"[^\n]+: expected [^\n]+, got [^\n]+; [^\n]+\.", sentence), sentence
    assert "(magic tag does not match)" in found["deserializeCudaEngine"][1]
    assert "CUDA_ERROR_UNKNOWN (unknown error)" in found["cuMemAlloc"][1]


def test_threads_share_an_engine_and_keep_their_own_errors(client, bundle):
    assert client(
        """
        from concurrent.futures import ThreadPoolExecutor

        with Engine(sys.argv[1]) as engine, ThreadPoolExecutor(4) as threads:
            pairs = [tuple(n + a for a in random_pair(engine.shape)) for n in range(40)]
            results = threads.map(lambda pair: engine.register(*pair), pairs)
            good = all((result[0] == expected(*pair)[0]).all()
                       for result, pair in zip(results, pairs))
            refusal(Engine, "nowhere")
            elsewhere = threads.submit(paramorph.paramorph_last_error).result().decode()
            answer([good, elsewhere, paramorph.paramorph_last_error().decode()[:9]])
        """,
        bundle,
    ) == [True, "", "nowhere: "]


@pytest.fixture(scope="session")
def bad_bundles(tmp_path_factory) -> tuple[Path, dict[str, str]]:
    """Bundles that must be refused, and what the sentence says of each."""
    root = tmp_path_factory.mktemp("bad")
    expected = {}

    def bad(name: str, sentence: str, change: Callable[[dict], object] = lambda _: None) -> Path:
        expected[name] = sentence
        folder = write_bundle(root / name)
        edit(folder, change)
        return folder

    bad("empty", "expected a bundle (a folder with manifest.json), found none")
    shutil.rmtree(root / "empty")
    (root / "empty").mkdir()
    for name, text in {"cut": '{"format": ', "binary": "\x00\xff", "deep": "[" * 100_000}.items():
        (bad(name, "expected JSON, got something else") / "manifest.json").write_text(
            text, encoding="utf-8"
        )
    (bad("list", 'expected the format "paramorph-bundle"') / "manifest.json").write_text(
        "[1]", encoding="utf-8"
    )
    bad("format", 'expected the format "paramorph-bundle"', lambda m: m.update(format="x"))
    bad("future", "expected format version 2, got 3;", lambda m: m.update(format_version=3))
    bad("text-version", 'got "2";', lambda m: m.update(format_version="2"))
    bad("no-version", "got null;", lambda m: m.pop("format_version"))
    bad("no-grid", "got key 'grid' not found;", lambda m: m.pop("grid"))
    bad("no-engines", "got key 'engines' not found;", lambda m: m.pop("engines"))
    bad("wrong-type", "type must be", lambda m: m.update(intensity={"lower_percentile": "0"}))
    bad("unlisted", "got key 'engines/a.engine' not found", lambda m: m["files"].clear())
    for name, shape in {
        "two": [4, 5],
        "zero": [4, 0, 6],
        "fraction": [4, 5.5, 6],
        "huge": [4, 5, 2**40],
        "no-list": 4,
    }.items():
        bad(
            f"shape-{name}",
            f"got {json.dumps(shape, separators=(',', ':'))} where three positive numbers belong",
            lambda m, shape=shape: m["engines"][0].update(shape=shape),
        )
    for name, smoothing in {"negative": -1.0, "text": "1"}.items():
        bad(
            f"smoothing-{name}",
            f"got {json.dumps(smoothing)} where a positive number belongs",
            lambda m, smoothing=smoothing: m.update(
                features={"channels": 1, "networks": [], "smoothing": smoothing}
            ),
        )
    bad("unit", 'got "mm" where another', lambda m: m["displacement"].update(unit="mm"))
    bad("sampling", 'got "x" where another', lambda m: m.update(sampling={"convention": "x"}))
    bad("axes", '"RRS" where an orientation', lambda m: m["grid"].update(orientation="RRS"))
    altered = bad("altered", "the file was altered; copy the bundle again from a source that you")
    engine = altered / "engines/a.engine"
    engine.write_text(
        engine.read_text(encoding="utf-8").replace("fake 4", "fake 5"), encoding="utf-8"
    )
    (bad("longer", "expected 12 bytes, got 13;") / "engines/a.engine").write_text(
        "fake 4 5 6 \n\n", encoding="utf-8"
    )
    (bad("gone", "expected this file of the bundle, found none") / "engines/a.engine").unlink()
    for name, file in {"up": "../secret", "absolute": str(root / "secret")}.items():
        bad(
            name,
            f"{file}: expected a path inside the bundle, got one outside",
            lambda m, file=file: (
                m["engines"][0].update(file=file),
                m["files"].update({file: m["files"]["engines/a.engine"]}),
            ),
        )
    link = bad("link", "expected a path inside the bundle, got one outside") / "engines/a.engine"
    link.unlink()
    link.symlink_to(root / "altered/engines/a.engine")
    bad("none", "expected an engine for tensorrt, got none;", lambda m: m["engines"].clear())
    return root, expected


@pytest.fixture(scope="session")
def errors(library, settings, tmp_path_factory) -> Path:
    """The C program of all refusals; that it compiles shows that the header is plain C."""
    return compiled_errors(settings, tmp_path_factory.mktemp("errors") / "errors", library.parent)


def compiled_errors(settings: dict, program: Path, folder: Path, *options: str) -> Path:
    compiler = [settings["CMAKE_C_COMPILER"], "-std=gnu99", "-g", *WARNINGS, *options]
    compiler += ["-I", SOURCE / "include", HERE / "errors.c", "-o", program]
    checked(*compiler, "-L", folder, "-lparamorph", f"-Wl,-rpath,{folder}")
    return program


def reported(output: str) -> dict[str, tuple[int, str]]:
    lines = (line.split("\t") for line in output.splitlines())
    return {name: (int(status), sentence) for name, status, sentence in lines}


def test_bad_bundles_are_refused_in_one_sentence(errors, bad_bundles, fakes):
    root, expected = bad_bundles
    environment = {**os.environ, "LD_LIBRARY_PATH": str(fakes)}
    found = reported(checked(errors, root, env=environment))
    assert expected.keys() <= found.keys()
    for name, sentence in expected.items():
        status, message = found[name]
        assert sentence in message
        assert (name, status) == (name, NO_ENGINE if name == "none" else BUNDLE)
        assert message.endswith(".")


def test_null_arguments_are_refused(errors, tmp_path):
    found = reported(checked(errors, tmp_path))
    assert found.pop("before any") == (0, "")
    assert found.pop("version")[0] == 0
    assert found.pop("refined") == (0, "")
    assert {status for status, _ in found.values()} == {ARGUMENT}
    assert len(found) == 8
    for _, message in found.values():
        assert re.search("expected .*, got NULL; ", message)


def test_machine_without_tensorrt_is_told_so(errors, tmp_path):
    write_bundle(tmp_path / "bundle")
    environment = {**os.environ, "LD_LIBRARY_PATH": ""}
    status, message = reported(checked(errors, tmp_path, env=environment))["bundle"]
    if "libnvinfer.so.10: " not in message:
        pytest.skip("this machine has TensorRT 10")
    assert status == DEPENDENCY
    assert message.startswith("libnvinfer.so.10: expected tensorrt 10.14, found none (")


def test_machine_without_driver_is_told_so(errors, settings, tmp_path):
    source, tensorrt = tmp_path / "a.c", tmp_path / "alone.so"
    numbers = {"Major": 10, "Minor": 14, "Patch": 1, "Build": 48}
    functions = [f"int getInferLib{n}Version() {{ return {v}; }}" for n, v in numbers.items()]
    source.write_text(
        "\n".join([*functions, "void createInferRuntime_INTERNAL() {}", ""]), encoding="utf-8"
    )
    checked(settings["CMAKE_C_COMPILER"], "-shared", "-fPIC", source, "-o", tensorrt)
    write_bundle(tmp_path / "bundles" / "bundle")
    environment = {**os.environ, "LD_LIBRARY_PATH": ""}
    done = checked(errors, tmp_path / "bundles", tensorrt, env=environment)
    status, message = reported(done)["bundle"]
    if "libcuda.so.1: " not in message:
        pytest.skip("this machine has an NVIDIA driver")
    assert status == DEPENDENCY
    assert message.startswith("libcuda.so.1: expected the NVIDIA driver, found none (")
    assert message.endswith("; install it, or register on the CPU with paramorph-rt.")


def test_machine_without_gpu_is_told_so(errors, fakes, tmp_path):
    write_bundle(tmp_path / "bundle")
    environment = {**os.environ, "LD_LIBRARY_PATH": str(fakes), "FAKE_DEVICES": "0"}
    status, message = reported(checked(errors, tmp_path, env=environment))["bundle"]
    assert status == DEPENDENCY
    assert message.startswith(
        "CUDA: expected an NVIDIA GPU, got CUDA_ERROR_NO_DEVICE (no CUDA-capable device is "
        "detected); see what `nvidia-smi` says,"
    )


def test_library_of_another_abi_is_refused_before_it_is_called(errors, fakes, tmp_path):
    write_bundle(tmp_path / "bundle")
    for version, fits in {"10.13.9.9": False, "11.0.0.1": False, "10.15.0.1": True}.items():
        environment = {**os.environ, "LD_LIBRARY_PATH": str(fakes), "FAKE_VERSION": version}
        status, message = reported(checked(errors, tmp_path, env=environment))["bundle"]
        if fits:
            assert status == NO_ENGINE
        else:
            assert status == DEPENDENCY
            assert "whose headers libparamorph was compiled with, got version " + version in message


def test_real_tensorrt_rtx_is_opened_and_its_abi_refused(errors, tmp_path):
    """NVIDIA's own library, against headers that are not its own: calling it would crash."""
    libs = pytest.importorskip("tensorrt_rtx_libs", reason="no tensorrt-rtx (make cpp)")
    real = next(Path(libs.__path__[0]).glob("libtensorrt_rtx.so.*"))
    write_bundle(tmp_path / "bundle")
    status, message = reported(checked(errors, tmp_path, real))["bundle"]
    assert status == DEPENDENCY
    expected = rf"{re.escape(str(real))}: expected tensorrt 10\.14 or a later minor version, .*"
    assert re.match(expected + r"got version 1\.\d+\.\d+\.\d+; install", message)


@pytest.fixture(scope="session")
def valgrind() -> list[str]:
    if shutil.which("valgrind") is None:
        pytest.skip("no valgrind (Debian's package valgrind)")
    options = ["--quiet", "--error-exitcode=99", "--leak-check=full"]
    return ["valgrind", *options, "--errors-for-leak-kinds=definite,indirect,possible"]


def test_valgrind_finds_no_leak_and_no_error(valgrind, errors, bad_bundles, fakes, example, raw):
    environment = {**os.environ, "LD_LIBRARY_PATH": str(fakes)}
    checked(*valgrind, errors, bad_bundles[0], env=environment)
    checked(*valgrind, example, *raw, env=environment)


@pytest.fixture(scope="session")
def prefix(tmp_path_factory) -> Path:
    """Where the library is installed."""
    return installed(tmp_path_factory.mktemp("prefix"))


@pytest.fixture(scope="session")
def example(prefix, tmp_path_factory) -> Path:
    return built_example(prefix, tmp_path_factory.mktemp("example"))


@pytest.fixture
def raw(bundle, tmp_path) -> list[Path]:
    """The example's arguments; the two inputs exist."""
    generator = np.random.default_rng(1)
    paths = [tmp_path / name for name in ("moving", "fixed", "displacement", "warped")]
    for path in paths[:2]:
        generator.integers(0, 100, SHAPE).astype(np.float32).tofile(path)
    return [bundle, *paths]


def check_raw(raw: list[Path]) -> None:
    moving, fixed, displacement, warped = (np.fromfile(path, np.float32) for path in raw[1:])
    channels = displacement.reshape(3, -1)
    for c in range(3):
        np.testing.assert_array_equal(channels[c], (c + 1) * moving + 10 * fixed)
    np.testing.assert_array_equal(warped, moving - 2 * fixed)


def test_example_registers_raw_volumes(example, raw, fakes):
    environment = {**os.environ, "LD_LIBRARY_PATH": str(fakes)}
    done = call(example, *raw, env=environment)
    assert done.returncode == 0, done.stderr
    assert done.stderr == (
        "toy, fp16 on Fake GPU, tensorrt 10.14.1.48: 4 x 5 x 6 voxels of 1.5 x 2 x 2.5 mm\n"
    )
    check_raw(raw)


@pytest.fixture(scope="session")
def onnxruntime_library() -> Path:
    return onnxruntime_of_the_wheel()


def random_raw(folder: Path, shape: tuple[int, ...]) -> list[Path]:
    paths = [folder / name for name in ("moving", "fixed", "displacement", "warped")]
    generator = np.random.default_rng(2)
    for path in paths[:2]:
        generator.random(shape, np.float32).tofile(path)
    return paths


def test_example_registers_on_the_cpu(example, bundle_path, onnxruntime_library, tmp_path):
    """A bundle of ONNX files, without TensorRT, a driver or a GPU."""
    paths = random_raw(tmp_path, NETWORK_SHAPE)
    home = tmp_path / "home"
    home.mkdir()
    environment = {"HOME": str(home)}
    done = call(example, bundle_path, *paths, "onnxruntime", onnxruntime_library, env=environment)
    assert done.returncode == 0, done.stderr
    assert not list(home.iterdir())  # no telemetry
    version = onnxruntime.__version__
    assert done.stderr.startswith(
        f"known-displacement, fp32 on CPU, onnxruntime {version}: 20 x 24"
    )
    displacement = np.fromfile(paths[2], np.float32).reshape(3, *NETWORK_SHAPE)
    np.testing.assert_array_equal(displacement, smooth_displacement_vox().astype(np.float32))
    np.testing.assert_array_equal(*(np.fromfile(paths[n], np.float32) for n in (0, 3)))


@pytest.mark.slow
def test_example_computes_what_python_computes(example, onnxruntime_library, tmp_path):
    """The bundle of `make engine`, or the shipped one: real weights, end to end."""
    made = ROOT / "build" / "bundles" / "brain-t1-small"
    try:
        bundle = load_bundle(made if made.is_dir() else default_bundle_path())
    except BundleError as err:
        pytest.skip(str(err))
    shape = bundle.inputs.grid.shape
    paths = random_raw(tmp_path, shape)
    done = call(example, bundle.folder, *paths, "onnxruntime", onnxruntime_library)
    assert done.returncode == 0, done.stderr
    volumes = [np.fromfile(path, np.float32).reshape(shape) for path in paths[:2]]
    expected = choose_backend(bundle, "onnxruntime").run(*volumes)
    found = np.fromfile(paths[2], np.float32).reshape(3, *shape)
    np.testing.assert_allclose(found, expected, atol=1e-5)
    assert np.abs(found).max() > 0.1


def test_cpu_refuses_what_it_cannot(client, bundle_path, onnxruntime_library, tmp_path):
    broken = shutil.copytree(bundle_path, tmp_path / "broken")
    replace_file(broken, "registration.onnx", b"nothing")
    altered = shutil.copytree(bundle_path, tmp_path / "altered")
    content = (altered / "registration.onnx").read_bytes()
    (altered / "registration.onnx").write_bytes(content[::-1])
    found = client(
        """
        bundle, library, broken, altered = sys.argv[1:]
        cpu = {"backend": "onnxruntime", "library": library}
        with Engine(bundle, threads=1, **cpu) as engine:
            shape, stream = engine.shape, engine.stream
            pair = random_pair(engine.shape)
            displacement, warped = engine.register(*pair)
            again, none = engine.register(*pair, warped=False)
            same = bool((displacement == again).all() and not none.any())
            on_gpu = refusal(engine.register_async, 256, 256, 256, None)
        answer([
            shape, stream, same, on_gpu,
            refusal(Engine, bundle, backend="abacus"),
            refusal(Engine, bundle, precision="fp16", **cpu),
            refusal(Engine, bundle, shape=(1, 2, 3), **cpu),
            refusal(Engine, bundle, backend="onnxruntime", library="libnobody.so"),
            refusal(Engine, bundle, backend="onnxruntime", library="libcuda.so.1"),
            refusal(Engine, broken, **cpu),
            refusal(Engine, altered, **cpu),
        ])
        """,
        *(bundle_path, onnxruntime_library, broken, altered),
    )
    assert found[:3] == [[*NETWORK_SHAPE], None, True]
    expected = [
        (ARGUMENT, "backend: expected one with a GPU for volumes in its memory, got onnxruntime"),
        (ARGUMENT, 'options.backend: expected "tensorrt" or "onnxruntime", got "abacus"'),
        (ARGUMENT, 'options.precision: expected "fp32" on the CPU, got "fp16"'),
        (NO_ENGINE, "expected a network of precision fp32 at (1, 2, 3) for CPUs, got none"),
        (DEPENDENCY, "libnobody.so: expected ONNX Runtime, found none ("),
        (DEPENDENCY, "libcuda.so.1: expected a library with OrtGetApiBase, found none"),
        (BACKEND, "registration.onnx: expected a network that it loads from ONNX Runtime"),
        (BUNDLE, "the file was altered; copy the bundle again"),
    ]
    for (status, sentence), (right, words) in zip(found[3:], expected, strict=True):
        assert (status, words in sentence) == (right, True), sentence
        assert "\n" not in sentence


def test_cpu_result_that_is_not_finite_is_refused(client, onnxruntime_library, tmp_path):
    vectors = smooth_displacement_vox()
    vectors[1, 2, 3, 4] = np.nan
    folder = write_network_bundle(tmp_path / "bundle", vectors)
    status, sentence = client(
        """
        with Engine(sys.argv[1], backend="onnxruntime", library=sys.argv[2]) as engine:
            answer(refusal(engine.register, *random_pair(engine.shape)))
        """,
        *(folder, onnxruntime_library),
    )
    assert status == BACKEND
    assert sentence.startswith("registration.onnx: expected finite displacements, got values that")


@pytest.mark.parametrize("size", [0, 119, 121])
def test_example_refuses_a_volume_of_another_size(example, raw, fakes, size):
    np.zeros(size, np.float32).tofile(raw[2])
    done = call(example, *raw, env={**os.environ, "LD_LIBRARY_PATH": str(fakes)})
    assert done.returncode == 1
    assert f"{raw[2]}: expected 120 float32 values" in done.stderr
    assert not raw[3].exists()
    assert not raw[4].exists()


def test_structures_of_another_header_are_refused(client, bundle):
    """As of a program that was compiled before they told their size, or with a later header."""
    found = client(
        """
        size = ctypes.sizeof(Options)
        refused = [refusal(Engine, sys.argv[1], struct_size=given) for given in (0, size + 8)]
        with Engine(sys.argv[1]) as engine:
            engine.info.struct_size = 0
            status = paramorph.paramorph_describe(engine.handle, engine.info)
            refused.append([status, paramorph.paramorph_last_error().decode()])
        answer([size, ctypes.sizeof(Info), refused])
        """,
        bundle,
    )
    options, info, refused = found
    assert [status for status, _ in refused] == [ARGUMENT] * 3
    assert f"options.struct_size: expected {options}, got 0; set it" in refused[0][1]
    assert f"options.struct_size: expected {options}, got {options + 8};" in refused[1][1]
    assert f"info.struct_size: expected {info}, got 0;" in refused[2][1]


def test_pkg_config_says_how_to_compile(prefix, settings, tmp_path):
    if shutil.which("pkg-config") is None:
        pytest.skip("no pkg-config")
    found = {**os.environ, "PKG_CONFIG_PATH": os.pathsep.join(map(str, prefix.rglob("pkgconfig")))}
    options = checked("pkg-config", "--cflags", "--libs", "paramorph", env=found).split()
    source = SOURCE / "examples" / "register_raw.c"
    compiler = [settings["CMAKE_C_COMPILER"], "-std=c99", *WARNINGS]
    checked(*compiler, source, "-o", tmp_path / "a", *options)
    version = checked("pkg-config", "--modversion", "paramorph", env=found).strip()
    setup = configparser.ConfigParser()
    setup.read(ROOT / "setup.cfg")
    assert version == setup["metadata"]["version"]


def test_header_is_cpp_too(settings, tmp_path):
    source = tmp_path / "a.cpp"
    source.write_text(
        "#include <paramorph.h>\nint main() { return *paramorph_version() == 0; }\n",
        encoding="utf-8",
    )
    compiler = [settings["CMAKE_CXX_COMPILER"], "-std=c++11", *WARNINGS, "-fsyntax-only"]
    checked(*compiler, "-I", SOURCE / "include", source)


def test_library_exports_the_interface_and_nothing_else(library):
    listed = checked("nm", "--dynamic", "--defined-only", "--format=posix", library)
    header = (SOURCE / "include" / "paramorph.h").read_text(encoding="utf-8")
    declared = re.findall(r"^\w.*?\b(paramorph_\w+)\(", header, re.MULTILINE)
    assert len(declared) == 12
    assert {line.split()[0] for line in listed.splitlines()} == set(declared)


def test_library_needs_neither_cuda_nor_tensorrt_to_start(library):
    needed = re.findall(r"NEEDED.*\[(.*)\]", checked("readelf", "--dynamic", library))
    assert any(name.startswith("libcrypto") for name in needed)
    assert not [name for name in needed if re.match(r"lib(cuda|nvinfer|tensorrt)", name)]


@pytest.fixture(scope="session")
def sanitized(settings) -> Iterator[Path]:
    """The library for TensorRT-RTX with sanitizers; other headers stand in for RTX's."""
    build = BUILD.with_name("cpp-sanitized")
    kept = ("TENSORRT_INCLUDE_DIR", "CUDA_INCLUDE_DIR", "NLOHMANN_JSON_INCLUDE_DIR")
    options = [f"-D{name}={settings[name]}" for name in kept]
    options += [f"-DCMAKE_CXX_FLAGS={SANITIZERS} -O0 -DTRT_MAJOR_RTX=10"]
    options += [f"-DCMAKE_C_FLAGS={SANITIZERS} -O1", "-DCMAKE_BUILD_TYPE=None"]
    checked(cmake(), "-S", SOURCE, "-B", build, *options)
    checked(cmake(), "--build", build)
    return build


def test_sanitizers_find_nothing_and_rtx_takes_its_own_engines(
    sanitized, settings, bad_bundles, fakes, raw, tmp_path
):
    environment = {**os.environ, "LD_LIBRARY_PATH": str(fakes)}
    program = tmp_path / "errors"
    compiled_errors(settings, program, sanitized, *SANITIZERS.split())
    root, expected = bad_bundles
    found = reported(checked(program, root, env=environment))
    assert found["refined"] == (0, "")
    assert found["none"][1].startswith("toy: expected an engine for tensorrt-rtx, got none;")
    assert found["altered"][1].startswith("toy: expected an engine for tensorrt-rtx, got tensorrt;")
    assert all(found[name][0] in (BUNDLE, NO_ENGINE) for name in expected)

    example = tmp_path / "example"
    compiler = [settings["CMAKE_C_COMPILER"], *SANITIZERS.split(), "-I", SOURCE / "include"]
    compiler += [SOURCE / "examples/register_raw.c", "-o", example, "-L", sanitized]
    checked(*compiler, "-lparamorph", f"-Wl,-rpath,{sanitized}")
    raw[0] = write_bundle(tmp_path / "rtx", flavour="tensorrt-rtx")
    checked(example, *raw, env=environment)
    check_raw(raw)
    # a minor version of TensorRT-RTX is another ABI, newer or not
    newer = call(example, *raw, env={**environment, "FAKE_VERSION": "10.15.0.1"})
    assert newer.returncode == 1
    assert "expected tensorrt-rtx 10.14, whose headers" in newer.stderr


def test_readme_leads_from_nifti_to_the_network_grid_and_back(bundle_path, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name, orientation in {"moving.nii.gz": "LPS", "fixed.nii.gz": "RAS"}.items():
        save_volume(tmp_path / name, volume_of(head, centred_grid(orientation, (46, 52, 40))))
    (tmp_path / "BUNDLE").symlink_to(bundle_path)
    there, finer, back = re.findall(
        r"```python\n(.*?)```", (SOURCE / "README.md").read_text(encoding="utf-8"), re.DOTALL
    )
    names: dict[str, Any] = {}
    exec(there, names)
    shape = names["pair"].grid.shape
    for name in ("moving", "fixed"):
        raw = np.fromfile(f"{name}.raw", np.float32).reshape(shape)
        np.testing.assert_array_equal(raw, getattr(names["pair"], name))
    exec(finer, names)
    for name in ("moving", "fixed"):
        raw = np.fromfile(f"fine_{name}.raw", np.float32).reshape(names["fine_grid"].shape)
        np.testing.assert_array_equal(raw, getattr(names["fine"], name))
    smooth_displacement_vox().astype(np.float32).tofile("displacement.raw")
    exec(back, names)
    whole = Registration(bundle_path)("moving.nii.gz", "fixed.nii.gz", refine=0).displacement
    written = read_displacement(tmp_path / "displacement.nii.gz")
    np.testing.assert_allclose(written.vectors_mm, whole.vectors_mm, atol=1e-4)
