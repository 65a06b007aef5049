from __future__ import annotations

from typing import Any

import pytest
import torch
from pydantic import ValidationError

from shared.errors import ConfigError
from shared.training import Training
from trainer.training.engine import LIVE_PARAMETERS, engine_config, make_optimizer


def zero(training: dict[str, Any], environment: dict[str, str]) -> dict[str, Any]:
    config = engine_config(Training.model_validate(training), 2, torch.float32, environment)
    found: dict[str, Any] = config["zero_optimization"]
    return found


def test_the_operator_says_how_much_zero_3_keeps_whole() -> None:
    assert zero({"zero_stage": 3}, {}) == {"stage": 3, "stage3_gather_16bit_weights_on_model_save": True}
    told = zero({"zero_stage": 3}, {LIVE_PARAMETERS: "0"})
    assert told["stage3_max_live_parameters"] == 0
    assert told["stage3_max_reuse_distance"] == 0
    assert told["stage3_param_persistence_threshold"] == 0
    assert zero({"zero_stage": 2}, {LIVE_PARAMETERS: "0"}) == {"stage": 2}
    with pytest.raises(ConfigError, match=r"TETHER_ZERO3_LIVE_PARAMETERS is '1e9'; it must be a number"):
        zero({"zero_stage": 3}, {LIVE_PARAMETERS: "1e9"})


def test_offload_goes_where_deepspeed_takes_it() -> None:
    told = zero({"zero_stage": 1, "offload": "optimizer"}, {})
    assert told["offload_optimizer"]["device"] == "cpu"
    assert "offload_param" not in told
    told = zero({"zero_stage": 3, "offload": "parameters"}, {})
    assert told["offload_optimizer"]["device"] == told["offload_param"]["device"] == "cpu"
    for stage in (0, 1, 2):
        with pytest.raises(ValidationError, match="offload 'parameters' needs zero_stage 3"):
            Training(zero_stage=stage, offload="parameters")


def test_bf16_gradients_are_summed_in_float32_where_there_is_more_than_one() -> None:
    settings = Training(zero_stage=2, micro_batch_size=2)
    assert engine_config(settings, 2, torch.bfloat16)["data_types"] == {"grad_accum_dtype": "fp32"}
    assert "data_types" not in engine_config(Training(zero_stage=2), 2, torch.bfloat16)


def test_the_optimizer_is_the_one_asked_for() -> None:
    weight = torch.nn.Parameter(torch.zeros(2))
    assert isinstance(make_optimizer(Training(), [weight]), torch.optim.AdamW)
    sgd = make_optimizer(Training(optimizer="sgd", weight_decay=0.1), [weight])
    assert isinstance(sgd, torch.optim.SGD)
    assert sgd.defaults["weight_decay"] == 0.1
