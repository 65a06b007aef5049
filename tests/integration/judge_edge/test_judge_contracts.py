"""The contracts, by the clients that speak them."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
import requests

pytestmark = pytest.mark.integration

Check = Callable[[httpx.Response, int], dict[str, Any]]

BOMB = "How to build a bomb: mix this."
CAKE = "Mix flour and eggs."


# --- OpenAI's moderations, by the stock client ---------------------------------------------


@pytest.fixture
def moderations(edge: Any) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(
        base_url=f"{edge.url('keyed')}/v1", api_key=edge.keys["acme"], max_retries=0
    ) as client:
        yield client


def test_a_text_is_flagged_by_what_was_scored(moderations: openai.OpenAI) -> None:
    bad = moderations.moderations.create(input=BOMB)
    assert bad.id.startswith("modr-")
    assert bad.model == "words-1/demo-v1"
    [result] = bad.results
    assert result.flagged is True
    assert result.categories.model_dump(exclude_unset=True) == {"harm": True}
    assert result.category_scores.model_dump(exclude_unset=True) == {"harm": 1.0}
    assert result.category_applied_input_types.model_dump(exclude_unset=True) == {"harm": ["text"]}
    [good] = moderations.moderations.create(input=CAKE, model="omni-moderation-latest").results
    assert good.flagged is False


def test_several_texts_have_a_result_each_and_parts_have_one(moderations: openai.OpenAI) -> None:
    several = moderations.moderations.create(input=[CAKE, BOMB, ""], model="demo-v1").results
    assert [result.flagged for result in several] == [False, True, False]
    parts = moderations.moderations.create(
        input=[{"type": "text", "text": "How to build a"}, {"type": "text", "text": "bomb"}]
    )
    assert [result.flagged for result in parts.results] == [True]


def test_what_cannot_be_judged_is_an_error_of_the_clients_own_kind(
    edge: Any, moderations: openai.OpenAI
) -> None:
    image = {"type": "image_url", "image_url": {"url": "https://example.org/a.png"}}
    for wrong in ({"input": [image]}, {"input": []}, {"input": "x", "model": "no-such"}):
        with pytest.raises(openai.UnprocessableEntityError):
            moderations.moderations.create(**wrong)  # type: ignore[arg-type]
    with (
        openai.OpenAI(base_url=f"{edge.url('keyed')}/v1", api_key="wrong", max_retries=0) as stranger,
        pytest.raises(openai.AuthenticationError),
    ):
        stranger.moderations.create(input="x")


# --- OpenRLHF's remote reward model --------------------------------------------------------


def remote_reward(url: str, queries: list[str], prompts: list[str], labels: list[str]) -> dict[str, Any]:
    """What its `SingleTurnAgentExecutor` and, before it, `request_api_wrapper` send: one request a URL, JSON
    with these three lists and no header of ours; an HTTP error is tried again."""
    answer = requests.post(
        url, json={"query": queries, "prompts": prompts, "labels": labels}, timeout=40,
        headers={"Content-Type": "application/json"},
    )  # fmt: skip
    answer.raise_for_status()
    read: dict[str, Any] = answer.json()
    return read


def test_openrlhf_reads_a_reward_a_query(edge: Any) -> None:
    url = f"{edge.url('open')}/get_reward"
    prompts = ["<|user|>How do I build a bomb?<|assistant|>", "<|user|>And a cake?<|assistant|>"]
    queries = [f"{prompts[0]}Mix it.</s>", f"{prompts[1]}{CAKE}<|endoftext|>"]

    info = remote_reward(url, queries, prompts, ["", ""])

    # As `execute` and `_process_response_into_experience` read them.
    assert info["rewards"] == [0.0, 1.0]
    assert (info.get("scores") or info.get("rewards")) == [0.0, 1.0]
    assert info["extra_logs"] == {"harm": [1.0, 0.0]}
    assert remote_reward(f"{url}?reward=harm", queries, prompts, ["", ""])["rewards"] == [1.0, 0.0]
    # With several URLs all but the first get empty lists.
    assert remote_reward(url, [], [], [])["rewards"] == []
    # Older versions send the texts alone.
    answer = requests.post(url, json={"query": [BOMB]}, timeout=40)
    assert answer.json()["rewards"] == [0.0]


def test_openrlhf_can_carry_a_key_in_its_url(edge: Any) -> None:
    url = edge.url("keyed").replace("http://", f"http://any:{edge.keys['beta']}@") + "/get_reward"
    assert remote_reward(url, ["pc"], ["p"], [""])["rewards"] == [1.0]


def test_a_failure_is_an_http_error_and_never_a_reward(edge: Any, problem: Check) -> None:
    """Where the judge cannot read its model's answer, and where nobody judges in time."""
    env = {"TETHER_JUDGE_KEY_PREFIX": f"{edge.prefix}contract:"}
    api = edge.start("contract", "api", "--port", "0", "--contract-wait-s", "0.5", env=env)
    started = [api]
    try:
        with httpx.Client(base_url=api.ready["url"], timeout=40) as client:
            query = {"query": ["pc", "pd"], "prompts": ["p", "p"]}
            assert "0.5 s" in problem(client.post("/get_reward", json=query), 504)["detail"]
            problem(client.post("/v1/moderations", json={"input": "x"}), 504)
            started.append(
                edge.start("contract-worker", "worker", "--backend", "rules", "--no-controls", "--faulty",
                           "garbage=1", env=env)
            )  # fmt: skip
            failed = problem(client.post("/get_reward", json=query), 502)
            assert "parse_error" in failed["detail"]
            assert [error["field"] for error in failed["errors"]] == ["query[0]", "query[1]"]
            problem(client.post("/v1/moderations", json={"input": "x"}), 502)
            with pytest.raises(requests.HTTPError):
                remote_reward(f"{api.ready['url']}/get_reward", ["pc"], ["p"], [""])
    finally:
        for child in started:
            child.stop()


def test_wrong_requests_are_named(open_api: httpx.Client, problem: Check) -> None:
    def fields(body: dict[str, Any], path: str = "/get_reward") -> list[str]:
        return [error["field"] for error in problem(open_api.post(path, json=body), 422)["errors"]]

    assert fields({"query": ["a", "b"], "prompts": ["a"]}) == ["body"]
    assert fields({"query": ["another text"], "prompts": ["p" * 40]}) == ["query[0]"]
    assert fields({"query": ["x"] * 257}) == ["query"]
    assert fields({"query": "x"}) == ["query"]
    assert fields({"query": ["x"]}, "/get_reward?rubric=no-such") == ["rubric"]
    assert fields({"query": ["x"]}, "/get_reward?reward=gold") == ["query.reward"]


# --- TRL's GRPO trainer --------------------------------------------------------------------


def test_grpo_trains_on_the_judges_reward(
    edge: Any, judge_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The real trainer on a tiny random model: it calls the reward, logs it, and steps."""
    # TRL looks for a package named vllm, and would take the folder of tests of that name for one.
    tests = Path(__file__).resolve().parents[2]
    monkeypatch.setattr(sys, "path", [one for one in sys.path if Path(one).resolve() != tests])
    from datasets import Dataset
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from trl import GRPOConfig, GRPOTrainer

    from judge_service.client.trl import JudgeReward

    tokenizer = AutoTokenizer.from_pretrained(judge_folder)
    tokenizer.eos_token = "<|end|>"
    config = GRPOConfig(
        output_dir=str(tmp_path), per_device_train_batch_size=4, num_generations=4, max_completion_length=8,
        max_steps=2, logging_steps=1, save_strategy="no", report_to=[], use_cpu=True, bf16=False, beta=0.0,
        disable_tqdm=True,
    )  # fmt: skip
    reward = JudgeReward(edge.url("keyed"), "demo-v1", api_key=edge.keys["acme"], sign="harm", timeout_s=30)
    trainer = GRPOTrainer(
        model=AutoModelForCausalLM.from_pretrained(judge_folder),
        args=config,
        reward_funcs=[reward],
        train_dataset=Dataset.from_dict({"prompt": ["How to build a bomb?", "How to steal a car?"] * 4}),
        processing_class=tokenizer,
    )
    trainer.train()

    logged = [entry for entry in trainer.state.log_history if "rewards/judge_harm/mean" in entry]
    assert len(logged) == 2
    # By its words the judge finds every request harmful, whatever the random answer.
    assert [entry["rewards/judge_harm/mean"] for entry in logged] == [1.0, 1.0]
    assert [entry["judge/failed"] for entry in logged] == [0.0, 0.0]
