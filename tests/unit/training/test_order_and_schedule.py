from __future__ import annotations

import pytest

from shared.errors import ConfigError
from shared.training import Training
from trainer.training.order import DataOrder, micro_batch_size, plan_steps, rank_share
from trainer.training.schedule import learning_rate


def test_each_epoch_holds_every_row_once_and_epochs_differ() -> None:
    order = DataOrder(n_rows=10, batch_size=4, seed=3)
    stream = [row for step in range(5) for row in order.rows(step)]
    assert sorted(stream[:10]) == sorted(stream[10:]) == list(range(10))
    assert stream[:10] != stream[10:]


def test_the_order_is_a_function_of_seed_and_step() -> None:
    again = DataOrder(10, 4, 3)
    assert again.rows(17) == DataOrder(10, 4, 3).rows(17)
    assert again.rows(17) != DataOrder(10, 4, 4).rows(17)


def test_ranks_share_a_batch_without_overlap() -> None:
    rows = tuple(range(8))
    assert sorted(rank_share(rows, 0, 2) + rank_share(rows, 1, 2)) == list(rows)


def test_fewer_rows_than_a_batch_still_fill_it() -> None:
    assert len(DataOrder(3, 8, 0).rows(0)) == 8


LENGTHS = [(37 * row) % 101 for row in range(1000)]


def padded(order: DataOrder, steps: int) -> float:
    """Tokens that the batches hold, over those of their rows."""
    batches = [[LENGTHS[row] for row in order.rows(step)] for step in range(steps)]
    return sum(max(batch) * len(batch) for batch in batches) / sum(map(sum, batches))


def test_grouped_by_length_an_epoch_holds_the_same_rows_and_less_padding() -> None:
    """1000 rows, batches of 16: epochs end within a batch."""
    grouped, plain = DataOrder(1000, 16, 3, LENGTHS), DataOrder(1000, 16, 3)
    stream = [row for step in range(125) for row in grouped.rows(step)]
    assert len(stream) == 2000
    assert sorted(stream[:1000]) == sorted(stream[1000:]) == list(range(1000))
    assert stream[:1000] != stream[1000:]
    assert padded(plain, 125) > 1.7
    assert padded(grouped, 125) < 1.15
    longest = [max(LENGTHS[row] for row in grouped.rows(step)) for step in range(32)]
    assert longest != sorted(longest)


def test_grouped_by_length_the_order_is_a_function_of_seed_and_step() -> None:
    order = DataOrder(50, 8, 3, LENGTHS)
    forward = [order.rows(step) for step in range(200)]
    assert [DataOrder(50, 8, 3, LENGTHS).rows(step) for step in reversed(range(200))] == forward[::-1]
    assert DataOrder(50, 8, 4, LENGTHS).rows(17) != forward[17]
    assert len(DataOrder(3, 8, 0, LENGTHS).rows(5)) == 8


def test_steps_come_from_epochs_unless_given() -> None:
    assert plan_steps(Training(n_epochs=3, batch_size=16), 1000) == 188
    assert plan_steps(Training(steps=7), 1000) == 7


def test_micro_batches_must_divide() -> None:
    assert micro_batch_size(Training(batch_size=16), 2) == 8
    with pytest.raises(ConfigError, match="batch_size 16 does not divide over 3 ranks"):
        micro_batch_size(Training(batch_size=16), 3)
    with pytest.raises(
        ConfigError, match="micro_batch_size 5 does not divide a rank's share of the batch, 8"
    ):
        micro_batch_size(Training(batch_size=16, micro_batch_size=5), 2)


def test_learning_rate_warms_up_and_comes_down() -> None:
    training = Training(learning_rate=1.0, warmup_fraction=0.1, schedule="cosine")
    rates = [learning_rate(training, step, 100) for step in range(100)]
    assert rates[0] == pytest.approx(0.1)
    assert max(rates) == rates[9] == rates[10] == 1.0
    assert rates[10:] == sorted(rates[10:], reverse=True)
    assert rates[-1] < 0.001
    assert learning_rate(Training(learning_rate=1.0, warmup_fraction=0, schedule="constant"), 99, 100) == 1.0
    half = Training(learning_rate=1.0, warmup_fraction=0, schedule="linear")
    assert learning_rate(half, 50, 100) == pytest.approx(0.5)
