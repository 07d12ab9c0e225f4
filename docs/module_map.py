"""Writes the map of the modules in CONTRIBUTING.md from their docstrings: `make docs` runs it."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "CONTRIBUTING.md"
PACKAGES = ("runtime/paramorph_rt", "models/paramorph", "export/paramorph_export")
START = "<!-- Written by docs/module_map.py from the first lines of the docstrings. -->\n"
END = "<!-- End of the map. -->\n"


def page() -> str:
    """CONTRIBUTING.md with the map as the modules are now."""
    text = PAGE.read_text(encoding="utf-8")
    before, rest = text.split(START)
    _, after = rest.split(END)
    return f"{before}{START}\n{module_map()}\n{END}{after}"


def module_map() -> str:
    """A list per folder, each entry a module and what it is for."""
    folders = [folder for package in PACKAGES for folder in _folders(ROOT / package)]
    return "\n".join(line for folder in folders for line in _entries(folder))


def _folders(package: Path) -> list[Path]:
    return sorted(path.parent for path in package.rglob("__init__.py"))


def _entries(folder: Path) -> Iterator[str]:
    yield f"**`{folder.relative_to(ROOT).as_posix()}/`** {_summary(folder / '__init__.py')}"
    yield ""
    for path in sorted(folder.glob("*.py")):
        if path.name != "__init__.py":
            yield f"- `{path.name}` {_summary(path)}"
    yield ""


def _summary(module: Path) -> str:
    """The first paragraph of a module's docstring, on one line."""
    text = ast.get_docstring(ast.parse(module.read_text(encoding="utf-8"))) or ""
    return " ".join(text.partition("\n\n")[0].split())


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
