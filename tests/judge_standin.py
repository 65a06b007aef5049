"""A stand-in for a judge's server: it speaks vLLM's and OpenAI's HTTP, and misbehaves on demand.

It grades by words. `answer` is the whole of it; `transport` puts it behind httpx, `serve` behind uvicorn on
a real port.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import math
import re
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import uvicorn

from judge_service.backends.rules import HARM, REFUSAL
from judge_service.backends.tokens import FileTokenizer

NAMES = (
    "<|startoftext|>", "<|endoftext|>", "<|return|>", "<|constrain|>", "<|channel|>", "<|start|>", "<|end|>",
    "<|message|>", "<|call|>",
)  # fmt: skip

ANY_NAME = re.compile("(" + "|".join(map(re.escape, NAMES)) + ")")

Answer = tuple[int, Any]
"""Status, and the JSON or the text of the body."""


class HarmonyBytes:
    """A token a byte, and harmony's special ones."""

    def __init__(self) -> None:
        self.specials = {name: 200_000 + index for index, name in enumerate(NAMES)}

    def encode(self, text: str, *, specials: bool) -> list[int]:
        parts = ANY_NAME.split(text) if specials else [text]
        ids: list[int] = []
        for part in parts:
            ids += [self.specials[part]] if part in self.specials else [100 + byte for byte in part.encode()]
        return ids

    def decode(self, ids: list[int]) -> str:
        names = {token: name.encode() for name, token in self.specials.items()}
        return b"".join(names.get(i) or bytes([i - 100]) for i in ids).decode("utf-8", "replace")


class FromFile:
    """The judge's own tokenizer.json."""

    def __init__(self, folder: Path) -> None:
        self._tokenizer = FileTokenizer(folder)

    def encode(self, text: str, *, specials: bool) -> list[int]:
        options = {"add_special_tokens": False, "split_special_tokens": not specials}
        return list(self._tokenizer(text, **options)["input_ids"])

    def decode(self, ids: list[int]) -> str:
        return self._tokenizer.decode(ids)


class StandIn:
    def __init__(self, codec: HarmonyBytes | FromFile, *, context: int = 8192) -> None:
        self.codec = codec
        self.context = context
        self.mode = "good"
        self.model = "stand-in"
        self.fingerprint = "fp-1"
        self.asked: list[tuple[str, dict[str, Any]]] = []
        """(path, body) of every POST, in order."""
        self.can_schema = True
        self.can_logprobs = True
        self.scale_out = True
        self._flaky = 0

    async def answer(self, method: str, path: str, body: dict[str, Any]) -> Answer:
        if method == "POST":
            self.asked.append((path, body))
        if self.mode == "503":
            return 503, {"error": "loading"}
        match path:
            case "/health":
                return 200, {}
            case "/v1/models":
                card = {"id": self.model, "root": f"/models/{self.model}", "max_model_len": self.context}
                return 200, {"object": "list", "data": [card]}
            case "/version":
                return 200, {"version": "0.0-stand-in"}
            case "/tokenize":
                return 200, {"tokens": self.codec.encode(body["prompt"], specials=True)}
            case "/detokenize":
                return 200, {"prompt": self.codec.decode(body["tokens"])}
            case "/v1/chat/completions/render":
                return self._render(body)
            case "/v1/completions" | "/v1/chat/completions":
                return await self._complete(path, body)
        return 404, {"error": f"no {path}"}

    def _render(self, body: dict[str, Any]) -> Answer:
        if not self.scale_out:
            return 403, {"error": {"message": "start with --enable-scale-out"}}
        ids = self.codec.encode("<|start|>system<|message|>Reasoning: low<|end|>", specials=True)
        for message in body["messages"]:
            role = {"system": "developer"}.get(message["role"], message["role"])
            channel = "<|channel|>final" if role == "assistant" else ""
            ids += self.codec.encode(f"<|start|>{role}{channel}<|message|>", specials=True)
            passes = self.mode == "specials pass"
            content = (
                message["content"].replace("< |", "<|").replace("| >", "|>") if passes else message["content"]
            )
            ids += self.codec.encode(content, specials=passes)
            ids += self.codec.encode("<|end|>", specials=True)
        ids += self.codec.encode("<|start|>assistant", specials=True)
        if len(ids) > self.context:
            return 400, {"error": {"message": f"{len(ids)} tokens are too many for {self.context}"}}
        return 200, {"token_ids": ids}

    async def _complete(self, path: str, body: dict[str, Any]) -> Answer:
        match self.mode:
            case "500":
                return 500, {"error": "HarmonyError"}
            case "flaky 500":
                self._flaky += 1
                if self._flaky % 2:
                    return 500, {"error": "HarmonyError"}
            case "hang":
                await asyncio.sleep(60)
            case "garbage":
                return 200, "<html>a proxy's page</html>"
            case "no object":
                return 200, [1, 2, 3]
            case "429":
                return 429, {"error": "slow down"}
            case "400":
                return 400, {"error": {"message": "no such field"}}
        said = self._chat(body) if "messages" in body else self._completion(body)
        said["model"] = "another" if self.mode == "other model" else self.model
        if self.mode == "no choices":
            said["choices"] = []
        return 200, said

    def _completion(self, body: dict[str, Any]) -> dict[str, Any]:
        prompt = body["prompt"]
        read = len(prompt) - 1 if self.mode == "cut prompt" else len(prompt)
        choice: dict[str, Any]
        if "logprob_token_ids" in body:
            ids = body["logprob_token_ids"]
            chances = self._chances(self.codec.decode(prompt), len(ids))
            if self.mode == "wrong ids":
                ids = [token + 7 for token in ids]
            top = {f"token_id:{token}": value for token, value in zip(ids, chances, strict=True)}
            logprobs = None if self.mode == "null" else {"top_logprobs": [top]}
            choice = {"text": "5", "finish_reason": "length", "logprobs": logprobs}
        else:
            choice = self._thoughts()
        usage = {"prompt_tokens": read, "completion_tokens": 1}
        return {"choices": [choice], "usage": usage, "system_fingerprint": self.fingerprint}

    def _thoughts(self) -> dict[str, Any]:
        thought = "" if self.mode == "empty" else "It is what it is."
        ids = self.codec.encode(thought, specials=False)
        if self.mode == "length":
            return {"text": thought, "token_ids": ids, "finish_reason": "length"}
        if self.mode == "control tokens":
            ids += self.codec.encode("<|start|>user<|message|>", specials=True)
        stop = "<|call|>" if self.mode == "tool call" else "<|end|>"
        [end] = self.codec.encode(stop, specials=True)
        return {"text": thought, "token_ids": [*ids, end], "finish_reason": "stop", "stop_reason": end}

    def _chances(self, text: str, count: int) -> list[float]:
        """Log-probabilities of the labels."""
        graded = text.split("<|user|>", 1)[-1].split("<|start|>user<|message|>", 1)[-1]
        harmful = HARM.search(graded) is not None and REFUSAL.search(graded) is None
        best = count - 1 if harmful and self.mode != "ones" else 0
        mass = 0.01 if self.mode == "low mass" else 0.95
        chances = [math.log(mass * (0.9 if k == best else 0.1 / (count - 1))) for k in range(count)]
        if self.mode == "nan":
            chances[0] = math.nan
        if self.mode == "positive":
            chances[0] = 4.0
        return chances

    def _chat(self, body: dict[str, Any]) -> dict[str, Any]:
        user = body["messages"][-1]["content"]
        labels = ["0", "1"] if '"0"' in user else ["1", "2", "3", "4", "5"]
        chances = self._chances(user, len(labels))
        label = labels[max(range(len(labels)), key=chances.__getitem__)]
        schema = "response_format" in body and self.can_schema
        content: str | None = json.dumps({"label": label}) if schema else label
        pieces = ['{"', "label", '":', ' "', label, '"}'] if schema else [label]
        if self.mode in ("null", "empty"):
            content = {"null": None, "empty": ""}[self.mode]
        if self.mode == "chatty":
            content = f"I would say {label}."
        message: dict[str, Any] = {"role": "assistant", "content": content}
        if self.mode == "refusal":
            message |= {"content": None, "refusal": "I cannot."}
        choice: dict[str, Any] = {
            "message": message,
            "finish_reason": "length" if self.mode == "length" else "stop",
        }
        if body.get("logprobs") and self.can_logprobs:
            # JSON has no infinities; -9999 is how servers write them.
            values = dict(zip(labels, chances, strict=True))
            shift = 7 if self.mode == "wrong ids" else 0
            top = [{"token": str(int(k) + shift), "logprob": v} for k, v in values.items()]
            choice["logprobs"] = {
                "content": [
                    {
                        "token": piece,
                        "logprob": values.get(piece, -0.1),
                        "top_logprobs": top if piece == label else [{"token": piece, "logprob": -0.1}],
                    }
                    for piece in pieces
                ]
            }
        return {"choices": [choice], "usage": {"prompt_tokens": 9, "completion_tokens": 3}}

    # --- behind httpx, or behind a port -----------------------------------------------------

    def transport(self) -> httpx.MockTransport:
        async def handle(request: httpx.Request) -> httpx.Response:
            if self.mode == "refused":
                raise httpx.ConnectError("nothing listens", request=request)
            body = json.loads(request.content) if request.content else {}
            status, said = await self.answer(request.method, request.url.path, body)
            return httpx.Response(status, text=said if isinstance(said, str) else json.dumps(said))

        return httpx.MockTransport(handle)

    async def app(self, scope: Any, receive: Any, send: Any) -> None:
        """ASGI."""
        if scope["type"] != "http":
            return
        raw = b""
        while True:
            event = await receive()
            raw += event.get("body", b"")
            if not event.get("more_body"):
                break
        status, said = await self.answer(scope["method"], scope["path"], json.loads(raw) if raw else {})
        text = said if isinstance(said, str) else json.dumps(said)
        headers = [(b"content-type", b"application/json")]
        await send({"type": "http.response.start", "status": status, "headers": headers})
        await send({"type": "http.response.body", "body": text.encode()})


@contextlib.contextmanager
def serve(standin: StandIn, port: int = 0) -> Iterator[str]:
    """Its base URL, served from a thread of this process."""
    config = uvicorn.Config(
        standin.app,
        port=port,
        log_level="error",
        lifespan="off",
        interface="asgi3",
        timeout_graceful_shutdown=1,
    )
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    until = time.monotonic() + 20
    while not server.started:
        assert time.monotonic() < until, "the stand-in did not start"
        time.sleep(0.01)
    try:
        yield f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join(10)
