"""Write the refinement's graphs into the runtime: `python export/write_refinement.py`."""

from __future__ import annotations

from importlib.resources import files
from pathlib import Path

from paramorph_rt.errors import imports_of

with imports_of("write_refinement", "export"):
    import onnx

    from paramorph_export.refinement import REFINEMENT_GRAPHS


def main() -> None:
    folder = Path(str(files("paramorph_rt.refinement")))
    for name, graph in REFINEMENT_GRAPHS.items():
        onnx.save(graph(), folder / name)
        print(folder / name)


if __name__ == "__main__":
    main()
