"""The OpenAPI document and the routes name the same paths, methods and limits."""

from __future__ import annotations

import json
import re
from typing import Any

import msgspec
import pytest

from edge_agent.local_api import routes
from edge_agent.local_api.oip import endpoints, messages
from edge_agent.local_api.openapi.document import document_json
from edge_agent.version import AGENT_VERSION
from tests.agent.local_api.small_service import SmallService

DOCUMENT: dict[str, Any] = json.loads(document_json())
OPERATIONS = [
    (method, path, operation)
    for path, operations in DOCUMENT["paths"].items()
    for method, operation in operations.items()
    if method != "parameters"
]


def test_the_document_is_served(service: SmallService) -> None:
    response = routes.respond(routes.Request(method="GET", path="/openapi.json"), service)

    assert (response.status, json.loads(response.body)) == (200, DOCUMENT)
    assert (DOCUMENT["openapi"], DOCUMENT["info"]["version"]) == ("3.1.0", AGENT_VERSION)


@pytest.mark.parametrize("path", DOCUMENT["paths"])
def test_every_path_takes_the_methods_that_the_document_lists(path: str) -> None:
    methods = routes._methods_at(re.sub(r"\{\w+\}", "name", path))

    listed = {method.upper() for method in DOCUMENT["paths"][path] if method != "parameters"}
    assert methods is not None
    assert set(methods) == listed


def test_no_path_is_missing_from_the_document() -> None:
    assert {*routes._ENDPOINTS, *endpoints._FIXED} <= set(DOCUMENT["paths"])
    for of_model in endpoints._OF_MODEL:
        assert f"/v2/models/{{model}}/versions/{{version}}/{of_model}".rstrip("/") in DOCUMENT["paths"]


def test_every_reference_leads_somewhere_and_every_schema_is_used() -> None:
    used = set(re.findall(r"#/components/schemas/(\w+)", json.dumps(DOCUMENT)))

    assert used == set(DOCUMENT["components"]["schemas"])


def test_operations_have_names_of_their_own() -> None:
    names = [operation["operationId"] for _, _, operation in OPERATIONS]

    assert len(set(names)) == len(names)


@pytest.mark.parametrize(
    ("schema", "struct"),
    [
        ("InferRequest", messages.InferRequest),
        ("InferParameters", messages.CallParameters),
        ("InputTensor", messages.InputTensor),
        ("RequestedOutput", messages.RequestedOutput),
        ("IndexRequest", messages.IndexRequest),
        ("LoadRequest", messages.LoadRequest),
        ("RegionRequest", messages.RegionRequest),
    ],
)
def test_the_document_knows_every_field_of_a_request(schema: str, struct: Any) -> None:
    described = DOCUMENT["components"]["schemas"][schema]

    assert set(described["properties"]) == set(struct.__struct_fields__)
    required = {field.name for field in msgspec.structs.fields(struct) if field.required}
    assert set(described.get("required", [])) == required
