"""Calling a handler, in a thread of this process or in a child process, and turning what happens into an outcome."""

import json
import pickle
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from typing import Any, Protocol

import structlog
from confluent_kafka import KafkaException
from hub_events import Event

from hub_runtime.errors import GiveUp, RetryLater, StopProcess
from hub_runtime.logs import logger
from hub_runtime.records import Outgoing, Record, outgoing
from hub_runtime.settings import ServiceSettings
from hub_runtime.workers import child_environment

Handler = Callable[[Event[Any]], Iterable[Event[Any]]]
PassingFaults = tuple[type[BaseException], ...]
LARGEST_EVENT = 900_000
"""Bytes; the broker's default takes a million with headers."""
log = logger()


@dataclass(frozen=True, slots=True)
class ChildProcess:
    """Handle records in child processes, because what the handler calls may kill a process: a codec, or too much memory."""

    factory: str
    """`module:function`; called once per child with the service's settings, it returns the handler."""
    memory_bytes: int | None = None
    """The child's own data may not grow beyond this (setrlimit(2), RLIMIT_DATA): its death then hits no neighbour."""
    recycle_after: int = 1000
    """Records after which a child is replaced, so that what leaks does not add up."""


@dataclass(frozen=True, slots=True)
class Handled:
    """The handler returned; these are its outputs."""

    outputs: tuple[Outgoing, ...]


@dataclass(frozen=True, slots=True)
class Refused:
    """The record can never be handled."""

    reason: str
    error: str


@dataclass(frozen=True, slots=True)
class Later:
    """A passing fault."""

    reason: str


@dataclass(frozen=True, slots=True)
class Died:
    """The process that had the record is gone."""

    how: str


@dataclass(frozen=True, slots=True)
class Stop:
    """The handler says that the process must end."""

    text: str
    exit_code: int


@dataclass(frozen=True, slots=True)
class NotRun:
    """The record was not handled, or its handling was called off."""


Outcome = Handled | Refused | Later | Died | Stop | NotRun


class Runner(Protocol):
    """What one slot has to call its handler with; used by one thread."""

    def run(self, event: Event[Any], record: Record) -> Outcome:
        """Handle the event; blocks as long as the handler does, and raises nothing."""
        ...

    def call_off(self, record: Record) -> None:
        """From another thread: end the `run` of this record soon, if that can be done without harm."""
        ...

    def close(self) -> None:
        """From another thread: free what it holds."""
        ...


class InThread:
    """Calls the handler in the slot's own thread."""

    def __init__(self, handle: Handler, passing_faults: PassingFaults) -> None:
        self._handle, self._passing_faults = handle, passing_faults

    def run(self, event: Event[Any], record: Record) -> Outcome:
        """See `Runner`."""
        try:
            return call(self._handle, event, record, self._passing_faults)
        except MemoryError:
            # Which of the threads has it all cannot be said: a handler that may need much belongs into a child process.
            return Stop("out of memory in a handler's thread", 70)

    def call_off(self, record: Record) -> None:
        """A thread cannot be ended; its result is ignored."""

    def close(self) -> None:
        """Nothing is held."""


class InChild:
    """Keeps one child process and hands it one record after the other."""

    def __init__(self, child: ChildProcess, settings: ServiceSettings, passing_faults: PassingFaults, service: str) -> None:
        self._child, self._settings, self._passing_faults, self._service = child, settings, passing_faults, service
        self._lock = threading.Lock()
        self._process: subprocess.Popen[bytes] | None = None
        self._pipe: Connection[Any, Any] | None = None
        self._handled = 0
        self._called_off = False
        self._current: Record | None = None

    def run(self, event: Event[Any], record: Record) -> Outcome:
        """See `Runner`. A child that dies before it has the record is nobody's fault and started again later."""
        with self._lock:
            self._called_off, self._current = False, record
        # One that died while it had no record is nobody's death.
        if self._process is None or self._process.poll() is not None or self._handled >= self._child.recycle_after:
            failure = self._start()
            if failure is not None:
                return failure
        assert self._pipe is not None  # noqa: S101 - _start has made it
        try:
            self._pipe.send((event, record))
            outcome: Outcome = self._pipe.recv()
        except (EOFError, OSError):
            how = self._end()
            return NotRun() if self._called_off else Died(how)
        self._handled += 1
        return outcome

    def call_off(self, record: Record) -> None:
        """Kill the child if it has this record: what it does is wanted no more."""
        with self._lock:
            if self._current is record:
                self._kill()

    def close(self) -> None:
        """Kill the child for good."""
        with self._lock:
            self._kill()

    def _kill(self) -> None:
        self._called_off = True
        if self._process is not None:
            self._process.kill()

    def _start(self) -> Outcome | None:
        self._end()
        ours, theirs = Pipe()
        setup = (self._child, self._settings, self._passing_faults, self._service)
        with self._lock:
            self._process = subprocess.Popen(  # noqa: S603 - our own module
                [sys.executable, "-m", "hub_runtime.child", str(theirs.fileno())],
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
                env=child_environment(HUB_CHILD_PATH=json.dumps(sys.path)),
            )
        theirs.close()
        self._pipe, self._handled = ours, 0
        try:
            ours.send_bytes(pickle.dumps(setup))
            answer: Outcome = ours.recv()
        except (EOFError, OSError):
            how = self._end()
            log.warning("the handler's process died before it was ready", reason="handler-start", error=how)
            return NotRun() if self._called_off else Later("handler-start")
        if not isinstance(answer, Handled):
            self._end()
            return answer
        return None

    def _end(self) -> str:
        """Reap the child; how it ended."""
        with self._lock:
            process, pipe, self._process, self._pipe = self._process, self._pipe, None, None
        if pipe is not None:
            pipe.close()
        if process is None:
            return ""
        try:
            code = process.wait(timeout=2)
        except subprocess.TimeoutExpired:
            process.kill()
            code = process.wait()
        return signal.Signals(-code).name if code < 0 else f"exit-{code}"


def call(handle: Handler, event: Event[Any], record: Record, passing_faults: PassingFaults) -> Outcome:
    """Call the handler with the trace bound to the log.

    Raises:
        MemoryError: the handler did; what it means depends on whose memory it is.
    """
    with structlog.contextvars.bound_contextvars(
        trace_id=event.trace_id, event_id=event.id, topic=record.topic, partition=record.partition, offset=record.offset
    ):
        try:
            outputs = tuple(outgoing(output) for output in handle(event) or ())
        except MemoryError:
            raise
        except Exception as error:  # noqa: BLE001 - every exception of a handler is a fate
            return outcome_of(error, passing_faults)
    if any(len(output.value) > LARGEST_EVENT for output in outputs):
        return Refused("output-too-large", "ValueError")
    return Handled(outputs)


def outcome_of(error: Exception, passing_faults: PassingFaults) -> Outcome:
    """The fate that an exception means."""
    match error:
        case RetryLater():
            return Later(error.reason)
        case GiveUp():
            return Refused(error.reason, "GiveUp")
        case StopProcess():
            return Stop(str(error), error.exit_code)
        case KafkaException() if error.args[0].retriable():
            return Later("broker-unavailable")
        case _ if isinstance(error, passing_faults):
            return Later(_code(type(error).__name__))
    log.error("the handler failed unexpectedly; its record becomes a dead letter", exc_info=error)
    return Refused("unexpected-error", type(error).__name__)


def _code(name: str) -> str:
    """A class name as a reason code: `StoreUnavailable` is `store-unavailable`."""
    return re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "-", name).replace("_", "-").lower().strip("-")
