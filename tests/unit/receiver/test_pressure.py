"""What is away is known, refused early, and asked until it is back."""

import threading
import time
from collections.abc import Callable
from pathlib import Path

from hub_dicom import Trust, read_file_meta
from hub_dicom.synthetic import SyntheticPatient, synthetic_series
from hub_events import Event
from hub_events.types import InstanceReceived
from hub_ingest.arrival import Answer, Arrival, Spool
from hub_ingest.intake import Call, Intake
from hub_ingest.pressure import Pressure
from hub_ingest.receiver import METRICS, SOURCE, Receiver
from hub_objectstore import MemoryObjectStore
from hub_runtime import BrokerUnavailable, Metrics
from hub_runtime.health import Health

TRUST = Trust(name="northgate", ae_titles=("NORTHGATE",), addresses=("127.0.0.1/32",), assigning_authority="RNG")


class FakeProducer:
    """Acknowledges, or is away; counts who asked."""

    def __init__(self) -> None:
        self.away = False
        self.asked = 0

    def produce(self, *events: Event[InstanceReceived]) -> None:
        self.asked += 1
        if self.away:
            raise BrokerUnavailable("away")


def _wait(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 5
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def _arrival(**more: object) -> Arrival:
    (instance,) = synthetic_series(SyntheticPatient("SYNTHETIC^UNIT", "U-1"), study="pressure", instances=1)
    meta = read_file_meta(instance.content)
    spool = Spool(Path("unused"), 10**6, 10**6)
    spool.write(instance.content[meta.data_set_offset :])
    given: dict[str, object] = {"data_set": spool.stream, "size": spool.size, **more}
    return Arrival(meta.sop_class_uid, meta.sop_instance_uid, meta.transfer_syntax_uid, **given)  # type: ignore[arg-type]  # fields by name


def test_who_met_a_part_that_is_away_spares_the_others_and_it_is_asked_at_once() -> None:
    store, producer, health = MemoryObjectStore(), FakeProducer(), Health()
    pressure = Pressure(health)
    receiver = Receiver(Intake(store, producer, source=SOURCE, origin="c-store", pressure=pressure), Metrics(METRICS))

    def take(**more: object) -> Answer:
        return receiver.take(Call(TRUST), _arrival(**more))

    assert take().status == 0
    producer.away = True
    assert (take().status, producer.asked) == (0xA700, 2)
    assert list(health.reasons) == ["broker"]
    assert pressure.away() == "broker"
    assert (take().status, producer.asked) == (0xA700, 2), "nobody waits for it any more"
    store.away = True
    assert "broker" in take().comment.lower(), "the store is not asked either"
    # Both are back; who watches finds out.
    producer.away = store.away = False
    stop = threading.Event()
    watcher = threading.Thread(target=pressure.watch, args=("broker", lambda: None, stop))
    watcher.start()
    _wait(lambda: pressure.away() is None)
    assert take().status == 0
    # A single failure closes the door only until the part has been asked, which is at once.
    pressure.met("broker")
    start = time.monotonic()
    _wait(lambda: pressure.away() is None)
    assert time.monotonic() - start < 2
    stop.set()
    watcher.join()
    assert health.reasons == {}


def test_what_was_known_before_an_instance_came_is_its_answer() -> None:
    store = MemoryObjectStore()
    intake = Intake(store, FakeProducer(), source=SOURCE, origin="c-store", pressure=Pressure(Health()))
    receiver = Receiver(intake, Metrics(METRICS))
    for part, word in (("store", "store"), ("broker", "broker"), ("disk", "space")):
        answer = receiver.take(Call(TRUST), _arrival(away=part))
        assert answer.status == 0xA700
        assert word in answer.comment
        assert "send again" in answer.comment
        assert len(answer.comment) <= 64
    assert list(store.list("identifiable", "")) == []


def test_the_disk_is_not_asked_for_what_is_whole_already() -> None:
    health, stop = Health(), threading.Event()
    pressure = Pressure(health)
    faults = iter(["full", "full", None])

    def fault() -> str | None:
        found = next(faults, None)
        if found is None:
            stop.set()
        return found

    watcher = threading.Thread(target=pressure.watch, args=("disk", fault, stop))
    watcher.start()
    _wait(lambda: pressure.away() == "disk")
    assert health.reasons == {"disk": "full"}
    assert pressure.away(whole=True) is None
    watcher.join()
    assert pressure.away() is None
    assert health.reasons == {}


def test_nothing_is_kept_of_what_nobody_can_take(tmp_path: Path) -> None:
    spool = Spool(tmp_path, 0, 10**6, start=b"", away="store")
    assert spool.write(bytes(1000)) == 1000
    assert spool.size == 0
    assert list(tmp_path.iterdir()) == []
    spool.discard()
