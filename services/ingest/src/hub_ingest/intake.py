"""What every way in shares, whatever brought the bytes: identity -> Part 10 under its digest's key -> event, and only then success."""

import hashlib
import io
from collections import OrderedDict
from dataclasses import dataclass, field
from typing import BinaryIO, Final, Literal, Protocol, cast

from hub_dicom import Header, Trust, UnreadableDataSet, file_meta, instance_key, read_header
from hub_events import Event, child_traceparent, new_traceparent
from hub_events.types import InstanceReceived, ObjectReference
from hub_objectstore import ObjectStore, StoreUnavailable
from hub_runtime import logger
from hub_runtime.errors import BrokerUnavailable

from hub_ingest.arrival import Arrival, Part
from hub_ingest.pressure import REASONS, Pressure

BUCKET: Final = "identifiable"
TOPIC: Final = "identifiable.instance.received"

# PS3.4 table B.2-1 and PS3.7 C. What each means to the sender stands in the service's README.
SUCCESS: Final = 0x0000
PROCESSING_FAILURE: Final = 0x0110
OUT_OF_RESOURCES: Final = 0xA700
OTHER_SOP_CLASS: Final = 0xA900
OTHER_STUDY: Final = 0xA901  # one of A9xx; only STOW-RS names a study
CANNOT_UNDERSTAND: Final = 0xC000

_BLOCK_BYTES: Final = 2**20
_TRACES: Final = 1000  # studies whose trace a call remembers
_COMMENTS: Final[dict[Part, str]] = {
    "store": "Object store unavailable: send again later",
    "broker": "Message broker unavailable: send again later",
    "disk": "No space to receive the data set: send again later",
}

log = logger()


class Producer(Protocol):
    """What is asked of the bus: an event that is acknowledged by all in-sync replicas when the call returns."""

    def produce(self, *events: Event[InstanceReceived]) -> None:
        """Raises `BrokerUnavailable` when the acknowledgement does not come in time."""
        ...


@dataclass(slots=True)
class Call:
    """One association, or one request, of a known trust: one trace for each study in it."""

    trust: Trust
    traces: OrderedDict[str, str] = field(default_factory=OrderedDict)

    def traceparent(self, study_instance_uid: str) -> str:
        """A new span of the study's trace in this call."""
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


@dataclass(frozen=True, slots=True)
class Taken:
    """An instance that is durable and announced."""

    study_instance_uid: str
    series_instance_uid: str
    sop_instance_uid: str
    sop_class_uid: str
    created: bool
    """False: the very same object was there before."""


class Intake:
    """Takes instances, the same way from wherever they come. Safe from many threads."""

    def __init__(
        self,
        store: ObjectStore,
        producer: Producer,
        *,
        source: str,
        origin: Literal["c-store", "stow-rs"],
        pressure: Pressure | None = None,
    ) -> None:
        """`source`, a service's name in the registry, and `origin` are said in the events; `pressure` says what is away."""
        self._store = store
        self._producer = producer
        self._pressure = pressure
        self._source = source
        self._origin: Literal["c-store", "stow-rs"] = origin

    def take(self, call: Call, arrival: Arrival, *, only_study: str | None = None) -> Taken:
        """Read, store, announce: in this order, so that an event never names an object that is not there.

        Returning promises that the object is durable and its event acknowledged. Blocks until store and broker have answered,
        at most about 20 s; an upload of gigabytes takes as long as the store needs for it.

        Args:
            call: whose instance it is.
            arrival: the instance.
            only_study: instances of other studies are refused.

        Raises:
            Refusal: the instance is answered with a failure.
        """
        away = arrival.away or (self._pressure.away(whole=True) if self._pressure is not None else None)
        if away is not None:
            raise _without(away)
        header, study_instance_uid, series_instance_uid, sop_instance_uid = identify(arrival)
        if only_study is not None and study_instance_uid != only_study:
            raise Refusal(OTHER_STUDY, "other-study", "Study Instance UID is not the request's: send to its own study")
        meta = file_meta(arrival.sop_class_uid, sop_instance_uid, arrival.transfer_syntax_uid)
        sha256, size = arrival.sha256 or _digest(meta, arrival.data_set), len(meta) + arrival.size
        key = instance_key(call.trust.name, study_instance_uid, series_instance_uid, sop_instance_uid, sha256)
        arrival.data_set.seek(0)
        body = _Joined(meta, arrival.data_set)
        try:
            created = self._store.put_if_absent(
                BUCKET, key, cast("BinaryIO", body), size=size, sha256=sha256, content_type="application/dicom"
            )
        except StoreUnavailable as error:
            log.warning("the store did not take an instance: %s", error, trust=call.trust.name)  # the text names no key
            raise self._met("store") from None
        finally:
            body.release()
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
                origin=self._origin,
            ),
            source=self._source,
            traceparent=call.traceparent(study_instance_uid),
        )
        try:
            self._producer.produce(event)
        except BrokerUnavailable:
            raise self._met("broker") from None
        return Taken(study_instance_uid, series_instance_uid, sop_instance_uid, arrival.sop_class_uid, created=created)

    def _met(self, part: Literal["store", "broker"]) -> Refusal:
        """An instance waited for this part in vain."""
        if self._pressure is not None:
            self._pressure.met(part)
        return _without(part)


def _without(part: Part) -> Refusal:
    return Refusal(OUT_OF_RESOURCES, REASONS[part], _COMMENTS[part])


def _digest(meta: bytes, data_set: BinaryIO) -> str:
    digest = hashlib.sha256(meta)
    data_set.seek(0)
    while block := data_set.read(_BLOCK_BYTES):
        digest.update(block)
    return digest.hexdigest()


def identify(arrival: Arrival) -> tuple[Header, str, str, str]:
    """What the instance says it is; Study, Series and SOP Instance UID beside it.

    Raises:
        Refusal: nothing readable arrived, or it is not what the request says.
    """
    if arrival.fault is not None:
        raise _without("disk")
    if arrival.too_large:
        raise Refusal(CANNOT_UNDERSTAND, "too-large", "Too large for this hub: ask its operator to raise the limit")
    arrival.data_set.seek(0)
    try:
        header = read_header(arrival.data_set, arrival.transfer_syntax_uid)
    except UnreadableDataSet as error:
        comment = {
            "truncated": "Data set is cut off: fetch it whole and send again",
            "empty": "No data set: fetch it whole and send again",
        }.get(error.reason, "Not in the agreed transfer syntax: repair and send again")
        raise Refusal(CANNOT_UNDERSTAND, error.reason, comment) from None
    named = (
        ("SOP Class UID", header.sop_class_uid),
        ("SOP Instance UID", header.sop_instance_uid),
        ("Study Instance UID", header.study_instance_uid),
        ("Series Instance UID", header.series_instance_uid),
    )
    for name, uid in named:
        if uid is None:
            raise Refusal(CANNOT_UNDERSTAND, "no-usable-uid", f"{name} is missing or not valid: repair, send again")
    if header.sop_class_uid != arrival.sop_class_uid:
        raise Refusal(OTHER_SOP_CLASS, "other-sop-class", "SOP Class UID is not that of the request: repair, send again")
    if header.sop_instance_uid != arrival.sop_instance_uid:
        raise Refusal(OTHER_SOP_CLASS, "other-sop-instance", "SOP Instance UID is not the request's: repair, send again")
    return header, str(header.study_instance_uid), str(header.series_instance_uid), str(header.sop_instance_uid)


class _Joined(io.RawIOBase):
    """Our header and the received data set as one stream, without a copy of either."""

    def __init__(self, start: bytes, rest: BinaryIO) -> None:
        self._start = start
        self._rest = rest
        self._place = 0
        self._view: memoryview | None = None

    def buffers(self) -> tuple[bytes, memoryview] | None:
        """See `hub_objectstore.s3.InMemory`; what is given here is to be given back with `release`."""
        stream = self._rest
        if not isinstance(stream, io.BytesIO) or stream.tell() != 0:
            return None
        self._view = stream.getbuffer()
        return self._start, self._view

    def release(self) -> None:
        """Nobody sends from the buffers any longer: the stream may be closed."""
        if self._view is not None:
            self._view.release()

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._place

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        if whence == io.SEEK_END:
            offset += len(self._start) + self._rest.seek(0, io.SEEK_END)
        elif whence == io.SEEK_CUR:
            offset += self._place
        self._place = offset
        return offset

    def read(self, size: int = -1) -> bytes:
        if self._place < len(self._start):
            block = self._start[self._place : len(self._start) if size < 0 else self._place + size]
        else:
            self._rest.seek(self._place - len(self._start))
            block = self._rest.read(size)
        self._place += len(block)
        return block
