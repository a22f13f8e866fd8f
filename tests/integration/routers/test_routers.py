"""Trusts' own routers, with their own credentials, on a broker and a store that let them do only what they may; honest ones and others."""

import hashlib
import json
import os
import secrets
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import pytest
from confluent_kafka import Consumer, KafkaError, KafkaException, Producer, TopicPartition
from hub_dicom.keys import instance_key
from hub_dicom.synthetic import SyntheticInstance, SyntheticPatient, synthetic_series
from hub_events import Event, decode, encode
from hub_events.seal import is_sealed, seal
from hub_events.types import InstanceReceived, ObjectReference, StudyTick
from hub_objectstore import ObjectStore, S3ObjectStore, StoreUnavailable
from hub_parts import Parts
from hub_runtime import create_topics
from pydantic import BaseModel
from support.ingest import INSTANCES, QUIET, Process, wait_for
from support.parts import ROOT, start_parts

EXAMPLE = ROOT / "services" / "ingest" / "examples" / "router.py"
SEAL = secrets.token_hex(32)
PATIENT = SyntheticPatient("SYNTHETIC^ROUTER", "1")
TRUSTS = """trusts:
  - {name: northgate, ae_titles: [N], addresses: [127.0.0.1/32], assigning_authority: N, quiet_seconds: 1, router: true}
  - {name: southmere, ae_titles: [S], addresses: [127.0.0.1/32], assigning_authority: S, quiet_seconds: 1, router: true}
  - {name: eastvale, ae_titles: [E], addresses: [127.0.0.1/32], assigning_authority: E, quiet_seconds: 1}
  - {name: westbury, ae_titles: [W], addresses: [127.0.0.1/32], assigning_authority: W, quiet_seconds: 3600, router: true}
"""


@dataclass
class Hub:
    """Parts, gate and assembler; nothing else runs."""

    parts: Parts
    gate: Process
    assembler: Process
    tails: dict[str, tuple[Consumer, list[Any]]] = field(default_factory=dict)

    def store(self, identity: str = "admin") -> ObjectStore:
        keys = self.parts.credentials["s3"][identity]
        return S3ObjectStore(self.parts.s3_endpoint, keys["access_key"], keys["secret_key"])

    def announce(self, trust: str, data: Any, *, key: str | None = None, source: str = "", sealed: str = "") -> None:
        """As the router of `trust`, whatever it says."""
        event = Event.first(INSTANCES, key or data.study_instance_uid, data, source=source or f"router.{trust}")
        if sealed:
            event = seal(event, bytes.fromhex(sealed))
        record_key, value, headers = encode(event)
        self.produce(f"router-{trust}", record_key, value, headers)

    def produce(self, identity: str, key: bytes, value: bytes, headers: Any, *, topic: str = INSTANCES) -> None:
        errors: list[KafkaError] = []
        producer = Producer(self.parts.kafka_config(identity) | {"partitioner": "murmur2_random"})

        def acknowledged(error: KafkaError | None, _message: object) -> None:
            if error is not None:
                errors.append(error)

        producer.produce(topic, key=key, value=value, headers=[*headers], on_delivery=acknowledged)
        assert producer.flush(30) == 0
        if errors:
            raise KafkaException(errors[0])

    def records(self, topic: str) -> list[Any]:
        """All records of a topic, as a `read_committed` reader sees them; each is read once."""
        consumer, found = self.tails.get(topic) or self._tail(topic)
        while batch := consumer.consume(500, 0.2):
            assert not [message.error() for message in batch if message.error()]
            found.extend(batch)
        return found

    def _tail(self, topic: str) -> tuple[Consumer, list[Any]]:
        consumer = Consumer(self.parts.kafka_config() | {"group.id": "reader", "enable.auto.commit": False})
        places = consumer.list_topics(topic, timeout=10).topics[topic].partitions
        consumer.assign([TopicPartition(topic, number, 0) for number in places])
        self.tails[topic] = consumer, []
        return self.tails[topic]

    def events(self, topic: str, key: str) -> list[Event[Any]]:
        found = [one for one in self.records(topic) if one.key() == key.encode()]
        return [decode(topic, one.key(), one.value(), one.headers()) for one in found]

    def letters(self, key: str) -> list[str]:
        return [event.data.reason for event in self.events(f"{INSTANCES}.dlq", key)]

    def admitted(self, study: str) -> list[Event[Any]]:
        return [
            event
            for event in self.events(INSTANCES, study)
            if isinstance(event.data, InstanceReceived) and is_sealed(event, bytes.fromhex(SEAL))
        ]

    def refused(self, study: str, reason: str) -> None:
        """The announcement is a dead letter with this reason, and nobody counted it."""
        wait_for(reason, lambda: self.letters(study))
        assert self.letters(study) == [reason]
        assert self.admitted(study) == []


@pytest.fixture(scope="module")
def hub(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Hub]:
    folder = tmp_path_factory.mktemp("routers")
    (folder / "trusts.yaml").write_text(TRUSTS)
    with start_parts("kafka", "s3", secured_kafka=True, parts_routers="northgate,southmere,westbury") as parts:
        create_topics(parts.kafka_config())

        def run(service: str) -> Process:
            environment = os.environ | parts.environment(service)
            environment |= {"HUB_TRUSTS_FILE": str(folder / "trusts.yaml"), "HUB_DATA_FOLDER": str(folder), "HUB_SEAL_KEY": SEAL}
            environment |= {"HUB_LOG_STRICT": "true", "HUB_PARENT_PID": str(os.getpid()), "HUB_ASSEMBLER_TICK_SECONDS": "0.2"}
            return Process([sys.executable, "-m", f"hub_ingest.{service}"], environment, folder / f"{service}.log")

        started = [run("gate"), run("assembler")]
        try:
            gate, assembler = (one.wait_ready() for one in started)
            running = Hub(parts, gate, assembler)
            yield running
            for consumer, _ in running.tails.values():
                consumer.close()
            assert [one.stop() for one in started] == [0, 0]
            assert not [line for one in started for line in one.lines if line["level"] == "error"]
        finally:
            for one in started:
                one.kill()


def made(name: str) -> SyntheticInstance:
    return next(iter(synthetic_series(PATIENT, study=f"{name} {secrets.token_hex(8)}", instances=1, pixels=16)))


def claim(trust: str, instance: SyntheticInstance, **values: Any) -> InstanceReceived:
    """What an honest router says of an instance; then `values`."""
    sha256 = hashlib.sha256(instance.content).hexdigest()
    uids = (instance.study_instance_uid, instance.series_instance_uid, instance.sop_instance_uid)
    data = InstanceReceived(
        trust=trust,
        study_instance_uid=uids[0],
        series_instance_uid=uids[1],
        sop_instance_uid=uids[2],
        object=ObjectReference(bucket="identifiable", key=instance_key(trust, *uids, sha256), sha256=sha256, size=len(instance.content)),
        origin="router",
    )
    return data.model_copy(update=values)


def put(hub: Hub, trust: str, data: InstanceReceived, content: bytes) -> None:
    hub.store(f"router-{trust}").put("identifiable", data.object.key, content)


@pytest.mark.parametrize(("trust", "options"), [("northgate", []), ("westbury", ["--whole"])])
def test_the_sample_router_s_study_goes_its_way(hub: Hub, tmp_path: Path, trust: str, options: list[str]) -> None:
    """Westbury's quiet time is an hour: its study goes on because it is said how many instances it has."""
    instances = list(synthetic_series(PATIENT, study=f"sample {secrets.token_hex(8)}", instances=3, pixels=16))
    paths = [tmp_path / f"{number}.dcm" for number in range(3)]
    for path, instance in zip(paths, instances, strict=True):
        path.write_bytes(instance.content)
    s3, kafka = (hub.parts.credentials[part][f"router-{trust}"] for part in ("s3", "kafka"))
    environment = os.environ | {
        "ROUTER_S3_ACCESS_KEY": s3["access_key"],
        "ROUTER_S3_SECRET_KEY": s3["secret_key"],
        "ROUTER_KAFKA_USERNAME": kafka["username"],
        "ROUTER_KAFKA_PASSWORD": kafka["password"],
    }
    command: list[str | Path] = [sys.executable, "-W", "error", EXAMPLE, *options, "--trust", trust, "--store", hub.parts.s3_endpoint]
    command += ["--kafka", hub.parts.kafka_bootstrap_servers, "--protocol", "SASL_PLAINTEXT", *paths]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    study = instances[0].study_instance_uid
    (quiet,) = wait_for("quiet", lambda: hub.events(QUIET, study))
    assert (quiet.data.trust, quiet.data.instances) == (trust, 3)
    admitted = hub.admitted(study)
    assert {(event.data.origin, event.source) for event in admitted} == {("router", "ingest.gate")}
    assert {event.data.object.key for event in admitted} == {claim(trust, instance).object.key for instance in instances}
    assert hub.letters(study) == []
    assert (
        '"router"' not in (ROOT / "services" / "ingest" / "src" / "hub_ingest" / "gate.py").read_text()
        or "import hub_" not in EXAMPLE.read_text()
    )
    assert study not in hub.gate.log.read_text()


def test_a_router_writes_and_reads_nothing_else(hub: Hub) -> None:
    instance = made("rights")
    mine, foreign = claim("northgate", instance), claim("southmere", instance)
    put(hub, "northgate", mine, instance.content)
    with pytest.raises((PermissionError, StoreUnavailable, OSError)):
        put(hub, "northgate", foreign, instance.content)
    for key in ("manifests/northgate/1.2/1.json", "northgate-else/x", "northgate"):
        with pytest.raises((PermissionError, StoreUnavailable, OSError)):
            hub.store("router-northgate").put("identifiable", key, b"x")
    with pytest.raises((PermissionError, StoreUnavailable, OSError)):
        hub.store("router-northgate").get("identifiable", mine.object.key)
    with pytest.raises((PermissionError, StoreUnavailable, OSError)):
        list(hub.store("router-northgate").list("identifiable", "northgate/"))
    assert hub.store().stat("identifiable", foreign.object.key) is None
    for topic in (QUIET, f"{INSTANCES}.dlq"):
        with pytest.raises(KafkaException, match=r"TOPIC_AUTHORIZATION|Topic authorization|UNKNOWN_TOPIC|Unknown topic|_MSG_TIMED_OUT"):
            hub.produce("router-northgate", b"1.2", b"x", [], topic=topic)


def test_a_foreign_trust_s_key(hub: Hub) -> None:
    instance = made("foreign")
    theirs = claim("southmere", instance)
    hub.store().put("identifiable", theirs.object.key, instance.content)
    hub.announce("northgate", theirs.model_copy(update={"trust": "northgate"}))
    hub.refused(instance.study_instance_uid, "foreign-key")


@pytest.mark.parametrize(
    ("what", "change"),
    [
        ("bucket", lambda data: data.object.model_copy(update={"bucket": "research"})),
        ("key", lambda data: data.object.model_copy(update={"key": f"northgate/{data.study_instance_uid}/x"})),
        ("manifest", lambda data: data.object.model_copy(update={"key": f"manifests/{data.object.key}"})),
    ],
)
def test_a_key_that_is_none_of_an_instance(hub: Hub, what: str, change: Callable[[InstanceReceived], ObjectReference]) -> None:
    data = claim("northgate", made(what))
    hub.announce("northgate", data.model_copy(update={"object": change(data)}))
    hub.refused(data.study_instance_uid, "foreign-key")


def test_a_trust_without_a_router_or_none_at_all(hub: Hub) -> None:
    for trust in ("eastvale", "nobody"):
        data = claim(trust, made(trust))
        hub.announce("northgate", data)
        hub.refused(data.study_instance_uid, "not-a-router")


@pytest.mark.parametrize("origin", ["router", "c-store", "sweep"])
def test_an_object_that_is_not_there_whatever_origin_is_claimed(hub: Hub, origin: str) -> None:
    data = claim("northgate", made(origin), origin=origin)
    hub.announce("northgate", data, source="ingest.receiver")
    hub.refused(data.study_instance_uid, "no-such-object")


def test_a_digest_or_a_size_that_does_not_match(hub: Hub) -> None:
    instance, other = made("digest"), made("size")
    data = claim("northgate", instance)
    put(hub, "northgate", data, instance.content[:-1] + bytes([instance.content[-1] ^ 1]))
    hub.announce("northgate", data)
    hub.refused(data.study_instance_uid, "digest-mismatch")
    data = claim("northgate", other)
    put(hub, "northgate", data, other.content + b"x")
    hub.announce("northgate", data)
    hub.refused(data.study_instance_uid, "digest-mismatch")


def test_an_object_that_is_not_dicom(hub: Hub) -> None:
    for content in (b"rubbish", b"", made("cut").content[:400]):
        instance = made("rubbish")
        wrong = SyntheticInstance(instance.study_instance_uid, instance.series_instance_uid, instance.sop_instance_uid, "1.2", content)
        data = claim("northgate", wrong)
        put(hub, "northgate", data, content)
        hub.announce("northgate", data)
        hub.refused(data.study_instance_uid, "not-dicom")


def test_uids_that_are_not_those_of_key_or_object(hub: Hub) -> None:
    instance = made("uids")
    for number, changed in enumerate((("study", 0), ("series", 1), ("instance", 2))):
        uids = [instance.study_instance_uid, instance.series_instance_uid, instance.sop_instance_uid]
        uids[0] = made("other").study_instance_uid if number == 0 else uids[0]
        if number:
            uids[changed[1]] = f"1.2.3.{number}"
        wrong = SyntheticInstance(uids[0], uids[1], uids[2], instance.sop_class_uid, instance.content)
        data = claim("northgate", wrong)
        put(hub, "northgate", data, instance.content)
        hub.announce("northgate", data)
    wait_for("three letters", lambda: len(hub.letters(instance.study_instance_uid)) == 2)
    assert hub.letters(instance.study_instance_uid) == ["uid-mismatch"] * 2
    assert hub.admitted(instance.study_instance_uid) == []
    instance = made("event")
    data = claim("northgate", instance)
    put(hub, "northgate", data, instance.content)
    hub.announce("northgate", data.model_copy(update={"series_instance_uid": "1.2.3"}))
    hub.announce("northgate", data.model_copy(update={"sop_class_uid": "1.2.3"}))
    wait_for("two letters", lambda: len(hub.letters(data.study_instance_uid)) == 2)
    assert hub.letters(data.study_instance_uid) == ["uid-mismatch"] * 2


def test_another_study_s_key_of_the_record(hub: Hub) -> None:
    instance, other = made("key"), made("other")
    data = claim("northgate", instance)
    put(hub, "northgate", data, instance.content)
    hub.announce("northgate", data, key=other.study_instance_uid)
    hub.refused(other.study_instance_uid, "uid-mismatch")


def test_a_tick_a_false_seal_and_rubbish(hub: Hub) -> None:
    study = made("tick").study_instance_uid
    hub.announce("northgate", StudyTick(trust="southmere", study_instance_uid=study))
    hub.refused(study, "not-a-router")
    data = claim("southmere", made("seal"))
    hub.announce("northgate", data, sealed=secrets.token_hex(32))
    hub.refused(data.study_instance_uid, "no-such-object")
    study = made("no event").study_instance_uid
    hub.produce("router-northgate", study.encode(), b"rubbish", [])
    wait_for("a letter", lambda: hub.letters(study))
    assert hub.letters(study) == ["no-cloudevent"]


def test_a_replay_neither_counts_nor_keeps_a_study_open(hub: Hub) -> None:
    instance = made("replay")
    data = claim("southmere", instance)
    put(hub, "southmere", data, instance.content)
    hub.announce("southmere", data)
    deadline = time.monotonic() + 20
    # Another trust's router that has the same file knows what to say, and says it all the time.
    while not hub.events(QUIET, data.study_instance_uid):
        assert time.monotonic() < deadline, "a replay keeps the study open"
        hub.announce("northgate", data)
    (quiet,) = hub.events(QUIET, data.study_instance_uid)
    assert quiet.data.instances == 1
    assert len(hub.admitted(data.study_instance_uid)) == 1


def test_a_flood_harms_nobody_else(hub: Hub) -> None:
    """Five hundred lies in the partition of another trust's study, whose instance is announced behind them; the hub's own goes through."""
    honest, own = made("honest"), made("own")
    mine, receivers = claim("southmere", honest), claim("eastvale", own)
    put(hub, "southmere", mine, honest.content)
    producer = Producer(hub.parts.kafka_config("router-northgate") | {"partitioner": "murmur2_random", "linger.ms": 5})
    lie = claim("northgate", honest)
    begin = time.monotonic()
    for _ in range(500):
        key, value, headers = encode(Event.first(INSTANCES, honest.study_instance_uid, lie, source="ingest.receiver"))
        producer.produce(INSTANCES, key=key, value=value, headers=[*headers])
    assert producer.flush(30) == 0
    hub.announce("southmere", mine)
    event = seal(Event.first(INSTANCES, own.study_instance_uid, receivers, source="ingest.receiver"), bytes.fromhex(SEAL))
    hub.produce("receiver", *encode(cast("Event[BaseModel]", event)))
    wait_for("the receiver's study is quiet", lambda: hub.events(QUIET, own.study_instance_uid), 10)
    wait_for("the other router's study is quiet", lambda: hub.events(QUIET, honest.study_instance_uid))
    print(json.dumps({"flood_events_per_second": round(500 / (time.monotonic() - begin))}))
    (quiet,) = hub.events(QUIET, honest.study_instance_uid)
    assert (quiet.data.trust, quiet.data.instances) == ("southmere", 1)
