"""ingest.assembler says when a study is quiet. faust keeps one row a study; what a study consists of, the closer asks the store.

The message path is `Assembler.handle`. Four rules make it hold, and faust keeps none of them by itself:

- Ticks travel in the instances' own topic and partition, behind the backlog of an outage, so that a backlog cannot look like silence.
- A timer reads the table and sends ticks; only the stream writes.
- An event is sent and acknowledged before the row goes: a kill in between says it twice (with the same id), never not at all.
- A record is acknowledged by hand, after its handling. An unexpected error ends the process before that: faust would log it and go on.
"""

import asyncio
import threading
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from typing import Any, NoReturn, Protocol, TypeVar, cast

import faust
from aiokafka.errors import KafkaError  # type: ignore[import-untyped] # it ships no types; faust's producer raises these
from confluent_kafka import KafkaException
from confluent_kafka.admin import AdminClient
from faust.exceptions import ProducerSendError
from faust.types.auth import SASLMechanism
from hub_dicom.trusts import Trust, Trusts
from hub_events import TOPICS, Event, UnreadableEvent, decode, encode
from hub_events.envelope import Headers
from hub_events.seal import is_sealed, seal
from hub_events.types import DeadLettered, InstanceReceived, StudyTick
from hub_objectstore import ObjectStore, StoreUnavailable
from hub_runtime import Health, Metric, Metrics, Service, StopProcess, bury, kafka_config, logger, open_store, run_service
from hub_runtime import Record as RawRecord
from hub_runtime.service import EXIT_SOFTWARE
from hub_runtime.settings import seal_key
from hub_runtime.workers import exit_now
from pydantic import BaseModel

from hub_ingest.assembler_rows import INSTANCES, SERVICE, Patience, Row, Ticks, is_due, quiet_event, row_key, take_in, tick_event
from hub_ingest.assembler_settings import AssemblerSettings
from hub_ingest.assembler_transport import PatientTransport

GROUP = SERVICE
CHANGELOG = "identifiable.ingest.assembler-studies-changelog"
METRICS = (
    Metric("hub_assembler_instances_total", "counter", "Arrivals taken into the table, by who announced them.", ("origin",)),
    Metric(
        "hub_assembler_unsealed_total",
        "counter",
        "Records without the hub's seal, left to ingest.gate. Counted only where routers publish.",
    ),
    Metric("hub_assembler_ticks_total", "counter", "Ticks sent: looks at studies that seem quiet."),
    Metric("hub_assembler_quiet_total", "counter", "Studies called quiet, with the acknowledgement of the broker.", ("trust",)),
    Metric("hub_assembler_studies", "gauge", "Studies in the table: those not quiet yet."),
)


Result = TypeVar("Result")


class Message(Protocol):
    """A record, as faust hands it on."""

    topic: str
    partition: int
    offset: int
    timestamp: float
    key: bytes | None
    value: bytes | None
    headers: list[tuple[str, bytes]] | None


class Record(Protocol):
    """A record in its stream."""

    message: Message


class Stream(Protocol):
    """A stream of faust's whose records are acknowledged by hand."""

    def noack(self) -> "Stream":
        """The same records; none is acknowledged unless `ack` is called."""
        ...

    def events(self) -> AsyncIterator[Record]:
        """The records, in the order of their partition."""
        ...

    async def ack(self, record: Record) -> bool:
        """The record is done; its offset may be committed."""
        ...


log = logger()
_BROKER_WATCH_SECONDS = 5.0
_BROKER_TIMEOUT_SECONDS = 3.0
_PATIENCE_SECONDS = 1.0
_UNASSIGNED = "the partitions are not assigned and recovered yet"


class Assembler:
    """One replica: faust's app, the table, the stream and the timer. Everything here runs in the event loop's thread."""

    def __init__(self, settings: AssemblerSettings, trusts: Trusts, store: ObjectStore, health: Health, metrics: Metrics) -> None:
        """Build it inside a running event loop; nothing is connected yet."""
        self._settings, self._trusts, self._store = settings, trusts, store
        self._health, self._metrics = health, metrics
        self._seal_key = seal_key(settings)
        self._held_since: dict[int, int] = {}
        self._ticks = Ticks()
        self._app = _faust_app(settings)
        raw = {"key_type": bytes, "value_type": bytes, "key_serializer": "raw", "value_serializer": "raw"}
        source = self._app.topic(INSTANCES, partitions=TOPICS[INSTANCES].partitions, **raw)
        # As faust makes a table's topic for itself: nobody acknowledges its records, and one without a value takes the row away.
        changelog = self._app.topic(
            CHANGELOG, partitions=TOPICS[CHANGELOG].partitions, compacting=True, acks=False, internal=True, allow_empty=True, **raw
        )
        self._table = self._app.Table(
            "studies", key_type=bytes, value_type=bytes, partitions=TOPICS[CHANGELOG].partitions, changelog_topic=changelog
        )
        self._app.agent(source, name=GROUP)(self._read)
        self._app.on_partitions_assigned.connect(self._assigned, weak=False)

    async def run(self, stop: threading.Event) -> None:
        """Serve until `stop`, then finish the record at hand, commit and leave.

        Raises:
            AssemblerFailed: faust gave up, something beside the stream failed, or the end took longer than `drain_seconds`; the
                process must end with no more commits.
        """
        if not await self._wait_for_topics(stop):
            return
        await self._app.start()
        beside = [asyncio.create_task(task, name=name) for name, task in (("ticks", self._timer()), ("broker", self._watch_broker()))]
        while not stop.is_set():
            self._check(beside)
            await asyncio.sleep(0.2)
        self._health.unready("assignment", "the process is stopping")
        for task in beside:
            task.cancel()
        # Bounded: with the broker away faust would wait for it for ever. What is not committed then is read again.
        try:
            await asyncio.wait_for(self._app.stop(), self._settings.drain_seconds)
        except TimeoutError:
            raise AssemblerFailed(f"not drained within {self._settings.drain_seconds:g} s") from None

    async def handle(self, event: Event[BaseModel], *, moment: int, partition: int) -> None:
        """One record: an instance moves its study's row; a tick that finds the study quiet says so and takes the row away."""
        match event.data:
            case InstanceReceived() as data:
                key = row_key(data.trust, data.study_instance_uid)
                held = self._row(key)
                row = take_in(held, cast("Event[InstanceReceived]", event), moment=moment, partition=partition)
                if row is not held:
                    self._table[key] = row.pack()
                self._metrics.count("hub_assembler_instances_total", origin=data.origin)
            case StudyTick() as data:
                key = row_key(data.trust, data.study_instance_uid)
                found = self._row(key)
                since = self._held_since.get(partition, moment)
                if found and is_due(found, tick=moment, held_since=since, patience=self._patience(data.trust)):
                    await self._send(quiet_event(key, found))
                    del self._table[key]
                    self._metrics.count("hub_assembler_quiet_total", trust=data.trust)

    async def _read(self, stream: Stream) -> None:
        by_hand = stream.noack()
        async for record in by_hand.events():
            try:
                await self._handle_record(record.message)
            except Exception as error:  # noqa: BLE001 -- faust would swallow it, acknowledge the record and go on
                end_process(error, record.message)
            await by_hand.ack(record)

    async def _handle_record(self, message: Message) -> None:
        try:
            event = self._own(message)
        except UnreadableEvent as error:
            await self._bury(message, error)
            return
        if event is None:
            self._metrics.count("hub_assembler_unsealed_total")
        else:
            await self.handle(event, moment=round(message.timestamp * 1000), partition=message.partition)

    def _own(self, message: Message) -> Event[BaseModel] | None:
        """The record's event; None for what the hub has not sealed, rubbish included: a router's, and the gate's business."""
        if self._seal_key is None:
            return _event_of(message)
        if not any(name == "ce_seal" for name, _ in message.headers or ()):
            return None
        try:
            event = _event_of(message)
        except UnreadableEvent:
            return None
        return event if is_sealed(event, self._seal_key) else None

    async def _bury(self, message: Message, error: UnreadableEvent) -> None:
        """The record's bytes go to the store, what is known of them to the dead letter topic; then it may be acknowledged."""
        record = _record_of(message)

        async def write() -> Event[DeadLettered]:
            return await asyncio.to_thread(
                bury, self._store, record, group=GROUP, source=SERVICE, reason=error.reason, error=type(error).__name__, attempts=1
            )

        await self._send(await self._patiently("store", write, (StoreUnavailable,)))
        log.warning("dead letter", topic=record.topic, partition=record.partition, offset=record.offset, group=GROUP, reason=error.reason)
        self._metrics.count("hub_records_dead_lettered_total", topic=record.topic, reason=error.reason)

    async def _send(self, event: Event[Any]) -> None:
        """Return when all in-sync replicas have it; a broker that is away is waited for, and the stream stands still."""
        key, value, headers = encode(event)
        await self._patiently("broker", lambda: self._produce(event.topic, key, value, headers), (KafkaError, ProducerSendError))
        self._metrics.count("hub_events_produced_total", topic=event.topic)

    async def _produce(self, topic: str, key: bytes, value: bytes, headers: Headers, partition: int | None = None) -> None:
        await self._app.producer.send_and_wait(topic, key, value, partition, None, headers)

    async def _patiently(self, what: str, act: Callable[[], Awaitable[Result]], passing: tuple[type[Exception], ...]) -> Result:
        """Do it until it goes through; a passing fault makes the replica unready and the stream stand still."""
        while True:
            try:
                result = await act()
            except passing as error:
                self._health.unready(what, f"the {what} is away ({type(error).__name__})")
                log.warning("a passing fault: the record at hand waits", reason=f"{what}-unavailable", error=type(error).__name__)
                await asyncio.sleep(_PATIENCE_SECONDS)
            else:
                self._health.ready(what)
                return result

    async def _timer(self) -> None:
        """Read the table, send ticks. It never writes: faust kills a worker whose table is written outside its stream."""
        while True:
            await asyncio.sleep(self._settings.assembler_tick_seconds)
            rows = self._table.data
            self._metrics.set("hub_assembler_studies", len(rows))
            if not self._recovered:
                continue
            due = self._ticks.due(list(rows.items()), now=_now(), held_since=self._held_since, patience=self._patience)
            for key, row in due:
                tick = tick_event(key, row)
                if self._seal_key is not None:
                    tick = seal(tick, self._seal_key)
                record_key, value, headers = encode(cast("Event[BaseModel]", tick))
                try:
                    await self._produce(INSTANCES, record_key, value, headers, row.partition)
                except (KafkaError, ProducerSendError):
                    break  # the broker is away: the look is repeated
                self._metrics.count("hub_assembler_ticks_total")

    async def _watch_broker(self) -> None:
        """A broker that was away took nothing in: what looks like silence is the outage, so the quiet time begins anew after it."""
        admin = AdminClient(_admin_config(self._settings))
        away = False
        while True:
            await asyncio.sleep(_BROKER_WATCH_SECONDS)
            try:
                await asyncio.to_thread(admin.list_topics, INSTANCES, timeout=_BROKER_TIMEOUT_SECONDS)
            except KafkaException:
                away = True
                self._health.unready("broker", "the broker does not answer")
                continue
            if away:
                away = False
                self._health.ready("broker")
                self._held_since = dict.fromkeys(self._held_since, _now())

    async def _assigned(self, _app: object, assigned: set[Any], **_: object) -> None:
        """The group has assigned partitions: the time of those it had before goes on, rows of those it has no more are forgotten."""
        held = {tp.partition for tp in assigned if tp.topic == INSTANCES}
        now = _now()
        self._held_since = {partition: self._held_since.get(partition, now) for partition in held}
        rows = self._table.data
        for key, value in list(rows.items()):
            if Row.unpack(value).partition not in held:
                del rows[key]
        log.info("partitions assigned", group=GROUP, partitions=len(held))

    async def _wait_for_topics(self, stop: threading.Event) -> bool:
        """True when both topics are there as the registry has them; False when told to stop first."""
        admin = AdminClient(_admin_config(self._settings))
        while not stop.is_set():
            try:
                found = (await asyncio.to_thread(admin.list_topics, timeout=_BROKER_TIMEOUT_SECONDS)).topics
            except KafkaException:
                self._health.unready("broker", "the broker does not answer")
            else:
                wrong = [
                    name for name in (INSTANCES, CHANGELOG) if name not in found or len(found[name].partitions) != TOPICS[name].partitions
                ]
                if not wrong:
                    self._health.ready("broker")
                    return True
                self._health.unready(
                    "broker", f"topics are missing or have other partitions than schemas/asyncapi.yaml says: {', '.join(wrong)}"
                )
            await asyncio.sleep(_PATIENCE_SECONDS)
        return False

    def _check(self, beside: Iterable[asyncio.Task[None]]) -> None:
        for task in beside:
            if task.done():
                raise AssemblerFailed(f"{task.get_name()} ended") from task.exception()
        if self._app.crashed:
            raise AssemblerFailed("faust gave up") from self._app.crash_reason
        self._health.beat()
        self._metrics.set("hub_partitions_assigned", len(self._held_since))
        if self._recovered:
            self._health.ready("assignment")
        else:
            self._health.unready("assignment", _UNASSIGNED)

    @property
    def _recovered(self) -> bool:
        return bool(self._app.tables.actives_ready and not self._app.rebalancing)

    def _row(self, key: bytes) -> Row | None:
        value = self._table.get(key)
        return Row.unpack(value) if value is not None else None

    def _patience(self, name: str) -> Patience:
        """The trust's quiet time and limit; a trust that is no longer in the file gets the defaults, so that its open studies still close."""
        trust = self._trusts.by_name(name)
        quiet = trust.quiet_seconds if trust else float(Trust.model_fields["quiet_seconds"].default)
        return Patience(quiet, (trust and trust.limit_seconds) or self._settings.assembler_limit_seconds)


class AssemblerFailed(StopProcess):
    """The assembler cannot go on; the cause says why. Its successor reads again what was not committed."""


def end_process(error: BaseException, message: Message) -> NoReturn:
    """Say what happened and be gone before anything more is acknowledged. The successor reads the record again."""
    where = {"topic": message.topic, "partition": message.partition, "offset": message.offset}
    log.error("an unexpected error ends the process", exit_code=EXIT_SOFTWARE, exc_info=error, **where)
    exit_now(EXIT_SOFTWARE)


def serve(service: Service[AssemblerSettings]) -> None:
    """One replica, until the service is told to stop."""
    service.health.unready("assignment", _UNASSIGNED)

    async def run() -> None:
        settings = service.settings
        trusts = Trusts.load(settings.trusts_file)
        if seal_key(settings) is None and any(trust.router for trust in trusts.trusts):
            raise StopProcess("a trust has a router, but there is no key for the seal: set HUB_SEAL_KEY for all services of ingest", 78)
        assembler = Assembler(settings, trusts, open_store(settings), service.health, service.metrics)
        try:
            await assembler.run(service.stop)
        except Exception:
            log.exception("an unexpected error ends the process", exit_code=EXIT_SOFTWARE)
            exit_now(EXIT_SOFTWARE)  # a graceful end would commit

    asyncio.run(run())


def main() -> None:
    """The command `hub-assembler`."""
    run_service(SERVICE, AssemblerSettings, serve, metrics=METRICS)


def _event_of(message: Message) -> Event[BaseModel]:
    event = decode(message.topic, message.key, message.value, message.headers)
    if cast("InstanceReceived | StudyTick", event.data).study_instance_uid != event.key:
        raise UnreadableEvent("key-is-not-the-study", f"a record of {message.topic} has a key that is not its Study Instance UID")
    return event


def _record_of(message: Message) -> RawRecord:
    return RawRecord(
        message.topic,
        message.partition,
        message.offset,
        message.key,
        message.value,
        tuple(message.headers or ()),
        round(message.timestamp * 1000),
    )


def _faust_app(settings: AssemblerSettings) -> Any:  # noqa: ANN401 -- faust ships no types that hold
    folder = settings.data_folder / "assembler" / settings.replica
    folder.mkdir(parents=True, exist_ok=True)
    password = settings.kafka_password.get_secret_value() if settings.kafka_password else None
    credentials = faust.SASLCredentials(username=settings.kafka_username, password=password, mechanism=SASLMechanism.PLAIN)
    app = faust.App(
        GROUP,
        broker=[f"kafka://{server.strip()}" for server in settings.kafka_bootstrap_servers.split(",")],
        broker_credentials=credentials if settings.kafka_username else None,
        broker_client_id=f"{GROUP}-{settings.replica}",
        # Static membership: a replica that is back within the session keeps its partitions, and nobody is rebalanced.
        consumer_group_instance_id=f"{GROUP}-{settings.replica}",
        broker_session_timeout=settings.assembler_session_seconds,
        broker_heartbeat_interval=min(3.0, settings.assembler_session_seconds / 3),
        broker_commit_interval=1.0,
        consumer_auto_offset_reset="earliest",
        processing_guarantee="at_least_once",
        producer_acks=-1,
        producer_request_timeout=30.0,
        # Topics come from the registry; faust makes none.
        topic_allow_declare=False,
        topic_disable_leader=True,
        topic_partitions=TOPICS[INSTANCES].partitions,
        # The table is small (the studies that are open now) and its changelog compacted: reading it at the start takes a second or two.
        store="memory://",
        table_standby_replicas=0,
        datadir=folder,
        web_enabled=False,
    )
    app.transport = PatientTransport(app.conf.broker_consumer, app)
    return app


def _admin_config(settings: AssemblerSettings) -> dict[str, Any]:
    return {key: value for key, value in kafka_config(settings).items() if key not in {"partitioner", "retry.backoff.max.ms"}}


def _now() -> int:
    return time.time_ns() // 1_000_000


if __name__ == "__main__":
    main()
