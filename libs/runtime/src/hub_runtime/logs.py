"""Structured logs that cannot say who a patient is: JSON lines on stderr, with an allow-list of fields.

The message is a constant text; what varies goes into a field of `LOG_FIELDS`. A field that is not there is dropped and counted, or
raises when HUB_LOG_STRICT is set. Of an exception only its class and where it was raised are written, never its text. Of what other
libraries log, only who and where: their texts quote the data they complain about.
"""

import logging
import os
import sys
import traceback
from collections.abc import Callable, MutableMapping
from pathlib import Path
from typing import Any, TextIO, cast

import structlog

LOG_FIELDS = frozenset(
    {
        # what structlog and this module add
        "event", "level", "timestamp", "service", "replica", "worker", "pid", "frames", "library", "dropped_fields",
        # which event, which trace, which record
        "event_id", "event_type", "trace_id", "topic", "partition", "offset", "group", "attempt",
        # what happened and why, in codes
        "reason", "error", "state", "stage", "signal", "exit_code", "version", "status", "code",
        # where, never who
        "trust", "host", "port", "path_kind", "bucket", "address", "calling_ae", "called_ae",
        "sop_class_uid", "transfer_syntax_uid", "modality", "profile", "key_version", "dataset", "revision",
        # how much
        "count", "objects", "bytes", "seconds", "lag", "partitions", "records", "instances", "studies", "variants", "workers", "in_flight",
    }
)  # fmt: skip
"""Every field that a log line may carry. StudyInstanceUID and its like are not here, in either zone."""

_LONGEST = 200
_Dict = MutableMapping[str, Any]


class FieldNotAllowed(ValueError):
    """A log call used a field outside LOG_FIELDS: use one that is there, or argue for a new one in logs.py."""


class _AllowList:
    """The processor that keeps the promise; it stands last before the renderer."""

    def __init__(self, *, strict: bool) -> None:
        self.strict = strict
        self.dropped = 0

    def __call__(self, _logger: object, _method: str, line: _Dict) -> _Dict:
        unknown = sorted(set(line) - LOG_FIELDS)
        if unknown and self.strict:
            raise FieldNotAllowed(
                f"the log fields {', '.join(unknown)} are not in LOG_FIELDS (hub_runtime/logs.py): no one has said that they name nobody"
            )
        for name in unknown:
            del line[name]
        if unknown:
            self.dropped += len(unknown)
            line["dropped_fields"] = len(unknown)
        for name, value in line.items():
            line[name] = _plain(value)
        return line


_allow_list = _AllowList(strict=False)


def dropped_log_fields() -> int:
    """How many fields this process has kept out of its log since it started."""
    return _allow_list.dropped


def configure_logging(service: str, *, replica: str = "0", strict: bool = False, stream: TextIO | None = None) -> None:
    """Write JSON lines for `service` to `stream` (stderr); other libraries' warnings go there too, without their texts."""
    _configure(strict=strict, stream=stream)
    structlog.contextvars.clear_contextvars()
    _service.clear()
    _service.update({"service": service, "replica": replica, "pid": os.getpid()})
    root = logging.getLogger()
    for handler in root.handlers[:]:
        if isinstance(handler, _LibraryHandler):
            root.removeHandler(handler)
    root.addHandler(_LibraryHandler(level=logging.WARNING))
    logging.captureWarnings(True)


def logger() -> structlog.typing.FilteringBoundLogger:
    """A logger; `log.info("study closed", event_id=…, instances=…)`."""
    return cast("structlog.typing.FilteringBoundLogger", structlog.get_logger())


def frames_of(error: BaseException) -> list[str]:
    """Where an exception was raised, as `file:line function`, innermost last; never its text, which may quote data."""
    return [f"{Path(frame.filename).name}:{frame.lineno} {frame.name}" for frame in traceback.extract_tb(error.__traceback__)[-8:]]


_service: dict[str, Any] = {}


def _configure(*, strict: bool, stream: TextIO | None = None) -> None:
    _allow_list.strict = strict
    structlog.configure(
        processors=[
            structlog.contextvars.merge_contextvars,
            _add_service,
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            _shorten_exception,
            _allow_list,
            structlog.processors.JSONRenderer(),
        ],
        wrapper_class=structlog.make_filtering_bound_logger(logging.INFO),
        logger_factory=structlog.WriteLoggerFactory(stream) if stream is not None else _stderr_logger,
        cache_logger_on_first_use=False,
    )


def _stderr_logger(*_: object) -> structlog.WriteLogger:
    # One write per line: `--workers` share one stderr.
    return structlog.WriteLogger(sys.stderr)


def _add_service(_logger: object, _method: str, line: _Dict) -> _Dict:
    return {**_service, **line}


def _shorten_exception(_logger: object, _method: str, line: _Dict) -> _Dict:
    info = line.pop("exc_info", None)
    error = sys.exc_info()[1] if info is True else info[1] if isinstance(info, tuple) else info
    if isinstance(error, BaseException):
        line["error"] = type(error).__name__
        line["frames"] = frames_of(error)
    return line


def _plain(value: object) -> object:
    if value is None or isinstance(value, bool | int | float):
        return value
    if isinstance(value, list | tuple | set | frozenset):
        return [_plain(item) for item in list(value)[:20]]
    return str(value)[:_LONGEST]


class _LibraryHandler(logging.Handler):
    """Other libraries' records, as who and where."""

    def emit(self, record: logging.LogRecord) -> None:
        write: Callable[..., Any] = logger().error if record.levelno >= logging.ERROR else logger().warning
        error = record.exc_info[0].__name__ if record.exc_info and record.exc_info[0] else None
        where = [f"{Path(record.pathname).name}:{record.lineno} {record.funcName}"]
        write("a library logged something; its text is withheld", library=record.name, frames=where, **({"error": error} if error else {}))


_configure(strict=False)
