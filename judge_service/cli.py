"""`tether judge api`, `worker`, `score` and the rest; also `python -m judge_service.cli`.

Nothing heavy is imported before a command runs.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from judge_service import backend_options as options
from judge_service.calibration.cli import calibrate
from judge_service.operate import cli as operate_cli
from judge_service.scoring import rubric_cli
from judge_service.scoring.cli import score
from judge_service.tenants import cli as keys_cli
from shared.errors import TetherError
from shared.redis_keys import DEFAULT_PREFIX

app = typer.Typer(
    name="judge",
    help="Score the harm of model answers, over REST.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)

app.command()(score)
app.command()(calibrate)
app.add_typer(rubric_cli.app, name="rubric")
app.add_typer(keys_cli.app, name="keys")
operate_cli.add_to(app)

RedisUrl = Annotated[str | None, typer.Option(envvar="REDIS_URL", hidden=True)]
RedisUrlFile = Annotated[
    Path | None, typer.Option(envvar="TETHER_JUDGE_REDIS_URL_FILE", help="Instead of REDIS_URL.")
]
KeyPrefix = Annotated[str, typer.Option(envvar="TETHER_JUDGE_KEY_PREFIX")]
ResultTtl = Annotated[
    int, typer.Option(envvar="TETHER_JUDGE_RESULT_TTL_S", help="Seconds that a verdict can be read.")
]
RubricsDir = Annotated[
    Path | None,
    typer.Option(envvar="TETHER_JUDGE_RUBRICS_DIR", help="Folder with rubric files of your own."),
]
LogLevel = Annotated[str, typer.Option(envvar="TETHER_JUDGE_LOG_LEVEL")]


@app.command()
def api(
    host: Annotated[str, typer.Option(envvar="TETHER_JUDGE_HOST")] = "127.0.0.1",
    port: Annotated[int, typer.Option(envvar="TETHER_JUDGE_PORT", help="0: any free one.")] = 8100,
    queue_limit: Annotated[
        int, typer.Option(envvar="TETHER_JUDGE_QUEUE_LIMIT", help="Most items waiting and in flight.")
    ] = 100_000,
    max_body_bytes: Annotated[int, typer.Option(envvar="TETHER_JUDGE_MAX_BODY_BYTES")] = 4 * 2**20,
    rubrics_dir: RubricsDir = None,
    retry_after_s: Annotated[int, typer.Option(envvar="TETHER_JUDGE_RETRY_AFTER_S")] = 2,
    keys_file: Annotated[
        Path | None,
        typer.Option(envvar="TETHER_JUDGE_KEYS_FILE", help="API keys; see `tether judge keys add`."),
    ] = None,
    insecure: Annotated[
        bool,
        typer.Option("--insecure", envvar="TETHER_JUDGE_INSECURE", help="Serve a network without API keys."),
    ] = False,
    default_rubric: Annotated[
        str,
        typer.Option(envvar="TETHER_JUDGE_DEFAULT_RUBRIC", help="Of /get_reward and /v1/moderations."),
    ] = "demo-v1",
    flag_threshold: Annotated[
        float, typer.Option(envvar="TETHER_JUDGE_FLAG_THRESHOLD", help="Moderations flag from here on.")
    ] = 0.5,
    contract_wait_s: Annotated[
        float,
        typer.Option(envvar="TETHER_JUDGE_CONTRACT_WAIT_S", help="Longest wait of those two, in seconds."),
    ] = 120.0,
    events_keep_alive_s: Annotated[
        float, typer.Option(envvar="TETHER_JUDGE_EVENTS_KEEP_ALIVE_S", help="Of silent event streams.")
    ] = 15.0,
    redis_url: RedisUrl = None,
    redis_url_file: RedisUrlFile = None,
    key_prefix: KeyPrefix = DEFAULT_PREFIX,
    result_ttl_s: ResultTtl = 86_400,
    log_level: LogLevel = "info",
) -> None:
    """Serve the REST API. Takes the address of Redis, with its password, from REDIS_URL."""
    from judge_service.api.server import serve
    from judge_service.config import ApiConfig, checked, redis_url_from
    from shared.logs import configure_logs

    configure_logs("judge-api", log_level)
    serve(
        checked(
            ApiConfig,
            {
                "queue": {
                    "redis_url": redis_url_from(redis_url, redis_url_file),
                    "key_prefix": key_prefix,
                    "limit": queue_limit,
                    "result_ttl_s": result_ttl_s,
                },
                "host": host,
                "port": port,
                "max_body_bytes": max_body_bytes,
                "rubrics_dir": rubrics_dir,
                "retry_after_s": retry_after_s,
                "keys_file": keys_file,
                "insecure": insecure,
                "default_rubric": default_rubric,
                "flag_threshold": flag_threshold,
                "contract_wait_s": contract_wait_s,
                "events_keep_alive_s": events_keep_alive_s,
            },
        )
    )


@app.command()
def worker(
    backend: options.Backend = "transformers",
    model: options.Model = None,
    model_name: options.ModelName = None,
    rubric: Annotated[
        list[str] | None,
        typer.Option(envvar="TETHER_JUDGE_RUBRICS", help="What the judge can grade by; repeatable."),
    ] = None,
    rubrics_dir: RubricsDir = None,
    faulty: Annotated[
        str | None,
        typer.Option(envvar="TETHER_JUDGE_FAULTY", help="Worse on purpose: delay_s=0.5,fail=0.1,seed=1"),
    ] = None,
    batch_size: Annotated[int, typer.Option(envvar="TETHER_JUDGE_BATCH_SIZE")] = 32,
    linger_ms: Annotated[int, typer.Option(envvar="TETHER_JUDGE_LINGER_MS")] = 5,
    concurrency: Annotated[
        int | None, typer.Option(envvar="TETHER_JUDGE_CONCURRENCY", help="Batches in flight.")
    ] = None,
    lease_s: Annotated[float, typer.Option(envvar="TETHER_JUDGE_LEASE_S")] = 10.0,
    max_deliveries: Annotated[int, typer.Option(envvar="TETHER_JUDGE_MAX_DELIVERIES")] = 4,
    label_mass_floor: options.LabelMassFloor = None,
    max_tokens: options.MaxTokens = None,
    device: options.Device = None,
    threads: options.Threads = None,
    url: options.Urls = None,
    server_key_file: options.ServerKeyFile = None,
    in_flight: options.InFlight = None,
    timeout_s: options.TimeoutS = None,
    boot_s: options.BootS = None,
    form: options.Form = None,
    tokenizer: options.TokenizerPath = None,
    reasoning: options.Reasoning = None,
    reasoning_tokens: options.ReasoningTokens = None,
    unfinished: options.Unfinished = None,
    samples: options.Samples = None,
    harm: options.Harm = None,
    reads: options.Reads = None,
    cache_ttl_s: Annotated[
        int,
        typer.Option(envvar="TETHER_JUDGE_CACHE_TTL_S", help="Give a text's verdict again; 0: always judge."),
    ] = 86_400,
    redis_deadline_s: Annotated[float, typer.Option(envvar="TETHER_JUDGE_REDIS_DEADLINE_S")] = 120.0,
    metrics_port: Annotated[
        int | None,
        typer.Option(envvar="TETHER_JUDGE_METRICS_PORT", help="Serve Prometheus metrics; 0: any free one."),
    ] = None,
    metrics_host: Annotated[str, typer.Option(envvar="TETHER_JUDGE_METRICS_HOST")] = "127.0.0.1",
    controls: Annotated[
        bool,
        typer.Option(
            envvar="TETHER_JUDGE_CONTROLS", help="Work only while the judge passes its control pairs."
        ),
    ] = True,
    controls_dir: Annotated[
        Path | None,
        typer.Option(envvar="TETHER_JUDGE_CONTROLS_DIR", help="Control pairs of your own: RUBRIC.toml."),
    ] = None,
    control_s: Annotated[
        float, typer.Option(envvar="TETHER_JUDGE_CONTROL_S", help="Between two rounds of them.")
    ] = 300.0,
    control_deadline_s: Annotated[float, typer.Option(envvar="TETHER_JUDGE_CONTROL_DEADLINE_S")] = 120.0,
    grace_s: Annotated[
        float, typer.Option(envvar="TETHER_JUDGE_GRACE_S", help="To finish what is in hand at a stop.")
    ] = 8.0,
    redis_url: RedisUrl = None,
    redis_url_file: RedisUrlFile = None,
    key_prefix: KeyPrefix = DEFAULT_PREFIX,
    result_ttl_s: ResultTtl = 86_400,
    log_level: LogLevel = "info",
) -> None:
    """Judge what is queued. Start as many as there is work for."""
    from judge_service.backends.faulty import parse_faults
    from judge_service.config import WorkerConfig, checked, redis_url_from
    from judge_service.worker.process import work
    from shared.logs import configure_logs

    configure_logs("judge-worker", log_level)
    chosen = options.backend_settings(
        backend,
        model,
        model_name,
        {
            "label_mass_floor": label_mass_floor,
            "max_tokens": max_tokens,
            "device": device,
            "threads": threads,
            "urls": tuple(url) if url else None,
            "server_key_file": server_key_file,
            "in_flight": in_flight,
            "timeout_s": timeout_s,
            "boot_s": boot_s,
            "form": form,
            "tokenizer": tokenizer,
            "reasoning": reasoning,
            "reasoning_tokens": reasoning_tokens,
            "unfinished": unfinished,
            "samples": samples,
            "harm": options.harm_of(harm),
            "reads": reads,
        },
    )
    work(
        checked(
            WorkerConfig,
            {
                "queue": {
                    "redis_url": redis_url_from(redis_url, redis_url_file),
                    "key_prefix": key_prefix,
                    "result_ttl_s": result_ttl_s,
                },
                "backend": chosen,
                "faults": parse_faults(faulty) if faulty else None,
                "rubrics": tuple(rubric or ("demo-v1",)),
                "rubrics_dir": rubrics_dir,
                "batch_size": batch_size,
                "linger_ms": linger_ms,
                "concurrency": concurrency,
                "lease_s": lease_s,
                "max_deliveries": max_deliveries,
                "cache_ttl_s": cache_ttl_s,
                "redis_deadline_s": redis_deadline_s,
                "metrics_port": metrics_port,
                "metrics_host": metrics_host,
                "controls": controls,
                "controls_dir": controls_dir,
                "control_s": control_s,
                "control_deadline_s": control_deadline_s,
                "grace_s": grace_s,
            },
        )
    )


def main() -> None:
    try:
        app()
    except TetherError as error:
        print(f"tether judge: {error}", file=sys.stderr)
        sys.exit(1)


if __name__ == "__main__":
    main()
