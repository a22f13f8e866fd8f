"""Ask for a dataset and wait for the answer."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from hub_events import TOPICS, Event
from hub_events.types import DatasetExported, DatasetRequested, DeadLettered
from hub_runtime.producer import EventProducer

from hub_console.ledger import Record
from hub_console.records import Reader, readable
from hub_console.running import Running

REQUESTED, EXPORTED = "research.dataset.requested", "research.dataset.exported"


class NoAnswer(TimeoutError):
    """The export service has not answered in time; the request stands and will be answered. Look with `hub status`."""


class GivenUp(RuntimeError):
    """The export service has made a dead letter of the request: the text says why."""


@dataclass(frozen=True, slots=True)
class Asked:
    """A request that the broker has."""

    id: str
    trace_id: str


def request(
    running: Running,
    name: str,
    where: Sequence[str],
    training_percent: int,
    *,
    wait_seconds: float | None,
    tick: Callable[[float], None] = lambda _: None,
) -> tuple[Asked, DatasetExported | None]:
    """Ask for the next version of a dataset; wait for what becomes of it unless `wait_seconds` is None.

    `tick` is called about once a second with the seconds waited.

    Raises:
        pydantic.ValidationError: the name, a condition or the percentage cannot be.
        hub_runtime.errors.BrokerUnavailable: the request was not acknowledged.
        NoAnswer: nothing came within `wait_seconds`.
        GivenUp: the request is a dead letter.
    """
    data = DatasetRequested(dataset=name, where=list(where), training_percent=training_percent)
    event = Event.first(REQUESTED, name, data, source="console")
    asked = Asked(event.id, event.trace_id)
    if wait_seconds is None:
        with EventProducer(running.settings) as producer:
            producer.produce(event)
        return asked, None
    with Reader(running.kafka, [EXPORTED, TOPICS[REQUESTED].dead_letter_topic]) as reader:
        for _ in reader.to_the_end():
            pass
        with EventProducer(running.settings) as producer:
            producer.produce(event)
        began = time.monotonic()
        while (waited := time.monotonic() - began) < wait_seconds:
            tick(waited)
            for record in readable(reader.new(1.0)):
                if not isinstance(record, Record):
                    continue
                answer = record.event.data
                if isinstance(answer, DatasetExported) and answer.request == asked.id:
                    return asked, answer
                if isinstance(answer, DeadLettered) and record.event.trace_id == asked.trace_id:
                    raise GivenUp(f"{answer.group} gave the request up after {answer.attempts} attempts: {answer.reason} ({answer.error})")
    raise NoAnswer(
        f"no answer after {wait_seconds:.0f} s; request {asked.id} stands and will be answered: look with `hub status` and `hub export list`"
    )
