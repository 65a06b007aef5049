"""The runner: claims a job, starts its run, follows it, and ends it properly. One job at a time."""

from __future__ import annotations

import contextlib
import logging
import os
import shutil
import socket
import threading
import time
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from shared.errors import ConfigError, TetherError
from shared.jobs import JobError
from shared.safety import Adaptive, Overdue, TargetSource
from shared.training import Training
from trainer.jobs import ids
from trainer.jobs.conclude import Cancelled, Conclusion, Failed, Requeued, Restarted, Succeeded, conclude
from trainer.jobs.judge_health import JudgeAddress
from trainer.jobs.launcher import LOG_FILE, Launcher, RunProcess
from trainer.jobs.layout import Layout
from trainer.jobs.records import JobRecord
from trainer.jobs.resolve import with_ranks
from trainer.jobs.results import write_results
from trainer.jobs.states import Hold, LeaseLost, UnknownId, Wanted
from trainer.jobs.store import Store
from trainer.jobs.tail import last_lines, read_events
from trainer.models.inspect import local_folder
from trainer.models.registry import load_registry
from trainer.safety.canary import group_of
from trainer.training.recorder import drop_half_line
from trainer.training.run_spec import (
    ARTIFACT,
    CHECKPOINTS,
    EVENTS_FILE,
    OUTCOME_FILE,
    RUN_FILE,
    Base,
    Canaries,
    Judge,
    Outcome,
    RunSpec,
)

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class RunnerConfig:
    layout: Layout
    models_file: Path
    judge: JudgeAddress | None
    rubric: str
    """Where a job names none."""
    canaries: Canaries | None = None
    """The operator's gate, whatever method a job asks for."""
    trust_file_scores: bool = False
    """Whether a row's `harm_score` stands for the judge's reading. The operator's word, never a job's:
    whoever supplies the rows would judge them."""
    lease_s: float = 30.0
    """A runner that is silent for this long has lost its job to the next one."""
    poll_s: float = 0.25
    grace_s: float = 45.0
    """From asking a run to stop to killing it. torchrun itself gives its ranks 30 s of it."""
    judge_poll_s: float = 2.0


class Runner:
    def __init__(self, config: RunnerConfig, store: Store, launcher: Launcher) -> None:
        self._config = config
        self._store = store
        self._launcher = launcher
        self._stop = threading.Event()
        self._next_judge_look = 0.0
        self.id = f"{socket.gethostname()}-{os.getpid()}-{uuid.uuid4().hex[:6]}"

    def stop(self) -> None:
        """Stop the run with a checkpoint, queue its job, and return from `run_forever`."""
        self._stop.set()

    def run_forever(self) -> None:
        try:
            while not self._stop.is_set():
                if not self.run_one():
                    self._stop.wait(self._config.poll_s)
        finally:
            self._store.runner_gone(self.id)

    def run_one(self) -> bool:
        """Claims one job and brings it to where it stays; False where none is to be done."""
        self._store.runner_seen(self.id)
        self._release_those_that_wait_for_the_judge()
        job = self._store.claim(self.id, self._config.lease_s)
        if job is None:
            return False
        try:
            self._work(job)
        except LeaseLost as lost:
            logger.warning("left the job: %s", lost)
        return True

    # --- one job -----------------------------------------------------------------------------------

    def _work(self, job: JobRecord) -> None:
        if job.wanted is not Wanted.RUN:  # taken over from a runner that died before it could obey
            self._carry_out(job, conclude(
                None, wanted=job.wanted, stopping=False, exit_status=0, restarts=0, max_restarts=0, log=""
            ))  # fmt: skip
            return
        try:
            blocked = self._judge_blocks(job)
            if blocked is not None:
                self._carry_out(job, blocked)
                return
            with self._beating(job.id):
                spec = self._prepare(job)
        except TetherError as error:
            if isinstance(error, LeaseLost):
                raise
            param = getattr(error, "param", None)
            failure = JobError(code=error.code, message=str(error), param=param)
            self._carry_out(job, Failed(failure))
            return
        self._carry_out(job, self._run_to_its_end(job.id, spec))

    @contextlib.contextmanager
    def _beating(self, job_id: str) -> Iterator[None]:
        """Renews the lease from a thread, while a base may take minutes to fetch."""
        done = threading.Event()

        def beat() -> None:
            while not done.wait(self._config.lease_s / 4):
                with contextlib.suppress(LeaseLost):  # the next write of this runner says so
                    self._store.heartbeat(job_id, self.id, self._config.lease_s)

        thread = threading.Thread(target=beat, name="heartbeat")
        thread.start()
        try:
            yield
        finally:
            done.set()
            thread.join()

    def _judge_blocks(self, job: JobRecord) -> Conclusion | None:
        """What to do instead of starting, where the job needs a judge and none answers.

        `fail_closed` and `hold` say themselves what a run without a judge does, so they start.
        """
        method = job.request.safety.method
        if self._config.canaries is not None and self._config.judge is not None:
            # They would go unread, and what the job trains unpublished.
            problem = self._config.judge.problem()
            aborts = isinstance(method, Adaptive) and method.staleness.overdue is Overdue.ABORT
            if problem is not None and not aborts:
                return Requeued(Hold.JUDGE, problem, f"Parked before its start: {problem}")
        if not isinstance(method, Adaptive):
            return None
        if self._config.trust_file_scores and all(isinstance(s, TargetSource) for s in method.sources):
            return None  # the file may hold every score; the run asks for those that it lacks
        if self._config.judge is None:
            raise ConfigError(
                "safety.method 'adaptive' asks a judge, and this service has none: start the runner with"
                " --judge-url, or choose method 'sft' or 'fixed_kl'"
            )
        problem = self._config.judge.problem()
        if problem is None:
            return None
        match method.staleness.overdue:
            case Overdue.PARK:
                return Requeued(Hold.JUDGE, problem, f"Parked before its start: {problem}")
            case Overdue.ABORT:
                return Failed(JobError(code="judge_unavailable", message=problem))
            case _:
                return None

    def _prepare(self, job: JobRecord) -> RunSpec:
        """The run's folder with its `run.json`. Raises TetherError naming what is wrong."""
        request = job.request
        entry = load_registry(self._config.models_file).get(request.model)
        folder = local_folder(entry, request.model, self._config.layout.root / "bases")
        training = with_ranks(job.training, self._launcher.devices)
        self._check_machines(training)
        judge = self._config.judge
        run_dir = self._config.layout.run(job.id)
        spec = RunSpec(
            job_id=job.id,
            run_dir=run_dir.absolute(),
            base=Base(
                id=request.model,
                path=folder,
                context_length=entry.context_length,
                lora_targets=entry.lora_targets,
            ),
            train_file=self._file(request.training_file, "training_file"),
            valid_file=None
            if request.validation_file is None
            else self._file(request.validation_file, "validation_file"),
            safety=request.safety,
            training=training,
            seed=job.seed,
            judge=None
            if judge is None or not self._asks_judge(job)
            else Judge(url=judge.url, rubric=self._config.rubric, api_key=judge.api_key),
            canaries=self._config.canaries,
            trust_file_scores=self._config.trust_file_scores,
        )
        run_dir.mkdir(parents=True, exist_ok=True)
        target = run_dir / RUN_FILE
        target.touch(mode=0o600)  # it may hold the judge's key
        target.write_text(spec.model_dump_json(indent=2), encoding="utf-8")
        self._store.set_training(job.id, self.id, training)
        return spec

    def _asks_judge(self, job: JobRecord) -> bool:
        return isinstance(job.request.safety.method, Adaptive) or self._config.canaries is not None

    def _check_machines(self, training: Training) -> None:
        nnodes, here = training.nnodes, self._launcher.devices
        if nnodes > self._launcher.nodes:
            raise ConfigError(
                f"training.nnodes is {nnodes}, but this runner has {self._launcher.nodes}; its operator gives"
                " it more with --nodes and --rdzv-endpoint"
            )
        if 0 < here < (training.ranks or 1) // nnodes:
            over = f" over {nnodes} machines" if nnodes > 1 else ""
            raise ConfigError(
                f"training.ranks is {training.ranks}{over}, but this machine has {here} accelerators"
            )

    def _file(self, file_id: str, param: str) -> Path:
        path = self._config.layout.file(self._store.file(file_id, param=param).id).absolute()
        if not path.is_file():
            raise UnknownId("file", file_id, param)
        return path

    def _run_to_its_end(self, job_id: str, spec: RunSpec) -> Conclusion:
        """Starts the run, and again while a rank dies and restarts are left."""
        while True:
            drop_half_line(spec.run_dir / EVENTS_FILE)
            (spec.run_dir / OUTCOME_FILE).unlink(missing_ok=True)
            ranks, nnodes = spec.training.ranks or 1, spec.training.nnodes
            waits = f" of {nnodes} machines; it begins when all have joined" if nnodes > 1 else ""
            self._store.say(job_id, self.id, "info", f"Starting the run on {ranks} ranks{waits}")
            process = self._launcher.start(spec.run_dir, ranks, nnodes)
            try:
                wanted = self._follow(job_id, spec.run_dir, process)
            finally:
                if process.poll() is None:  # the lease is lost, or the store is
                    process.kill()
            self._ingest(job_id, spec.run_dir)
            conclusion = conclude(
                _read_outcome(spec.run_dir),
                wanted=wanted,
                stopping=self._stop.is_set(),
                exit_status=process.poll() or 0,
                restarts=self._store.job(job_id).restarts,
                max_restarts=spec.training.max_restarts,
                log=last_lines(spec.run_dir / LOG_FILE),
            )
            if not isinstance(conclusion, Restarted):
                return conclusion
            self._store.count_restart(job_id, self.id, conclusion.message)

    def _follow(self, job_id: str, run_dir: Path, process: RunProcess) -> Wanted:
        """Until the run has ended: its events into the store, the owner's wishes to the run."""
        kill_at: float | None = None
        while True:
            wanted = self._store.heartbeat(job_id, self.id, self._config.lease_s)
            self._store.runner_seen(self.id)
            ended = process.poll() is not None
            self._ingest(job_id, run_dir)
            if ended:
                return wanted
            if kill_at is None and (wanted is not Wanted.RUN or self._stop.is_set()):
                process.stop()
                kill_at = time.monotonic() + self._config.grace_s
            if kill_at is not None and time.monotonic() > kill_at:
                self._store.say(
                    job_id, self.id, "warn", f"The run did not stop within {self._config.grace_s:g} s: killed"
                )
                process.kill()
            # Not on the stop event: once it is set, that wait would spin.
            time.sleep(self._config.poll_s)

    def _ingest(self, job_id: str, run_dir: Path) -> None:
        """Everything that the run has written so far."""
        while True:
            offset = self._store.job(job_id).events_offset
            read = read_events(run_dir / EVENTS_FILE, offset)
            if read.offset == offset:
                return
            self._store.ingest(job_id, self.id, read)

    def _carry_out(self, job: JobRecord, conclusion: Conclusion) -> None:
        run_dir = self._config.layout.run(job.id)
        match conclusion:
            case Succeeded(outcome=outcome):
                results = write_results(self._config.layout, job.id, self._store.metrics(job.id))
                model = ids.fine_tuned_model(job.request.model, job.request.suffix, job.id)
                self._store.succeed(
                    job.id,
                    self.id,
                    model,
                    outcome.trained_tokens,
                    results,
                    f"The job has successfully completed: {model}",
                    reason=_why_earlier(outcome),
                )
            case Failed(error=error):
                self._forget(job)
                results = write_results(self._config.layout, job.id, self._store.metrics(job.id))
                self._store.fail(job.id, self.id, error, results)
            case Cancelled():
                self._forget(job)
                for folder in (CHECKPOINTS, ARTIFACT):
                    shutil.rmtree(run_dir / folder, ignore_errors=True)
                self._store.cancelled(job.id, self.id)
            case Requeued(hold=hold, reason=reason, message=message):
                self._store.requeue(job.id, self.id, hold, reason, message)
            case Restarted():
                raise AssertionError("a restart is carried out where the run is started")

    def _forget(self, job: JobRecord) -> None:
        if self._config.judge is None or not self._asks_judge(job):
            return
        groups = [job.id] if self._config.canaries is None else [job.id, group_of(job.id)]
        problem = next(filter(None, map(self._config.judge.forget, groups)), None)
        if problem is not None:
            self._store.say(
                job.id,
                self.id,
                "warn",
                f"What the judge still held for this job was not cancelled: {problem}",
            )

    def _release_those_that_wait_for_the_judge(self) -> None:
        if self._config.judge is None or time.monotonic() < self._next_judge_look:
            return
        self._next_judge_look = time.monotonic() + self._config.judge_poll_s
        waiting = self._store.held_by_judge()
        if waiting and self._config.judge.problem() is None:
            for job in waiting:
                self._store.release(job.id, "The judge answers again: the job is queued")


def _read_outcome(run_dir: Path) -> Outcome | None:
    try:
        return Outcome.model_validate_json((run_dir / OUTCOME_FILE).read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None


def _why_earlier(outcome: Outcome) -> str | None:
    if outcome.published_step is None:
        return None
    return (
        f"the model is the checkpoint of step {outcome.published_step} of {outcome.step}: the canaries were"
        " beyond their limits after it"
    )
