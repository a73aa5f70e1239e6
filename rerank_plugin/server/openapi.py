"""The OpenAPI description of the endpoints, out of the fields of their formats."""

from collections.abc import Mapping
from typing import Any

from pydantic import TypeAdapter

from rerank_plugin import __version__
from rerank_plugin.server.formats.base import Format
from rerank_plugin.server.refusals import Reason

#: Where the schemas are.
SCHEMAS = "#/components/schemas/{model}"

#: The endpoints that take no body, with their summaries.
DESCRIPTIONS = {
    "/": "A page to try the models",
    "/health": "Whether the model is loaded",
    "/info": "The models and the limits",
    "/metrics": "Measurements in the format of Prometheus",
    "/v1/models": "The names of the models",
}


def openapi(endpoints: Mapping[str, Mapping[str, Format]], *, has_key: bool) -> dict[str, Any]:
    """Return the OpenAPI description of a server.

    Args:
        endpoints: The formats of each path.
        has_key: Whether requests need an API key.
    """
    formats = {format.name: format for known in endpoints.values() for format in known.values()}
    schemas, definitions = TypeAdapter.json_schemas(
        [
            (f"{name} {part}", "validation", TypeAdapter(getattr(format, part)))
            for name, format in formats.items()
            for part in ("request", "response", "error")
        ],
        ref_template=SCHEMAS,
    )
    known = {name: schema for (name, _), schema in schemas.items()}
    paths: dict[str, Any] = {
        path: {"post": ranking(list(formats.values()), known)}
        for path, formats in endpoints.items()
    }
    for path, summary in DESCRIPTIONS.items():
        paths[path] = {"get": {"summary": summary, "responses": {"200": {"description": "OK"}}}}
    described: dict[str, Any] = {
        "openapi": "3.1.0",
        "info": {"title": "rerank-plugin", "version": __version__},
        "paths": paths,
        "components": {"schemas": definitions.get("$defs", {})},
    }
    if has_key:
        described["components"]["securitySchemes"] = {"key": {"type": "http", "scheme": "bearer"}}
        described["security"] = [{"key": []}]
    return described


def ranking(formats: list[Format], schemas: Mapping[str, Any]) -> dict[str, Any]:
    """Return the description of an endpoint that ranks, in any of some formats."""

    def content(part: str) -> dict[str, Any]:
        found = [schemas[f"{format.name} {part}"] for format in formats]
        schema = found[0] if len(found) == 1 else {"anyOf": found}
        return {"application/json": {"schema": schema}}

    responses = {"200": {"description": "The ranking", "content": content("response")}}
    for status in sorted({str(format.status(reason)) for format in formats for reason in Reason}):
        responses[status] = {"description": "An error", "content": content("error")}
    return {
        "summary": f"Rank documents, in the format of {' or '.join(f.name for f in formats)}",
        "requestBody": {"required": True, "content": content("request")},
        "responses": responses,
    }
