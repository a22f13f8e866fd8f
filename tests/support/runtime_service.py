"""A service for the runtime's tests: what it does with a record stands in the record. Run as `python -m support.runtime_service`."""

import json
import os
import signal
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, ClassVar

from confluent_kafka import Producer
from hub_events import TOPICS, Event, Topic
from hub_events.types import DeadLettered
from hub_runtime import (
    ChildProcess,
    GiveUp,
    RetryLater,
    Service,
    ServiceSettings,
    logger,
    open_store,
    run_consumer,
    run_service,
    transactions,
)
from pydantic import BaseModel, ConfigDict

SOURCE = "test.service"
log = logger()


class Work(BaseModel):
    """A record of the tests: `do` says what the handler shall do with it."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    n: int
    do: str = "echo"
    seconds: float = 0.0
    path: str = ""


class TestSettings(ServiceSettings):
    """Which topics there are and how to consume them."""

    __test__ = False
    test_topic: str
    test_group: str
    test_partitions: int = 4
    test_concurrency: int = 4
    test_children: bool = False
    test_memory: int | None = None
    test_recycle_after: int = 1000
    test_journal: Path
    test_stall: Path | None = None
    """Make this file when a transaction is complete but for its commit, and wait there for ever."""


class Stalling(Producer):
    """A producer that stands still in the middle of a transaction."""

    stall: ClassVar[Path]

    def commit_transaction(self, timeout: float = -1) -> None:
        self.flush(10)
        self.stall.touch()
        time.sleep(600)


def register(topic: str, partitions: int) -> list[Topic]:
    """Put a topic with its dead letters and one for outputs into the registry of this process."""
    work: dict[str, type[BaseModel]] = {"hub.test.work.v1": Work}
    names: dict[str, dict[str, type[BaseModel]]] = {topic: work, f"{topic}.dlq": {"hub.dead-letter.v1": DeadLettered}, f"{topic}.out": work}
    made = [Topic(name, types, partitions, "delete", 604_800_000, (SOURCE,), (SOURCE,)) for name, types in names.items()]
    TOPICS.update({topic.name: topic for topic in made})
    return made


def make_handler(settings: TestSettings) -> Callable[[Event[Any]], Iterable[Event[Any]]]:
    """Build the handler, also in a child process, which knows nothing of the tests' topics yet."""
    register(settings.test_topic, settings.test_partitions)

    def handle(event: Event[Any]) -> Iterable[Event[Any]]:
        work: Work = event.data
        note(settings.test_journal, "begin", event)
        log.info("handling", count=work.n)
        act(work, settings.test_journal)
        note(settings.test_journal, "end", event)
        return [event.follow(f"{event.topic}.out", event.key, Work(n=work.n), source=SOURCE)]

    return handle


def act(work: Work, journal: Path) -> None:
    """What the record asks for."""
    match work.do:
        case "die-hang-die":
            # Its first time kills this process, its second hangs, every later one kills again.
            begun = sum(
                json.loads(line)["what"] == "begin" and json.loads(line)["n"] == work.n for line in journal.read_text().splitlines()
            )
            if begun != 2:
                os.kill(os.getpid(), signal.SIGSEGV)
            time.sleep(60)
        case "echo":
            time.sleep(work.seconds)
        case "poison":
            raise ValueError("JOHN SMITH 943 476 5919")
        case "give-up":
            raise GiveUp("test-reason", "JOHN SMITH")
        case "memory":
            bytearray(2_000_000_000)
        case "later" if not Path(work.path).exists():
            raise RetryLater("gate-closed", "JOHN SMITH")


def note(journal: Path, what: str, event: Event[Any]) -> None:
    """Append a line to the journal; one write, so that many processes can."""
    line = json.dumps({"what": what, "n": event.data.n, "key": event.key, "at": time.monotonic(), "pid": os.getpid()}) + "\n"
    descriptor = os.open(journal, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    try:
        os.write(descriptor, line.encode())
    finally:
        os.close(descriptor)


def serve(service: Service[TestSettings]) -> None:
    """Consume."""
    settings = service.settings
    register(settings.test_topic, settings.test_partitions)
    if settings.test_stall is not None:
        Stalling.stall = settings.test_stall
        transactions.Producer = Stalling  # type: ignore[attr-defined]  # a fault put in on purpose
    child = ChildProcess(
        "support.runtime_service:make_handler", memory_bytes=settings.test_memory, recycle_after=settings.test_recycle_after
    )
    run_consumer(
        service,
        group=settings.test_group,
        topics=[settings.test_topic],
        handle=child if settings.test_children else make_handler(settings),
        store=open_store(settings),
        concurrency=settings.test_concurrency,
    )


if __name__ == "__main__":
    # By its own name, so that what children unpickle is what was pickled.
    from support import runtime_service

    run_service(SOURCE, runtime_service.TestSettings, runtime_service.serve)
