"""Reading a request's body: counted before it is kept, parsed and checked in one pass."""

from __future__ import annotations

from typing import TypeVar

from fastapi import Request
from pydantic import BaseModel, ValidationError

from judge_service.api.problem import ApiProblem, invalid

M = TypeVar("M", bound=BaseModel)


async def read_body(request: Request, model: type[M], max_bytes: int) -> M:
    """Raises ApiProblem: as `read_bytes`, and 422 for what is not a `model`."""
    return parse_body(await read_bytes(request, max_bytes), model)


async def read_bytes(request: Request, max_bytes: int) -> bytes:
    """Raises ApiProblem: 413 for a body over `max_bytes`, 415 for an encoded one."""
    encoding = request.headers.get("content-encoding", "identity")
    if encoding.strip().lower() not in ("", "identity"):
        raise ApiProblem(415, f"send the body as it is: Content-Encoding {encoding!r} is not understood")
    declared = request.headers.get("content-length", "")
    if declared.isdecimal() and int(declared) > max_bytes:
        raise _too_large(max_bytes)
    chunks, size = [], 0
    async for chunk in request.stream():
        size += len(chunk)
        if size > max_bytes:
            raise _too_large(max_bytes)
        chunks.append(chunk)
    return b"".join(chunks)


def parse_body(body: bytes, model: type[M]) -> M:
    """Strictly: a number in quotes is a string. Raises ApiProblem 422 for what is not a `model`."""
    try:
        return model.model_validate_json(body, strict=True)
    except ValidationError as error:
        raise invalid(error) from None


def _too_large(max_bytes: int) -> ApiProblem:
    # No `Connection: close`: closing with bytes unread resets the connection, and the client would see
    # that instead of this answer. The server throws the rest away as it comes.
    return ApiProblem(413, f"the body is over {max_bytes} bytes")
