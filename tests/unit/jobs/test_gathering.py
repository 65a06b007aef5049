import pytest

from shared.errors import ConfigError
from shared.training import Training
from trainer.jobs.gathering import GATHERING, Gathering, parse_endpoint, read_gathering
from trainer.jobs.resolve import with_ranks


def test_a_note_is_read_as_it_was_written_and_each_start_has_an_id_of_its_own(tmp_path):
    assert read_gathering(tmp_path) is None
    notes = [Gathering(host="10.0.0.1", port=29400, nnodes=2, ranks_per_node=4) for _ in range(2)]
    notes[0].write(tmp_path)
    assert read_gathering(tmp_path) == notes[0]
    assert notes[0] != notes[1]
    (tmp_path / GATHERING).write_text('{"id": "a"}')
    with pytest.raises(ConfigError, match=GATHERING):
        read_gathering(tmp_path)


def test_an_endpoint_is_a_host_and_perhaps_a_port():
    assert parse_endpoint("node-1:29500") == ("node-1", 29500)
    assert parse_endpoint("10.0.0.1") == ("10.0.0.1", 29400)
    for wrong in ("", ":29400", "node-1:", "node-1:http"):
        with pytest.raises(ConfigError, match="is not HOST:PORT"):
            parse_endpoint(wrong)


def test_each_machine_brings_its_devices():
    assert with_ranks(Training(nnodes=2), devices=8).ranks == 16
    assert with_ranks(Training(nnodes=2), devices=0).ranks == 2
