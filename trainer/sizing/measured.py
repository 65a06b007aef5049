"""The judge's speed, from what its workers' /metrics have counted so far."""

from __future__ import annotations

from collections.abc import Sequence

import httpx
from prometheus_client.parser import text_string_to_metric_families

from shared.errors import ConfigError, ServiceError
from trainer.sizing.formula import Judge

LEAST_BATCHES = 20
"""Fewer say nothing: the first one of a model is slow."""


def speed_of(expositions: Sequence[str]) -> Judge:
    """The mean worker's rate while it judges, idle time left out.

    A worker that had g batches at once and took s seconds for v verdicts in all its batches together does
    v g / s a second under load, if as many batches are then as full.

    Raises:
        ConfigError: they are no metrics of judge workers, or too little has been judged.
    """
    rates, verdicts, seconds, batches = [], 0.0, 0.0, 0.0
    for text in expositions:
        seen: dict[str, float] = {}
        for family in text_string_to_metric_families(text):
            for sample in family.samples:
                seen[sample.name] = seen.get(sample.name, 0.0) + sample.value
        missing = {
            "judge_batch_seconds_sum",
            "judge_batch_seconds_count",
            "judge_batches_at_once",
        } - seen.keys()
        if missing:
            raise ConfigError(
                f"these metrics lack {', '.join(sorted(missing))}: give the addresses of judge workers"
                " (--metrics-port), not of the API"
            )
        judged, took = seen.get("judge_verdicts_total", 0.0), seen["judge_batch_seconds_sum"]
        if took > 0:
            rates.append(judged / took * seen["judge_batches_at_once"])
        verdicts, seconds = verdicts + judged, seconds + took
        batches += seen["judge_batch_seconds_count"]
    if batches < LEAST_BATCHES or seconds == 0 or verdicts == 0:
        raise ConfigError(
            f"the workers have judged {batches:g} batches; {LEAST_BATCHES} are the least that say how fast"
            " they are. Send them work first, for instance with tether judge score"
        )
    return Judge(per_s=sum(rates) / len(rates), batch_s=seconds / batches)


def fetch(urls: Sequence[str]) -> list[str]:
    """Raises ServiceError naming the address that did not answer."""
    found = []
    for url in urls:
        try:
            answer = httpx.get(url, timeout=10).raise_for_status()
        except (httpx.HTTPError, httpx.InvalidURL) as error:
            raise ServiceError(f"cannot read the worker's metrics at {url}: {error}") from error
        found.append(answer.text)
    return found
