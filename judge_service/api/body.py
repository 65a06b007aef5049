"""Reading a request's body: counted before it is kept, parsed and checked in one pass."""

from __future__ import annotations

from typing import Any, TypeVar

from fastapi import Request
from pydantic import BaseModel, ValidationError

from judge_service.api.problem import ApiProblem, invalid

M = TypeVar("M", bound=BaseModel)


async def read_body(request: Request, model: type[M], max_bytes: int) -> M:
    """Raises ApiProblem: 413 for a body over `max_bytes`, 422 for one that is not a `model`."""
    declared = request.headers.get("content-length", "")
    if declared.isdecimal() and int(declared) > max_bytes:
        raise _too_large(max_bytes)
    chunks, size = [], 0
    async for chunk in request.stream():
        size += len(chunk)
        if size > max_bytes:
            raise _too_large(max_bytes)
        chunks.append(chunk)
    try:
        return model.model_validate_json(b"".join(chunks))
    except ValidationError as error:
        raise invalid(error) from None


def _too_large(max_bytes: int) -> ApiProblem:
    # No `Connection: close`: closing with bytes unread resets the connection, and the client would see
    # that instead of this answer. The server throws the rest away as it comes.
    return ApiProblem(413, f"the body is over {max_bytes} bytes")


def openapi_body(model: type[BaseModel]) -> dict[str, Any]:
    """`openapi_extra` of a route that reads `model` itself; `add_schemas` puts the schemas there."""
    schema = {"$ref": f"#/components/schemas/{model.__name__}"}
    return {"requestBody": {"required": True, "content": {"application/json": {"schema": schema}}}}


def add_schemas(openapi: dict[str, Any], *models: type[BaseModel]) -> None:
    schemas = openapi.setdefault("components", {}).setdefault("schemas", {})
    for model in models:
        schema = model.model_json_schema(ref_template="#/components/schemas/{model}")
        schemas.update(schema.pop("$defs", {}))
        schemas[model.__name__] = schema
