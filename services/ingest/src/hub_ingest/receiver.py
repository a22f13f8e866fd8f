"""The way in: C-STORE to a durable object and an acknowledged event, and only then 0x0000.

association  who calls?  (receiver_scp)
C-STORE      read the identity -> Part 10 under its digest's key -> event -> answer
"""  # fmt: skip

import hashlib
import io
import threading
import time
from collections import OrderedDict
from dataclasses import dataclass, field
from typing import BinaryIO, Final, Protocol, cast

from confluent_kafka import KafkaException
from confluent_kafka.admin import AdminClient
from hub_dicom import Header, Trust, Trusts, UnreadableDataSet, UnusableTrusts, file_meta, instance_key, read_header
from hub_events import Event, child_traceparent, new_traceparent
from hub_events.types import InstanceReceived, ObjectReference
from hub_objectstore import ObjectStore, StoreUnavailable
from hub_runtime import logger
from hub_runtime.errors import BrokerUnavailable, StopProcess
from hub_runtime.metrics import Metric, Metrics
from hub_runtime.producer import EventProducer
from hub_runtime.service import Service, run_service
from hub_runtime.settings import kafka_config, open_store

from hub_ingest.receiver_scp import Answer, Arrival, StorageProvider
from hub_ingest.settings import ReceiverSettings

BUCKET: Final = "identifiable"
TOPIC: Final = "identifiable.instance.received"
SOURCE: Final = "ingest.receiver"

# PS3.4 table B.2-1 and PS3.7 C. What each means to the sender stands in the service's README.
SUCCESS: Final = 0x0000
PROCESSING_FAILURE: Final = 0x0110
OUT_OF_RESOURCES: Final = 0xA700
OTHER_SOP_CLASS: Final = 0xA900
CANNOT_UNDERSTAND: Final = 0xC000

_BLOCK_BYTES: Final = 2**20
_TRACES: Final = 1000  # studies whose trace an association remembers
_PROBE_SECONDS: Final = 5.0

METRICS: Final = (
    Metric(
        "hub_receiver_instances_total",
        "counter",
        "Instances acknowledged; result: stored, or repeated when the object was there.",
        ("trust", "result"),
    ),
    Metric("hub_receiver_bytes_total", "counter", "Bytes of data sets acknowledged.", ("trust",)),
    Metric("hub_receiver_refusals_total", "counter", "Instances answered with a failure.", ("trust", "status", "reason")),
    Metric("hub_receiver_associations_total", "counter", "Associations accepted.", ("trust",)),
    Metric("hub_receiver_associations_refused_total", "counter", "Associations rejected.", ("reason",)),
    Metric("hub_receiver_associations_open", "gauge", "Associations open now."),
    Metric("hub_receiver_seconds", "histogram", "From a data set's last byte to its answer.", ("status",)),
)

log = logger()


class Producer(Protocol):
    """What is asked of the bus: an event that is acknowledged by all in-sync replicas when the call returns."""

    def produce(self, *events: Event[InstanceReceived]) -> None:
        """Raises `BrokerUnavailable` when the acknowledgement does not come in time."""
        ...


@dataclass(slots=True)
class Call:
    """One association of a known trust: one trace for each study in it."""

    trust: Trust
    traces: OrderedDict[str, str] = field(default_factory=OrderedDict)

    def traceparent(self, study_instance_uid: str) -> str:
        """A new span of the study's trace in this association."""
        trace = self.traces.get(study_instance_uid)
        if trace is None:
            trace = self.traces[study_instance_uid] = new_traceparent()
            if len(self.traces) > _TRACES:
                self.traces.popitem(last=False)
        return child_traceparent(trace)


class Refusal(Exception):
    """The instance is answered with a failure status. `comment` goes to the sender, `reason` to log and metrics; neither holds a value."""

    def __init__(self, status: int, reason: str, comment: str) -> None:
        super().__init__(comment)
        self.status = status
        self.reason = reason
        self.comment = comment


class Receiver:
    """Takes instances. Safe from many threads: each association has its own."""

    def __init__(self, store: ObjectStore, producer: Producer, metrics: Metrics) -> None:
        self._store = store
        self._producer = producer
        self._metrics = metrics

    def take(self, call: Call, arrival: Arrival) -> Answer:
        """Answer one C-STORE. Success promises that the object is durable and its event acknowledged; any failure promises nothing.

        Blocks until store and broker have answered, at most about 20 s. Raises nothing: a fault of ours is 0x0110.
        """
        start = time.monotonic()
        trust = call.trust.name
        try:
            result = self._take(call, arrival)
        except Refusal as refusal:
            answer = Answer(refusal.status, refusal.comment)
            reason = refusal.reason
            log.warning("instance refused", trust=trust, status=f"{answer.status:#06x}", reason=reason, sop_class_uid=arrival.sop_class_uid)
        except Exception:
            log.exception("instance not taken because of an unexpected error", trust=trust, sop_class_uid=arrival.sop_class_uid)
            answer, reason = Answer(PROCESSING_FAILURE, "Unexpected error at the hub: keep the instance"), "unexpected-error"
        else:
            self._metrics.count("hub_receiver_instances_total", trust=trust, result=result)
            self._metrics.count("hub_receiver_bytes_total", arrival.size, trust=trust)
            answer, reason = Answer(SUCCESS), ""
        status = f"{answer.status:#06x}"
        if answer.status != SUCCESS:
            self._metrics.count("hub_receiver_refusals_total", trust=trust, status=status, reason=reason)
        self._metrics.observe("hub_receiver_seconds", time.monotonic() - start, status=status)
        return answer

    def _take(self, call: Call, arrival: Arrival) -> str:
        """Read, store, announce: in this order, so that an event never names an object that is not there."""
        header, study_instance_uid, series_instance_uid, sop_instance_uid = _identify(arrival)
        meta = file_meta(arrival.sop_class_uid, sop_instance_uid, arrival.transfer_syntax_uid)
        digest = hashlib.sha256(meta)
        arrival.data_set.seek(0)
        while block := arrival.data_set.read(_BLOCK_BYTES):
            digest.update(block)
        sha256, size = digest.hexdigest(), len(meta) + arrival.size
        key = instance_key(call.trust.name, study_instance_uid, series_instance_uid, sop_instance_uid, sha256)
        arrival.data_set.seek(0)
        try:
            created = self._store.put_if_absent(
                BUCKET, key, cast("BinaryIO", _Joined(meta, arrival.data_set)), size=size, sha256=sha256, content_type="application/dicom"
            )
        except StoreUnavailable as error:
            log.warning("the store did not take an instance: %s", error, trust=call.trust.name)  # the text names no key
            raise Refusal(OUT_OF_RESOURCES, "store-unavailable", "Object store unavailable: send again later") from None
        event = Event.first(
            TOPIC,
            study_instance_uid,
            InstanceReceived(
                trust=call.trust.name,
                study_instance_uid=study_instance_uid,
                series_instance_uid=series_instance_uid,
                sop_instance_uid=sop_instance_uid,
                sop_class_uid=header.sop_class_uid,
                transfer_syntax_uid=arrival.transfer_syntax_uid,
                object=ObjectReference(bucket=BUCKET, key=key, sha256=sha256, size=size),
                origin="c-store",
            ),
            source=SOURCE,
            traceparent=call.traceparent(study_instance_uid),
        )
        try:
            self._producer.produce(event)
        except BrokerUnavailable:
            raise Refusal(OUT_OF_RESOURCES, "broker-unavailable", "Message broker unavailable: send again later") from None
        return "stored" if created else "repeated"


def _identify(arrival: Arrival) -> tuple[Header, str, str, str]:
    """What the instance says it is; Study, Series and SOP Instance UID beside it.

    Raises:
        Refusal: nothing readable arrived, or it is not what the C-STORE request says.
    """
    if arrival.fault is not None:
        raise Refusal(OUT_OF_RESOURCES, "no-space", "No space to receive the data set: send again later")
    if arrival.too_large:
        raise Refusal(CANNOT_UNDERSTAND, "too-large", "Instance is larger than this hub takes")
    arrival.data_set.seek(0)
    try:
        header = read_header(arrival.data_set, arrival.transfer_syntax_uid)
    except UnreadableDataSet as error:
        comment = {"truncated": "Data set is cut off", "empty": "No data set"}.get(
            error.reason, "Data set is not in the agreed transfer syntax"
        )
        raise Refusal(CANNOT_UNDERSTAND, error.reason, comment) from None
    named = (
        ("SOP Class UID", header.sop_class_uid),
        ("SOP Instance UID", header.sop_instance_uid),
        ("Study Instance UID", header.study_instance_uid),
        ("Series Instance UID", header.series_instance_uid),
    )
    for name, uid in named:
        if uid is None:
            raise Refusal(CANNOT_UNDERSTAND, "no-usable-uid", f"{name} is missing or not valid")
    if header.sop_class_uid != arrival.sop_class_uid:
        raise Refusal(OTHER_SOP_CLASS, "other-sop-class", "SOP Class UID is not that of the request")
    if header.sop_instance_uid != arrival.sop_instance_uid:
        raise Refusal(OTHER_SOP_CLASS, "other-sop-instance", "SOP Instance UID is not that of the request")
    return header, str(header.study_instance_uid), str(header.series_instance_uid), str(header.sop_instance_uid)


class _Joined(io.RawIOBase):
    """Our header and the received data set as one stream, without a copy of either."""

    def __init__(self, start: bytes, rest: BinaryIO) -> None:
        self._start = start
        self._rest = rest

    def readable(self) -> bool:
        return True

    def read(self, size: int = -1) -> bytes:
        if self._start:
            size = len(self._start) if size < 0 else size
            block, self._start = self._start[:size], self._start[size:]
            return block
        return self._rest.read(size)


def main() -> None:
    """Run the receiver until SIGTERM: `hub-receiver [--workers N]`."""
    run_service(SOURCE, ReceiverSettings, _serve, metrics=METRICS)


def _serve(service: Service[ReceiverSettings]) -> None:
    settings = service.settings
    try:
        trusts = Trusts.load(settings.trusts_file)
    except UnusableTrusts as error:
        raise StopProcess(f"the trusts cannot be used: {error}", exit_code=78) from error
    store = open_store(settings)
    with EventProducer(settings) as producer:
        receiver = Receiver(store, producer, service.metrics)
        provider = StorageProvider(
            settings, trusts, admit=Call, take=receiver.take, metrics=service.metrics, folder=settings.data_folder / "receiver"
        )
        for part in ("store", "broker"):
            service.health.unready(part, "not asked yet")
        service.start_thread("readiness", lambda: _watch(service, store))
        try:
            service.start_thread("accept", provider.serve)
            log.info("listening", host=settings.receiver_host, port=provider.port, called_ae=settings.receiver_ae_title)
            service.wait()
        finally:
            # Whoever is in the middle of a study finishes it, within bounds; nobody new comes in.
            unfinished = provider.close(settings.drain_seconds)
            log.info("no longer listening", count=unfinished)


def _watch(service: Service[ReceiverSettings], store: ObjectStore) -> None:
    """Ask store and broker every few seconds, so that readiness says what the next C-STORE will meet."""
    admin = AdminClient(kafka_config(service.settings) | {"socket.timeout.ms": 3000})
    while True:
        broker = threading.Thread(target=_probe_broker, args=(service, admin), daemon=True)
        broker.start()
        if store.reachable():
            service.health.ready("store")
        else:
            service.health.unready("store", "the object store does not answer or refuses this identity")
        broker.join()
        if service.stop.wait(_PROBE_SECONDS):
            return


def _probe_broker(service: Service[ReceiverSettings], admin: AdminClient) -> None:
    try:
        known = admin.list_topics(TOPIC, timeout=3.0).topics.get(TOPIC)
    except KafkaException:
        service.health.unready("broker", "the broker does not answer")
        return
    if known is None or known.error is not None:
        service.health.unready("broker", f"the topic {TOPIC} is not there or not allowed")
    else:
        service.health.ready("broker")


if __name__ == "__main__":
    main()
