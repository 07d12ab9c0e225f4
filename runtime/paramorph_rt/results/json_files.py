"""JSON files of results, written so that every reader takes them."""

from __future__ import annotations

import json
import math
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Write a JSON file for people, too."""
    path.write_text(json_text(content), encoding="utf-8")


def json_text(content: Mapping[str, Any], indent: int | None = 2) -> str:
    """JSON as every reader takes it: what is no finite number is null."""
    try:
        text = json.dumps(content, indent=indent, allow_nan=False)
    except ValueError:
        text = json.dumps(_finite(content), indent=indent, allow_nan=False)
    return f"{text}\n"


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _finite(entry) for key, entry in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(entry) for entry in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
