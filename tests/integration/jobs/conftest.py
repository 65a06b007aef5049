"""A trainer service of real processes on a base of a few thousand weights."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from shared.processes import Child, start_module
from tests import waiting
from trainer.jobs.layout import Layout
from trainer.models.inspect import describe
from trainer.models.registry import PathSource, register

WORDS = ["<unk>", "</s>", "user", "assistant", *(f"w{number}" for number in range(28))]
TEMPLATE = (
    "{% for m in messages %}{{ m['role'] }} {{ m['content'] }}"
    "{% if m['role'] == 'assistant' %}</s>{% endif %} {% endfor %}"
    "{% if add_generation_prompt %}assistant {% endif %}"
)
ENV = {"OMP_NUM_THREADS": "1"}


@pytest.fixture
def until() -> Callable[..., Any]:
    return waiting.until


@pytest.fixture(scope="session")
def tiny_base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("base")
    config = LlamaConfig(
        vocab_size=32, hidden_size=16, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=2, max_position_embeddings=128, eos_token_id=1, bos_token_id=None,
    )  # fmt: skip
    words = Tokenizer(WordLevel({word: index for index, word in enumerate(WORDS)}, unk_token="<unk>"))
    words.pre_tokenizer = Whitespace()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=words, unk_token="<unk>", eos_token="</s>")
    tokenizer.add_special_tokens({"eos_token": "</s>"})
    tokenizer.chat_template = TEMPLATE
    LlamaForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@dataclass
class TrainerService:
    """The API and a runner, each a process that a test may kill and start again."""

    layout: Layout
    children: list[Child]
    url: str = ""

    def start_api(self, *args: str) -> Child:
        state = ["--state-dir", str(self.layout.root), "--port", "0", *args]
        child = self._start("trainer.api.main", state, "api")
        self.url = child.ready["url"]
        return child

    def start_runner(self, *args: str) -> Child:
        return self._start("trainer.jobs.main", ["--state-dir", str(self.layout.root), *args], "runner")

    def _start(self, module: str, args: list[str], name: str) -> Child:
        child = start_module(module, args, env=ENV, log=self.layout.root / f"{name}.log")
        self.children.append(child)
        return child

    @property
    def openai(self) -> openai.OpenAI:
        return openai.OpenAI(
            base_url=f"{self.url}/v1", api_key="none", max_retries=0, _strict_response_validation=True
        )

    @property
    def http(self) -> httpx.Client:
        return httpx.Client(base_url=self.url, timeout=30)

    def upload(self, rows: int = 16) -> str:
        lines = [
            json.dumps(
                {
                    "messages": [
                        {"role": "user", "content": f"w{n % 28} w{n % 5}"},
                        {"role": "assistant", "content": f"w{n % 3} w{n % 7}"},
                    ]
                }
            )
            for n in range(rows)
        ]
        with self.openai as client:
            return client.files.create(file=("rows.jsonl", "\n".join(lines).encode()), purpose="fine-tune").id

    def create(self, **fields: Any) -> str:
        body = {
            "model": "tiny",
            "training_file": self.upload(),
            "safety": {"method": "sft"},
            "training": {"steps": 6, "batch_size": 4, "ranks": 1, "adapter": "full"},
            **fields,
        }
        with self.http as client:
            answer = client.post("/v1/fine_tuning/jobs", json=body)
        assert answer.status_code == 200, answer.text
        return str(answer.json()["id"])

    def job(self, job_id: str) -> dict[str, Any]:
        with self.http as client:
            found: dict[str, Any] = client.get(f"/v1/fine_tuning/jobs/{job_id}").json()
        return found

    def wait_for(self, job_id: str, *statuses: str, deadline_s: float = 180.0) -> dict[str, Any]:
        def reached() -> dict[str, Any] | None:
            job = self.job(job_id)
            assert job["status"] in (*statuses, "queued", "running"), job["error"]
            return job if job["status"] in statuses else None

        found: dict[str, Any] = waiting.until(reached, f"{job_id} is {' or '.join(statuses)}", deadline_s)
        return found

    until = staticmethod(waiting.until)

    @staticmethod
    def processes_of(run_dir: Path) -> list[int]:
        """Of torchrun and its ranks: those whose command line names the run's folder."""
        found = []
        for entry in Path("/proc").iterdir():
            if not entry.name.isdigit():
                continue
            try:
                command = (entry / "cmdline").read_bytes()
            except OSError:  # it has ended meanwhile
                continue
            if str(run_dir).encode() in command:
                found.append(int(entry.name))
        return found

    def steps(self, job_id: str) -> list[int]:
        with self.http as client:
            events = client.get(
                f"/v1/fine_tuning/jobs/{job_id}/events", params={"limit": 1000, "order": "asc"}
            ).json()
        return [event["data"]["step"] for event in events["data"] if event["type"] == "metrics"]


@pytest.fixture
def service(tmp_path: Path, tiny_base: Path) -> Iterator[TrainerService]:
    layout = Layout(tmp_path / "state").create()
    register(layout.models, "tiny", describe("tiny", PathSource(path=tiny_base)))
    made = TrainerService(layout, [])
    made.start_api()
    try:
        yield made
    finally:
        for child in reversed(made.children):
            child.stop(60)
