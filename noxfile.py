"""Clean environments, each with what one kind of user installs: `nox --list`, `nox -s base_wheel`.

Every session builds the package, installs it into a new environment without the developers' tools,
and there, far from the source, registers Colin27 to a deformed copy (tests/installed).
"""

from __future__ import annotations

import os
import shutil
import sys
from pathlib import Path

import nox

ROOT = Path(__file__).parent
COLIN27 = ROOT / "examples" / "colin27"
INSTALLED = ROOT / "tests" / "installed"
PYTHONS = ["3.11", "3.12", "3.13"]
# torch by number: a looser request brings gigabytes of CUDA libraries on Linux.
TORCH = "torch==2.13.0"
EXTRAS = (
    "openvino",
    "report",
    "cluster",
    "signing",
    "tensorrt-rtx",
    "tensorrt-rtx-onnxruntime",
    "cuda",
    "export",
    "train",
)

_built: list[Path] = []  # where this run has put wheel and sdist

nox.options.default_venv_backend = "venv"
nox.options.sessions = ["base_wheel", "extra"]
nox.options.error_on_missing_interpreters = False


def built(session: nox.Session, kind: str) -> Path:
    """The package as `kind` ("wheel" or "sdist"), built of the source as it is, once in a run."""
    folder = Path(session.cache_dir).absolute() / "dist"
    if not _built:
        shutil.rmtree(folder, ignore_errors=True)
        builder = Path(session.create_tmp()).absolute() / "builder"  # the package lacks tools
        session.run("python", "-m", "venv", "--clear", str(builder))
        programs = builder / ("Scripts" if os.name == "nt" else "bin")
        python = str(programs / "python")
        session.run(python, "-m", "pip", "install", "--quiet", "build", external=True)
        # An sdist first and the wheel from it, in which a file that the sdist lacks is missing too.
        command = [python, "-m", "build", "--outdir", str(folder), str(ROOT)]
        session.run(*command, silent=True, external=True)
        _built.append(folder)
    return next(folder.glob("*.whl" if kind == "wheel" else "*.tar.gz"))


def install(session: nox.Session, package: Path, extra: str = "", *more: str) -> None:
    """Install the package into an environment that holds nothing else."""
    wanted = f"{package}[{extra}]" if extra else str(package)
    session.install(wanted, *more)
    session.run("python", "-m", "pip", "check")


def run_outside(session: nox.Session, *command: str) -> None:
    """Run in an empty folder, with an empty home and without whatever was set for developers."""
    work = Path(session.create_tmp()).absolute()
    with session.chdir(work):
        session.run(
            *command,
            env={"HOME": str(work), "PYTHONPATH": "", "PARAMORPH_MODEL": "", "XDG_CACHE_HOME": ""},
        )


def register(session: nox.Session, backend: str = "auto") -> None:
    """Register as a user does."""
    work = Path(session.create_tmp()).absolute() / "work"
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir(parents=True)
    script = str(INSTALLED / "register.py")
    run_outside(session, "python", script, str(COLIN27), str(work), backend)


def use(session: nox.Session, extra: str) -> None:
    """Do what an extra is for."""
    run_outside(session, "python", str(INSTALLED / "extras.py"), extra, str(COLIN27), str(ROOT))


@nox.session(python=PYTHONS)
def base_wheel(session: nox.Session) -> None:
    """`pip install paramorph-rt`: registers with the model that comes along."""
    install(session, built(session, "wheel"))
    register(session, "onnxruntime")
    use(session, "base")


@nox.session(python=PYTHONS)
def base_sdist(session: nox.Session) -> None:
    """The same from the sdist, as where no wheel is taken."""
    install(session, built(session, "sdist"))
    register(session, "onnxruntime")


@nox.session(python=PYTHONS[0])
@nox.parametrize("name", EXTRAS, ids=EXTRAS)
def extra(session: nox.Session, name: str) -> None:
    """An extra alone on top of the base."""
    more = [TORCH] if name in ("export", "train") else []
    install(session, built(session, "wheel"), name, *more)
    if name == "openvino":
        register(session, "openvino")
    else:
        use(session, name)


@nox.session(python=False)
def lint(session: nox.Session) -> None:
    """`make lint` with the tools that are at hand."""
    for command in (("ruff", "check", "."), ("ruff", "format", "--check", "."), ("mypy",)):
        session.run(sys.executable, "-m", *command)


@nox.session(python=PYTHONS[0])
def metadata(session: nox.Session) -> None:
    """What a package index would say of the wheel and the sdist."""
    session.install("twine")
    packages = [str(built(session, kind)) for kind in ("wheel", "sdist")]
    session.run("twine", "check", "--strict", *packages)
