"""ingest.gate checks what trusts' own routers announce. What holds is announced anew under the hub's seal; the assembler counts nothing else.

The message path is `Gate.handle`. A router may write the topic of the instances, so its events can claim anything, another trust, another
origin: an event is believed only as far as the object bears it out. Nobody can announce an object of a trust's without knowing its SHA-256,
and an object is announced once, so that a replay moves nothing.
"""

import hashlib
import tempfile
import threading
from collections import OrderedDict
from pathlib import Path
from typing import BinaryIO, Final, cast

from hub_dicom import Header, InstanceKey, NotPart10, UnreadableDataSet, parse_instance_key, read_file_meta, read_header
from hub_dicom.trusts import Trusts
from hub_events import Event
from hub_events.seal import is_sealed, seal
from hub_events.types import InstanceReceived
from hub_objectstore import ObjectInfo, ObjectMissing, ObjectStore
from hub_runtime import Metric, Service, StopProcess, open_store, run_consumer, run_service
from hub_runtime.errors import GiveUp
from hub_runtime.settings import ServiceSettings, seal_key
from pydantic import BaseModel, Field

SERVICE: Final = "ingest.gate"
INSTANCES: Final = "identifiable.instance.received"
BUCKET: Final = "identifiable"
METRICS = (Metric("hub_gate_admitted_total", "counter", "Announcements of routers that hold, now under the hub's seal.", ("trust",)),)
REASONS: Final = {
    "not-a-router": "the claimed trust has no router, or it is no announcement of an instance",
    "foreign-key": "the object's key is none below the claimed trust's name in the bucket identifiable",
    "uid-mismatch": "the UIDs of event, key and object are not the same",
    "no-such-object": "the store has no object with this key",
    "digest-mismatch": "size or SHA-256 of event, key and object are not the same",
    "too-large": "the object is larger than HUB_GATE_MAXIMUM_BYTES",
    "not-dicom": "the object is no DICOM file with a readable data set",
}
"""Every reason of this service's dead letters, beside those of records that are no events."""

_META_BYTES: Final = 2**16
_BLOCK: Final = 2**20
_EXIT_SETTINGS: Final = 78


class GateSettings(ServiceSettings):
    """Environment variables HUB_*, beside those of every service."""

    gate_concurrency: int = Field(default=4, ge=1, le=64)
    """Objects checked at the same time, each in a file of its own in the data folder."""
    gate_maximum_bytes: int = Field(default=4 * 2**30, ge=1, le=5 * 2**30)
    """A larger object is not read."""
    gate_remembered: int = Field(default=200_000, ge=1)
    """Objects whose announcement is remembered, about 300 bytes each."""


class Gate:
    """Checks announcements. Safe from many threads."""

    def __init__(self, store: ObjectStore, trusts: Trusts, key: bytes, folder: Path, *, maximum_bytes: int, remembered: int) -> None:
        """`folder`: for copies of the objects being checked; nobody else sees them."""
        self._store, self._trusts, self._key, self._folder = store, trusts, key, folder
        self._maximum_bytes = maximum_bytes
        self._seen: OrderedDict[tuple[str, str], None] = OrderedDict()
        self._remembered = remembered
        self._lock = threading.Lock()

    def handle(self, event: Event[BaseModel]) -> Event[InstanceReceived] | None:
        """The announcement under the hub's seal; None for what needs none: the hub's own, and what was announced before.

        Costs one HMAC for the hub's own, one HEAD for what is known or missing, and reading the object once for what is new.

        Raises:
            GiveUp: it does not hold, with one of `REASONS`.
            StoreUnavailable: the store is away.
        """
        if is_sealed(event, self._key):
            return None
        if not isinstance(event.data, InstanceReceived):
            raise GiveUp("not-a-router", REASONS["not-a-router"])
        claim, name = event.data, self._claimed(event.key, event.data)
        info = self._store.stat(BUCKET, claim.object.key)
        if info is None:
            raise GiveUp("no-such-object", REASONS["no-such-object"])
        if info.size != claim.object.size:
            raise GiveUp("digest-mismatch", REASONS["digest-mismatch"])
        place = (info.key, info.last_modified.isoformat())
        with self._lock:
            if place in self._seen:
                self._seen.move_to_end(place)
                return None
        sop_class_uid, transfer_syntax_uid = self._contents(claim, name, info)
        data = claim.model_copy(update={"origin": "router", "sop_class_uid": sop_class_uid, "transfer_syntax_uid": transfer_syntax_uid})
        follows = event.follow(
            INSTANCES, event.key, InstanceReceived.model_validate(data.model_dump(mode="json", exclude_none=True)), source=SERVICE
        )
        with self._lock:
            self._seen[place] = None
            while len(self._seen) > self._remembered:
                self._seen.popitem(last=False)
        return cast("Event[InstanceReceived]", seal(follows, self._key))

    def _claimed(self, record_key: str, claim: InstanceReceived) -> InstanceKey:
        """What can be checked without the store."""
        trust = self._trusts.by_name(claim.trust)
        if trust is None or not trust.router:
            raise GiveUp("not-a-router", REASONS["not-a-router"])
        try:
            name = parse_instance_key(claim.object.key)
        except ValueError:
            raise GiveUp("foreign-key", REASONS["foreign-key"]) from None
        if claim.object.bucket != BUCKET or name.trust != claim.trust:
            raise GiveUp("foreign-key", REASONS["foreign-key"])
        of_key = (name.study_instance_uid, name.series_instance_uid, name.sop_instance_uid)
        if of_key != (claim.study_instance_uid, claim.series_instance_uid, claim.sop_instance_uid) or record_key != of_key[0]:
            raise GiveUp("uid-mismatch", REASONS["uid-mismatch"])
        if name.sha256 != claim.object.sha256:
            raise GiveUp("digest-mismatch", REASONS["digest-mismatch"])
        return name

    def _contents(self, claim: InstanceReceived, name: InstanceKey, info: ObjectInfo) -> tuple[str, str]:
        """SOP class and transfer syntax of the object, when it is what was claimed."""
        if info.size > self._maximum_bytes:
            raise GiveUp("too-large", REASONS["too-large"])
        with tempfile.TemporaryFile(dir=self._folder) as file:
            copy = cast("BinaryIO", file)
            if self._copy(info, copy) != name.sha256:
                raise GiveUp("digest-mismatch", REASONS["digest-mismatch"])
            copy.seek(0)
            try:
                meta = read_file_meta(copy.read(_META_BYTES))
                copy.seek(meta.data_set_offset)
                header: Header = read_header(copy, meta.transfer_syntax_uid)
            except (NotPart10, UnreadableDataSet):
                raise GiveUp("not-dicom", REASONS["not-dicom"]) from None
        inside = (header.study_instance_uid, header.series_instance_uid, header.sop_instance_uid, header.sop_class_uid)
        if None in inside:
            raise GiveUp("not-dicom", REASONS["not-dicom"])
        named = (name.study_instance_uid, name.series_instance_uid, name.sop_instance_uid, meta.sop_class_uid)
        said = (claim.sop_class_uid or meta.sop_class_uid, claim.transfer_syntax_uid or meta.transfer_syntax_uid)
        if inside != named or meta.sop_instance_uid != name.sop_instance_uid or said != (meta.sop_class_uid, meta.transfer_syntax_uid):
            raise GiveUp("uid-mismatch", REASONS["uid-mismatch"])
        return said

    def _copy(self, info: ObjectInfo, file: BinaryIO) -> str:
        """Copy the object, as much of it as there was; its SHA-256."""
        digest, left = hashlib.sha256(), info.size
        try:
            with self._store.open(BUCKET, info.key) as source:
                while block := source.read(min(_BLOCK, left + 1)):
                    left -= len(block)
                    if left < 0:
                        return ""  # it grew meanwhile: overwritten by its owner
                    digest.update(block)
                    file.write(block)
        except ObjectMissing:
            raise GiveUp("no-such-object", REASONS["no-such-object"]) from None
        return digest.hexdigest()


def serve(service: Service[GateSettings]) -> None:
    """Check what is announced until the service is told to stop.

    Raises:
        StopProcess: there is no key for the seal.
    """
    settings = service.settings
    key = seal_key(settings)
    if key is None:
        raise StopProcess(
            "no key for the seal: set HUB_SEAL_KEY to the 64 hexadecimal digits that all services of ingest have", _EXIT_SETTINGS
        )
    folder = settings.data_folder / "gate"
    folder.mkdir(parents=True, exist_ok=True)
    store = open_store(settings)
    gate = Gate(
        store,
        Trusts.load(settings.trusts_file),
        key,
        folder,
        maximum_bytes=settings.gate_maximum_bytes,
        remembered=settings.gate_remembered,
    )

    def handle(event: Event[BaseModel]) -> list[Event[BaseModel]]:
        admitted = gate.handle(event)
        if admitted is not None:
            service.metrics.count("hub_gate_admitted_total", trust=admitted.data.trust)
            return [cast("Event[BaseModel]", admitted)]
        return []

    run_consumer(service, group=SERVICE, topics=[INSTANCES], handle=handle, store=store, concurrency=settings.gate_concurrency)


def main() -> None:
    """The command `hub-gate`."""
    run_service(SERVICE, GateSettings, serve, metrics=METRICS)


if __name__ == "__main__":
    main()
