"""What CONTRIBUTING.md says of how the runtime is built, read off its source."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from graphlib import TopologicalSorter
from pathlib import Path

import paramorph_rt

PACKAGE = Path(paramorph_rt.__file__).parent
ENGINES = {"openvino", "onnxruntime", "tensorrt", "tensorrt_rtx", "pycuda", "cuda"}


def modules() -> dict[str, Path]:
    """Path by full name."""
    paths = {
        path.relative_to(PACKAGE.parent).with_suffix("").as_posix().replace("/", "."): path
        for path in PACKAGE.rglob("*.py")
    }
    return {name.removesuffix(".__init__"): path for name, path in paths.items()}


def imported_by(name: str, path: Path) -> set[str]:
    """Full names of all that a module imports anywhere, also lazily or for type checkers only."""
    parents = name.split(".") if path.name == "__init__.py" else name.split(".")[:-1]
    names = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            above = parents[: len(parents) - node.level + 1] if node.level else []
            source = ".".join([*above, *([node.module] if node.module else [])])
            names |= {f"{source}.{alias.name}" for alias in node.names}
    return names


def known(name: str, among: dict[str, Path]) -> str:
    """The module itself, or the one that a name is imported from."""
    return name if name in among else name.rpartition(".")[0]


def test_no_module_imports_itself_by_way_of_others():
    every = modules()
    graph = {
        name: {known(each, every) for each in imported_by(name, path)} & (set(every) - {name})
        for name, path in every.items()
    }
    assert len(graph["paramorph_rt.geometry.compose"]) > 3
    TopologicalSorter(graph).prepare()  # names the modules of a cycle


def modules_with(pattern: str) -> set[str]:
    """Paths of the modules in whose text a regular expression is found."""
    return {
        path.relative_to(PACKAGE).as_posix()
        for path in PACKAGE.rglob("*.py")
        if re.search(pattern, path.read_text(encoding="utf-8"))
    }


def folders_of(paths: set[str]) -> set[str]:
    return {path.split("/")[0] for path in paths}


def imported_when_run(tree: ast.AST) -> Iterator[str]:
    """Packages that a module imports, except for type checkers."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            for each in node.orelse:
                yield from imported_when_run(each)
        elif isinstance(node, ast.Import):
            yield from (alias.name.split(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and not node.level:
            yield (node.module or "").split(".")[0]
        else:
            yield from imported_when_run(node)


def test_engines_are_imported_through_their_door_only():
    for path in PACKAGE.rglob("*.py"):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        assert not ENGINES & set(imported_when_run(tree)), path


def test_image_files_are_opened_in_images_only():
    opening = modules_with(
        r"nib\.load|nib\.save|ReadImage\(|ImageFileReader\(|WriteImage|from_stream"
    )
    assert "images/itk_files.py" in opening
    assert folders_of(opening) == {"images"}


def test_manifests_are_read_and_written_in_bundle_only():
    knowing = modules_with(r"manifest\.json\"|\bMANIFEST\b|\.manifest\b(?! import)|\bmanifest\[")
    assert "bundle/manifest.py" in knowing
    assert folders_of(knowing) == {"bundle"}


def test_itk_resampling_is_set_up_once():
    assert modules_with(r"ResampleImageFilter\(|sitk\.Resample\(") == {"geometry/resample.py"}
    assert modules_with(r"sitk\.Warp\(") == {"geometry/warp.py"}


def functions() -> Iterator[tuple[Path, list[str], ast.FunctionDef]]:
    """Each function of the runtime, with its module's path and lines."""
    for path in PACKAGE.rglob("*.py"):
        text = path.read_text(encoding="utf-8")
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.FunctionDef):
                yield path, text.splitlines(), node


def is_long(function: ast.FunctionDef) -> bool:
    """Over 40 lines without its docstring, or over 6 parameters."""
    first, given = function.body[0], function.args
    documented = first.end_lineno - first.lineno + 1 if ast.get_docstring(function) else 0
    names = [each.arg for each in (*given.posonlyargs, *given.args, *given.kwonlyargs)]
    parameters = len(set(names) - {"self", "cls"})
    return function.end_lineno - function.lineno + 1 - documented > 40 or parameters > 6


def test_a_long_function_says_why_beside_its_name():
    long = [each for each in functions() if is_long(each[2])]
    assert {node.name for _, _, node in long} >= {"__call__", "readme_of"}
    for path, lines, node in long:
        assert "  # " in lines[node.lineno - 1], f"{path}:{node.lineno} {node.name}"


def test_modules_fit_on_a_few_pages():
    for path in PACKAGE.rglob("*.py"):
        assert len(path.read_text(encoding="utf-8").splitlines()) <= 350, path
