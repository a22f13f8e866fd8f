"""The assembler on a real broker: when it says quiet, and that nothing it meets makes it lose or double a study."""

import json
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from confluent_kafka.admin import AdminClient
from hub_events import Event, child_traceparent, encode, new_traceparent
from hub_events.types import StudyTick
from hub_ingest.assembler import CHANGELOG, GROUP
from hub_runtime import create_topics
from support.ingest import INSTANCES, QUIET, Ingest, committed, ingest, read, records, wait_for
from support.parts import S3


@pytest.fixture(scope="module")
def broker(kafka: str) -> str:
    create_topics({"bootstrap.servers": kafka})
    return kafka


def quiets(hub: Ingest, study: str) -> list[Event[Any]]:
    return [event for event in hub.events(QUIET) if event.key == study]


def test_a_study_is_called_quiet_once_after_its_quiet_time_and_again_after_a_late_instance(broker: str, s3: S3, tmp_path: Path) -> None:
    with ingest(broker, s3, tmp_path) as hub:
        assembler = hub.start("assembler").wait_ready()
        study, trace = hub.study(), new_traceparent()
        hub.announce([hub.instance(study, number) for number in range(5)], traceparent=trace)
        time.sleep(0.6)
        last = child_traceparent(trace)
        hub.announce([hub.instance(study, 5)], traceparent=last)
        (quiet,) = wait_for("quiet", lambda: quiets(hub, study))
        assert quiet.data.instances >= 6  # at least: faust may hand a record on twice after an assignment
        assert quiet.source == GROUP
        assert quiet.trace_id == trace.split("-")[1]
        assert 1.0 <= (quiet.time - quiet.data.last_seen).total_seconds() < 4
        hub.announce([hub.instance(study, 6)])
        wait_for("quiet again", lambda: len(quiets(hub, study)) == 2)
        assert len({event.id for event in quiets(hub, study)}) == 2
        wait_for("the row is gone", lambda: [m.value() for m in records(broker, CHANGELOG) if study in m.key().decode()][-1] is None)
        assert study not in assembler.log.read_text()
        assert assembler.stop() == 0


def test_what_is_no_event_is_a_dead_letter_and_stops_nobody(broker: str, s3: S3, tmp_path: Path) -> None:
    with ingest(broker, s3, tmp_path) as hub:
        study, other = hub.study(), hub.study()
        rubbish = f"rubbish {study}".encode()
        hub.produce_raw(study.encode(), rubbish)
        hub.produce_raw(study.encode(), None)
        key, value, headers = encode(Event.first(INSTANCES, other, StudyTick(trust=hub.trust, study_instance_uid=study), source="test"))
        hub._producer.produce(INSTANCES, key=key, value=value, headers=[*headers])
        hub.announce([hub.instance(study, 1)])
        hub.start("assembler").wait_ready()
        wait_for("quiet", lambda: quiets(hub, study))
        # By id, for a record that is handed on twice has two dead letters, which are one.
        letters = list({event.id: event.data for event in read(broker, f"{INSTANCES}.dlq") if event.key in (study, other)}.values())
        assert sorted(letter.reason for letter in letters) == ["key-is-not-the-study", "no-cloudevent", "no-key-or-value"]
        for letter in letters:
            assert (letter.group, letter.topic) == (GROUP, INSTANCES)
            assert letter.object.key == f"dead-letters/{INSTANCES}/{GROUP}/{letter.partition}/{letter.offset}"
            assert json.loads(s3.store().get(letter.object.bucket, letter.object.key))["offset"] == letter.offset
        assert study not in hub.processes[0].log.read_text()


def test_an_outage_longer_than_the_quiet_time_says_nothing_early(broker: str, tmp_path: Path) -> None:
    with ingest(broker, None, tmp_path, quiet_seconds=2.0) as hub:
        first = hub.start("assembler").wait_ready()
        growing = hub.study()
        filling = [hub.study() for _ in range(20)]
        hub.announce([hub.instance(growing, 0)])
        wait_for("the row", lambda: any(growing in m.key().decode() for m in records(broker, CHANGELOG)))
        first.kill()
        # Three quiet times without an assembler; the study grows all the while, and others fill the partitions.
        deadline, number = time.monotonic() + 6, 1
        while time.monotonic() < deadline:
            hub.announce([hub.instance(growing, number), *(hub.instance(study, number) for study in filling)])
            number += 1
            time.sleep(0.3)
        second = hub.start("assembler")
        while not second.port or not second.metric("hub_assembler_instances_total"):
            hub.announce([hub.instance(growing, number)])
            number += 1
            time.sleep(0.3)
        for _ in range(10):
            hub.announce([hub.instance(growing, number)])
            number += 1
            time.sleep(0.3)
        assert quiets(hub, growing) == []
        (quiet,) = wait_for("quiet", lambda: quiets(hub, growing))
        assert quiet.data.instances >= number  # what was read but not committed at the kill is counted twice
        wait_for("all quiet", lambda: all(quiets(hub, study) for study in filling))
        assert [len(quiets(hub, study)) for study in filling] == [1] * 20


def test_after_a_restart_the_quiet_time_begins_anew(broker: str, tmp_path: Path) -> None:
    with ingest(broker, None, tmp_path, quiet_seconds=2.0) as hub:
        first = hub.start("assembler").wait_ready()
        study = hub.study()
        hub.announce([hub.instance(study, 0)])
        wait_for("the row", lambda: any(study in m.key().decode() for m in records(broker, CHANGELOG)))
        first.kill()
        time.sleep(2.5)  # the whole hub was away, and the sender waits to send the rest
        second = hub.start("assembler")
        (quiet,) = wait_for("quiet", lambda: quiets(hub, study))
        assigned = next(
            line["timestamp"] for line in second.lines if line["event"] == "partitions assigned" and line["pid"] == second.popen.pid
        )
        assert (quiet.time - datetime.fromisoformat(assigned)).total_seconds() >= 2.0


FAILING = """
import asyncio, sys
from pathlib import Path
from hub_ingest import assembler

marker = Path(sys.argv[0]).with_suffix(".study")
handle = assembler.Assembler.handle

async def failing(self, event, **rest):
    if marker.exists() and event.key == marker.read_text():
        await asyncio.sleep(0.5)  # what comes behind is read meanwhile
        raise RuntimeError("an error that nobody expected")
    await handle(self, event, **rest)

assembler.Assembler.handle = failing
assembler.main()
"""


def test_an_unexpected_error_ends_the_process_and_the_record_is_processed_after_the_restart(broker: str, tmp_path: Path) -> None:
    with ingest(broker, None, tmp_path) as hub:
        study = hub.study()
        script = tmp_path / "failing.py"
        script.write_text(FAILING)
        marker = script.with_suffix(".study")
        marker.write_text(study)
        failing = hub.start("assembler", script=script).wait_ready()
        hub.announce([hub.instance(study, 0), *(hub.instance(hub.study(), 0) for _ in range(50))])
        place = next((m.partition(), m.offset()) for m in records(broker, INSTANCES) if m.key() == study.encode())
        assert failing.popen.wait(timeout=30) == 70
        (line,) = [line for line in failing.lines if line["level"] == "error" and line.get("exit_code") == 70]
        assert (line["partition"], line["offset"], line["error"]) == (*place, "RuntimeError")
        assert committed(broker, GROUP, INSTANCES).get(place[0], 0) <= place[1]
        assert hub.start("assembler", script=script).popen.wait(timeout=30) == 70
        marker.unlink()
        hub.start("assembler", script=script).wait_ready()
        (quiet,) = wait_for("quiet", lambda: quiets(hub, study))
        assert quiet.data.instances >= 1  # faust may hand a record on twice after an assignment


def test_two_assemblers_share_the_work_and_a_killed_one_s_studies_are_not_lost(broker: str, tmp_path: Path) -> None:
    with ingest(broker, None, tmp_path) as hub:
        session = 6
        one = hub.start("assembler", replica="0", assembler_session_seconds=session).wait_ready()
        two = hub.start("assembler", replica="1", assembler_session_seconds=session).wait_ready()
        wait_for(
            "both have partitions",
            lambda: (
                one.ready and two.ready and 0 < one.metric("hub_partitions_assigned") < 12 and two.metric("hub_partitions_assigned") > 0
            ),
        )
        studies = [hub.study() for _ in range(40)]
        for number in range(4):
            hub.announce(hub.instance(study, number) for study in studies)
        two.kill()
        killed = time.monotonic()
        hub.announce(hub.instance(study, 4) for study in studies)
        wait_for("one has them all", lambda: one.metric("hub_partitions_assigned") == 12 and one.ready)
        assert time.monotonic() - killed < session + 10
        wait_for("all quiet", lambda: {event.key for event in hub.events(QUIET)} >= set(studies))
        by_study = {study: quiets(hub, study) for study in studies}
        assert all(events[-1].data.instances >= 1 for events in by_study.values())
        # Said twice of the same silence is allowed, and then it is the same event.
        assert all(len({event.data.last_seen for event in events}) == len({event.id for event in events}) for events in by_study.values())
        newest = last_arrivals(hub)
        assert all(max(event.data.last_seen for event in events) == newest[study] for study, events in by_study.items())


def last_arrivals(hub: Ingest) -> dict[str, datetime]:
    """Study to the time of its newest instance, by the broker's clock."""
    newest: dict[str, datetime] = {}
    for message in records(hub.kafka, INSTANCES):
        if b"instance.received" in dict(message.headers() or []).get("ce_type", b""):
            newest[message.key().decode()] = datetime(1970, 1, 1, tzinfo=UTC) + timedelta(milliseconds=message.timestamp()[1])
    return newest


def test_a_replica_that_is_back_within_the_session_serves_at_once(broker: str, tmp_path: Path) -> None:
    with ingest(broker, None, tmp_path) as hub:
        hub.start("assembler").wait_ready().kill()
        started = time.monotonic()
        hub.start("assembler").wait_ready()
        assert time.monotonic() - started < 10  # the session is 30 s: without static membership it would have to end first


def test_a_study_that_never_gets_quiet_is_closed_at_the_limit_and_goes_on(broker: str, tmp_path: Path) -> None:
    with ingest(broker, None, tmp_path, quiet_seconds=3.0) as hub:
        hub.start("assembler", assembler_limit_seconds=4).wait_ready()
        study, number = hub.study(), 0
        deadline = time.monotonic() + 30
        while len(quiets(hub, study)) < 2:
            assert time.monotonic() < deadline, "a study without a pause was not closed at its limit"
            hub.announce([hub.instance(study, number)])
            number += 1
            time.sleep(0.3)
        first, second = quiets(hub, study)
        assert first.id != second.id
        assert (first.time - first.data.last_seen).total_seconds() < 3, "it was not quiet"
        assert (second.time - first.time).total_seconds() >= 4
        wait_for("the rest is quiet", lambda: quiets(hub, study)[-1].data.last_seen == last_arrivals(hub)[study])


def test_a_killed_assembler_s_partitions_are_served_again_within_15_s(broker: str, tmp_path: Path) -> None:
    with ingest(broker, None, tmp_path, quiet_seconds=0.5) as hub:
        killed = hub.start("assembler").wait_ready()
        early = hub.study()
        hub.announce([hub.instance(early, 0)])
        wait_for("the row", lambda: killed.metric("hub_assembler_instances_total") >= 1)
        killed.kill()
        start = time.monotonic()
        later = hub.study()
        hub.announce([hub.instance(later, 0)])
        hub.start("assembler")  # as a supervisor does at once, under the same replica's name
        wait_for("both quiet", lambda: quiets(hub, early) and quiets(hub, later))
        seconds = time.monotonic() - start
        print(f"from SIGKILL to the next study said quiet: {seconds:.1f} s")
        assert seconds < 15
        assert len({event.id for event in quiets(hub, early)}) == 1


def test_topics_that_are_missing_are_waited_for_and_never_made(broker: str, tmp_path: Path) -> None:
    admin = AdminClient({"bootstrap.servers": broker})
    for future in admin.delete_topics([CHANGELOG], operation_timeout=10).values():
        future.result()
    with ingest(broker, None, tmp_path) as hub:
        assembler = hub.start("assembler")
        wait_for("it says what is missing", lambda: CHANGELOG in assembler.get("/readyz"))
        time.sleep(1.5)
        assert CHANGELOG not in admin.list_topics(timeout=10).topics
        create_topics({"bootstrap.servers": broker})
        assembler.wait_ready()
        assert assembler.stop() == 0
