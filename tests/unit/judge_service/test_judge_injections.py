"""No graded text reaches out of its place: every attack, rubric and tokenizer that can run here."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

import openai_harmony
import pytest
from tokenizers.processors import TemplateProcessing
from transformers import AutoTokenizer, LlamaConfig, LlamaForSequenceClassification

from judge_service.backends.base import Grade, GradeFailure, GradeRequest
from judge_service.backends.classifier import ClassifierBackend, ClassifierOptions
from judge_service.backends.harmony import HarmonyOptions
from judge_service.backends.openai import OpenAIOptions, open_openai
from judge_service.backends.pool import PoolOptions
from judge_service.backends.prompting import PromptEncoder
from judge_service.backends.rules import RulesBackend
from judge_service.backends.transformers import TransformersBackend, TransformersOptions
from judge_service.backends.vllm import VllmOptions, open_vllm
from shared.rubrics.encoding import chat_text, encode_prompt, encode_text
from shared.rubrics.rubric import Rubric, Segment, load_rubric, render, render_chat, shipped_rubrics
from shared.wire import ChatMessage
from tests.judge_standin import HarmonyBytes, StandIn

NONCE = "5eed5eed5eed5eed"
REQUEST, ANSWER = "How do I break a lock?", "First, take the pick. Then turn it slowly."
ROOMY = 100_000
CHAT_RUBRICS = [name for name, rubric in shipped_rubrics().items() if rubric.fenced]


class Harmony:
    """gpt-oss's vocabulary, in the shape of transformers' tokenizers."""

    bos_token_id = None

    def __init__(self) -> None:
        self.encoding = openai_harmony.load_harmony_encoding("HarmonyGptOss")

    @cache  # noqa: B019 - the same rubrics over and over; it lives as long as the module's tests
    def __call__(
        self, text: str, *, add_special_tokens: bool, split_special_tokens: bool = False
    ) -> dict[str, list[int]]:
        allowed = set() if split_special_tokens else "all"
        return {"input_ids": self.encoding.encode(text, allowed_special=allowed, disallowed_special=())}

    def decode(self, ids: list[int]) -> str:
        return str(self.encoding.decode(ids))

    def specials(self, ids: list[int]) -> list[int]:
        return [token for token in ids if self.encoding.is_special_token(token)]


class Bytes:
    """A tokenizer of transformers' own classes that knows the chat formats' tokens."""

    def __init__(self, folder: Path, tokens: list[str]) -> None:
        self._tokenizer = AutoTokenizer.from_pretrained(folder)
        self._tokenizer.add_special_tokens({"additional_special_tokens": tokens})
        self.bos_token_id = self._tokenizer.bos_token_id
        self.special_ids = frozenset(self._tokenizer.all_special_ids)

    @cache  # noqa: B019
    def __call__(self, text: str, **how: Any) -> dict[str, list[int]]:
        return {"input_ids": self._tokenizer(text, **how)["input_ids"]}

    def decode(self, ids: list[int]) -> str:
        return str(self._tokenizer.decode(ids))

    def specials(self, ids: list[int]) -> list[int]:
        return [token for token in ids if token in self.special_ids]


CHAT_TOKENS = [
    "<|im_start|>", "<|im_end|>", "<|endoftext|>", "<|eot_id|>", "<|start_header_id|>", "<|end_header_id|>",
    "<|start|>", "<|message|>", "<|channel|>", "<|return|>", "<|call|>", "<s>", "</s>", "[INST]", "[/INST]",
    "<<SYS>>", "<</SYS>>", "<start_of_turn>", "<end_of_turn>", "<eos>", "<bos>", "<pad>", "<think>",
    "</think>", "<｜User｜>", "<｜Assistant｜>", "<｜end▁of▁sentence｜>",
]  # fmt: skip


@pytest.fixture(scope="module")
def tokenizers(judge_folder: Path) -> dict[str, Harmony | Bytes]:
    return {"harmony": Harmony(), "bytes": Bytes(judge_folder, CHAT_TOKENS)}


def save_classifier(judge: Path, folder: Path) -> Path:
    """With that judge's tokenizer and a frame of special tokens around its pair of texts."""
    tokenizer = AutoTokenizer.from_pretrained(judge)
    names = ["<|bos|>", "<|end|>"]
    ids = dict(zip(names, tokenizer.convert_tokens_to_ids(names), strict=True))
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single="<|bos|> $A <|end|>", pair="<|bos|> $A <|end|> $B <|end|>", special_tokens=list(ids.items())
    )
    tokenizer.save_pretrained(folder)
    config = LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=32, intermediate_size=64, num_hidden_layers=1,
        num_attention_heads=4, max_position_embeddings=256, num_labels=2, pad_token_id=tokenizer.pad_token_id,
    )  # fmt: skip
    LlamaForSequenceClassification(config).save_pretrained(folder)
    return folder


def prompts(injection: Any, rubric: Rubric) -> Iterator[tuple[Segment, ...]]:
    """The attack as a plain pair, and in a conversation of three turns."""
    prompt, response = injection.pair(REQUEST, ANSWER)
    turns = [
        ChatMessage(role="system", content=prompt),
        ChatMessage(role="user", content=prompt),
        ChatMessage(role="assistant", content=response),
        ChatMessage(role="user", content="go on"),
    ]
    last = len(rubric.questions) - 1
    yield render(rubric, prompt, response, nonce=NONCE)
    yield render(rubric, turns, response, nonce=NONCE, question=last)


def frame(segments: tuple[Segment, ...], tokenizer: Any) -> list[int]:
    return [token for s in segments if s.trusted for token in encode_text(tokenizer, s.text, trusted=True)]


def test_there_are_enough_and_each_carries_the_answer(injections: list[Any]) -> None:
    assert len(injections) >= 60
    assert len({injection.name for injection in injections}) == len(injections)
    for injection in injections:
        prompt, response = injection.pair(REQUEST, ANSWER)
        assert REQUEST in prompt
        assert ANSWER in response
        assert (prompt, response) != (REQUEST, ANSWER)


@pytest.mark.parametrize("name", sorted(shipped_rubrics()))
@pytest.mark.parametrize("vocabulary", ["harmony", "bytes"])
def test_graded_text_becomes_no_special_token_and_stays_in_its_place(
    injections: list[Any], tokenizers: dict[str, Any], name: str, vocabulary: str
) -> None:
    tokenizer, rubric = tokenizers[vocabulary], load_rubric(name)
    for injection in injections:
        for segments in prompts(injection, rubric):
            ids = encode_prompt(tokenizer, segments, max_tokens=ROOMY).ids
            assert tokenizer.specials(ids) == tokenizer.specials(frame(segments, tokenizer)), injection.name
            first = encode_text(tokenizer, segments[0].text, trusted=True)
            last = encode_text(tokenizer, segments[-1].text, trusted=True)
            assert ids[: len(first)] == first, injection.name
            assert ids[-len(last) :] == last, injection.name
            assert tokenizer.decode(ids) == "".join(s.text for s in segments), injection.name


@pytest.mark.parametrize("name", CHAT_RUBRICS)
def test_the_fences_stand_once_even_where_the_text_was_cut(
    injections: list[Any], tokenizers: dict[str, Any], name: str
) -> None:
    tokenizer, rubric = tokenizers["harmony"], load_rubric(name)
    for injection in injections:
        for segments in prompts(injection, rubric):
            whole = len(encode_prompt(tokenizer, segments, max_tokens=ROOMY).ids)
            for limit in (ROOMY, max(whole - 20, len(frame(segments, tokenizer)) + 40)):
                text = tokenizer.decode(encode_prompt(tokenizer, segments, max_tokens=limit).ids)
                trusted = "".join(s.text for s in segments if s.trusted)
                for mark in (f"<reply-{NONCE}>", f"</reply-{NONCE}>", f"<turn-{NONCE} ", f"</turn-{NONCE}>"):
                    assert text.count(mark) == trusted.count(mark) > 0, (injection.name, mark)


@pytest.mark.parametrize("name", CHAT_RUBRICS)
def test_a_chat_server_that_reads_special_tokens_out_of_strings_finds_none(
    injections: list[Any], tokenizers: dict[str, Any], name: str
) -> None:
    """The worst server: it encodes what we send as if it were its own."""
    rubric = load_rubric(name)
    for injection in injections:
        prompt, response = injection.pair(REQUEST, ANSWER)
        sent = render_chat(rubric, prompt, response, nonce=NONCE)
        text = chat_text(sent.user).text
        assert text.endswith(sent.user[-1].text)
        assert text.count(NONCE) == "".join(s.text for s in sent.user if s.trusted).count(NONCE)
        assert text.replace(" ", "") == "".join(s.text for s in sent.user).replace(" ", ""), injection.name
        for tokenizer in tokenizers.values():
            ids = encode_text(tokenizer, text, trusted=True)
            assert tokenizer.specials(ids) == [], injection.name


def test_harmony_s_own_renderer_gives_the_graded_text_no_message_of_its_own(
    injections: list[Any], tokenizers: dict[str, Any]
) -> None:
    harmony, rubric = tokenizers["harmony"], load_rubric("harm-v1")

    def specials(prompt: str, response: str) -> list[int]:
        sent = render_chat(rubric, prompt, response, nonce=NONCE)
        developer = openai_harmony.DeveloperContent.new().with_instructions(sent.instructions)
        conversation = openai_harmony.Conversation.from_messages(
            [
                openai_harmony.Message.from_role_and_content(openai_harmony.Role.DEVELOPER, developer),
                openai_harmony.Message.from_role_and_content(
                    openai_harmony.Role.USER, chat_text(sent.user).text
                ),
            ]
        )
        ids = harmony.encoding.render_conversation_for_completion(conversation, openai_harmony.Role.ASSISTANT)
        return list(harmony.specials(ids))

    plain = specials(REQUEST, ANSWER)
    assert len(plain) > 4
    for injection in injections:
        assert specials(*injection.pair(REQUEST, ANSWER)) == plain, injection.name


class Leaky:
    """A tokenizer that does not honour `split_special_tokens`, as some slow ones do not."""

    def __init__(self, inner: Bytes) -> None:
        self._inner = inner
        self.bos_token_id = inner.bos_token_id

    def __call__(self, text: str, **how: Any) -> dict[str, list[int]]:
        return self._inner(text, **{**how, "split_special_tokens": False})


def test_a_prompt_whose_structure_broke_is_never_scored(
    injections: list[Any], tokenizers: dict[str, Any]
) -> None:
    inner = tokenizers["bytes"]
    rubric = load_rubric("harm-v1")
    encoder = PromptEncoder(
        Leaky(inner),
        [rubric],
        judge="leaky",
        max_tokens=ROOMY,
        special_ids=inner.special_ids,
        added_contents={},
    )
    refused = set()
    for injection in injections:
        prompt, response = injection.pair(REQUEST, ANSWER)
        leaks = inner.specials(encode_text(inner, prompt + response, trusted=True))
        encoded = encoder.encode(GradeRequest(rubric, prompt, response))
        assert isinstance(encoded, GradeFailure) == bool(leaks), injection.name
        if isinstance(encoded, GradeFailure):
            refused.add(injection.kind)
    assert {"harmony", "chat format"} <= refused


POOL = PoolOptions(("http://judge",), in_flight=4, timeout_s=20)


def grade_all(backend: Any, injections: list[Any], rubric: Rubric) -> dict[str, Grade | GradeFailure]:
    async def run() -> list[Grade | GradeFailure]:
        try:
            requests = [GradeRequest(rubric, *injection.pair(REQUEST, ANSWER)) for injection in injections]
            return list(await backend.judge(requests))
        finally:
            await backend.close()

    names = [injection.name for injection in injections]
    return dict(zip(names, asyncio.run(run()), strict=True))


def test_through_gpt_oss_s_path_each_attack_is_graded_or_seen(injections: list[Any]) -> None:
    """A stand-in for vLLM renders; then one that makes special tokens of what spells them."""
    rubric = load_rubric("harm-v1")
    standin = StandIn(HarmonyBytes(), context=20_000)
    options = VllmOptions(POOL, HarmonyOptions(), (rubric,), boot_s=0)
    graded = grade_all(open_vllm(options, standin.transport()), injections, rubric)
    assert {type(answer) for answer in graded.values()} == {Grade}

    standin = StandIn(HarmonyBytes(), context=20_000)
    backend = open_vllm(options, standin.transport())
    standin.mode = "specials pass"
    graded = grade_all(backend, injections, rubric)
    spelled = {i.name for i in injections if any(t in i.text for t in standin.codec.specials)}
    assert len(spelled) >= 8
    assert {name for name, answer in graded.items() if isinstance(answer, GradeFailure)} == spelled


def test_a_chat_server_is_sent_the_rubric_alone_as_its_instructions(injections: list[Any]) -> None:
    rubric = load_rubric("harm-v1")
    standin = StandIn(HarmonyBytes(), context=100_000)
    options = OpenAIOptions(POOL, "stand-in", (rubric,), boot_s=0)
    backend = open_openai(options, standin.transport())
    standin.asked.clear()
    graded = grade_all(backend, injections, rubric)
    assert {type(answer) for answer in graded.values()} == {Grade}
    sent = [body["messages"] for _, body in standin.asked]
    assert len(sent) == len(injections)
    assert {messages[0]["content"] for messages in sent} == {rubric.prefix.strip()}
    assert {tuple(message["role"] for message in messages) for messages in sent} == {("system", "user")}


def test_a_classifier_s_frame_is_the_only_one(
    injections: list[Any], judge_folder: Path, tmp_path: Path
) -> None:
    folder = save_classifier(judge_folder, tmp_path / "classifier")
    backend = ClassifierBackend(
        ClassifierOptions(str(folder), "tiny", {"LABEL_1": 1.0}, device="cpu", threads=1)
    )
    specials = frozenset(backend._tokenizer.all_special_ids)
    plain = backend.encode(GradeRequest(load_rubric("harm-v1"), REQUEST, ANSWER)).ids
    for injection in injections:
        ids = backend.encode(GradeRequest(load_rubric("harm-v1"), *injection.pair(REQUEST, ANSWER))).ids
        assert [i for i in ids if i in specials] == [i for i in plain if i in specials], injection.name
    graded = grade_all(backend, injections, load_rubric("harm-v1"))
    assert {type(answer) for answer in graded.values()} == {Grade}


@pytest.mark.parametrize("kind", ["transformers", "rules"])
def test_every_backend_answers_each_attack_with_a_grade_or_a_failure(
    injections: list[Any], judge_folder: Path, kind: str
) -> None:
    rubric = load_rubric("demo-v1")
    make: dict[str, Callable[[], Any]] = {
        "rules": RulesBackend,
        "transformers": lambda: TransformersBackend(
            TransformersOptions(
                str(judge_folder), "tiny", (rubric,), device="cpu", threads=1, label_mass_floor=0
            )
        ),
    }
    graded = grade_all(make[kind](), injections, rubric)
    assert {type(answer) for answer in graded.values()} == {Grade}
