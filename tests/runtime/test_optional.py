"""What is not installed: each case in a process of its own, where it cannot be imported."""

from __future__ import annotations

import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
# Refuses modules as if they were not installed, before anything else is imported. Ahead of all
# finders, so that nothing that was loaded earlier, here or transitively, can stand in for them.
BLOCKER = """
import sys

class Blocker:
    def find_spec(self, name, path=None, target=None):
        if any(name == each or name.startswith(each + ".") for each in {blocked!r}):
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)

sys.meta_path.insert(0, Blocker())
assert not {{m for m in sys.modules if m.split(".")[0] in {blocked!r}}}
"""
CHOOSE = """
import logging
logging.basicConfig(level=logging.DEBUG, format="%(message)s")
from paramorph_rt.backends import choose_backend
from paramorph_rt.bundle import load_bundle
from paramorph_rt.errors import MissingDependencyError
try:
    print(choose_backend(load_bundle({bundle!r}), {name!r}).name)
except MissingDependencyError as err:
    print("missing:", err)
"""
# Modules of engines, their own and transitive ones.
OPENVINO = ("openvino", "openvino.frontend", "openvino.opset13", "openvino.passes")
GPUS = ("tensorrt", "tensorrt_rtx", "pycuda", "cuda", "onnxruntime_ep_nv_tensorrt_rtx")
HINT = 'run `python -m pip install "paramorph-rt[{}]"`.'

needs_openvino = pytest.mark.skipif(
    find_spec("openvino") is None, reason="needs openvino, of the extra of that name"
)


def run_without(blocked: tuple[str, ...], program: str, **variables: str):
    """A program in a fresh process where these modules are not there."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), **variables}
    return subprocess.run(
        [sys.executable, "-c", BLOCKER.format(blocked=blocked) + program],
        env=environment,
        capture_output=True,
        encoding="utf-8",
        check=False,
    )


def chosen(bundle: Path, blocked: tuple[str, ...], name: str = "auto") -> tuple[str, str]:
    """What was chosen, or the sentence; and what was logged."""
    done = run_without(blocked, CHOOSE.format(bundle=str(bundle), name=name))
    assert done.returncode == 0, done.stderr
    return done.stdout.strip(), done.stderr


@needs_openvino
@pytest.mark.parametrize("module", OPENVINO)
def test_auto_goes_on_without_any_module_of_openvino(bundle_path, module):
    backend, log = chosen(bundle_path, (module, *GPUS))
    assert backend == "onnxruntime-cpu"
    assert "skipped openvino-cpu: openvino: expected the packages of its extra openvino" in log
    assert HINT.format("openvino") in log


@needs_openvino
@pytest.mark.parametrize("module", ["onnxruntime", "onnxruntime.capi"])
def test_auto_needs_no_onnxruntime_where_openvino_is(bundle_path, module):
    assert chosen(bundle_path, (module, *GPUS))[0] == "openvino-cpu"


@pytest.mark.parametrize("module", GPUS)
def test_auto_goes_on_without_each_library_of_gpus(bundle_path, module):
    assert chosen(bundle_path, (module,))[0] in ("openvino-cpu", "onnxruntime-cpu")


def test_nothing_installed_is_one_sentence(bundle_path):
    sentence, _ = chosen(bundle_path, ("openvino", "onnxruntime", *GPUS))
    assert sentence.startswith("missing: onnxruntime: expected the packages of the base install")
    assert sentence.endswith("run `python -m pip install paramorph-rt`.")


@pytest.mark.parametrize(
    ("name", "module"),
    [
        ("openvino", "openvino"),
        pytest.param("openvino", "openvino.frontend", marks=needs_openvino),
        ("onnxruntime", "onnxruntime"),
    ],
)
def test_named_engine_says_what_to_install(bundle_path, name, module):
    sentence, _ = chosen(bundle_path, (module,), name)
    install = "paramorph-rt" if name == "onnxruntime" else '"paramorph-rt[openvino]"'
    assert sentence.startswith(f"missing: {name}: expected the packages of ")
    assert sentence.endswith(f"run `python -m pip install {install}`.")
    assert "site-packages" not in sentence


def test_command_says_it_on_one_line_with_exit_code_1(bundle_path, tmp_path):
    program = (
        "from paramorph_rt.cli import main\n"
        f"sys.exit(main(['infer', '--moving', 'm.nii.gz', '--fixed', 'f.nii.gz', '--out-dir', "
        f"{str(tmp_path / 'out')!r}, '--model', {str(bundle_path)!r}, '--backend', 'openvino']))"
    )
    done = run_without(("openvino",), program)
    assert done.returncode == 1
    assert not (tmp_path / "out").exists()


def test_folders_of_an_installation_stay_out_of_the_message():
    from paramorph_rt.errors import MissingDependencyError, needs

    told = "cannot import name 'x' from 'y' (/usr/lib/python3/site-packages/y/__init__.py)"
    with (
        pytest.raises(MissingDependencyError, match=r"got cannot import .* \(__init__.py\); run"),
        needs("report", "report"),
    ):
        raise ImportError(told)


# --- telemetry ------------------------------------------------------------------------------------

# Notes what is looked up and which processes are started, in these processes too.
WATCHED = """
import os, sys, time
notes = os.open({notes!r}, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
events = ("socket.getaddrinfo", "socket.gethost", "socket.connect", "os.fork", "subprocess.Popen")
def note(event, args):
    if event.startswith(events):
        os.write(notes, (event + repr(args) + os.linesep).encode())
sys.addaudithook(note)
{first}
from paramorph_rt.backends import choose_backend
from paramorph_rt.bundle import load_bundle
choose_backend(load_bundle({bundle!r}), {name!r})
time.sleep(1)  # a thread that sends would have begun
"""


def watched(bundle: Path, name: str, home: Path, first: str = "") -> tuple[list[str], set[str]]:
    """What an engine looks up, and what it leaves in an empty home and temporary folder."""
    (home / "tmp").mkdir(parents=True)
    notes = home.with_name("notes.txt")
    program = WATCHED.format(notes=str(notes), bundle=str(bundle), name=name, first=first)
    # OpenVINO sends nothing from a machine that says it is one of CI.
    decided = {"CI", "ORT_DISABLE_TELEMETRY", "XDG_CACHE_HOME"}
    environment = {
        k: v for k, v in os.environ.items() if k not in decided and "proxy" not in k.lower()
    }
    environment |= {"HOME": str(home), "TMPDIR": str(home / "tmp")}
    environment |= {"PYTHONPATH": os.pathsep.join(sys.path)}
    subprocess.run([sys.executable, "-c", program], env=environment, check=True)
    files = {str(p.relative_to(home)) for p in home.rglob("*") if p.is_file()}
    ours = ".cache/paramorph-rt/"
    return notes.read_text().splitlines(), {f for f in files if not f.startswith(ours)}


@pytest.mark.parametrize("name", ["onnxruntime", pytest.param("openvino", marks=needs_openvino)])
def test_engines_look_up_nobody_and_write_no_identity(bundle_path, tmp_path, name):
    assert watched(bundle_path, name, tmp_path / "home") == ([], set())


@needs_openvino
def test_telemetry_would_have_been_seen(bundle_path, tmp_path):
    """The same where somebody imported OpenVINO before us: the test above can fail."""
    asked, left = watched(bundle_path, "openvino", tmp_path / "home", "import openvino")
    assert any("google-analytics" in each for each in asked)
    assert any(file.startswith("intel/") for file in left)


def test_identity_would_have_been_seen(bundle_path, tmp_path):
    """ONNX Runtime's, where somebody wants its telemetry; versions before 1.30 have none."""
    first = "import os; os.environ['ORT_DISABLE_TELEMETRY'] = '0'"
    _, left = watched(bundle_path, "onnxruntime", tmp_path / "home", first)
    assert left
