"""indexing and export as processes, each with its own identity, on a real broker, store and database; and what consumers then get."""

import hashlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
from confluent_kafka import Consumer
from hub_client import DatasetMissing, Progress, WrongContent, datasets
from hub_events import Event, decode
from hub_events.types import DatasetExported, DatasetRequested, StudyDeidentified
from hub_objectstore import ObjectStore, S3ObjectStore, StoreRefused
from hub_parts import Parts
from hub_runtime import EventProducer, KeyRing, ServiceSettings, create_topics
from support.parts import s3_of, start_parts
from support.research import Image, element, put_revision

KEYS = KeyRing(1, {"split": bytes(range(32))})  # fixed, so that both sides have enough subjects
SUBJECTS = 12
PERCENT = 50


@pytest.fixture(scope="module")
def parts() -> Iterator[Parts]:
    with start_parts(secured_kafka=True) as parts:
        create_topics(dict(parts.kafka_config()))
        yield parts


def settings_of(parts: Parts, identity: str) -> ServiceSettings:
    names = {name.removeprefix("HUB_").lower(): value for name, value in parts.environment(identity).items()}
    return ServiceSettings.model_validate(names)


@contextmanager
def process(parts: Parts, module: str, identity: str, **own: str) -> Iterator[subprocess.Popen[str]]:
    environment = os.environ | parts.environment(identity) | {"HUB_LOG_STRICT": "true"} | own
    log = parts.data_folder / f"{identity}.log"
    with log.open("a") as output:
        running = subprocess.Popen([sys.executable, "-m", module], env=environment, stderr=output, text=True)
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


def export_process(parts: Parts) -> Any:
    keys = json.dumps({"version": KEYS.version, "keys": {name: key.hex() for name, key in KEYS.keys.items()}})
    return process(parts, "hub_export", "export", HUB_SPLIT_KEYS=keys, HUB_EXPORT_THREADS="2")


class Answers:
    """Reads `research.dataset.exported` and `research.study.indexed` as the console, committed records only."""

    def __init__(self, parts: Parts) -> None:
        config = parts.kafka_config("console") | {
            "group.id": "console-test",
            "auto.offset.reset": "earliest",
            "isolation.level": "read_committed",
            "enable.auto.commit": "false",
        }
        self._events: list[Event[Any]] = []
        # The console may describe groups, not join them: partitions are taken, not assigned by a group.
        from confluent_kafka import TopicPartition  # noqa: PLC0415 - beside its only use

        self._consumer = Consumer(config)
        topics = self._consumer.list_topics(timeout=10).topics
        self._consumer.assign(
            [
                TopicPartition(name, partition, 0)
                for name in ("research.dataset.exported", "research.study.indexed", "research.study.deidentified.dlq", "research.dataset.requested.dlq")
                for partition in topics[name].partitions
            ]
        )  # fmt: skip

    def wait(self, wanted: Callable[[Event[Any]], bool], seconds: float = 60) -> Event[Any]:
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            for event in self._events:
                if wanted(event):
                    return event
            message = self._consumer.poll(0.2)
            if message is not None and message.error() is None:
                topic = message.topic()
                assert topic is not None
                self._events.append(decode(topic, message.key(), message.value(), message.headers()))  # type: ignore[arg-type]
        raise AssertionError(f"no such event in {seconds} s; there were: {[(event.topic, event.data) for event in self._events]}")

    def indexed(self, study: str, revision: int) -> None:
        self.wait(lambda event: (event.topic, event.key) == ("research.study.indexed", study) and event.data.revision == revision)

    def exported(self, request: Event[Any]) -> DatasetExported:
        found = self.wait(lambda event: isinstance(event.data, DatasetExported) and event.data.request == request.id).data
        assert isinstance(found, DatasetExported)
        return found

    def count(self, request: Event[Any]) -> int:
        with pytest.raises(AssertionError):
            self.wait(lambda _: False, 2)
        return sum(isinstance(event.data, DatasetExported) and event.data.request == request.id for event in self._events)

    def close(self) -> None:
        self._consumer.close()


@pytest.fixture(scope="module")
def answers(parts: Parts) -> Iterator[Answers]:
    answers = Answers(parts)
    yield answers
    answers.close()


def image(number: int, index: int) -> Image:
    return Image(
        f"1.{number}.1.{index}",
        f"1.{number}.1",
        "CT" if number % 2 else "MR",
        {"00200013": element("IS", index), "00080020": element("DA", f"20{number:02}0101")},
        content=f"image {number} {index}".encode() * 500,
    )


STUDIES = {f"1.{number}": [image(number, index) for index in range(1, 16)] for number in range(1, SUBJECTS + 1)}


@pytest.fixture(scope="module")
def indexed(parts: Parts, answers: Answers) -> Iterator[None]:
    """Every study indexed by a real indexing process, which is killed once while it works."""
    store = s3_of(parts, "deidentification").store()
    with EventProducer(settings_of(parts, "deidentification")) as producer:
        events: list[Event[StudyDeidentified]] = []
        for number, (study, images) in enumerate(STUDIES.items(), 1):
            events.append(put_revision(store, study, "source01", 1, images, subject=f"Subject{number:04}"))
        producer.produce(*events)
        with process(parts, "hub_indexing", "indexing") as first:
            answers.wait(lambda event: event.topic == "research.study.indexed")
            first.kill()
        with process(parts, "hub_indexing", "indexing"):
            for study in STUDIES:
                answers.indexed(study, 1)
            yield


def request(parts: Parts, name: str, *where: str, percent: int = PERCENT) -> Event[Any]:
    data = DatasetRequested(dataset=name, where=list(where), training_percent=percent)
    event = Event.first("research.dataset.requested", name, data, source="console")
    with EventProducer(settings_of(parts, "console")) as producer:
        producer.produce(event)
    return event


def content(store: ObjectStore, prefix: str) -> dict[str, bytes]:
    return {
        info.key.removeprefix(prefix): store.get(bucket, info.key)
        for bucket in ("datasets-training", "datasets-validation")
        for info in store.list(bucket, prefix)
        if not info.key.endswith(("dataset.json", "manifest-sha256.txt"))
    }


def payload(found: dict[str, bytes]) -> dict[str, bytes]:
    return {path.rsplit("/", 1)[1]: body for path, body in found.items() if path.endswith(".dcm")}


@pytest.fixture(scope="module")
def exported(parts: Parts, indexed: None, answers: Answers) -> Iterator[DatasetExported]:
    """Version 1 of `chest`, whose exporter was killed while it copied."""
    store = s3_of(parts).store()
    event = request(parts, "chest")
    with export_process(parts) as first:
        deadline = time.monotonic() + 60
        while sum(1 for _ in store.list("datasets-training", "chest/1/")) < 20:
            assert time.monotonic() < deadline
            assert first.poll() is None, (parts.data_folder / "export.log").read_text()
        first.kill()
    assert store.stat("datasets-training", "chest/1/dataset.json") is None, (
        "the exporter was done before it was killed: give it more to copy"
    )
    with export_process(parts):
        done = answers.exported(event)
        assert answers.count(event) == 1
        yield done


def test_an_exporter_killed_at_work_leaves_the_whole_dataset_and_one_event(parts: Parts, exported: DatasetExported) -> None:
    assert (exported.outcome, exported.version) == ("exported", 1)
    found = content(s3_of(parts).store(), "chest/1/")
    assert payload(found) == {f"{one.uid}.dcm": one.body for images in STUDIES.values() for one in images}
    assert exported.training is not None
    assert exported.validation is not None
    assert exported.training.instances + exported.validation.instances == SUBJECTS * 15
    assert len([path for path in found if path.endswith(".json")]) == SUBJECTS * 15


def test_an_undisturbed_run_has_the_same_manifests(parts: Parts, exported: DatasetExported, answers: Answers) -> None:
    again = answers.exported(request(parts, "chest"))
    assert again.version == 2
    for side in ("training", "validation"):
        assert getattr(again, side).manifest.sha256 == getattr(exported, side).manifest.sha256


def test_requests_at_once_for_one_name_get_two_versions(parts: Parts, exported: DatasetExported, answers: Answers) -> None:
    events = [request(parts, "twice", "Modality=CT") for _ in range(2)]
    assert sorted(answers.exported(event).version or 0 for event in events) == [1, 2]


@pytest.mark.parametrize(
    ("where", "studies"),
    [
        (("Modality=MR",), range(2, SUBJECTS + 1, 2)),
        (("StudyDate=20030101-20050101",), range(3, 6)),
        (("PatientID=Subject0004",), [4]),
        (("Modality=CT", "InstanceNumber=7", "StudyInstanceUID=1.1,1.3,1.2"), [1, 3]),
        (("PatientID=Subject000?", "StudyDate=-20020101", "StudyDescription="), [1, 2]),
    ],
)
def test_conditions_choose_as_queries_do(
    parts: Parts, exported: DatasetExported, answers: Answers, where: tuple[str, ...], studies: Any
) -> None:
    name = hashlib.sha256(repr(where).encode()).hexdigest()[:12]
    assert answers.exported(request(parts, name, *where)).outcome == "exported"
    found = {uid.removesuffix(".dcm") for uid in payload(content(s3_of(parts).store(), f"{name}/1/"))}
    one = [7] if "InstanceNumber=7" in where else range(1, 16)
    assert found == {f"1.{number}.1.{index}" for number in studies for index in one}


@pytest.mark.parametrize(
    ("where", "percent", "reason"),
    [
        (("Modality=CT", "Modalty=CT"), PERCENT, "'Modalty=CT'"),
        (("Modality=XA",), PERCENT, "no instance in the index meets the conditions"),
        (("StudyDescription='; DROP TABLE instances --",), PERCENT, "no instance"),
        ((), 80, f"the training percentage is {PERCENT} in this hub and cannot be 80"),
    ],
)
def test_what_cannot_be_exported_is_refused(  # noqa: PLR0917 - fixtures and cases, given by name
    parts: Parts, exported: DatasetExported, answers: Answers, where: tuple[str, ...], percent: int, reason: str
) -> None:
    done = answers.exported(request(parts, "refused", *where, percent=percent))
    assert done.outcome == "refused"
    assert reason in (done.reason or "")
    assert list(s3_of(parts).store().list("datasets-training", "refused/")) == []


def test_a_late_instance_is_in_the_next_version_only(parts: Parts, exported: DatasetExported, answers: Answers) -> None:
    before = content(s3_of(parts).store(), "chest/1/")
    late = image(1, 16)
    event = put_revision(s3_of(parts, "deidentification").store(), "1.1", "source01", 2, [*STUDIES["1.1"], late], subject="Subject0001")
    with EventProducer(settings_of(parts, "deidentification")) as producer:
        producer.produce(event)
    answers.indexed("1.1", 2)
    done = answers.exported(request(parts, "late"))
    assert f"{late.uid}.dcm" in payload(content(s3_of(parts).store(), f"late/{done.version}/"))
    assert content(s3_of(parts).store(), "chest/1/") == before
    # Back to what the other tests of this module expect.
    back = put_revision(s3_of(parts, "deidentification").store(), "1.1", "source01", 3, STUDIES["1.1"], subject="Subject0001")
    with EventProducer(settings_of(parts, "deidentification")) as producer:
        producer.produce(back)
    answers.indexed("1.1", 3)


def test_a_manifest_that_is_not_what_the_event_says_is_a_dead_letter(parts: Parts, exported: DatasetExported, answers: Answers) -> None:
    store = s3_of(parts).store()
    event = put_revision(store, "1.77", "source01", 1, [Image("1.77.1.1", "1.77.1")])
    store.put("research", event.data.manifest.key, b"{}")
    with EventProducer(settings_of(parts, "deidentification")) as producer:
        producer.produce(event)
    letter = answers.wait(lambda one: one.topic == "research.study.deidentified.dlq")
    assert (letter.data.reason, letter.data.group) == ("manifest-differs", "indexing")


def test_the_training_consumer_gets_training_and_nothing_else(parts: Parts, exported: DatasetExported, tmp_path: Path) -> None:
    store = s3_of(parts, "training-consumer").store()
    assert ("chest", 1) in [(one.dataset, one.version) for one in datasets.list_datasets(store)]
    seen: list[Progress] = []
    done = datasets.download(store, "chest", 1, "training", tmp_path / "chest", progress=seen.append)
    assert exported.training is not None
    assert (done.files, done.fetched, done.bytes) == (2 * exported.training.instances, done.files, exported.training.bytes)
    assert seen[-1] == Progress(done.files, done.files, done.bytes, done.bytes)
    checked = subprocess.run(["sha256sum", "--check", "--strict", "--quiet", "manifest-sha256.txt"], cwd=done.folder, check=False)
    assert checked.returncode == 0
    with pytest.raises(DatasetMissing, match="do not open the validation part"):
        datasets.download(store, "chest", 1, "validation", tmp_path / "validation")
    for reach in (
        lambda: list(store.list("datasets-validation", "")),
        lambda: store.get("datasets-validation", "chest/1/manifest-sha256.txt"),
        lambda: list(store.list("research", "")),
        lambda: list(store.list("identifiable", "")),
        lambda: store.put("datasets-training", "chest/1/mine", b""),
    ):
        with pytest.raises(StoreRefused):
            reach()


def test_a_stopped_download_goes_on_where_it_stopped(parts: Parts, exported: DatasetExported, tmp_path: Path) -> None:
    class Counting(S3ObjectStore):
        fetched = 0

        def get_range(self, bucket: str, key: str, offset: int, length: int) -> bytes:
            body = super().get_range(bucket, key, offset, length)
            Counting.fetched += len(body)
            return body

    access = s3_of(parts, "training-consumer")
    store = Counting(access.endpoint, access.access_key, access.secret_key)

    def stop(progress: Progress) -> None:
        if progress.files == 11:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        datasets.download(store, "chest", 1, "training", tmp_path, progress=stop)
    cut, spoiled = sorted(tmp_path.rglob("*.json"))[:2]
    cut.rename(cut.with_name(cut.name + ".part"))
    with cut.with_name(cut.name + ".part").open("r+b") as file:
        file.truncate(100)
    spoiled.write_bytes(b"spoiled" + spoiled.read_bytes()[7:])
    already = sum(path.stat().st_size for path in tmp_path.rglob("*") if path.is_file() and path != spoiled)
    Counting.fetched = 0
    done = datasets.download(store, "chest", 1, "training", tmp_path)
    assert Counting.fetched == done.bytes - already
    assert done.fetched < done.files
    again = datasets.download(store, "chest", 1, "training", tmp_path)
    assert again.fetched == 0


def test_an_object_that_is_not_what_the_manifest_says_is_not_downloaded(
    parts: Parts, exported: DatasetExported, answers: Answers, tmp_path: Path
) -> None:
    answers.exported(request(parts, "spoiled"))
    store = s3_of(parts).store()
    victim = next(info.key for info in store.list("datasets-training", "spoiled/1/training/") if info.key.endswith(".dcm"))
    store.put("datasets-training", victim, store.get("datasets-training", victim)[:-1] + b"!")
    with pytest.raises(WrongContent, match="is not what the manifest says"):
        datasets.download(store, "spoiled", 1, "training", tmp_path)
    assert not (tmp_path / victim.removeprefix("spoiled/1/")).exists()
    with pytest.raises(DatasetMissing):
        datasets.show(store, "spoiled", 9)


def test_the_logs_name_no_study_and_no_subject(parts: Parts, exported: DatasetExported) -> None:
    for identity in ("indexing", "export"):
        text = (parts.data_folder / f"{identity}.log").read_text()
        assert "started" in text
        for line in text.splitlines():
            entry = json.loads(line)
            assert "Subject0" not in line
            assert not any(f'"{study}"' in line or f"/{study}/" in line for study in STUDIES), entry


def test_export_is_unready_and_waits_while_the_database_is_away(parts: Parts, answers: Answers, exported: DatasetExported) -> None:
    event = request(parts, "patient", "Modality=CT")
    answers.exported(event)
    parts.supervisor.stop_program("postgres")
    try:
        event = request(parts, "patient", "Modality=CT")
        port = next(
            json.loads(line)["port"]
            for line in reversed((parts.data_folder / "export.log").read_text().splitlines())
            if '"started"' in line
        )
        deadline = time.monotonic() + 30
        while httpx.get(f"http://127.0.0.1:{port}/readyz").status_code != 503:
            assert time.monotonic() < deadline
            time.sleep(0.2)
    finally:
        parts.supervisor.start_program("postgres")
        parts.supervisor.wait_healthy(["postgres"], timeout_seconds=60)
    assert answers.exported(event).version == 2
