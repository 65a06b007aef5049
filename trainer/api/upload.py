"""Taking a file in: streamed to disk under a cap, checked row by row, then in one rename there."""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import AsyncGenerator
from http import HTTPStatus
from typing import BinaryIO

from starlette.concurrency import run_in_threadpool
from starlette.datastructures import UploadFile
from starlette.formparsers import MultiPartException, MultiPartParser
from starlette.requests import Request

from shared.jobs import File
from trainer.api.errors import ApiError, bad_request
from trainer.data.rows import iter_rows
from trainer.jobs import ids
from trainer.jobs.layout import Layout

FORM_OVERHEAD = 64 * 1024
"""Bytes of a body that are not the file's: boundaries, headers, the other fields."""


class TooLarge(MultiPartException):
    """As the parser's own exception, so that it closes the files that it has begun."""


async def receive(request: Request, layout: Layout, max_bytes: int) -> File:
    """Raises ApiError, or DataError naming the wrong line; nothing is then kept."""
    if not request.headers.get("content-type", "").startswith("multipart/form-data"):
        raise bad_request(
            "the body must be multipart/form-data with the fields file and purpose", param="file"
        )
    parser = MultiPartParser(
        request.headers, _capped(request, max_bytes + FORM_OVERHEAD), max_files=1, max_fields=4
    )
    try:
        form = await parser.parse()
    except TooLarge as error:
        raise _too_large(max_bytes) from error
    except (MultiPartException, KeyError) as error:
        raise bad_request(f"the form could not be read: {error}", param="file") from error
    try:
        for name in form:
            if name not in ("file", "purpose"):
                raise bad_request(f"the field {name!r} is not offered", param=name, code="unknown_parameter")
        upload = form.get("file")
        if not isinstance(upload, UploadFile):
            raise bad_request("the form has no file in the field 'file'", param="file")
        if form.get("purpose") != "fine-tune":
            raise bad_request(
                f"purpose {str(form.get('purpose'))[:40]!r} is not offered; it must be 'fine-tune'",
                param="purpose",
            )
        if (upload.size or 0) > max_bytes:
            raise _too_large(max_bytes)
        return await run_in_threadpool(_keep, upload.file, upload.filename or "file.jsonl", layout)
    finally:
        await form.close()


async def _capped(request: Request, most: int) -> AsyncGenerator[bytes, None]:
    seen = 0
    async for chunk in request.stream():
        seen += len(chunk)
        if seen > most:
            raise TooLarge(f"more than {most} bytes")
        yield chunk


def _keep(source: BinaryIO, filename: str, layout: Layout) -> File:
    source.seek(0)
    for _row in iter_rows(source):
        pass
    file_id = ids.file_id()
    target = layout.file(file_id)
    partial = target.with_suffix(".partial")
    try:
        source.seek(0)
        with partial.open("wb") as file:
            shutil.copyfileobj(source, file)
            file.flush()
            os.fsync(file.fileno())
        size = partial.stat().st_size
        partial.replace(target)
    finally:
        partial.unlink(missing_ok=True)
    return File(
        id=file_id,
        bytes=size,
        created_at=int(time.time()),
        # A label for people; it is no path of ours.
        filename=filename[-255:].encode("utf-8", "replace").decode("utf-8"),
        purpose="fine-tune",
    )


def _too_large(max_bytes: int) -> ApiError:
    return ApiError(
        HTTPStatus.REQUEST_ENTITY_TOO_LARGE,
        f"the file is larger than {max_bytes} bytes",
        param="file",
        code="file_too_large",
    )
