"""What the receiver answers, without a network: fakes for store and bus."""

import io
import resource
from pathlib import Path

import pytest
from hub_dicom import Trust, parse_instance_key, read_file_meta
from hub_dicom.synthetic import SyntheticInstance, SyntheticPatient, synthetic_series
from hub_events import Event
from hub_events.types import InstanceReceived
from hub_ingest.accepted import STORAGE_SOP_CLASSES
from hub_ingest.arrival import Answer, Arrival, Spool
from hub_ingest.intake import Call, Intake
from hub_ingest.receiver import METRICS, SOURCE, Receiver
from hub_ingest.receiver_scp import supported_contexts
from hub_ingest.settings import ReceiverSettings
from hub_objectstore import MemoryObjectStore
from hub_runtime import BrokerUnavailable, Metrics
from pydantic import ValidationError
from support.senders import says_what_to_do

CT = "1.2.840.10008.5.1.4.1.1.2"
EXPLICIT = "1.2.840.10008.1.2.1"
TRUST = Trust(name="northgate", ae_titles=("NORTHGATE",), addresses=("127.0.0.1/32",), assigning_authority="RNG")


class FakeProducer:
    """Keeps events, or is away, or is broken."""

    def __init__(self, store: MemoryObjectStore) -> None:
        self.events: list[Event[InstanceReceived]] = []
        self.fault: Exception | None = None
        self._store = store

    def produce(self, *events: Event[InstanceReceived]) -> None:
        for event in events:
            assert self._store.stat(event.data.object.bucket, event.data.object.key) is not None, (
                "an event names an object that is not there"
            )
        if self.fault is not None:
            raise self.fault
        self.events.extend(events)


class Setting:
    """A receiver on fakes."""

    def __init__(self) -> None:
        self.store = MemoryObjectStore()
        self.producer = FakeProducer(self.store)
        self.metrics = Metrics(METRICS)
        self.receiver = Receiver(Intake(self.store, self.producer, source=SOURCE, origin="c-store"), self.metrics)
        self.call = Call(TRUST)

    def take(self, arrival: Arrival) -> Answer:
        return self.receiver.take(self.call, arrival)

    def keys(self) -> list[str]:
        return [info.key for info in self.store.list("identifiable", "")]


@pytest.fixture
def hub() -> Setting:
    return Setting()


def _instance(study: str = "unit") -> SyntheticInstance:
    (instance,) = synthetic_series(SyntheticPatient("SYNTHETIC^UNIT", "U-1"), study=study, instances=1)
    return instance


def _arrival(instance: SyntheticInstance) -> Arrival:
    data_set = instance.content[read_file_meta(instance.content).data_set_offset :]
    return Arrival(CT, instance.sop_instance_uid, EXPLICIT, io.BytesIO(data_set), len(data_set))


def test_success_means_stored_and_announced(hub: Setting) -> None:
    instance = _instance()
    arrival = _arrival(instance)
    assert hub.take(arrival) == Answer(0x0000)
    (key,) = hub.keys()
    (event,) = hub.producer.events
    assert event.data.object.key == key
    assert parse_instance_key(key).sha256 == event.data.object.sha256
    stored = hub.store.get("identifiable", key)
    arrival.data_set.seek(0)
    assert stored[read_file_meta(stored).data_set_offset :] == arrival.data_set.read()
    assert f'hub_receiver_bytes_total{{trust="northgate"}} {float(arrival.size)}' in hub.metrics.text().decode()


def test_without_a_store_there_is_no_event(hub: Setting) -> None:
    hub.store.away = True
    answer = hub.take(_arrival(_instance()))
    assert (answer.status, hub.producer.events) == (0xA700, [])
    hub.store.away = False
    assert hub.take(_arrival(_instance())) == Answer(0x0000)


def test_without_a_broker_there_is_no_success(hub: Setting) -> None:
    hub.producer.fault = BrokerUnavailable("away")
    answer = hub.take(_arrival(_instance()))
    assert answer.status == 0xA700
    assert "send again" in answer.comment
    hub.producer.fault = None
    assert hub.take(_arrival(_instance())) == Answer(0x0000)
    assert (len(hub.keys()), len(hub.producer.events)) == (1, 1)


def test_an_error_of_ours_leaves_the_instance_with_its_sender(hub: Setting) -> None:
    hub.producer.fault = RuntimeError("SYNTHETIC^UNIT")
    answer = hub.take(_arrival(_instance()))
    assert answer.status == 0x0110
    assert says_what_to_do(answer.comment)
    assert "SYNTHETIC" not in answer.comment
    assert 'hub_receiver_refusals_total{reason="unexpected-error",status="0x0110",trust="northgate"} 1.0' in hub.metrics.text().decode()


@pytest.mark.parametrize(
    ("arrival", "status"),
    [
        (Arrival(CT, "1.2.3", EXPLICIT, io.BytesIO(), 0), 0xC000),
        (Arrival(CT, "1.2.3", EXPLICIT, io.BytesIO(b"rubbish of some length"), 22), 0xC000),
        (Arrival(CT, "1.2.3", EXPLICIT, io.BytesIO(b"x"), 1, too_large=True), 0xC000),
        (Arrival(CT, "1.2.3", EXPLICIT, io.BytesIO(b"x"), 1, fault=OSError(28, "No space left on device")), 0xA700),
    ],
)
def test_what_cannot_be_taken_leaves_nothing_behind(hub: Setting, arrival: Arrival, status: int) -> None:
    answer = hub.take(arrival)
    assert answer.status == status
    assert says_what_to_do(answer.comment), answer.comment
    assert (hub.keys(), hub.producer.events) == ([], [])


def test_an_association_has_one_trace_per_study_and_forgets_the_oldest(hub: Setting) -> None:
    first = hub.call.traceparent("1").split("-")
    again = hub.call.traceparent("1").split("-")
    other = hub.call.traceparent("2").split("-")
    assert first[1] == again[1] != other[1]
    assert first[2] != again[2]
    for number in range(3, 1100):
        hub.call.traceparent(str(number))
    assert len(hub.call.traces) == 1000
    assert hub.call.traceparent("1").split("-")[1] != first[1]


@pytest.mark.parametrize("memory_bytes", [0, 10, 1000])
def test_a_spool_gives_back_what_was_written(tmp_path: Path, memory_bytes: int) -> None:
    spool = Spool(tmp_path, memory_bytes, 1000)
    for block in (b"12345", b"", b"67890", b"abc"):
        assert spool.write(block) == len(block)
    assert (spool.size, spool.too_large, spool.fault) == (13, False, None)
    spool.stream.seek(0)
    assert spool.stream.read() == b"1234567890abc"
    assert list(tmp_path.iterdir()) == [], "the file has no name"
    spool.discard()


def test_a_spool_is_bounded_and_does_not_raise(tmp_path: Path) -> None:
    small = Spool(tmp_path, 4, 10)
    assert [small.write(b"1234") for _ in range(5)] == [4] * 5
    assert (small.too_large, small.size) == (True, 8)
    small.discard()
    nowhere = Spool(tmp_path / "gone", 4, 100)
    assert [nowhere.write(b"1234") for _ in range(3)] == [4] * 3
    assert isinstance(nowhere.fault, OSError)
    nowhere.discard()


@pytest.mark.parametrize(("memory_bytes", "blocks"), [(0, [60_000, 60_000]), (0, [150_000]), (110_000, [60_000, 45_000, 6000])])
def test_a_disk_that_takes_only_a_part_of_a_block_is_a_fault(tmp_path: Path, memory_bytes: int, blocks: list[int]) -> None:
    """As a disk does when it gets full; what does not fit must not be taken for a data set that was cut off."""
    spool = Spool(tmp_path, memory_bytes, 10**6)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, hard))
    try:
        for size in blocks:
            spool.write(bytes(size))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert isinstance(spool.fault, OSError)
    spool.discard()


def test_every_class_is_offered_once_with_the_lossless_syntaxes_first() -> None:
    contexts = supported_contexts()
    classes = [str(context.abstract_syntax) for context in contexts]
    assert len(set(classes)) == len(classes) > 180
    assert set(classes) - {"1.2.840.10008.1.1"} == STORAGE_SOP_CLASSES, "STOW-RS takes the same"
    (ct,) = (context for context in contexts if context.abstract_syntax == CT)
    syntaxes = [str(syntax) for syntax in ct.transfer_syntax]
    assert syntaxes[0] == EXPLICIT
    assert syntaxes.index("1.2.840.10008.1.2.4.90") < syntaxes.index("1.2.840.10008.1.2.4.50")


@pytest.mark.parametrize("title", ["", " LEADING", "TRAILING ", "SEVENTEENLETTERSX", "BACK\\SLASH", "TAB\tBED"])
def test_an_ae_title_must_be_one(title: str) -> None:
    needed = {"kafka_bootstrap_servers": "x", "s3_endpoint": "http://x", "s3_access_key": "a", "s3_secret_key": "b"}
    assert ReceiverSettings.model_validate(needed | {"receiver_ae_title": "A B[1]"}).receiver_ae_title == "A B[1]"
    with pytest.raises(ValidationError):
        ReceiverSettings.model_validate(needed | {"receiver_ae_title": title})
