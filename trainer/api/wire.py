"""What the routes share: lists, bodies, what a request may ask of a list."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from fastapi import Depends, Query, Request
from pydantic import BaseModel

from shared.jobs import CreateJob
from trainer.api.body import parse_body, read_body
from trainer.api.config import ApiConfig
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
    return parse_body(await read_body(request, config.max_body_bytes), CreateJob)
