"""The schemas of bodies that the local API takes and gives. Limits come from the code that enforces them.

What is taken allows unknown fields, as the decoders do; what is given is closed, so that a test of the answers
against the document finds every field that the document forgot.
"""

from __future__ import annotations

from typing import Any

from edge_agent.local_api.oip.messages import MAX_RANK, MAX_SIZE, MAX_TENSORS, MAX_TIMEOUT_US
from edge_agent.local_api.routes import MAX_BATCH_ITEMS, MAX_OUTCOMES
from edge_agent.local_api.service import RepositoryState

Schema = dict[str, Any]

MODEL_TYPES = (
    "BOOL", "UINT8", "UINT16", "UINT32", "UINT64", "INT8", "INT16", "INT32", "INT64", "FP16", "FP32", "FP64", "BYTES",
)  # fmt: skip
WIRE_TYPES = (*MODEL_TYPES, "BF16")
STRING: Schema = {"type": "string"}
BOOLEAN: Schema = {"type": "boolean"}
NUMBER: Schema = {"type": "number"}
COUNT: Schema = {"type": "integer", "minimum": 0}
SIZE: Schema = {**COUNT, "maximum": MAX_SIZE}


def ref(name: str) -> Schema:
    """A reference to one of `schemas`."""
    return {"$ref": f"#/components/schemas/{name}"}


def array(items: Schema, **more: Any) -> Schema:
    """A list of `items`."""
    return {"type": "array", "items": items, **more}


def given(properties: dict[str, Schema], *, optional: tuple[str, ...] = (), about: str = "") -> Schema:
    """An object of an answer: exactly these properties."""
    required = [name for name in properties if name not in optional]
    schema: Schema = {"type": "object", "properties": properties, "additionalProperties": False}
    return {**schema, **({"required": required} if required else {}), **({"description": about} if about else {})}


def taken(properties: dict[str, Schema], *, required: tuple[str, ...] = (), about: str = "") -> Schema:
    """An object of a request: these properties, and others that are ignored."""
    schema: Schema = {"type": "object", "properties": properties}
    return {**schema, **({"required": [*required]} if required else {}), **({"description": about} if about else {})}


def or_null(schema: Schema) -> Schema:
    """`schema`, or null."""
    if isinstance(schema.get("type"), str) and "enum" not in schema:
        return {**schema, "type": [schema["type"], "null"]}
    return {"anyOf": [schema, {"type": "null"}]}


def schemas() -> dict[str, Schema]:
    """Every named schema."""
    return {**_shared(), **_native(), **_described(), **_inference()}


def _shared() -> dict[str, Schema]:
    return {
        "Error": given({"error": {**STRING, "minLength": 1}}, about="What was wrong and what to change."),
        "Empty": given({}, about="Nothing more to say."),
        "Tensor": given(
            {"name": STRING, "datatype": {**STRING, "enum": [*MODEL_TYPES]}, "shape": array({"type": "integer"})},
            about="A model's input or output; -1 is a variable dimension.",
        ),
    }


def _native() -> dict[str, Schema]:
    tensor: Schema = {"type": ["array", "number", "boolean", "string"]}
    sample: Schema = {
        "description": "Tensors by input name, or one tensor for a model with a single input.",
        "anyOf": [{"type": "object", "additionalProperties": tensor}, {"type": "array"}],
    }
    truth: Schema = {
        "oneOf": [
            taken({"id": STRING, "label": {"type": ["integer", "string"]}}, required=("id", "label")),
            taken({"id": STRING, "value": NUMBER}, required=("id", "value")),
            taken({"id": STRING, "correct": BOOLEAN}, required=("id", "correct")),
        ],
        "description": "The truth about one prediction, in exactly one form: class (index or name), value, or verdict.",
    }
    prediction = given(
        {
            "id": {**STRING, "description": "Names this prediction for its later outcome."},
            "model": STRING,
            "version": STRING,
            "variant": STRING,
            "arm": STRING,
            "outputs": {"type": "object", "description": "Nested lists by output name; NaN and infinities are null."},
            "label": or_null(STRING),
            "class": or_null(COUNT),
            "latency_us": {**NUMBER, "minimum": 0},
        }
    )
    return {
        "Health": given({"ready": BOOLEAN, "reasons": array(STRING)}),
        "Models": given({"models": array(ref("Model"))}),
        "Model": given(
            {
                "name": STRING,
                "version": STRING,
                "variant": STRING,
                "arm": STRING,
                "bundle": or_null(STRING),
                "phase": STRING,
                "inputs": array(ref("Tensor")),
                "outputs": array(ref("Tensor")),
                "labels": array(STRING),
                "weight": {**NUMBER, "minimum": 0},
                "shadow": BOOLEAN,
                "max_batch": {"type": "integer", "minimum": 1},
                "memory_bytes": or_null(COUNT),
            }
        ),
        "PredictRequest": taken({"model": or_null(STRING), "inputs": sample}, required=("inputs",)),
        "Prediction": prediction,
        "BatchRequest": taken(
            {"model": or_null(STRING), "inputs": {"type": "array", "maxItems": MAX_BATCH_ITEMS}}, required=("inputs",)
        ),
        "Predictions": given({"predictions": array({"anyOf": [ref("Prediction"), ref("Error")]})}),
        "Outcome": truth,
        "Outcomes": taken(
            {"outcomes": {"type": "array", "maxItems": MAX_OUTCOMES}},
            required=("outcomes",),
            about="Each is an Outcome; one that is not is rejected alone.",
        ),
        "OutcomesAccepted": given(
            {"accepted": COUNT, "rejected": array(given({"index": COUNT, "error": STRING}))},
        ),
    }


def _described() -> dict[str, Schema]:
    duration = given({"count": COUNT, "ns": COUNT})
    stages = ("success", "fail", "queue", "compute_input", "compute_infer", "compute_output", "cache_hit", "cache_miss")
    return {
        "Live": given({"live": BOOLEAN}),
        "Ready": given({"ready": BOOLEAN}),
        "NotReady": given({"ready": BOOLEAN, "name": STRING, "error": STRING}, optional=("name",)),
        "ModelReady": given({"name": STRING, "ready": BOOLEAN}),
        "ServerMetadata": given({"name": STRING, "version": STRING, "extensions": array(STRING)}),
        "ModelMetadata": given(
            {
                "name": STRING,
                "versions": array(STRING, minItems=1),
                "platform": STRING,
                "inputs": array(ref("Tensor")),
                "outputs": array(ref("Tensor")),
            }
        ),
        "ModelConfig": given(
            {
                "name": STRING,
                "platform": STRING,
                "backend": STRING,
                "max_batch_size": COUNT,
                "input": array(ref("ConfigTensor")),
                "output": array(ref("ConfigTensor")),
            }
        ),
        "ConfigTensor": given({"name": STRING, "data_type": STRING, "dims": array({"type": "integer"})}),
        "Statistics": given({"model_stats": array(ref("ModelStatistics"))}),
        "ModelStatistics": given(
            {
                "name": STRING,
                "version": STRING,
                "arm": STRING,
                "last_inference": COUNT,
                "inference_count": COUNT,
                "execution_count": COUNT,
                "inference_stats": given(dict.fromkeys(stages, duration)),
                "batch_stats": array(given({"batch_size": COUNT, "compute_infer": given({"count": COUNT})})),
                "memory_usage": array(given({"type": STRING, "id": COUNT, "byte_size": COUNT})),
            }
        ),
        "Index": array(ref("RepositoryEntry")),
        "RepositoryEntry": given(
            {
                "name": STRING,
                "version": STRING,
                "state": {**STRING, "enum": [state.value for state in RepositoryState]},
                "reason": STRING,
            }
        ),
        "IndexRequest": taken({"ready": BOOLEAN}),
        "LoadRequest": taken({"parameters": or_null({"type": "object"})}),
        "RegionRequest": taken(
            {"key": STRING, "offset": SIZE, "byte_size": {**SIZE, "minimum": 1}}, required=("key", "byte_size")
        ),
        "Region": given({"name": STRING, "key": STRING, "offset": COUNT, "byte_size": COUNT}),
        "Regions": array(ref("Region")),
    }


def _inference() -> dict[str, Schema]:
    place = {
        "shared_memory_region": or_null(STRING),
        "shared_memory_byte_size": or_null(SIZE),
        "shared_memory_offset": SIZE,
    }
    tensors = {"maxItems": MAX_TENSORS}
    return {
        "InferRequest": taken(
            {
                "id": or_null(STRING),
                "parameters": or_null(ref("InferParameters")),
                "inputs": array(ref("InputTensor"), **tensors),
                "outputs": or_null(array(ref("RequestedOutput"), **tensors)),
            },
            required=("inputs",),
        ),
        "InferParameters": taken(
            {
                "priority": {**SIZE, "description": "1 is the highest; 0, the default, comes after 100."},
                "timeout": {**COUNT, "maximum": MAX_TIMEOUT_US, "description": "Microseconds; 0 is none."},
                "binary_data_output": BOOLEAN,
                "key": or_null({**STRING, "description": "The same key always meets the same arm of the model."}),
                "prediction_id": {**BOOLEAN, "description": "Ask for the id that an outcome names."},
                "sequence_id": {"type": ["integer", "string"], "description": "Sequences are refused."},
                "sequence_start": BOOLEAN,
                "sequence_end": BOOLEAN,
            }
        ),
        "InputTensor": taken(
            {
                "name": STRING,
                "shape": array(SIZE, maxItems=MAX_RANK),
                "datatype": {**STRING, "enum": [*WIRE_TYPES]},
                "data": {"type": "array", "description": "Flat, or nested as shape says."},
                "parameters": or_null(taken({"binary_data_size": or_null(SIZE), **place})),
            },
            required=("name", "shape", "datatype"),
        ),
        "RequestedOutput": taken(
            {
                "name": STRING,
                "parameters": or_null(
                    taken(
                        {
                            "binary_data": or_null(BOOLEAN),
                            "classification": SIZE,
                            "datatype": {"enum": ["BF16", None]},
                            **place,
                        }
                    )
                ),
            },
            required=("name",),
        ),
        "InferResponse": given(
            {
                "model_name": STRING,
                "model_version": STRING,
                "id": STRING,
                "parameters": given({"prediction_id": STRING}),
                "outputs": array(ref("OutputTensor")),
            },
            optional=("id", "parameters"),
        ),
        "OutputTensor": given(
            {
                "name": STRING,
                "datatype": {**STRING, "enum": [*WIRE_TYPES]},
                "shape": array(COUNT),
                "data": {"type": "array", "items": {"type": ["number", "boolean", "string"]}},
                "parameters": given(
                    {
                        "binary_data_size": COUNT,
                        "shared_memory_region": STRING,
                        "shared_memory_offset": COUNT,
                        "shared_memory_byte_size": COUNT,
                    },
                    optional=(
                        "binary_data_size",
                        "shared_memory_region",
                        "shared_memory_offset",
                        "shared_memory_byte_size",
                    ),
                ),
            },
            optional=("data", "parameters"),
        ),
    }
