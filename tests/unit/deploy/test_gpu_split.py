"""Which GPUs are whose, and what is refused."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from shared.gpu_split import GpuSplit, GpuSplitError, split_gpus
from trainer.up.gpus import override_file, read_env

ROOT = Path(__file__).resolve().parents[3]


@pytest.mark.parametrize(
    ("judge", "trainer", "split"),
    [
        ("0", "1", GpuSplit(("0",), ("1",))),
        ("0", "1,2,3", GpuSplit(("0",), ("1", "2", "3"))),
        (" 0, 1 ", "2,3,4,5,6,7", GpuSplit(("0", "1"), ("2", "3", "4", "5", "6", "7"))),
        ("0", "none", GpuSplit(("0",), ())),
        ("none", "0", GpuSplit((), ("0",))),
        ("GPU-1a2b-3c", "GPU-4d5e-6f", GpuSplit(("GPU-1a2b-3c",), ("GPU-4d5e-6f",))),
    ],
)
def test_splits_for_one_two_and_eight_gpus(judge: str, trainer: str, split: GpuSplit) -> None:
    assert split_gpus({"JUDGE_GPUS": judge, "TRAINER_GPUS": trainer}) == split


@pytest.mark.parametrize(
    ("judge", "trainer", "said"),
    [
        ("0,1", "1,2", "share 1"),
        ("0", "0", "share 0"),
        ("0", "", "TRAINER_GPUS is not set"),
        ("two", "0", "'two' is no device id"),
        ("0,,1", "2", "'' is no device id"),
        ("all", "1", "'all' is no device id"),
        ("-1", "1", "'-1' is no device id"),
        ("0,0", "1", "names a device twice"),
        ("0", "GPU-1a2b", "mix indices and names"),
        ("0,GPU-1a2b", "1", "mix indices and names"),
    ],
)
def test_nonsense_is_refused_by_name(judge: str, trainer: str, said: str) -> None:
    with pytest.raises(GpuSplitError, match=said):
        split_gpus({"JUDGE_GPUS": judge, "TRAINER_GPUS": trainer})


devices = st.lists(st.integers(0, 15).map(str), min_size=1, max_size=8, unique=True)


@given(devices, devices)
def test_a_split_is_disjoint_or_refused(judge: list[str], trainer: list[str]) -> None:
    environment = {"JUDGE_GPUS": ",".join(judge), "TRAINER_GPUS": ",".join(trainer)}
    if set(judge) & set(trainer):
        with pytest.raises(GpuSplitError):
            split_gpus(environment)
    else:
        assert split_gpus(environment) == GpuSplit(tuple(judge), tuple(trainer))


def test_the_override_names_each_device() -> None:
    class Loader(yaml.SafeLoader):
        pass

    Loader.add_constructor("!override", lambda loader, node: loader.construct_sequence(node, deep=True))
    found = yaml.load(override_file(GpuSplit(("0",), ("1", "2"))), Loader)["services"]
    given = {name: s["deploy"]["resources"]["reservations"]["devices"] for name, s in found.items()}
    assert given == {
        "vllm": [{"driver": "nvidia", "device_ids": ["0"], "capabilities": ["gpu"]}],
        "runner": [{"driver": "nvidia", "device_ids": ["1", "2"], "capabilities": ["gpu"]}],
    }


def test_the_env_file_is_read_as_compose_reads_it(tmp_path: Path) -> None:
    file = tmp_path / ".env"
    file.write_text("# GPUs\nJUDGE_GPUS=0   # the judge\nTRAINER_GPUS='1,2'\nOTHER=3\n")
    assert read_env(file) == {"JUDGE_GPUS": "0", "TRAINER_GPUS": "1,2"}


def start_vllm(path: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """`start.py` as it lies in vLLM's container, with a `vllm` that prints how it was called."""
    for file in ("deploy/vllm/start.py", "shared/gpu_split.py"):
        (path / Path(file).name).write_bytes((ROOT / file).read_bytes())
    vllm = path / "bin" / "vllm"
    vllm.parent.mkdir()
    vllm.write_text('#!/bin/sh\necho "$@"\n')
    vllm.chmod(0o755)
    return subprocess.run(
        [sys.executable, "-I", "-c", f"import sys, runpy; sys.path.insert(0, {str(path)!r});"
         f"sys.argv[1:] = ['org/model', '--port=8000']; runpy.run_path({str(path / 'start.py')!r},"
         " run_name='__main__')"],
        env={"PATH": f"{vllm.parent}:/usr/bin:/bin", **environment},
        capture_output=True, text=True, check=False,
    )  # fmt: skip


def test_vllm_gets_a_replica_a_gpu(tmp_path: Path) -> None:
    done = start_vllm(tmp_path, JUDGE_GPUS="0,1", TRAINER_GPUS="2,3")
    assert done.stdout.split() == ["serve", "org/model", "--port=8000", "--data-parallel-size", "2"]


@pytest.mark.parametrize(
    ("judge", "said"), [("2", "share 2"), ("none", "leaves vLLM no GPU"), ("x", "no device")]
)
def test_vllm_does_not_start_on_a_split_that_is_none(tmp_path: Path, judge: str, said: str) -> None:
    done = start_vllm(tmp_path, JUDGE_GPUS=judge, TRAINER_GPUS="2,3")
    assert done.returncode == 1
    assert said in done.stderr
    assert done.stdout == ""
