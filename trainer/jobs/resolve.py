"""From what a job asks for to the settings it trains with. Pure."""

from __future__ import annotations

from typing import Any

from pydantic import ValidationError

from shared.errors import ConfigError
from shared.jobs import CreateJob, Hyperparameters
from shared.safety import MUTE_REFERENCE, Adaptive
from shared.training import Training


class SettingError(ConfigError):
    """`param` is the field of the request that is at fault."""

    def __init__(self, message: str, param: str) -> None:
        super().__init__(message)
        self.param = param


def hyperparameters(request: CreateJob) -> Hyperparameters:
    """OpenAI's newer place over its older one, field by field."""
    newer = request.method.supervised.hyperparameters if request.method is not None else Hyperparameters()
    return Hyperparameters(
        **{
            name: value
            if (value := getattr(newer, name)) != "auto"
            else getattr(request.hyperparameters, name)
            for name in Hyperparameters.model_fields
        }
    )


def resolve_training(request: CreateJob, defaults: Training, *, context_length: int) -> Training:
    """The hyperparameters over the request's `training` over the base's defaults over the schema's.

    `defaults` counts by the fields that were set in it. `learning_rate_multiplier` multiplies. `steps`
    that the base brings along gives way to a number of epochs that the request names. `ranks` stays
    open where nobody says it: only the machine that trains knows its devices.
    Raises SettingError naming the field.
    """
    fields = _set_fields(defaults)
    asked = _set_fields(request.training)
    given = hyperparameters(request)
    if given.batch_size != "auto":
        asked["batch_size"] = given.batch_size
    if given.n_epochs != "auto":
        asked["n_epochs"] = given.n_epochs
    if "n_epochs" in asked:
        fields.pop("steps", None)
    fields.update(asked)
    if given.learning_rate_multiplier != "auto":
        rate = fields.get("learning_rate", Training.model_fields["learning_rate"].default)
        fields["learning_rate"] = rate * given.learning_rate_multiplier
    try:
        training = Training.model_validate(fields)
    except ValidationError as error:
        # Each part was valid by itself: what is wrong is the multiplied rate, or how the parts fit together.
        first = error.errors()[0]
        if first["loc"] != ("learning_rate",):
            raise SettingError(f"with the base's defaults: {first['msg']}", "training") from error
        raise SettingError(
            f"learning_rate x learning_rate_multiplier = {first['input']}: {first['msg']}",
            "hyperparameters.learning_rate_multiplier",
        ) from error
    if training.max_length is not None and training.max_length > context_length:
        raise SettingError(
            f"max_length {training.max_length} is beyond the base's context of {context_length} tokens",
            "training.max_length",
        )
    method = request.safety.method
    if isinstance(method, Adaptive) and method.reads_reference and not training.reference_speaks:
        raise SettingError(MUTE_REFERENCE, "training.reference")
    if training.ranks is not None:
        check_shares(training, training.ranks)
    return training


def with_ranks(training: Training, devices: int) -> Training:
    """With `ranks` a number: as asked for, else one a device, else one; on each machine of the run."""
    ranks = training.ranks if training.ranks is not None else max(1, devices) * training.nnodes
    check_shares(training, ranks)
    return training.model_copy(update={"ranks": ranks})


def check_shares(training: Training, ranks: int) -> None:
    """Each rank takes the same whole number of micro-batches a step, as DeepSpeed requires."""
    if training.batch_size % ranks:
        raise SettingError(
            f"batch_size {training.batch_size} does not divide over {ranks} ranks; use a multiple of {ranks}",
            "training.batch_size",
        )
    share = training.batch_size // ranks
    if training.micro_batch_size is not None and share % training.micro_batch_size:
        raise SettingError(
            f"micro_batch_size {training.micro_batch_size} does not divide a rank's {share} examples a step"
            f" (batch_size {training.batch_size} over {ranks} ranks)",
            "training.micro_batch_size",
        )


def _set_fields(training: Training) -> dict[str, Any]:
    return {name: getattr(training, name) for name in training.model_fields_set}
