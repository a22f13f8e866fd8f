"""Assembler and closer together on a real broker and store: what becomes a revision, and that nothing doubles or loses one."""

import threading
import time
from pathlib import Path
from typing import Any, cast

import pytest
from confluent_kafka.admin import AdminClient
from hub_dicom.keys import manifest_prefix
from hub_events import Event
from hub_events.types import StudyQuiet, StudyReceived
from hub_ingest.assembler import CHANGELOG
from hub_ingest.closer_revisions import BUCKET, close_study
from hub_runtime import create_topics
from support.ingest import QUIET, RECEIVED, Ingest, ingest, wait_for
from support.large_study import large_study_passes, manifest_of, revisions
from support.parts import S3


@pytest.fixture(scope="module")
def broker(kafka: str) -> str:
    create_topics({"bootstrap.servers": kafka})
    return kafka


def manifests(s3: S3, hub: Ingest, study: str) -> list[str]:
    return [info.key.rsplit("/", 1)[1] for info in s3.store().list(BUCKET, manifest_prefix(hub.trust, study))]


def test_a_study_becomes_a_revision_a_repeat_changes_nothing_and_a_late_instance_makes_the_next(
    broker: str, s3: S3, tmp_path: Path
) -> None:
    with ingest(broker, s3, tmp_path) as hub:
        hub.start("assembler")
        closer = hub.start("closer").wait_ready()
        study = hub.study()
        instances = hub.put(study, range(10))
        hub.announce(instances)
        first = wait_for("revision 1", lambda: revisions(hub, study))[0]
        assert (first.revision, first.instances, first.variants) == (1, 10, 0)
        assert {item.key for item in manifest_of(s3, hub, study, 1).instances} == {item.object.key for item in instances}
        (event,) = [event for event in hub.events(RECEIVED) if event.key == study]
        (quiet,) = [event for event in hub.events(QUIET) if event.key == study]
        assert event.trace_id == quiet.trace_id

        hub.announce(instances)  # the sender sends all of it again
        again = wait_for("said again", lambda: revisions(hub, study)[1:])
        assert again == [first]
        assert manifests(s3, hub, study) == ["1.json"]

        hub.announce(hub.put(study, [10]))
        late = wait_for("revision 2", lambda: revisions(hub, study)[2:])[0]
        assert (late.revision, late.instances) == (2, 11)
        hub.announce(hub.put(study, [3], content="other"))
        variant = wait_for("revision 3", lambda: revisions(hub, study)[3:])[0]
        assert (variant.revision, variant.instances, variant.variants) == (3, 11, 1)
        assert manifest_of(s3, hub, study, 3).instances == manifest_of(s3, hub, study, 2).instances
        assert study not in closer.log.read_text()
        assert closer.stop() == 0


def test_a_lost_table_costs_time_and_no_data(broker: str, s3: S3, tmp_path: Path) -> None:
    with ingest(broker, s3, tmp_path, quiet_seconds=2.0) as hub:
        hub.start("closer", sweep_seconds=1)
        assembler = hub.start("assembler").wait_ready()
        open_study, closed_study = hub.study(), hub.study()
        hub.announce(hub.put(closed_study, range(5)))
        wait_for("the first revision", lambda: revisions(hub, closed_study))
        before = assembler.metric("hub_assembler_instances_total")
        hub.announce(hub.put(open_study, range(5)))
        wait_for("the rows", lambda: assembler.metric("hub_assembler_instances_total") >= before + 5)
        assert assembler.stop() == 0  # offsets committed, rows written
        lose_table(broker, hub)
        unannounced = hub.study()
        hub.put(unannounced, range(3))  # a receiver was killed between store and broker
        hub.start("assembler").wait_ready()
        wait_for("the sweep has brought both back", lambda: revisions(hub, open_study) and revisions(hub, unannounced))
        time.sleep(3)  # further sweeps and quiet times
        for study, count in ((open_study, 5), (unannounced, 3), (closed_study, 5)):
            assert {(said.revision, said.instances) for said in revisions(hub, study)} == {(1, count)}
            assert manifests(s3, hub, study) == ["1.json"]


def lose_table(broker: str, hub: Ingest) -> None:
    """Changelog and local data are gone."""
    admin = AdminClient({"bootstrap.servers": broker})
    for future in admin.delete_topics([CHANGELOG], operation_timeout=10).values():
        future.result()
    for path in sorted((hub.folder / "data").rglob("*"), reverse=True):
        path.rmdir() if path.is_dir() else path.unlink()
    wait_for("the changelog is gone", lambda: CHANGELOG not in admin.list_topics(timeout=10).topics)
    create_topics({"bootstrap.servers": broker})


def test_closers_that_race_make_one_revision_of_one_content(s3: S3, tmp_path: Path) -> None:
    with ingest("127.0.0.1:1", s3, tmp_path) as hub:
        study = hub.study()
        hub.put(study, range(20))
        said: list[StudyReceived] = []

        def close() -> None:
            data = StudyQuiet.model_validate(
                {"trust": hub.trust, "study_instance_uid": study, "instances": 1, "last_seen": "2026-01-01T00:00:00Z"}
            )
            quiet: Event[Any] = Event.first(QUIET, study, data, source="test")
            said.extend(cast("StudyReceived", event.data) for event in close_study(quiet, s3.store()))

        def race(adding: range) -> None:
            threads = [threading.Thread(target=close) for _ in range(6)]
            for thread in threads:
                thread.start()
            hub.put(study, adding)
            for thread in threads:
                thread.join()

        race(range(0))
        assert [item.revision for item in said] == [1] * 6
        assert manifests(s3, hub, study) == ["1.json"]
        said.clear()
        race(range(20, 40))  # while instances arrive: some revisions, no content twice, never less than before
        close()
        by_number = {item.revision: item for item in said}
        assert len({item.digest for item in by_number.values()}) == len(by_number)
        assert len(manifests(s3, hub, study)) == max(by_number)
        sizes = [manifest_of(s3, hub, study, number).instances for number in range(1, max(by_number) + 1)]
        assert [len(size) for size in sizes] == sorted({len(size) for size in sizes})
        assert by_number[max(by_number)].instances == 40


def test_a_store_that_is_away_stops_neither_the_sweep_nor_the_consumer(broker: str, tmp_path: Path) -> None:
    with ingest(broker, None, tmp_path) as hub:
        closer = hub.start("closer", sweep_seconds=0.2).wait_ready()
        wait_for("failed sweeps", lambda: closer.metric("hub_sweep_failures_total") >= 3)
        assert closer.ready
        assert closer.stop() == 0


def test_a_large_study_passes(broker: str, s3: S3, tmp_path: Path) -> None:
    large_study_passes(broker, s3, tmp_path, 2000)
