"""One tree of errors for what Tether itself reports.

    TetherError
    |-- ConfigError          a setting is wrong; nothing was started
    |-- DataError            a training file is wrong; names the line
    |-- ModelError           a base model cannot be used as asked
    |-- JudgeError
    |   |-- JudgeUnavailable no answer within the time allowed
    |   |-- JudgeRefusal     the judge answered that the request itself is wrong (4xx)
    |-- ServiceError         one of our own processes did not start or died
    `-- TrainingError        a run cannot go on

Every message says what happened, with which value, and what to do.
"""

from __future__ import annotations


class TetherError(Exception):
    """Base. `code` is stable, for programs; the message is for people."""

    code = "tether_error"


class ConfigError(TetherError):
    code = "invalid_config"


class DataError(TetherError):
    """`line` counts from 1; None when the fault is the whole file's."""

    code = "invalid_training_file"

    def __init__(self, message: str, *, line: int | None = None) -> None:
        super().__init__(message if line is None else f"line {line}: {message}")
        self.line = line


class ModelError(TetherError):
    code = "invalid_model"


class JudgeError(TetherError):
    code = "judge_error"


class JudgeUnavailable(JudgeError):
    code = "judge_unavailable"


class JudgeRefusal(JudgeError):
    code = "judge_refused"


class ServiceError(TetherError):
    code = "service_error"


class TrainingError(TetherError):
    code = "training_failed"
