"""Revisions on a store in memory: what is chosen, what is said, who wins a race."""

import hashlib
import json
import threading
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from typing import cast

import pytest
from hub_dicom.keys import instance_key, manifest_key
from hub_dicom.manifest import StudyManifest
from hub_dicom.trusts import Trust
from hub_events import Event
from hub_events.types import StudyQuiet, StudyReceived
from hub_ingest.closer_revisions import BUCKET, Found, choose, close_study, list_study
from hub_ingest.sweep import forgotten
from hub_objectstore import MemoryObjectStore, ObjectInfo, StoreUnavailable
from hub_runtime import RetryLater

STUDY = "1.2.826.0.1.3680043.8.498.1"
START = datetime(2026, 1, 1, tzinfo=UTC)
TRUST = Trust.model_validate(
    {"name": "northgate", "ae_titles": ["NG"], "addresses": ["127.0.0.1/32"], "assigning_authority": "RNG", "quiet_seconds": 60}
)


def quiet(study: str = STUDY) -> Event[StudyQuiet]:
    data = StudyQuiet(trust="northgate", study_instance_uid=study, instances=1, last_seen=START)
    return Event.first("identifiable.study.quiet", study, data, source="ingest.assembler")


def put(store: MemoryObjectStore, number: int, content: bytes = b"", *, study: str = STUDY, series: str = "1.2.3") -> str:
    body = content or f"{study} {number}".encode()
    key = instance_key("northgate", study, series, f"1.2.3.{number}", hashlib.sha256(body).hexdigest())
    store.put(BUCKET, key, body)
    return key


def close(store: MemoryObjectStore) -> StudyReceived:
    (event,) = close_study(quiet(), store)
    return cast("StudyReceived", event.data)


def manifest(store: MemoryObjectStore, revision: int) -> StudyManifest:
    return StudyManifest.model_validate_json(store.get(BUCKET, manifest_key("northgate", STUDY, revision)))


def test_a_study_becomes_revision_1_and_its_event_says_what_the_manifest_holds() -> None:
    store = MemoryObjectStore()
    keys = sorted(put(store, number) for number in range(3))
    asked = quiet()
    (event,) = close_study(asked, store)
    data = cast("StudyReceived", event.data)
    body = store.get(BUCKET, manifest_key("northgate", STUDY, 1))
    assert [item.key for item in manifest(store, 1).instances] == keys
    assert (data.revision, data.instances, data.variants, data.bytes) == (1, 3, 0, sum(len(store.get(BUCKET, key)) for key in keys))
    assert data.digest == manifest(store, 1).digest
    assert (data.manifest.sha256, data.manifest.size) == (hashlib.sha256(body).hexdigest(), len(body))
    assert event.trace_id == asked.trace_id
    assert event.id == close_study(asked, store)[0].id


def test_saying_it_again_changes_nothing_and_says_the_same() -> None:
    store = MemoryObjectStore()
    put(store, 1)
    first = close(store)
    body = store.get(BUCKET, first.manifest.key)
    assert close(store) == first
    assert store.get(BUCKET, first.manifest.key) == body
    assert len(list(store.list(BUCKET, "manifests/"))) == 1


def test_a_late_instance_makes_the_next_revision_also_after_the_ninth() -> None:
    store = MemoryObjectStore()
    revisions = []
    for number in range(12):
        put(store, number)
        revisions.append(close(store).revision)
    assert revisions == list(range(1, 13))
    assert len(manifest(store, 12).instances) == 12


def test_nothing_in_the_store_is_nothing_to_close() -> None:
    store = MemoryObjectStore()
    assert close_study(quiet(), store) == []
    assert list(store.list(BUCKET, "")) == []


def test_what_is_no_instance_is_left_alone() -> None:
    store = MemoryObjectStore()
    put(store, 1)
    store.put(BUCKET, f"northgate/{STUDY}/notes.txt", b"x")
    assert close(store).instances == 1


def found(number: int, content: str, seconds: int, series: str = "1.2.3") -> Found:
    sha256 = hashlib.sha256(content.encode()).hexdigest()
    key = instance_key("northgate", STUDY, series, f"1.2.3.{number}", sha256)
    store = MemoryObjectStore()
    store.put(BUCKET, key, b"x")
    (one,) = list_study(store, "northgate", STUDY)
    return Found(one.key, one.name, one.size, START + timedelta(seconds=seconds))


def test_the_first_received_is_the_instance_the_others_are_variants() -> None:
    late, early, other = found(1, "late", 9), found(1, "early", 3), found(2, "other", 5)
    instances, variants = choose([late, early, other], None)
    assert [item.key for item in instances] == sorted([early.key, other.key])
    assert [item.key for item in variants] == [late.key]


def test_of_two_received_in_the_same_second_the_lower_digest_is_chosen_whatever_the_order() -> None:
    two = [found(1, "a", 3), found(1, "b", 3, series="1.2.9")]
    lower = min(two, key=lambda item: item.name.sha256)
    assert [choose(order, None)[0][0].key for order in (two, two[::-1])] == [lower.key] * 2


def test_a_choice_that_was_made_stays_even_if_an_earlier_one_turns_up() -> None:
    chosen, earlier = found(1, "chosen", 9), found(1, "earlier", 3)
    before, _ = choose([chosen], None)
    kept = StudyManifest(trust="northgate", study_instance_uid=STUDY, revision=1, digest="0" * 64, instances=tuple(before))
    instances, variants = choose([earlier, chosen], kept)
    assert ([item.key for item in instances], [item.key for item in variants]) == ([chosen.key], [earlier.key])
    assert [item.key for item in choose([earlier], kept)[0]] == [earlier.key]  # the chosen one is no longer in the store


def test_a_variant_is_a_new_revision_because_the_content_is_another() -> None:
    store = MemoryObjectStore()
    put(store, 1, b"one")
    first = close(store)
    put(store, 1, b"two")
    second = close(store)
    assert (second.revision, second.instances, second.variants) == (2, 1, 1)
    assert second.digest != first.digest
    assert manifest(store, 2).instances == manifest(store, 1).instances


class Meddling(MemoryObjectStore):
    """Does something just before the first conditional write."""

    def __init__(self, before: Callable[[], None]) -> None:
        super().__init__()
        self.before: Callable[[], None] | None = before

    def put_if_absent(self, bucket: str, key: str, body: object, **rest: object) -> bool:
        before, self.before = self.before, None
        if before:
            before()
        return super().put_if_absent(bucket, key, body, **rest)  # type: ignore[arg-type]


def test_who_loses_the_race_lists_again_and_says_what_the_winner_wrote() -> None:
    def other_closer() -> None:
        put(store, 2)
        close(store)

    store = Meddling(other_closer)
    put(store, 1)
    data = close(store)
    assert (data.revision, data.instances) == (1, 2)
    assert len(list(store.list(BUCKET, "manifests/"))) == 1


def test_a_closer_that_never_wins_asks_for_another_time() -> None:
    class Lost(MemoryObjectStore):
        def put_if_absent(self, *_: object, **__: object) -> bool:
            return False

    store = Lost()
    put(store, 1)
    with pytest.raises(RetryLater):
        close_study(quiet(), store)


def test_many_closers_at_once_make_one_revision_of_one_content() -> None:
    store = MemoryObjectStore()
    for number in range(50):
        put(store, number)
    said: list[StudyReceived] = []
    threads = [threading.Thread(target=lambda: said.append(close(store))) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(said) == 8
    assert {json.dumps(item.model_dump(mode="json")) for item in said} == {json.dumps(said[0].model_dump(mode="json"))}


def swept(store: MemoryObjectStore, seconds: float = 61) -> list[str]:
    return [event.data.study_instance_uid for event in forgotten(store, TRUST, now=datetime.now(UTC) + timedelta(seconds=seconds))]


def test_the_sweep_announces_one_object_of_each_study_that_no_manifest_names() -> None:
    store = MemoryObjectStore()
    for study in ("1.2.1", "1.2.10", "1.2.2"):
        for number in range(3):
            put(store, number, study=study)
    put(store, 1)
    close(store)
    assert sorted(swept(store)) == ["1.2.1", "1.2.10", "1.2.2"]
    assert swept(store, seconds=59) == []
    put(store, 2)
    assert STUDY in swept(store)
    close(store)
    assert STUDY not in swept(store)


def test_a_variant_without_a_manifest_is_announced_too_and_then_known() -> None:
    store = MemoryObjectStore()
    put(store, 1, b"one")
    close(store)
    key = put(store, 1, b"two")
    (event,) = forgotten(store, TRUST, now=datetime.now(UTC) + timedelta(seconds=61))
    assert (event.data.object.key, event.data.origin, event.data.sop_class_uid) == (key, "sweep", None)
    assert (event.source, event.key) == ("ingest.closer", STUDY)
    close(store)
    assert swept(store) == []


def test_the_sweep_reads_the_listing_as_it_comes_and_says_so_when_the_store_goes_away() -> None:
    class Breaking(MemoryObjectStore):
        def list(self, bucket: str, prefix: str) -> Iterator[ObjectInfo]:
            for number, info in enumerate(super().list(bucket, prefix)):
                if number == 2:
                    raise StoreUnavailable("gone")
                yield info

    store = Breaking()
    for study in ("1.2.1", "1.2.2", "1.2.3"):
        put(store, 1, study=study)
    events = forgotten(store, TRUST, now=datetime.now(UTC) + timedelta(seconds=61))
    assert [next(events).key, next(events).key] == ["1.2.1", "1.2.2"]
    with pytest.raises(StoreUnavailable):
        next(events)
