"""When a study is quiet: plain functions, a made-up clock."""

from dataclasses import replace
from itertools import pairwise
from typing import cast

import pytest
from hub_events import Event, decode, encode
from hub_events.types import InstanceReceived, ObjectReference
from hub_ingest.assembler_rows import INSTANCES, Patience, Row, Ticks, is_due, is_quiet, quiet_event, row_key, study_of, take_in, tick_event
from pydantic import BaseModel

STUDY = "1.2.826.0.1.3680043.8.498.1"
KEY = row_key("northgate", STUDY)
NOW = 1_795_000_000_000
TRACE = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"


def arrival(origin: str = "c-store", **more: object) -> Event[InstanceReceived]:
    reference = ObjectReference(bucket="identifiable", key="k", sha256="0" * 64, size=1)
    data = InstanceReceived.model_validate(
        {
            "trust": "northgate",
            "study_instance_uid": STUDY,
            "series_instance_uid": "1.2.3",
            "sop_instance_uid": "1.2.3.4",
            "object": reference,
            "origin": origin,
            **more,
        }
    )
    return Event.first(INSTANCES, STUDY, data, source="ingest.receiver")


def row(last_seen: int = NOW, **changes: object) -> Row:
    return replace(Row(3, NOW - 5000, last_seen, 7, TRACE), **changes)  # type: ignore[arg-type]


def test_a_row_survives_the_table_and_its_key_names_trust_and_study() -> None:
    assert Row.unpack(row().pack()) == row()
    assert study_of(KEY) == ("northgate", STUDY)


def test_a_row_does_not_grow_with_its_study() -> None:
    current: Row | None = None
    sizes = []
    for number in range(20_000):
        current = take_in(current, arrival(), moment=NOW + number, partition=7)
        sizes.append(len(current.pack()))
    assert current
    assert current.instances == 20_000
    assert sizes[-1] == sizes[9_999]  # only the digits of the counter grow
    assert sizes[-1] - sizes[0] == 4
    assert max(sizes) < 200


def test_arrivals_count_and_move_last_seen_and_the_trace() -> None:
    first, second = arrival(), arrival()
    opened = take_in(None, first, moment=NOW, partition=7)
    moved = take_in(opened, second, moment=NOW + 10, partition=7)
    assert opened == Row(1, NOW, NOW, 7, first.traceparent)
    assert moved == Row(2, NOW, NOW + 10, 7, second.traceparent)
    assert take_in(moved, first, moment=NOW + 5, partition=7).last_seen == NOW + 10


def test_the_sweep_opens_a_row_but_does_not_keep_an_open_one_awake() -> None:
    opened = take_in(None, arrival("sweep"), moment=NOW, partition=7)
    assert opened.instances == 1
    assert take_in(opened, arrival("sweep"), moment=NOW + 100_000, partition=7) is opened


@pytest.mark.parametrize(
    ("tick", "held_since", "quiet"),
    [
        (NOW + 2000, NOW - 60_000, True),
        (NOW + 1999, NOW - 60_000, False),
        (NOW - 1, NOW - 60_000, False),  # a tick that a backlog has overtaken
        (NOW + 60_000, NOW + 59_000, False),  # the partition came, or the broker came back, a second ago
        (NOW + 61_000, NOW + 59_000, True),
    ],
)
def test_quiet_is_silence_in_the_partition_for_the_quiet_time_and_since_this_worker_listens(
    tick: int, held_since: int, quiet: bool
) -> None:
    assert is_quiet(row(), tick=tick, held_since=held_since, quiet_seconds=2.0) is quiet


def test_the_same_silence_is_the_same_event_and_its_id_shows_no_uid() -> None:
    once, again = quiet_event(KEY, row()), quiet_event(KEY, row(instances=9))
    assert once.id == again.id
    assert once.id != quiet_event(KEY, row(NOW + 1)).id
    assert once.id != quiet_event(row_key("southgate", STUDY), row()).id
    assert STUDY not in once.id
    assert once.trace_id == TRACE.split("-")[1]
    assert once.traceparent != TRACE
    key, value, headers = encode(cast("Event[BaseModel]", once))
    assert decode(once.topic, key, value, headers) == once
    assert round(once.data.last_seen.timestamp() * 1000) == NOW


def test_a_tick_follows_the_trace_and_has_the_key_of_the_instances() -> None:
    tick = tick_event(KEY, row())
    assert (tick.topic, tick.key, tick.data.trust) == (INSTANCES, STUDY, "northgate")
    assert tick.trace_id == TRACE.split("-")[1]


def due(ticks: Ticks, now: int, *rows: Row, held: dict[int, int] | None = None) -> list[int]:
    table = [(row_key("northgate", f"1.2.{number}"), one.pack()) for number, one in enumerate(rows)]
    found = ticks.due(table, now=now, held_since={7: 0} if held is None else held, patience=lambda _trust: Patience(2.0, 3600.0))
    return [int(study_of(key)[1].removeprefix("1.2.")) for key, _ in found]


def test_a_tick_goes_to_what_looks_quiet_and_to_nothing_else() -> None:
    assert due(Ticks(), NOW + 2000, row(), row(NOW + 1), row(NOW - 9000)) == [0, 2]
    assert due(Ticks(), NOW + 2000, row(), held={}) == []
    assert due(Ticks(), NOW + 2000, row(), held={7: NOW + 1}) == []


def test_a_look_is_repeated_with_growing_pauses_and_anew_after_an_arrival() -> None:
    ticks = Ticks()
    times = [now for now in range(NOW + 2000, NOW + 122_000, 100) if due(ticks, now, row())]
    pauses = [later - earlier for earlier, later in pairwise(times)]
    assert pauses == [1000, 2000, 4000, 8000, 16_000, 32_000, 32_000]
    assert due(ticks, NOW + 122_001, row(NOW + 100_000)) == [0]
    assert due(ticks, NOW + 122_101, row(NOW + 100_000)) == []


@pytest.mark.parametrize(("seconds", "due"), [(0, False), (59.9, False), (60, True), (7 * 86_400, True)])
def test_a_study_that_never_gets_quiet_is_closed_at_its_limit(seconds: float, *, due: bool) -> None:
    tick = NOW + round(seconds * 1000)
    busy = row(first_seen=NOW, last_seen=tick)
    assert is_due(busy, tick=tick, held_since=tick, patience=Patience(30.0, 60.0)) is due


def test_what_comes_a_week_after_its_study_was_closed_opens_it_anew() -> None:
    week = 7 * 86_400_000
    first = take_in(None, arrival(), moment=NOW, partition=7)
    assert is_due(first, tick=NOW + 2000, held_since=0, patience=Patience(2.0, 3600.0))
    late = take_in(None, arrival(), moment=NOW + week, partition=7)
    assert not is_due(late, tick=NOW + week + 1999, held_since=0, patience=Patience(2.0, 3600.0))
    assert is_due(late, tick=NOW + week + 2000, held_since=0, patience=Patience(2.0, 3600.0))
    assert quiet_event(KEY, late).id != quiet_event(KEY, first).id


def test_a_study_that_is_expected_whole_waits_five_seconds_only_once_it_is() -> None:
    current = take_in(None, arrival("router", expected_instances=3), moment=NOW, partition=7)
    for number, said in enumerate(({"expected_instances": 2}, {}), 1):
        assert not is_quiet(current, tick=NOW + 60_000, held_since=0, quiet_seconds=300)
        current = take_in(current, arrival("router", **said), moment=NOW + number, partition=7)
    assert current.expected == 3, "the largest figure counts"
    assert not is_quiet(current, tick=NOW + 2 + 4_999, held_since=0, quiet_seconds=300)
    assert is_quiet(current, tick=NOW + 2 + 5_000, held_since=0, quiet_seconds=300)
    assert not is_quiet(current, tick=NOW + 2 + 5_000, held_since=NOW + 3, quiet_seconds=300), "an outage is no silence here either"
    assert is_quiet(current, tick=NOW + 2 + 1_000, held_since=0, quiet_seconds=1), "never longer than the trust's own time"
    assert Row.unpack(current.pack()) == current


def test_a_row_of_before_nobody_said_how_many_is_read() -> None:
    old = b'{"instances":1,"first_seen":1,"last_seen":1,"partition":7,"traceparent":"t"}'
    assert Row.unpack(old) == Row(1, 1, 1, 7, "t", 0)
