"""The one consumer loop of every confluent-kafka service: read, handle, commit.

    while not stopped:
        receive      poll; decode; pause partitions whose backlog is full
        dispatch     hand records to the slots, one per key at a time
        collect      take results: outputs, dead letters, faults, deaths
        commit       the finished prefix of every partition, in one short transaction

The slots (threads, or a child process each) are the only concurrency; everything else happens in the thread that polls, so that
a rebalance, which librdkafka reports from inside poll, never meets a half-made decision.

Assignment is cooperative (`cooperative-sticky`): scaling up or down takes away only what moves, and minutes of work on the partitions that
stay are not thrown away, as they would be with an eager strategy, which revokes everything at every change of the group.
"""

import json
import queue
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from confluent_kafka import Consumer, KafkaError, KafkaException, Message, TopicPartition
from hub_events import TOPICS, Event, UnreadableEvent, decode
from hub_objectstore import ObjectStore, StoreUnavailable

from hub_runtime.backlog import Backlog, Commit, Item
from hub_runtime.deadletters import BUCKET_OF_ZONE, bury
from hub_runtime.errors import StopProcess
from hub_runtime.handlers import (
    ChildProcess,
    Died,
    Handled,
    Handler,
    InChild,
    InThread,
    Later,
    NotRun,
    Outcome,
    PassingFaults,
    Refused,
    Runner,
    Stop,
)
from hub_runtime.logs import dropped_log_fields, logger
from hub_runtime.records import Headers, Place, Record, outgoing
from hub_runtime.service import Service
from hub_runtime.settings import ServiceSettings, kafka_config
from hub_runtime.slots import Result, Slots
from hub_runtime.transactions import Aborted, OutOfTime, Transactions

DEATHS = 3
"""A record that has killed so many processes is a dead letter."""
_PARTITION_EOF = KafkaError._PARTITION_EOF  # noqa: SLF001 - librdkafka's own codes are spelt so
_IDLE_SECONDS = 0.2
_BUSY_SECONDS = 0.02
_BATCH = 200
_FIRST_PAUSE, _LONGEST_PAUSE = 0.2, 10.0
log = logger()


def run_consumer(
    service: Service[Any],
    *,
    group: str,
    topics: Sequence[str],
    handle: Handler | ChildProcess,
    store: ObjectStore,
    concurrency: int = 4,
    passing_faults: PassingFaults = (StoreUnavailable,),
) -> None:
    """Handle every record of `topics` as a member of `group`, until `service.stop` is set.

    `handle(event)` returns the events that follow. It is called outside any transaction, from `concurrency` threads (or in as many child
    processes, with a `ChildProcess`), for records of one key one after the other, and may take as long as it needs. It is called
    again for a record whose outputs were not committed, so what it does outside Kafka must bear repetition. Its outputs and the
    record's offset become visible together.

    It may raise `RetryLater`, one of `passing_faults` or a retriable KafkaException (the consumer stands still, /readyz says why, the
    same record again with growing pauses, without limit), `GiveUp` (a dead letter) or `StopProcess`. Anything else is a dead letter
    with the reason `unexpected-error`.

    Raises:
        StopProcess: the process must end: fenced, a fatal error of the client, or the handler said so. Nothing unfinished is committed.
        ValueError: a topic is not in the registry, or has no dead letter topic there.
    """
    for topic in topics:
        if topic not in TOPICS or TOPICS[topic].dead_letter_topic not in TOPICS or TOPICS[topic].zone not in BUCKET_OF_ZONE:
            raise ValueError(
                f"{topic} and {topic}.dlq must stand in schemas/asyncapi.yaml, in a zone that has a bucket, before a consumer can read it"
            )

    def make_runner() -> Runner:
        if isinstance(handle, ChildProcess):
            return InChild(handle, service.settings, passing_faults, service.name)
        return InThread(handle, passing_faults)

    _Loop(service, group=group, topics=topics, store=store, make_runner=make_runner, concurrency=concurrency).run()


@dataclass
class _Fault:
    """A passing fault that stands in the way, and the record that met it: while it lasts, only that record is tried."""

    reason: str
    item: Item
    tries: int
    not_before: float


class _Loop:
    def __init__(
        self,
        service: Service[ServiceSettings],
        *,
        group: str,
        topics: Sequence[str],
        store: ObjectStore,
        make_runner: Callable[[], Runner],
        concurrency: int,
    ) -> None:
        self.service, self.group, self.topics, self.store = service, group, list(topics), store
        self.slots = Slots(concurrency, make_runner, self.work)
        self.settings, self.health, self.metrics = service.settings, service.health, service.metrics
        self.most_out = 4 * concurrency
        self.backlogs: dict[Place, Backlog] = {}
        self.out: set[Item] = set()
        """Items that the slots have, those of partitions we no longer own included."""
        self.fault: _Fault | None = None
        self.give_up_at: float | None = None
        self.commit_not_before = 0.0
        self.aborts = 0
        self.next_report = 0.0
        config = kafka_config(self.settings)
        self.transactions = Transactions(config, f"{group}-{self.settings.replica}", self.broker_lets_us_wait)
        self.consumer = Consumer(
            config
            | {
                "group.id": group,
                "client.id": f"{group}-{self.settings.replica}",
                "isolation.level": "read_committed",
                "enable.auto.commit": False,
                "auto.offset.reset": "earliest",
                "enable.partition.eof": True,
                "partition.assignment.strategy": "cooperative-sticky",
                "session.timeout.ms": self.settings.kafka_session_timeout_ms,
                "heartbeat.interval.ms": self.settings.kafka_session_timeout_ms // 4,
                "max.poll.interval.ms": max(self.settings.kafka_max_poll_interval_ms, self.settings.kafka_session_timeout_ms),
                "topic.metadata.refresh.interval.ms": 30_000,
                "queued.min.messages": 1000,
                "statistics.interval.ms": 2000,
                "stats_cb": self.on_statistics,
            }
        )

    # ---- the loop -------------------------------------------------------------------------------------------------------------

    def run(self) -> None:
        self.health.unready("assignment", "no partitions are assigned yet")
        try:
            self.transactions.start()
            self.health.ready("transaction")
            self.consumer.subscribe(self.topics, on_assign=self.on_assign, on_revoke=self.on_revoke, on_lost=self.on_lost)
            while not self.service.stop.is_set():
                self.health.beat()
                self.receive()
                self.learn_positions()
                self.handle()
                self.commit()
                self.report()
            self.health.unready("stopping", "the process was told to stop")
            self.drain(list(self.backlogs))
        except OutOfTime as error:
            log.warning("stopped without the last commit, which the successor does again", reason=str(error))
        finally:
            self.slots.close()
            self.discard(list(self.backlogs))
            self.consumer.close()
            self.transactions.close()

    def handle(self) -> None:
        """Hand out and collect; what a result makes way for goes out at once, for a moment, so that one transaction takes many of one key."""
        until = time.monotonic() + _BUSY_SECONDS
        self.dispatch()
        self.collect()
        while self.ready and time.monotonic() < until:
            self.dispatch()
            self.collect()

    @property
    def ready(self) -> bool:
        """Whether a record could be handed out now."""
        return self.fault is None and len(self.out) < self.most_out and any(backlog.ready for backlog in self.backlogs.values())

    def receive(self) -> None:
        """Take what the broker has sent; waits for it only when there is nothing else to do or to wait for."""
        self.pause_and_resume()
        wait = 0.0 if self.out or self.ready else _IDLE_SECONDS
        for _ in range(_BATCH):
            message = self.consumer.poll(wait)
            if message is None:
                break
            self.take_in(message)
            wait = 0.0

    def take_in(self, message: Message) -> None:
        error = message.error()
        if error is not None and error.code() != _PARTITION_EOF:
            if error.fatal():
                raise StopProcess(f"the consumer failed for good: {error.name()}")
            log.warning("the broker reports an error; the consumer goes on", error=error.name(), topic=message.topic())
            if not self.backlogs:
                self.health.unready("topics", f"the broker refuses a topic: {error.name()}")
            return
        topic, partition, offset = message.topic(), message.partition(), message.offset()
        backlog = self.backlogs.get((topic or "", -1 if partition is None else partition))
        if backlog is None or topic is None or partition is None or offset is None:
            return
        if error is not None:
            backlog.reached(offset)
            return
        record = Record(topic, partition, offset, message.key(), message.value(), _headers(message), message.timestamp()[1])
        backlog.add(Item(record, _read(record)))

    def pause_and_resume(self) -> None:
        """Partitions with a full backlog are paused, all of them during a fault; polling them goes on, and so does membership."""
        changes: dict[bool, list[TopicPartition]] = {True: [], False: []}
        for place, backlog in self.backlogs.items():
            wanted = self.fault is not None or backlog.full
            if wanted != backlog.paused:
                backlog.paused = wanted
                changes[wanted].append(TopicPartition(*place))
        if changes[True]:
            self.consumer.pause(changes[True])
        if changes[False]:
            self.consumer.resume(changes[False])

    def learn_positions(self) -> None:
        """Read what the group has committed for newly assigned partitions: nothing of them is handled before."""
        unknown = [TopicPartition(*place) for place, backlog in self.backlogs.items() if not backlog.known]
        if not unknown:
            return
        try:
            answers = self.consumer.committed(unknown, timeout=2.0)
        except KafkaException as error:
            if error.args[0].fatal():
                raise StopProcess(f"the consumer failed for good: {error.args[0].name()}") from error
            self.health.unready("positions", "the broker does not say what is committed")
            return
        self.health.ready("positions")
        for answer in answers:
            if answer.error is None:
                self.backlogs[answer.topic, answer.partition].learn(answer.offset if answer.offset >= 0 else None, answer.metadata)

    def dispatch(self) -> None:
        if self.fault is not None:
            self.probe(self.fault)
            return
        backlogs = list(self.backlogs.values())
        while backlogs and len(self.out) < self.most_out:
            # One of each in turn, so that no partition waits for another's backlog.
            for backlog in list(backlogs):
                item = backlog.take()
                if item is None:
                    backlogs.remove(backlog)
                elif len(self.out) < self.most_out:
                    self.send_out(item)
                else:
                    backlog.put_back(item)

    def probe(self, fault: _Fault) -> None:
        """During a fault: after the pause, try the record that met it, alone."""
        if fault.item.discarded:
            self.fault_is_over()
        elif fault.item not in self.out and time.monotonic() >= fault.not_before:
            self.slots.hold = False
            self.send_out(self.backlogs[fault.item.record.place].take_this(fault.item))

    def send_out(self, item: Item) -> None:
        self.out.add(item)
        self.slots.submit(item)

    def collect(self) -> None:
        """Take the results that are there, waiting a moment for the first while any is out."""
        wait = _BUSY_SECONDS
        while self.out:
            try:
                result = self.slots.results.get(timeout=wait)
            except queue.Empty:
                return
            wait = 0.0
            self.settle(result)

    def settle(self, result: Result) -> None:
        item, record, outcome = result.item, result.item.record, result.outcome
        self.out.discard(item)
        if item.discarded:
            if record.place in self.backlogs:
                self.backlogs[record.place].blocked.discard(item.key)
            return
        if not isinstance(outcome, NotRun):
            self.metrics.observe("hub_handler_seconds", result.seconds, topic=record.topic)
        backlog = self.backlogs[record.place]
        match outcome:
            case Handled(outputs):
                backlog.finish(item, outputs, item.dead_reason)
                if self.fault is not None and self.fault.item is item:
                    self.fault_is_over()
            case Later(reason):
                backlog.put_back(item)
                self.met_fault(item, reason)
            case Died(how):
                backlog.died(item)
                self.metrics.count("hub_handler_deaths_total", topic=record.topic)
                _log_record("a handler's process died", item, reason=how.lower(), count=item.deaths)
            case Stop(text, exit_code):
                raise StopProcess(text, exit_code)
            case _:
                backlog.put_back(item)

    def commit(self) -> None:
        """Make the finished prefixes final. After an abort the same again, soon: the results are still here."""
        if time.monotonic() < self.commit_not_before:
            return
        commits = [commit for backlog in self.backlogs.values() if (commit := backlog.next_commit()) is not None]
        if not commits:
            self.health.ready("transaction")
            return
        # Without a member id (session lost, not yet told) the broker would take the offsets unchecked.
        group = self.consumer.consumer_group_metadata()
        if not self.consumer.memberid():
            return
        began = time.monotonic()
        try:
            self.transactions.commit(
                (output for commit in commits for item in commit.items for output in item.outputs or ()),
                [TopicPartition(*commit.place, commit.offset, commit.metadata) for commit in commits],
                group,
            )
        except Aborted as error:
            self.aborts += 1
            self.commit_not_before = time.monotonic() + min(2.0, 0.05 * 2**self.aborts)
            self.metrics.count("hub_transactions_aborted_total")
            self.health.unready("transaction", f"the last transaction was aborted: {error}")
            log.warning("a transaction was aborted; it is done again", error=str(error), partitions=len(commits))
            return
        self.aborts = 0
        self.health.ready("transaction")
        self.metrics.observe("hub_transaction_seconds", time.monotonic() - began)
        for commit in commits:
            self.backlogs[commit.place].confirm(commit)
            self.count(commit)

    # ---- fates ------------------------------------------------------------------------------------------------------------------

    def work(self, runner: Runner, item: Item) -> Outcome:
        """In a slot's thread: handle one record; a refusal becomes a dead letter whose bytes are in the store when this returns."""
        item.attempts += 1
        item.dead_reason = None
        if isinstance(item.event, UnreadableEvent):
            outcome: Outcome = Refused(item.event.reason, "UnreadableEvent")
        elif item.deaths >= DEATHS:
            item.attempts = item.deaths
            outcome = Refused("handler-died", "HandlerDied")
        else:
            outcome = runner.run(item.event, item.record)
        if not isinstance(outcome, Refused):
            return outcome
        try:
            letter = bury(
                self.store,
                item.record,
                group=self.group,
                source=self.service.name,
                reason=outcome.reason,
                error=outcome.error,
                attempts=item.attempts,
            )
        except Exception:
            # Whatever it is: without its bytes in the store the record stays where it is.
            log.exception("a dead letter's object cannot be written; the record waits")
            return Later("dead-letter-store-unavailable")
        item.dead_reason = outcome.reason
        return Handled((outgoing(letter),))

    def met_fault(self, item: Item, reason: str) -> None:
        tries = self.fault.tries + 1 if self.fault is not None and self.fault.item is item else 1
        self.metrics.count("hub_records_retried_total", topic=item.record.topic, reason=reason)
        if self.fault is not None and self.fault.item is not item:
            return
        pause = min(_LONGEST_PAUSE, _FIRST_PAUSE * 2 ** (tries - 1))
        if tries == 1:
            _log_record("a passing fault stops the consumer", item, reason=reason)
        self.fault = _Fault(reason, item, tries, time.monotonic() + pause)
        self.slots.hold = True
        self.health.unready("fault", reason)
        self.metrics.set("hub_paused_by_fault", 1)

    def fault_is_over(self) -> None:
        self.fault = None
        self.slots.hold = False
        self.health.ready("fault")
        self.metrics.set("hub_paused_by_fault", 0)
        log.info("the passing fault is over; the consumer goes on")

    def broker_lets_us_wait(self, reason: str) -> bool:
        """The broker does not answer in a transaction: whether to go on waiting."""
        self.health.beat()
        self.health.unready("transaction", f"the broker does not answer: {reason}")
        if self.service.stop.is_set() and self.give_up_at is None:
            self.give_up_at = time.monotonic() + self.settings.drain_seconds
        return self.give_up_at is None or time.monotonic() < self.give_up_at

    # ---- rebalance: called from inside poll -------------------------------------------------------------------------------------

    def on_assign(self, _consumer: Consumer, partitions: list[TopicPartition]) -> None:
        for place in _places(partitions):
            self.backlogs[place] = Backlog(place, blocked={item.key for item in self.out if item.record.place == place})
        self.health.ready("assignment")
        if self.backlogs:
            self.health.ready("topics")
        log.info("partitions assigned", count=len(partitions), partitions=len(self.backlogs))

    def on_revoke(self, _consumer: Consumer, partitions: list[TopicPartition]) -> None:
        places = [place for place in _places(partitions) if place in self.backlogs]
        self.drain(places)
        self.discard(places)
        log.info("partitions revoked", count=len(partitions), partitions=len(self.backlogs))

    def on_lost(self, _consumer: Consumer, partitions: list[TopicPartition]) -> None:
        self.discard(_places(partitions))
        self.health.unready("assignment", "the partitions are lost: the group went on without this member")
        log.warning("partitions lost", count=len(partitions), partitions=len(self.backlogs))

    def drain(self, places: list[Place]) -> None:
        """Begin nothing more there; wait, within bounds, for what runs; commit the finished prefixes."""
        deadline = time.monotonic() + self.settings.drain_seconds
        held, self.slots.hold = self.slots.hold, True
        while any(item.record.place in places and not item.discarded for item in self.out) and time.monotonic() < deadline:
            self.health.beat()
            self.collect()
        self.slots.hold = held
        self.commit_not_before = 0.0
        self.commit()

    def discard(self, places: Iterable[Place]) -> None:
        """Forget what is left of these partitions: another member has it now."""
        for place in places:
            backlog = self.backlogs.pop(place, None)
            if backlog is None:
                continue
            count = backlog.discard()
            if count:
                self.metrics.count("hub_records_discarded_total", count, topic=place[0])
            self.metrics.forget("hub_consumer_lag", topic=place[0], partition=str(place[1]))
            for item in self.out:
                if item.record.place == place:
                    self.slots.call_off(item)

    # ---- what can be seen from outside ------------------------------------------------------------------------------------------

    def count(self, commit: Commit) -> None:
        topic = commit.place[0]
        for item in commit.items:
            for output in item.outputs or ():
                self.metrics.count("hub_events_produced_total", topic=output.topic)
            if item.dead_reason is None:
                self.metrics.count("hub_records_handled_total", topic=topic)
            else:
                self.metrics.count("hub_records_dead_lettered_total", topic=topic, reason=item.dead_reason)
                _log_record("a record became a dead letter", item, reason=item.dead_reason, attempt=item.attempts)

    def report(self) -> None:
        if time.monotonic() < self.next_report:
            return
        self.next_report = time.monotonic() + 1.0
        self.metrics.set("hub_partitions_assigned", len(self.backlogs))
        self.metrics.set("hub_records_in_flight", self.slots.running)
        self.metrics.set("hub_records_waiting", sum(len(backlog) for backlog in self.backlogs.values()) - self.slots.running)
        self.metrics.set("hub_log_fields_dropped_total", dropped_log_fields())

    def on_statistics(self, text: str) -> None:
        """From inside poll, every two seconds: whether a broker is there, and how far behind we are."""
        statistics = json.loads(text)
        brokers = [broker for broker in statistics["brokers"].values() if broker["nodeid"] >= 0]
        if brokers and not any(broker["state"] == "UP" for broker in brokers):
            self.health.unready("broker", "no connection to any broker")
        else:
            self.health.ready("broker")
        for topic, of_topic in statistics["topics"].items():
            for partition, state in of_topic["partitions"].items():
                place = topic, int(partition)
                if place in self.backlogs and state["ls_offset"] >= 0:
                    committed = self.backlogs[place].committed or 0
                    self.metrics.set("hub_consumer_lag", max(0, state["ls_offset"] - committed), topic=topic, partition=partition)


def _read(record: Record) -> Event[Any] | UnreadableEvent:
    try:
        return decode(record.topic, record.key, record.value, record.headers)
    except UnreadableEvent as error:
        return error


def _headers(message: Message) -> Headers:
    headers = message.headers() or ()
    pairs = headers.items() if isinstance(headers, dict) else headers
    return tuple((name, value.encode() if isinstance(value, str) else value) for name, value in pairs)


def _places(partitions: list[TopicPartition]) -> list[Place]:
    return [(partition.topic, partition.partition) for partition in partitions]


def _log_record(text: str, item: Item, **fields: object) -> None:
    """A line about a record: where it stands and its trace, never what it says."""
    record = item.record
    trace = {} if isinstance(item.event, UnreadableEvent) else {"event_id": item.event.id, "trace_id": item.event.trace_id}
    log.warning(text, topic=record.topic, partition=record.partition, offset=record.offset, **trace, **fields)
