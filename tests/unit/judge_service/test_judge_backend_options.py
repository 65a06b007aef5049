"""The worker's flags for its backend: what is missing or foreign is said before anything loads."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from judge_service.backend_options import backend_settings, harm_of
from judge_service.backends.build import build_backend
from judge_service.backends.tokens import FileTokenizer
from judge_service.config import OpenAIConfig, VllmConfig, WorkerConfig, checked
from shared.errors import ConfigError
from shared.rubrics.rubric import load_rubric


def test_flags_become_the_backend_s_settings() -> None:
    chosen = backend_settings(
        "vllm", "gpt-oss", None, {"urls": ("http://a",), "threads": None, "in_flight": 8}
    )
    config = checked(WorkerConfig, {"queue": {"redis_url": "redis://h"}, "backend": chosen}).backend
    assert config == VllmConfig(urls=("http://a",), model="gpt-oss", in_flight=8)
    assert backend_settings("transformers", "/models/judge", None, {})["name"] == "judge"


@pytest.mark.parametrize(
    ("kind", "model", "flags", "message"),
    [
        ("magic", None, {}, "unknown backend 'magic'; there are: transformers, vllm"),
        ("vllm", None, {}, "the vllm backend needs --url"),
        ("openai", None, {"urls": ("http://a",)}, "the openai backend needs --model"),
        ("classifier", "m", {}, "the classifier backend needs --harm"),
        ("transformers", None, {}, "the transformers backend needs --model"),
        ("rules", None, {"threads": 2}, "the rules backend has no use for: threads"),
        ("transformers", "m", {"urls": ("http://a",)}, "has no use for: urls"),
    ],
)
def test_what_does_not_fit_is_named(kind: str, model: str | None, flags: dict, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        backend_settings(kind, model, None, flags)


def test_harm_is_written_label_by_label() -> None:
    assert harm_of(["toxic=1", "a=b=0.5"]) == {"toxic": "1", "a=b": "0.5"}
    assert harm_of([]) is None
    with pytest.raises(ConfigError, match="LABEL=HARM"):
        harm_of(["toxic"])


def test_a_plain_judge_needs_its_tokenizer() -> None:
    config = VllmConfig(urls=("http://a",), form="completion")
    with pytest.raises(ConfigError, match="needs --tokenizer"):
        build_backend(config, None, [load_rubric("demo-v1")])


def test_a_key_file_that_is_not_there_is_said_so(tmp_path: Path) -> None:
    config = OpenAIConfig(urls=("http://a",), model="m", server_key_file=tmp_path / "key")
    with pytest.raises(ConfigError, match="cannot read the judge server's key"):
        build_backend(config, None, [load_rubric("harm-v1")])


def test_what_is_no_tokenizer_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"there is no tokenizer .*tokenizer.json"):
        FileTokenizer(tmp_path)
    (tmp_path / "tokenizer.json").write_text("[]")
    with pytest.raises(ConfigError, match=r"is no tokenizer.json"):
        FileTokenizer(tmp_path)


def test_the_worker_of_a_served_judge_needs_no_torch() -> None:
    code = (
        "import sys, judge_service.backends.vllm, judge_service.backends.openai, judge_service.worker.worker;"
        " print({'torch', 'transformers', 'vllm'} & sys.modules.keys())"
    )
    done = subprocess.run([sys.executable, "-P", "-c", code], capture_output=True, text=True, check=False)
    assert (done.stdout.strip(), done.stderr) == ("set()", "")
