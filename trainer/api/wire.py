"""What the routes share: lists, bodies, what a request may ask of a list."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from fastapi import Depends, Query, Request
from pydantic import BaseModel, ValidationError
from pydantic_core import from_json

from shared.jobs import CreateJob
from trainer.api.config import ApiConfig
from trainer.api.errors import bad_request, from_validation
from trainer.jobs.layout import Layout
from trainer.jobs.records import Page
from trainer.jobs.store import Store

After = Annotated[str | None, Query(max_length=128)]
Limit = Annotated[int, Query(ge=1, le=1000)]


def listed(page: Page[Any], **more: object) -> dict[str, object]:
    """OpenAI's list: a client goes on with `after` = the last id while `has_more`."""
    data = [item.model_dump(mode="json") if isinstance(item, BaseModel) else item for item in page.data]
    ends = (
        {"first_id": data[0]["id"], "last_id": data[-1]["id"]}
        if data
        else {"first_id": None, "last_id": None}
    )
    return {"object": "list", "data": data, "has_more": page.has_more, **ends, **more}


def get_store(request: Request) -> Store:
    store: Store = request.app.state.store
    return store


def get_config(request: Request) -> ApiConfig:
    config: ApiConfig = request.app.state.config
    return config


def get_layout(config: Annotated[ApiConfig, Depends(get_config)]) -> Layout:
    return Layout(config.state_dir)


InStore = Annotated[Store, Depends(get_store)]
WithConfig = Annotated[ApiConfig, Depends(get_config)]
InLayout = Annotated[Layout, Depends(get_layout)]
Direction = Literal["asc", "desc"]


async def create_job_body(request: Request, config: WithConfig) -> CreateJob:
    """Read by pydantic from the bytes, so that NaN, broken UTF-8 and deep nesting are its errors."""
    raw = bytearray()
    async for chunk in request.stream():
        raw += chunk
        if len(raw) > config.max_body_bytes:
            raise bad_request(f"the body is longer than {config.max_body_bytes} bytes", code="body_too_large")
    try:
        return CreateJob.model_validate_json(bytes(raw))
    except ValidationError as error:
        if error.errors()[0]["type"] == "json_invalid":
            raise bad_request(
                f"the body is not JSON: {error.errors()[0]['msg']}", code="invalid_json"
            ) from error
        raise from_validation(error, from_json(bytes(raw))) from error
