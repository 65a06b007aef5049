"""/v1/models: the bases that may be tuned, and what was tuned."""

from __future__ import annotations

from http import HTTPStatus

from fastapi import APIRouter
from pydantic import BaseModel

from trainer.api.config import ApiConfig
from trainer.api.errors import ApiError
from trainer.api.wire import InStore, WithConfig
from trainer.jobs.store import Store
from trainer.models.registry import load_registry

router = APIRouter(prefix="/v1/models", tags=["models"])


class Model(BaseModel):
    id: str
    object: str = "model"
    created: int
    owned_by: str


@router.get("")
def list_models(store: InStore, config: WithConfig) -> dict[str, object]:
    return {"object": "list", "data": [model.model_dump() for model in _models(store, config)]}


@router.get("/{model:path}")
def retrieve(model: str, store: InStore, config: WithConfig) -> Model:
    for known in _models(store, config):
        if known.id == model:
            return known
    raise ApiError(
        HTTPStatus.NOT_FOUND, f"no model has the id {model[:80]!r}", param="model", code="model_not_found"
    )


def _models(store: Store, config: ApiConfig) -> list[Model]:
    bases = load_registry(config.models_file).models
    return [
        *(
            Model(id=model_id, created=entry.created, owned_by="base")
            for model_id, entry in sorted(bases.items())
        ),
        *(
            Model(id=job.fine_tuned_model, created=int(job.finished_at or job.created_at), owned_by="tether")
            for job in store.fine_tuned()
            if job.fine_tuned_model is not None
        ),
    ]
