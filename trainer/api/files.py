"""/v1/files"""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Query, Request
from fastapi.responses import FileResponse
from starlette.concurrency import run_in_threadpool

from shared.jobs import File
from trainer.api.upload import receive
from trainer.api.wire import After, Direction, InLayout, InStore, WithConfig, listed

router = APIRouter(prefix="/v1/files", tags=["files"])


@router.post("")
async def create(request: Request, config: WithConfig, layout: InLayout, store: InStore) -> File:
    """Multipart with `file` (JSONL, one chat a line) and `purpose` = fine-tune; checked at once."""
    file = await receive(request, layout, config.max_file_bytes)
    await run_in_threadpool(store.add_file, file)
    return file


@router.get("")
def list_files(
    store: InStore,
    after: After = None,
    limit: Annotated[int, Query(ge=1, le=10_000)] = 10_000,
    order: Direction = "desc",
    purpose: Annotated[str | None, Query(max_length=64)] = None,
) -> dict[str, object]:
    return listed(store.files(after=after, limit=limit, order=order, purpose=purpose))


@router.get("/{file_id}")
def retrieve(file_id: str, store: InStore) -> File:
    return store.file(file_id)


@router.get("/{file_id}/content")
def content(file_id: str, store: InStore, layout: InLayout) -> FileResponse:
    file = store.file(file_id)
    return FileResponse(layout.file(file.id), media_type="application/octet-stream", filename=file.filename)


@router.delete("/{file_id}")
def delete(file_id: str, store: InStore, layout: InLayout) -> dict[str, object]:
    store.delete_file(file_id)
    layout.file(file_id).unlink(missing_ok=True)
    return {"id": file_id, "object": "file", "deleted": True}
