"""A request's body, bounded, and as the model it should be."""

from __future__ import annotations

from typing import TypeVar

from fastapi import Request
from pydantic import BaseModel, ValidationError
from pydantic_core import from_json

from trainer.api.errors import bad_request, from_validation

T = TypeVar("T", bound=BaseModel)


async def read_body(request: Request, max_bytes: int) -> bytes:
    """Raises ApiError past `max_bytes`, without reading on."""
    raw = bytearray()
    async for chunk in request.stream():
        raw += chunk
        if len(raw) > max_bytes:
            raise bad_request(f"the body is longer than {max_bytes} bytes", code="body_too_large")
    return bytes(raw)


def parse_body(raw: bytes, model: type[T]) -> T:
    """By pydantic from the bytes, so that NaN, broken UTF-8 and deep nesting are its errors.

    Raises ApiError naming the first wrong field.
    """
    try:
        return model.model_validate_json(raw)
    except ValidationError as error:
        if error.errors()[0]["type"] == "json_invalid":
            raise bad_request(
                f"the body is not JSON: {error.errors()[0]['msg']}", code="invalid_json"
            ) from error
        raise from_validation(error, from_json(raw)) from error
