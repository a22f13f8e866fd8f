"""The service as a process with its own identity, on the real broker and store: announced study in, research objects and events out."""

import gzip
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, Self

import psutil
import pytest
from confluent_kafka import Consumer, TopicPartition
from hub_dicom.synthetic import SyntheticPatient, nhs_test_number, synthetic_series
from hub_events import Event, decode
from hub_events.types import DeadLettered, StudyDeidentified, StudyQuarantined, StudyReceived
from hub_parts import Parts
from hub_runtime import EventProducer, ServiceSettings, create_topics
from support.deidentified import KEYS, TRUSTS, Zone, ct, encoded
from support.parts import s3_of, start_parts
from support.planted import found_needles, planted_study

TOPICS = ("research.study.deidentified", "identifiable.study.quarantined", "identifiable.study.received.dlq")
RING = json.dumps({"version": KEYS.version, "keys": {purpose: key.hex() for purpose, key in KEYS.keys.items()}})


@pytest.fixture(scope="module")
def parts() -> Iterator[Parts]:
    with start_parts("kafka", "s3", secured_kafka=True) as parts:
        create_topics(dict(parts.kafka_config()))
        (parts.data_folder / "trusts.yaml").write_text(TRUSTS.model_dump_json())
        yield parts


@pytest.fixture
def zone(parts: Parts) -> Zone:
    return Zone(s3_of(parts).store())


@contextmanager
def service(parts: Parts, **own: str) -> Iterator["subprocess.Popen[bytes]"]:
    environment = {
        **os.environ,
        **parts.environment("deidentification"),
        "HUB_LOG_STRICT": "true",
        "HUB_TRUSTS_FILE": str(parts.data_folder / "trusts.yaml"),
        "HUB_DEIDENTIFICATION_KEYS": RING,
        **own,
    }
    with log_of(parts).open("ab") as log:
        running = subprocess.Popen([sys.executable, "-m", "hub_deidentification"], env=environment, stderr=log)
    try:
        yield running
    finally:
        if running.poll() is None:
            running.send_signal(signal.SIGTERM)
            try:
                running.wait(20)
            except subprocess.TimeoutExpired:
                running.kill()
        running.wait()


def log_of(parts: Parts) -> Path:
    return parts.data_folder / "deidentification.log"


def announce(parts: Parts, *events: Event[StudyReceived]) -> None:
    """As ingest.closer, with its own identity."""
    names = {name.removeprefix("HUB_").lower(): value for name, value in parts.environment("closer").items()}
    with EventProducer(ServiceSettings.model_validate(names)) as producer:
        producer.produce(*events)


class Said:
    """All that a committed reader finds in the topics that the service writes."""

    def __init__(self, parts: Parts) -> None:
        self._parts = parts
        self._consumer = Consumer(
            {**parts.kafka_config(), "group.id": "test", "auto.offset.reset": "earliest", "isolation.level": "read_committed"}
        )
        topics = self._consumer.list_topics(timeout=10).topics
        self._consumer.assign([TopicPartition(name, partition, 0) for name in TOPICS for partition in topics[name].partitions])
        self.events: list[Event[Any]] = []
        self.raw: list[bytes] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._consumer.close()

    def read(self, seconds: float = 0.2) -> None:
        message = self._consumer.poll(seconds)
        while message is not None:
            assert message.error() is None, message.error()
            topic, key, value, headers = message.topic(), message.key(), message.value(), message.headers()
            assert topic is not None
            self.raw += [key or b"", value or b"", *(header[1] for header in headers or [] if isinstance(header[1], bytes))]
            self.events.append(decode(topic, key, value, headers))  # type: ignore[arg-type]
            message = self._consumer.poll(0.05)

    def of(self, event: Event[StudyReceived], kind: type) -> list[Any]:
        """The data of all events of this kind that the study's event caused."""
        return [found.data for found in self.events if isinstance(found.data, kind) and found.trace_id == event.trace_id]

    def wait(self, what: Callable[[], bool], seconds: float = 60) -> None:
        deadline = time.monotonic() + seconds
        while not what():
            assert time.monotonic() < deadline, f"not within {seconds:g} s\n{log_of(self._parts).read_text()[-3000:]}"
            self.read()


def until(what: Callable[[], Any], seconds: float = 60) -> Any:
    deadline = time.monotonic() + seconds
    while not (found := what()):
        assert time.monotonic() < deadline, f"not within {seconds:g} s"
        time.sleep(0.01)
    return found


def large_study(name: str, instances: int = 150) -> list[bytes]:
    patient = SyntheticPatient("SOMEBODY^ELSE", f"LOCAL {name}")
    return [instance.content for instance in synthetic_series(patient, study=name, instances=instances, pixels=128)]


def handler_of(running: "subprocess.Popen[bytes]") -> list[psutil.Process]:
    return [child for child in psutil.Process(running.pid).children(recursive=True) if "hub_runtime.child" in " ".join(child.cmdline())]


def begun(zone: Zone, study: str) -> bool:
    research_study = zone.deidentification._pseudonyms.uid(study)
    return next(iter(zone.store.list("research", f"instances/{research_study}/")), None) is not None


def test_a_study_with_planted_identifiers_goes_its_way(parts: Parts, zone: Zone) -> None:
    planted = planted_study(11, instances=4, issuer="NHS", national=True)
    files = [file.content for file in planted.files]
    report = encoded(ct(SOPInstanceUID="1.2.3.99", SOPClassUID="1.2.840.10008.5.1.4.1.1.88.11", PatientID=planted.person.nhs_number))
    with Said(parts) as said, service(parts):
        received = zone.receive("northgate", files)
        held = zone.receive("southmere", [report])
        announce(parts, received, held)
        said.wait(
            lambda: bool(said.of(received, StudyDeidentified) and said.of(held, StudyDeidentified) and said.of(held, StudyQuarantined))
        )
        (deidentified,) = said.of(received, StudyDeidentified)
        assert (deidentified.instances, deidentified.held_back) == (4, 0)
        (quarantined,) = said.of(held, StudyQuarantined)
        assert [(reason.code, reason.instances) for reason in quarantined.reasons] == [("structured-report", 1)]
        content = zone.store.get(quarantined.report.bucket, quarantined.report.key)
        assert json.loads(content)["instances"][0]["reason"] == "structured-report"
        everything = [*said.raw, content, log_of(parts).read_bytes()]
        for info in zone.store.list("research", ""):
            body = zone.store.get("research", info.key)
            everything += [info.key.encode(), body, gzip.decompress(body) if info.key.endswith(".gz") else b""]
        assert found_needles(b"\n".join(everything), planted.needles) == []
        # The same study in memory gives the same: the store makes no difference.
        memory = Zone()
        assert memory.run(memory.receive("northgate", files)).deidentified == deidentified


def test_what_a_trust_does_not_want_is_held_back_and_the_rest_goes_on(parts: Parts, zone: Zone) -> None:
    def image(number: int, **values: object) -> bytes:
        return encoded(ct(SOPInstanceUID=f"1.2.3.7.{number}", StudyInstanceUID="1.2.3.700", **values))

    files = [
        image(1),
        image(2),
        image(3, Modality="MR"),
        image(4, PatientName="ZZZTEST^WARD", PatientID=nhs_test_number(815)),
        image(5, SOPClassUID="1.2.840.113619.4.27"),
        image(6, SOPClassUID="1.2.840.10008.5.1.4.1.1.7"),
    ]
    expected = {
        "modality-not-wanted": 1, "test-patient": 1, "private-sop-class": 1, "sop-class-not-wanted": 1, "variant-conflict": 2,
    }  # fmt: skip
    with Said(parts) as said, service(parts):
        received = zone.receive("westhaven", files, variants=[image(2, PatientSex="F")])
        announce(parts, received)
        said.wait(lambda: bool(said.of(received, StudyQuarantined)))
        (deidentified,) = said.of(received, StudyDeidentified)
        assert (deidentified.instances, deidentified.held_back) == (1, 5)
        (quarantined,) = said.of(received, StudyQuarantined)
        assert {reason.code: reason.instances for reason in quarantined.reasons} == expected
        report = zone.store.get(quarantined.report.bucket, quarantined.report.key)
    named = {(entry["sop_instance_uid"], entry["reason"]) for entry in json.loads(report)["instances"]}
    assert {("1.2.3.7.3", "modality-not-wanted"), ("1.2.3.7.4", "test-patient"), ("1.2.3.7.2", "variant-conflict")} <= named
    everything = b"\n".join([*said.raw, report, log_of(parts).read_bytes()])
    for identifier in ("ZZZ", nhs_test_number(815), "SOMEBODY", "LOCAL1"):
        assert identifier.encode() not in everything


def test_a_killed_handler_is_started_again_and_says_it_once(parts: Parts, zone: Zone) -> None:
    files = large_study("killed handler")
    received = zone.receive("southmere", files)
    with Said(parts) as said, service(parts) as running:
        announce(parts, received)
        until(lambda: begun(zone, received.key))
        for child in handler_of(running):
            child.kill()
        said.wait(lambda: bool(said.of(received, StudyDeidentified)))
        said.read(1.0)
        (deidentified,) = said.of(received, StudyDeidentified)
        assert said.of(received, DeadLettered) == []
        assert running.poll() is None
    deaths = [line for line in map(json.loads, log_of(parts).read_text().splitlines()) if line["event"] == "a handler's process died"]
    assert [line["reason"] for line in deaths] == ["sigkill"]
    memory = Zone()
    assert memory.run(memory.receive("southmere", files)).deidentified == deidentified


def test_a_killed_service_goes_on_when_it_is_back(parts: Parts, zone: Zone) -> None:
    files = large_study("killed service")
    received = zone.receive("southmere", files)
    with Said(parts) as said:
        with service(parts) as running:
            announce(parts, received)
            until(lambda: begun(zone, received.key))
            running.kill()
            running.wait()
        said.read(0.5)
        assert said.of(received, StudyDeidentified) == []
        with service(parts):
            said.wait(lambda: bool(said.of(received, StudyDeidentified)))
            said.read(1.0)
        (deidentified,) = said.of(received, StudyDeidentified)
    memory = Zone()
    assert memory.run(memory.receive("southmere", files)).deidentified == deidentified


def test_what_is_not_as_announced_is_a_dead_letter_and_stops_nobody(parts: Parts, zone: Zone) -> None:
    good = zone.receive("southmere", [encoded(ct(StudyInstanceUID="1.2.3.500"))])
    bad = zone.receive("southmere", [encoded(ct(StudyInstanceUID="1.2.3.501"))])
    forged = bad.data.manifest.model_copy(update={"sha256": "0" * 64})
    bad = replace(bad, data=bad.data.model_copy(update={"manifest": forged}))
    with Said(parts) as said, service(parts):
        announce(parts, bad, good)
        said.wait(lambda: bool(said.of(good, StudyDeidentified) and said.of(bad, DeadLettered)))
        (letter,) = said.of(bad, DeadLettered)
        assert letter.reason == "manifest-digest"
        assert said.of(bad, StudyDeidentified) == []


def test_without_keys_it_ends_at_once_and_says_what_to_do(parts: Parts) -> None:
    with service(parts, HUB_DEIDENTIFICATION_KEYS="{}") as running:
        assert running.wait(30) == 78
    assert "a key ring is" in log_of(parts).read_text()
