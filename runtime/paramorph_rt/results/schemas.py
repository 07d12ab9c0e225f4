"""JSON Schemas of metrics.json and record.json, made from what is known of metrics.

Their names are URNs, which a file holds under `schema`: no site serves them, and a name that looks
like an address but leads nowhere would be worse. A change that breaks readers gets a new number.

Source: JSON Schema, draft 2020-12, https://json-schema.org
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ..metrics.definitions import METRICS as DEFINED

if TYPE_CHECKING:
    from ..metrics.definitions import Kind

DIALECT = "https://json-schema.org/draft/2020-12/schema"
METRICS = "urn:paramorph-rt:schema:metrics:2"
RECORD = "urn:paramorph-rt:schema:record:1"

Schema = dict[str, Any]


def _string(description: str = "", **more: Any) -> Schema:
    return {"type": "string", **({"description": description} if description else {}), **more}


def _table(values: Schema, description: str = "", **more: Any) -> Schema:
    """An object whose keys are names."""
    said = {"description": description} if description else {}
    return {"type": "object", "additionalProperties": values, **said, **more}


def _fields(description: str = "", **fields: Schema) -> Schema:
    """An object that has all of these keys, and may get others in time."""
    said = {"description": description} if description else {}
    return {"type": "object", **said, "properties": fields, "required": list(fields)}


NUMBER: Schema = {"type": ["number", "null"]}
SHA256 = _string(pattern="^[0-9a-f]{64}$")
LABEL_NUMBER = _string(pattern="^-?[0-9]+$")
KINDS: dict[Kind, Schema] = {
    "number": NUMBER,
    "stages": _table(NUMBER, "by stage: before, affine, after"),
    "labels": _table(
        _fields(mean=NUMBER, labels=_table(NUMBER, propertyNames=LABEL_NUMBER)),
        "by stage, by label; the mean is over the labels that both images have",
    ),
    "table": _table({"anyOf": [NUMBER, _table(NUMBER)]}, "by name"),
}


def metrics_schema() -> Schema:
    """Of metrics.json, as `infer` and `cohort` write it."""
    fields: dict[str, Schema] = {
        "schema": {"const": METRICS},
        "moving": _string("name of the file"),
        "fixed": _string("name of the file"),
        "warnings": {"type": "array", "items": _string(), "description": "what looks wrong"},
        "quality": _quality(),
        "affine": {"anyOf": [_affine(), {"type": "null", "description": "without a search"}]},
        "model": _string("name of the bundle that was used, or none"),
        "backend": _or_null(_string("inference engine that ran"), "without a model"),
        "precision": _or_null(_string("of the network"), "without a model"),
        "network_grid": _or_null(_network_grid(), "without a model"),
        "refinement": _or_null(_refinement(), "the field is the network's own"),
        **{
            key: {**KINDS[metric.kind], "title": metric.heading, "description": metric.meaning}
            for key, metric in DEFINED.items()
        },
        "nsd_tolerance_mm": {"type": "number"},
        "definitions": _table(_string(), "what each metric is"),
        "label_names": _table(_string(), "as far as they were given", propertyNames=LABEL_NUMBER),
        "provenance": _provenance(),
        "seconds": _table({"type": "number"}, "by stage"),
    }
    # Without labels, and called from Python, there is less.
    optional = {*DEFINED, "nsd_tolerance_mm", "label_names", "provenance"} - {"ncc"}
    return {
        **_head(METRICS, "metrics.json", "What a registration gave, and how it came about."),
        "type": "object",
        "properties": fields,
        "required": [name for name in fields if name not in optional],
    }


def _or_null(schema: Schema, when_null: str) -> Schema:
    return {"anyOf": [schema, {"type": "null", "description": when_null}]}


def _quality() -> Schema:
    flag = _fields(
        "one thing that looks wrong",
        name=_string("of the check"),
        of=_string("what it is about", enum=["moving", "fixed", "pair"]),
        value=_or_null({"type": "number"}, "it is no number"),
        limit=_or_null({"type": "number"}, "there is none"),
        sentence=_string("for people"),
    )
    return _fields(
        "how far to believe the result",
        score={
            "type": "number",
            "minimum": 0,
            "maximum": 1,
            "description": "how probable it is that a rater would accept the result",
        },
        evidence=_table(NUMBER, "what the score is made from"),
        choice=_fields(
            "which model was used",
            name=_string("of the bundle, or none"),
            reason=_or_null(_string("why it is not the first candidate"), "it is"),
        ),
        flags={
            "type": "array",
            "items": flag,
            "description": "all that looks wrong; warnings are those that the choice leaves",
        },
    )


def _network_grid() -> Schema:
    three = {"type": "array", "minItems": 3, "maxItems": 3}
    return _fields(
        "grid on which the network ran",
        shape={**three, "items": {"type": "integer"}},
        spacing_mm={**three, "items": {"type": "number"}},
        spacing_growth={"type": "number", "description": "above 1: coarser than in training"},
    )


def _refinement() -> Schema:
    level = _fields(
        "one resolution, coarse to fine",
        spacing_mm={"type": "number"},
        iterations={"type": "integer", "minimum": 0},
        step={"type": "number", "description": "length of the longest vector, in spacings"},
        force_sigma={"type": "number", "description": "smoothing of the force, in spacings"},
        field_sigma={"type": "number", "description": "smoothing of the field, in spacings"},
        feature_sigma={"type": "number", "description": "the same where features are compared"},
        features={"type": "number", "description": "weight of the features' force"},
    )
    return _fields(
        "of the field on the pair itself",
        engine=_string("what ran it", enum=["compiled", "onnxruntime", "network"]),
        features={"type": "boolean", "description": "whether the model's features were compared"},
        smoothing={"type": "number", "description": "factor on feature_sigma, by the model"},
        metric=_string(
            "local correlation of intensities alone, or with descriptors of self-similarity",
            enum=["ncc", "mind"],
        ),
        levels={"type": "array", "items": level},
    )


def record_schema() -> Schema:
    """Of record.json, which vouches for the results of a cohort's pair."""
    return {
        **_head(RECORD, "record.json", "What the results of a cohort's pair were made of."),
        **_fields(
            schema={"const": RECORD},
            name=_string("of the pair"),
            provenance=_provenance(),
            warnings={"type": "array", "items": _string()},
            process={"type": "integer", "description": "number of the process that registered it"},
            files=_table({"type": "integer", "minimum": 0}, "bytes of each result"),
        ),
    }


def _head(name: str, title: str, description: str) -> Schema:
    return {"$schema": DIALECT, "$id": name, "title": title, "description": description}


def _affine() -> Schema:
    return _fields(
        "the affine alignment",
        kind=_string("of the transform", enum=["rigid", "similarity", "affine"]),
        mutual_information=_table({"type": "number"}, "nats, before and after"),
        uncertainty_coefficient={
            "type": "number",
            "description": "mutual information by the entropy of the fixed image",
        },
        foreground_overlap={"type": "number", "description": "share of the smaller foreground"},
    )


def _provenance() -> Schema:
    return _fields(
        "how the result came about",
        software=_table(_string(), "versions of packages"),
        options=_table({"type": ["string", "boolean", "integer"]}, "what was requested"),
        inputs=_table(
            _fields(path=_string("absolute"), sha256=SHA256),
            "files by what they are; of folders, the hash of all within",
        ),
        model={
            "type": "object",
            "properties": {
                "name": _string("of what may run: bundles, or none, with no more to say"),
                "sha256": _table(SHA256, "of its files that may run"),
                "backend": _string("inference engine that ran"),
                "precision": _string("of the network"),
            },
            "required": ["name"],
        },
        threads={"type": "integer", "minimum": 1},
        platform=_fields(
            system=_string("such as Linux"),
            machine=_string("such as x86_64"),
            python=_string("its version"),
            host=_string("name of the machine"),
        ),
        date=_string("when it was registered", format="date-time"),
    )
