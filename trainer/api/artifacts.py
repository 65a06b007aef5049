"""/v1/fine_tuning/jobs/{id}/artifact: the model that a job made."""

from __future__ import annotations

import tarfile
from collections.abc import Iterator
from http import HTTPStatus
from pathlib import Path

from fastapi import APIRouter
from fastapi.responses import FileResponse, StreamingResponse

from shared.jobs import JobStatus
from trainer.api.errors import ApiError
from trainer.api.wire import InLayout, InStore
from trainer.jobs.layout import Layout
from trainer.jobs.store import Store
from trainer.training.run_spec import ARTIFACT

router = APIRouter(prefix="/v1/fine_tuning/jobs/{fine_tuning_job_id}", tags=["artifacts"])

CHUNK = 1024 * 1024


@router.get("/artifact")
def list_artifact(fine_tuning_job_id: str, store: InStore, layout: InLayout) -> dict[str, object]:
    files = _files(_folder(fine_tuning_job_id, store, layout))
    data = [{"name": name, "bytes": path.stat().st_size} for name, path in files.items()]
    return {"object": "list", "data": data}


@router.get("/artifact.tar")
def tar(fine_tuning_job_id: str, store: InStore, layout: InLayout) -> StreamingResponse:
    """All files in one, in a folder named like the job."""
    files = _files(_folder(fine_tuning_job_id, store, layout))
    return StreamingResponse(
        tar_stream(files, fine_tuning_job_id),
        media_type="application/x-tar",
        headers={"Content-Disposition": f'attachment; filename="{fine_tuning_job_id}.tar"'},
    )


@router.get("/artifact/{name:path}")
def download(fine_tuning_job_id: str, name: str, store: InStore, layout: InLayout) -> FileResponse:
    # Looked up among the files that there are: no name leads out of the folder.
    path = _files(_folder(fine_tuning_job_id, store, layout)).get(name)
    if path is None:
        raise ApiError(
            HTTPStatus.NOT_FOUND, f"the artifact has no file {name[:80]!r}", param="name", code="not_found"
        )
    return FileResponse(path, media_type="application/octet-stream", filename=path.name)


def tar_stream(files: dict[str, Path], folder: str) -> Iterator[bytes]:
    """A tar of files of any size in little memory."""
    for name, path in files.items():
        entry = tarfile.TarInfo(f"{folder}/{name}")
        with path.open("rb") as file:
            entry.size = path.stat().st_size
            entry.mtime = int(path.stat().st_mtime)
            yield entry.tobuf(tarfile.PAX_FORMAT)
            while chunk := file.read(CHUNK):
                yield chunk
        yield b"\0" * (-entry.size % tarfile.BLOCKSIZE)
    yield b"\0" * (2 * tarfile.BLOCKSIZE)


def _folder(job_id: str, store: Store, layout: Layout) -> Path:
    job = store.job(job_id)
    folder = layout.run(job.id) / ARTIFACT
    if job.status is not JobStatus.SUCCEEDED or not folder.is_dir():
        raise ApiError(
            HTTPStatus.NOT_FOUND,
            f"job {job_id} is {job.status.value}; only a job that succeeded has an artifact",
            param="fine_tuning_job_id",
            code="no_artifact",
        )
    return folder


def _files(folder: Path) -> dict[str, Path]:
    return {path.relative_to(folder).as_posix(): path for path in sorted(folder.rglob("*")) if path.is_file()}
