"""A model card's head: what the runtime shows of a model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from paramorph_export.errors import ExportError

_FENCE = "---\n"


def read_card(path: Path) -> dict[str, Any]:
    """Licence, limits and results of a model card in the form of Hugging Face's.

    Returns:
        `license`, `limits`, and `results`: of each data set its name and its metrics.

    Raises:
        ExportError: No such file, or no head with these entries.
    """
    try:
        before, head, _ = path.read_text(encoding="utf-8").split(_FENCE, 2)
        fields = yaml.safe_load(head)
        results = [
            {"on": result["dataset"]["name"], **{m["type"]: m["value"] for m in result["metrics"]}}
            for result in fields["model-index"][0]["results"]
        ]
        card = {"license": fields["license"], "limits": fields["limits"], "results": results}
    except (OSError, ValueError, KeyError, TypeError, IndexError, yaml.YAMLError) as err:
        raise ExportError(
            f"{path}: expected a model card that begins with YAML between two lines ---, with "
            f"license, limits and model-index, got {type(err).__name__} ({err}); see "
            "models/weights/brain-t1-small.md."
        ) from err
    if before:
        raise ExportError(f"{path}: expected --- as the first line, got {before[:40]!r}.")
    return card
