"""A synchronous judge as plainly as it can be said: each step asks, waits, and trains. Started as a rank.

It shares the model, the data order and the optimizer step with the real run, and nothing of what makes betas:
no controller, no ledger, no client, no clock.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import httpx

from shared.safety import FixedKl, PolicySource, Safety
from trainer.data.rows import last_turn
from trainer.safety.decision import Action
from trainer.training.assemble import assembled
from trainer.training.distributed import world_from_environment
from trainer.training.guidance import Guidance, Speaker
from trainer.training.loop import Run, train
from trainer.training.recorder import Recorder
from trainer.training.run_spec import read_spec
from trainer.training.sampler import InlineSampler


class Plain:
    ahead = None
    """No probe reads the reference before the step."""

    def __init__(self, run: Run, method: Any, url: str) -> None:
        self.run, self.method, self.url = run, method, url
        policy = next(source for source in method.sources if isinstance(source, PolicySource))
        self.samples = policy.samples_per_step
        self.sampler = InlineSampler(
            run.engine, run.tokenizer, max_new_tokens=policy.max_new_tokens, temperature=policy.temperature,
            world=run.collective.world, seed=run.spec.seed, max_length=run.spec.base.context_length,
        )  # fmt: skip
        self.ema = 1.0
        self.reference: dict[int, float] = {}
        """Row -> score of what the reference answers."""
        self.trace: list[list[float]] = []

    def guide(self, step: int, rows: tuple[int, ...]) -> Guidance:
        pairs = [last_turn(self.run.examples[row].row) for row in rows]
        prompts = pairs[: self.samples]
        answers = self.sampler.sample([prompt for prompt, _ in prompts], step)
        target = self.judge(pairs)
        policy = self.judge([(prompt, answer) for (prompt, _), answer in zip(prompts, answers, strict=True)])
        self.read_reference(step, {row: prompt for row, (prompt, _) in zip(rows, prompts, strict=False)})
        drift = {row: max(0.0, s - self.reference[row]) for row, s in zip(rows, policy, strict=False)}
        scores = {("target", row): score for row, score in zip(rows, target, strict=True)}
        scores |= {("policy", row): score for row, score in drift.items()}
        mean = sum(score for _, score in sorted(scores.items())) / len(scores)
        gain = 0.7 if mean > self.ema else 0.05
        self.ema += (1 - (1 - gain)) * (mean - self.ema)
        risks = [max(scores["target", row], scores.get(("policy", row), 0.0)) for row in rows]
        betas = [0.1 + (1.0 - 0.1) * risk for risk in risks]
        self.trace.append([self.ema, *betas])
        return Guidance(
            action=Action.TRAIN, betas=tuple(betas), stop=False, risk=self.ema, staleness=0, overdue=False,
            wait_s=0.0, generate_s=0.0, bases={},
        )  # fmt: skip

    def read_reference(self, step: int, prompts: dict[int, Any]) -> None:
        """Of rows whose reference has not been read."""
        unread = {row: prompt for row, prompt in prompts.items() if row not in self.reference}
        if not unread:
            return
        answers = self.sampler.sample(list(unread.values()), step, Speaker.REFERENCE)
        said = self.judge(list(zip(unread.values(), answers, strict=True)))
        self.reference |= dict(zip(unread, said, strict=True))

    def judge(self, pairs: list[Any]) -> list[float]:
        items = [
            {"prompt": [turn.model_dump() for turn in prompt], "response": response}
            for prompt, response in pairs
        ]
        body = {"items": items, "rubric": "demo-v1", "wait_s": 30}
        answer = httpx.post(f"{self.url}/v1/judgements", json=body, timeout=60)
        assert answer.status_code == 200, answer.text
        return [item["score"] for item in answer.json()["items"]]

    def state(self, step: int) -> None:
        return None


def main(arguments: list[str]) -> int:
    spec = read_spec(Path(arguments[0]))
    method, judge = spec.safety.method, spec.judge
    assert judge is not None
    unjudged = spec.model_copy(update={"safety": Safety(method=FixedKl())})
    world = world_from_environment()
    recorder = Recorder(spec.run_dir, writes=True)
    with assembled(unjudged, world, recorder, lambda: False) as run:
        plain = Plain(run, method, judge.url)
        run.guide = plain  # type: ignore[assignment]
        recorder.outcome(train(run))
    (spec.run_dir / "trace.json").write_text(json.dumps(plain.trace), encoding="utf-8")
    return 0
