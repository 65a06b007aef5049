"""/v1/fine_tuning/jobs"""

from __future__ import annotations

import re
import secrets
from collections.abc import Mapping
from typing import Annotated

from fastapi import APIRouter, Depends, Query, Request

from shared.jobs import CreateJob, Job
from trainer.api.errors import bad_request
from trainer.api.wire import After, Direction, InStore, Limit, WithConfig, create_job_body, listed
from trainer.jobs.records import Page
from trainer.jobs.resolve import resolve_training
from trainer.jobs.view import job_view
from trainer.models.registry import load_registry

router = APIRouter(prefix="/v1/fine_tuning/jobs", tags=["fine-tuning"])

SUFFIX = re.compile(r"[A-Za-z0-9._-]+")
METADATA = re.compile(r"metadata\[(.*)\]", re.DOTALL)


@router.post(
    "",
    openapi_extra={
        "requestBody": {"content": {"application/json": {"schema": CreateJob.model_json_schema()}}}
    },
)
def create(body: Annotated[CreateJob, Depends(create_job_body)], store: InStore, config: WithConfig) -> Job:
    if body.suffix is not None and not SUFFIX.fullmatch(body.suffix):
        raise bad_request(
            "suffix: letters, digits, '.', '_' and '-' only", param="suffix", code="invalid_value"
        )
    for param in ("training_file", "validation_file"):
        file_id = getattr(body, param)
        if file_id is None:
            continue
        if store.file(file_id, param=param).purpose != "fine-tune":
            raise bad_request(f"file {file_id} was not uploaded for fine-tuning", param=param)
    if body.model.startswith("ft:"):
        raise bad_request(
            f"{body.model[:80]!r} is a fine-tuned model; tune its registered base", param="model"
        )
    base = load_registry(config.models_file).get(body.model)
    training = resolve_training(body, base.training, context_length=base.context_length)
    seed = body.seed if body.seed is not None else secrets.randbelow(2**31)
    return job_view(store.create_job(body, training, seed))


@router.get("")
def list_jobs(request: Request, store: InStore, after: After = None, limit: Limit = 20) -> dict[str, object]:
    """`metadata[key]=value` keeps the jobs that carry it, `metadata=null` those that carry none."""
    wanted, without = _metadata_filter(request.query_params)
    page = store.jobs(after=after, limit=limit, metadata=wanted, without_metadata=without)
    return listed(Page([job_view(job) for job in page.data], page.has_more))


@router.get("/{fine_tuning_job_id}")
def retrieve(fine_tuning_job_id: str, store: InStore) -> Job:
    return job_view(store.job(fine_tuning_job_id))


@router.post("/{fine_tuning_job_id}/cancel")
def cancel(fine_tuning_job_id: str, store: InStore) -> Job:
    """A queued job ends at once; a running one as soon as its run has stopped."""
    return job_view(store.cancel(fine_tuning_job_id))


@router.post("/{fine_tuning_job_id}/pause")
def pause(fine_tuning_job_id: str, store: InStore) -> Job:
    """The run stops with a checkpoint; the job is then `queued` with `safety.state` paused."""
    return job_view(store.pause(fine_tuning_job_id))


@router.post("/{fine_tuning_job_id}/resume")
def resume(fine_tuning_job_id: str, store: InStore) -> Job:
    return job_view(store.resume(fine_tuning_job_id))


@router.get("/{fine_tuning_job_id}/events")
def events(
    fine_tuning_job_id: str,
    store: InStore,
    after: After = None,
    limit: Limit = 20,
    order: Annotated[Direction, Query(description="`asc` is ours: to follow a job forwards")] = "desc",
) -> dict[str, object]:
    return listed(store.events(fine_tuning_job_id, after=after, limit=limit, order=order))


@router.get("/{fine_tuning_job_id}/checkpoints")
def checkpoints(
    fine_tuning_job_id: str, store: InStore, after: After = None, limit: Limit = 10
) -> dict[str, object]:
    return listed(store.checkpoints(fine_tuning_job_id, after=after, limit=limit))


def _metadata_filter(query: Mapping[str, str]) -> tuple[dict[str, str], bool]:
    wanted = {match[1]: value for name, value in query.items() if (match := METADATA.fullmatch(name))}
    if "metadata" not in query:
        return wanted, False
    if query["metadata"] != "null" or wanted:
        raise bad_request("metadata: use metadata[key]=value, or metadata=null by itself", param="metadata")
    return wanted, True
