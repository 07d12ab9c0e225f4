"""Writes the JSON Schemas of metrics.json and record.json into schemas/: `make docs` runs it."""

from __future__ import annotations

import json
from pathlib import Path

from paramorph_rt.results.schemas import metrics_schema, record_schema

FOLDER = Path(__file__).with_name("schemas")


def texts() -> dict[str, str]:
    """Content of each file by its name: what the schema describes, and the number of its `$id`."""
    return {
        f"{kind}-{schema['$id'].rpartition(':')[2]}.json": json.dumps(schema, indent=2) + "\n"
        for kind, schema in (("metrics", metrics_schema()), ("record", record_schema()))
    }


if __name__ == "__main__":
    FOLDER.mkdir(exist_ok=True)
    for name, text in texts().items():
        (FOLDER / name).write_text(text, encoding="utf-8")
