import io
import json
import tarfile

import pytest
from fastapi.testclient import TestClient

from shared.jobs import JobError
from trainer.api.app import create_app
from trainer.api.config import ApiConfig
from trainer.api.errors import field_path
from trainer.jobs.layout import Layout
from trainer.jobs.store import Store
from trainer.models.registry import BaseEntry, PathSource, register

ROW = json.dumps({"messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]})
JOBS = "/v1/fine_tuning/jobs"


class Service:
    def __init__(self, root, **config):
        self.layout = Layout(root).create()
        entry = BaseEntry(source=PathSource(path=root), context_length=64, lora_targets=("q",))
        register(self.layout.models, "tiny", entry)
        self.store = Store(self.layout.database)
        settings = ApiConfig(state_dir=root, models_file=self.layout.models, **config)
        # Errors come back as answers, as they do over a socket.
        self.client = TestClient(create_app(settings, self.store), raise_server_exceptions=False)

    def upload(self, content=ROW, name="rows.jsonl", purpose="fine-tune"):
        raw = content.encode() if isinstance(content, str) else content
        return self.client.post("/v1/files", files={"file": (name, raw)}, data={"purpose": purpose})

    def job(self, **fields):
        body = {"model": "tiny", "training_file": self.upload().json()["id"], **fields}
        return self.client.post(JOBS, json=body)


@pytest.fixture
def service(tmp_path):
    made = Service(tmp_path)
    with made.store:
        yield made


def refused(answer, status, param=..., code=...):
    """The answer is an error in OpenAI's shape; its message."""
    assert answer.status_code == status, answer.text
    error = answer.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    if param is not ...:
        assert error["param"] == param
    if code is not ...:
        assert error["code"] == code
    return error["message"]


def test_a_file_comes_back_as_it_went_in(service):
    raw = (ROW + "\n" + ROW).encode()
    file = service.upload(raw, name="../../etc/passwd").json()
    assert (file["object"], file["bytes"], file["purpose"]) == ("file", len(raw), "fine-tune")
    assert service.client.get(f"/v1/files/{file['id']}").json() == file
    assert service.client.get(f"/v1/files/{file['id']}/content").content == raw
    assert [entry.name for entry in service.layout.files.iterdir()] == [file["id"]]
    assert service.client.delete(f"/v1/files/{file['id']}").json()["deleted"] is True
    assert list(service.layout.files.iterdir()) == []
    refused(service.client.get(f"/v1/files/{file['id']}"), 404, "file_id")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "the file is empty"),
        ("prompt,answer\na,b", "line 1: not valid JSON"),
        (ROW + '\n{"messages": [{"role": "user", "content": "q"}]}', "line 2: no assistant turn"),
        (b"\xff\xfe", "line 1: byte 1 is not UTF-8"),
    ],
)
def test_a_wrong_file_is_refused_by_its_line_and_not_kept(service, content, message):
    assert message in refused(service.upload(content), 400, "file", "invalid_training_file")
    assert list(service.layout.files.iterdir()) == []
    assert service.client.get("/v1/files").json()["data"] == []


def test_uploads_that_are_not_what_they_should_be(service):
    assert "'batch'" in refused(service.upload(purpose="batch"), 400, "purpose")
    post = service.client.post
    refused(post("/v1/files", json={}), 400, "file")
    refused(post("/v1/files", content=b"x", headers={"content-type": "multipart/form-data"}), 400, "file")
    refused(post("/v1/files", data={"purpose": "fine-tune"}, files={"other": ("a", b"b")}), 400, "other")
    refused(post("/v1/files", data={"purpose": "fine-tune", "file": "no file"}, files={}), 400, "file")


def test_a_file_beyond_the_cap_is_refused_while_it_comes(tmp_path):
    service = Service(tmp_path, max_file_bytes=1000)
    with service.store:
        refused(service.upload(ROW * 20), 413, "file", "file_too_large")
        refused(service.upload(b"x" * 200_000), 413, "file", "file_too_large")
        assert service.upload().status_code == 200


def test_a_job_carries_the_standard_fields_and_ours(service):
    job = service.job(
        suffix="mine",
        seed=7,
        metadata={"team": "a"},
        training={"ranks": 2, "batch_size": 8},
        method={"type": "supervised", "supervised": {"hyperparameters": {"n_epochs": 2}}},
    ).json()
    assert (job["object"], job["status"], job["seed"]) == ("fine_tuning.job", "queued", 7)
    assert job["hyperparameters"] == {"batch_size": 8, "n_epochs": 2, "learning_rate_multiplier": 1.0}
    assert job["safety"]["method"]["type"] == "adaptive"
    assert job["training"]["ranks"] == 2
    assert service.client.get(f"{JOBS}/{job['id']}").json() == job


BAD_JOBS = [
    ({"model": "other"}, "model", "tether models add other --path DIR"),
    ({"model": "../../etc/passwd"}, "model", "tether models add ID --path DIR"),
    ({"model": "ft:tiny::abc"}, "model", "registered base"),
    (
        {"method": {"supervised": {"hyperparameters": {"beta": 1}}}},
        "method.supervised.hyperparameters.beta",
        "Extra",
    ),
    ({"model": None}, "model", "valid string"),
    ({"training_file": "file-none"}, "training_file", "no file has the id 'file-none'"),
    ({"training_file": "../jobs.sqlite3"}, "training_file", "no file has the id"),
    ({"validation_file": "../x"}, "validation_file", "no file has the id"),
    ({"training": {"steps": -5}}, "training.steps", "greater than or equal to 1"),
    ({"training": {"steps": "many"}}, "training.steps", "valid integer"),
    ({"training": {"stepz": 1}}, "training.stepz", "Extra inputs"),
    ({"training": {"batch_size": 3, "ranks": 2}}, "training.batch_size", "multiple of 2"),
    ({"training": {"max_length": 65}}, "training.max_length", "context of 64"),
    ({"training": {"adapter": {"type": "lora", "r": 0}}}, "training.adapter.r", "greater than"),
    ({"training": {"adapter": "qlora"}}, "training.adapter", "'full', 'lora'"),
    (
        {"safety": {"method": {"type": "fixed_kl", "beta": 2}}},
        "safety.method.beta",
        "less than or equal to 1",
    ),
    (
        {"safety": {"method": {"type": "adaptive", "beta_min": 0.5, "beta_max": 0.1}}},
        "safety.method",
        "below",
    ),
    (
        {"safety": {"method": {"type": "adaptive", "sources": [{"type": "target", "look_ahead": -1}]}}},
        "safety.method.sources[0].look_ahead",
        "greater than",
    ),
    ({"hyperparameters": {"batch_size": 0}}, "hyperparameters.batch_size", "or"),
    ({"hyperparameters": {"n_epochs": "lots"}}, "hyperparameters.n_epochs", "'auto'"),
    ({"method": {"type": "dpo", "dpo": {}}}, "method.type", "'dpo' is not offered"),
    ({"suffix": "a/../b"}, "suffix", "letters, digits"),
    ({"seed": -1}, "seed", "greater than"),
    ({"metadata": {"a": 1}}, "metadata.a", "valid string"),
    ({"unknown": 1}, "unknown", "Extra inputs"),
]


@pytest.mark.parametrize(("fields", "param", "message"), BAD_JOBS)
def test_a_wrong_field_is_named(service, fields, param, message):
    assert message in refused(service.job(**fields), 400, param)
    assert service.client.get(JOBS).json()["data"] == []


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b"[]",
        b'"text"',
        b"\xff",
        b"[" * 100_000,
        b'{"seed": ' + b"9" * 5000 + b"}",
        b'{"model": "\\ud800", "training_file": "f"}',
        b'{"model": "tiny", "training_file": "f", "training": {"learning_rate": NaN}}',
        b'{"model": "tiny\\u0000", "training_file": "f\\u0000"}',
        b" " * 1_100_000,
    ],
)
def test_no_body_breaks_the_service(service, body):
    refused(service.client.post(JOBS, content=body, headers={"content-type": "application/json"}), 400)


@pytest.mark.parametrize("limit", ["0", "-1", "x", "1001", "9" * 30])
def test_a_wrong_limit_is_refused(service, limit):
    refused(service.client.get(JOBS, params={"limit": limit}), 400, "limit")


def test_ids_lead_nowhere(service):
    for path in (
        f"{JOBS}/none",
        f"{JOBS}/none/events",
        f"{JOBS}/..%2F..%2Fetc",
        f"{JOBS}/none/artifact",
        "/v1/files/..%2Fjobs.sqlite3",
        "/v1/files/..%2Fjobs.sqlite3/content",
        "/v1/models/none",
        "/v1/nothing",
    ):
        refused(service.client.get(path), 404)
    refused(service.client.post(f"{JOBS}/none/cancel"), 404, "fine_tuning_job_id")
    refused(service.client.get(JOBS, params={"after": "none"}), 400, "after")
    refused(service.client.delete(JOBS), 405)


def test_elsewhere_errors_are_problems(service):
    answer = service.client.get("/nothing")
    assert (answer.status_code, answer.headers["content-type"]) == (404, "application/problem+json")
    assert answer.json()["instance"] == "/nothing"


def test_cancel_pause_resume(service):
    job = service.job().json()["id"]
    do = lambda verb: service.client.post(f"{JOBS}/{job}/{verb}")  # noqa: E731
    paused = do("pause").json()
    assert (paused["status"], paused["safety"]["state"]) == ("queued", "paused")
    assert paused["safety"]["reason"] == "paused by request"
    assert do("resume").json()["safety"]["state"] == "active"
    assert do("cancel").json()["status"] == "cancelled"
    for verb in ("cancel", "pause", "resume"):
        assert "has ended: cancelled" in refused(do(verb), 400, code="illegal_transition")


def test_a_file_that_a_job_needs_is_kept(service):
    job = service.job().json()
    assert job["id"] in refused(service.client.delete(f"/v1/files/{job['training_file']}"), 409, "file_id")


def test_the_artifact_is_listed_and_downloaded_whole(service):
    job = service.job().json()["id"]
    assert "only a job that succeeded" in refused(service.client.get(f"{JOBS}/{job}/artifact"), 404)
    folder = service.layout.run(job) / "artifact"
    (folder / "sub").mkdir(parents=True)
    contents = {"config.json": b"{}", "model.safetensors": b"w" * 3_000_001, "sub/a.txt": b""}
    for name, raw in contents.items():
        (folder / name).write_bytes(raw)
    (service.layout.run(job) / "run.json").write_text("secret")
    service.store.claim("r", 30)
    service.store.succeed(job, "r", "ft:tiny::1", 3, [], "done")
    listed = service.client.get(f"{JOBS}/{job}/artifact").json()["data"]
    assert listed == [{"name": name, "bytes": len(raw)} for name, raw in sorted(contents.items())]
    for name, raw in contents.items():
        assert service.client.get(f"{JOBS}/{job}/artifact/{name}").content == raw
    for name in ("..%2Frun.json", "%2Fetc%2Fpasswd", "sub", "nothing"):
        refused(service.client.get(f"{JOBS}/{job}/artifact/{name}"), 404)
    with tarfile.open(fileobj=io.BytesIO(service.client.get(f"{JOBS}/{job}/artifact.tar").content)) as tar:
        found = {member.name: tar.extractfile(member).read() for member in tar.getmembers()}
    assert found == {f"{job}/{name}": raw for name, raw in contents.items()}


def test_models_are_the_bases_and_what_was_tuned(service):
    job = service.job().json()["id"]
    service.store.claim("r", 30)
    service.store.succeed(job, "r", "ft:tiny:x:1", 3, [], "done")
    assert [model["id"] for model in service.client.get("/v1/models").json()["data"]] == [
        "tiny",
        "ft:tiny:x:1",
    ]
    assert service.client.get("/v1/models/ft:tiny:x:1").json()["owned_by"] == "tether"


def test_a_failed_job_says_why(service):
    job = service.job().json()["id"]
    service.store.claim("r", 30)
    service.store.fail(job, "r", JobError(code="rank_died", message="boom"))
    assert service.client.get(f"{JOBS}/{job}").json()["error"] == {
        "code": "rank_died",
        "message": "boom",
        "param": None,
    }


def test_with_a_key_the_openai_routes_ask_for_it(tmp_path):
    service = Service(tmp_path, api_key="s3cret")
    with service.store:
        for headers in ({}, {"authorization": "Bearer wrong"}, {"authorization": "Bearer \u00e9"}):
            raw = {name: value.encode() for name, value in headers.items()}
            refused(service.client.get(JOBS, headers=raw), 401, code="invalid_api_key")
        assert service.client.get(JOBS, headers={"authorization": "Bearer s3cret"}).status_code == 200
        assert service.client.get("/livez").json() == {"status": "ok"}


def test_ready_says_how_many_runners_there_are(service):
    assert service.client.get("/readyz").json() == {"status": "ok", "runners": 0}
    service.store.runner_seen("r")
    assert service.client.get("/readyz").json() == {"status": "ok", "runners": 1}


def test_a_fields_path_leaves_out_the_tags_of_unions():
    body = {"safety": {"method": {"type": "adaptive", "sources": [{"type": "target", "look_ahead": -1}]}}}
    location = ("safety", "method", "adaptive", "sources", 0, "target", "look_ahead")
    assert field_path(location, body) == "safety.method.sources[0].look_ahead"
    assert field_path(("model",), {}, missing=True) == "model"
    assert field_path((), {}) == ""
