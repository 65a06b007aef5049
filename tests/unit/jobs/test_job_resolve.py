import pytest

from shared.jobs import CreateJob
from shared.training import Training
from trainer.jobs.resolve import SettingError, check_shares, hyperparameters, resolve_training, with_ranks


def job(**fields):
    return CreateJob.model_validate({"model": "m", "training_file": "f", **fields})


def resolve(request, defaults=None, context_length=2048):
    return resolve_training(request, Training.model_validate(defaults or {}), context_length=context_length)


def test_request_over_base_over_schema():
    training = resolve(
        job(training={"batch_size": 32}), {"batch_size": 8, "learning_rate": 0.001, "adapter": "full"}
    )
    assert training.batch_size == 32
    assert training.learning_rate == 0.001
    assert training.adapter.type == "full"
    assert training.schedule == Training().schedule


def test_a_field_set_to_the_schemas_default_still_wins_over_the_base():
    assert resolve(job(training={"batch_size": 16}), {"batch_size": 8}).batch_size == 16


def test_openais_hyperparameters_win_over_training_and_the_newer_place_over_the_older():
    request = job(
        training={"batch_size": 32, "learning_rate": 0.001},
        hyperparameters={"batch_size": 8, "n_epochs": 2, "learning_rate_multiplier": 3},
        method={"type": "supervised", "supervised": {"hyperparameters": {"batch_size": 4}}},
    )
    assert hyperparameters(request).model_dump() == {
        "batch_size": 4,
        "n_epochs": 2,
        "learning_rate_multiplier": 3.0,
    }
    training = resolve(request)
    assert (training.batch_size, training.n_epochs) == (4, 2)
    assert training.learning_rate == pytest.approx(0.003)


def test_the_multiplier_multiplies_the_bases_rate():
    training = resolve(job(hyperparameters={"learning_rate_multiplier": 0.5}), {"learning_rate": 0.01})
    assert training.learning_rate == pytest.approx(0.005)


def test_epochs_that_the_request_names_displace_the_bases_steps():
    assert resolve(job(hyperparameters={"n_epochs": 2}), {"steps": 100}).steps is None
    assert resolve(job(training={"n_epochs": 2}), {"steps": 100}).steps is None
    assert resolve(job(), {"steps": 100}).steps == 100
    assert resolve(job(training={"steps": 7}, hyperparameters={"n_epochs": 2})).steps == 7


def test_a_rate_multiplied_out_of_bounds_names_the_multiplier():
    with pytest.raises(SettingError, match="less than or equal to 1") as caught:
        resolve(job(hyperparameters={"learning_rate_multiplier": 1000}), {"learning_rate": 0.1})
    assert caught.value.param == "hyperparameters.learning_rate_multiplier"


def test_a_row_length_beyond_the_context_is_refused():
    with pytest.raises(SettingError, match="context of 128") as caught:
        resolve(job(training={"max_length": 256}), context_length=128)
    assert caught.value.param == "training.max_length"


def test_ranks_come_from_the_request_else_from_the_machine():
    assert with_ranks(Training(ranks=2), devices=8).ranks == 2
    assert with_ranks(Training(), devices=4).ranks == 4
    assert with_ranks(Training(), devices=0).ranks == 1


def test_the_batch_must_divide_over_ranks_and_micro_batches():
    with pytest.raises(SettingError, match="batch_size 15 does not divide over 2 ranks"):
        resolve(job(training={"batch_size": 15, "ranks": 2}))
    with pytest.raises(SettingError, match="micro_batch_size 3 does not divide a rank's 8"):
        check_shares(Training(batch_size=16, micro_batch_size=3), 2)


@pytest.mark.parametrize(
    ("base", "asked", "said"),
    [
        ({"zero_stage": 3, "offload": "parameters"}, {"zero_stage": 1}, "needs zero_stage 3; it is 1"),
        ({"offload": "optimizer"}, {"zero_stage": 0}, "offload 'optimizer' needs zero_stage 1, 2 or 3"),
        (
            {"adapter": {"type": "lora", "load_in_4bit": True}},
            {"zero_stage": 3},
            "cannot split 4-bit weights",
        ),
        ({"reference": "cache"}, {"nnodes": 2}, "the ranks of one machine map"),
        ({"ranks": 3}, {"nnodes": 2}, "ranks 3 do not divide over nnodes 2"),
    ],
)
def test_what_does_not_fit_together_is_refused_though_each_part_was_valid(base, asked, said):
    with pytest.raises(SettingError, match=said) as caught:
        resolve(job(training=asked), base)
    assert caught.value.param == "training"


def test_a_reference_that_is_only_a_cache_cannot_answer():
    safety = {"method": {"type": "adaptive", "sources": ["target", "policy", "reference"]}}
    with pytest.raises(SettingError, match="no model is left that could") as caught:
        resolve(job(safety=safety, training={"adapter": "full", "reference": "cache"}))
    assert caught.value.param == "training.reference"
    assert resolve(job(safety=safety, training={"reference": "cache"})).reference == "cache"
