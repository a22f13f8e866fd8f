"""export without broker and database: the same request is the same dataset, whatever dies when."""

import hashlib
import json
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import Any

import pytest
from hub_dicom.matching import Condition
from hub_events import Event
from hub_events.types import DatasetExported, DatasetRequested
from hub_export.cohort import Instance
from hub_export.service import handle
from hub_export.split import Split
from hub_export.versions import find_version, take_version
from hub_objectstore import MemoryObjectStore, ObjectInfo, StoreUnavailable
from hub_runtime import GiveUp, KeyRing
from support.datasets import Killed, ListIndex, MortalStore, body_of, content, instance, put_objects

KEYS = KeyRing(1, {"split": bytes(range(32))})
INSTANCES = [instance(number, subject=f"Subject{number // 2:04}", modality=("CT", "MR", "XX")[number % 3]) for number in range(12)]


def request(name: str = "chest", *, where: tuple[str, ...] = (), percent: int = 50, identity: str = "request-1") -> Event[Any]:
    data = DatasetRequested(dataset=name, where=list(where), training_percent=percent)
    event = Event.first("research.dataset.requested", name, data, source="console")
    return Event(event.topic, event.key, data, identity, event.source, datetime(2026, 1, 2, tzinfo=UTC), event.traceparent)


def make_store() -> MemoryObjectStore:
    store = MemoryObjectStore()
    put_objects(store, INSTANCES)
    return store


def run(store: Any, event: Event[Any], index: ListIndex | None = None, threads: int = 4) -> DatasetExported:
    (outcome,) = handle(event, store=store, index=index or ListIndex(INSTANCES), keys=KEYS, threads=threads)
    assert isinstance(outcome.data, DatasetExported)
    assert (outcome.topic, outcome.key, outcome.trace_id) == ("research.dataset.exported", event.key, event.trace_id)
    return outcome.data


def test_a_dataset_holds_each_image_with_its_metadata_on_its_subjects_side() -> None:
    store = make_store()
    done = run(store, request())
    assert (done.outcome, done.version, done.request) == ("exported", 1, "request-1")
    found = content(store)
    split = Split(50, KEYS)
    expected = {}
    for number, one in enumerate(INSTANCES):
        side, folder = split.side(one.subject), ("ct", "mri", "other")[number % 3]
        below = f"{one.subject}/{one.study_instance_uid}/{one.series_instance_uid}/{one.sop_instance_uid}"
        expected[f"datasets-{side}/chest/1/{side}/{folder}/{below}.dcm"] = body_of(number)
        metadata = json.dumps(one.attributes, sort_keys=True, ensure_ascii=False, separators=(",", ":")).encode() + b"\n"
        expected[f"datasets-{side}/chest/1/{side}/{folder}-metadata/{below}.json"] = metadata
    for side in ("training", "validation"):
        prefix = f"datasets-{side}/chest/1/"
        lines = [
            f"{hashlib.sha256(body).hexdigest()}  {path.removeprefix(prefix)}" for path, body in expected.items() if path.startswith(prefix)
        ]
        manifest = "".join(line + "\n" for line in sorted(lines, key=lambda line: line[66:])).encode()
        assert found[f"{prefix}manifest-sha256.txt"] == manifest
        expected |= {f"{prefix}manifest-sha256.txt": manifest, f"{prefix}dataset.json": found[f"{prefix}dataset.json"]}
        expected[f"datasets-{side}/_catalogue/chest/1"] = b""
        part = getattr(done, side)
        of_side = [one for one in INSTANCES if split.side(one.subject) == side]
        assert (part.instances, part.subjects) == (len(of_side), len({one.subject for one in of_side}))
        assert part.bytes == sum(
            len(body)
            for path, body in expected.items()
            if path.startswith(prefix) and path.endswith((".dcm", ".json")) and "dataset" not in path.rsplit("/", 1)[1]
        )
        assert part.manifest.sha256 == hashlib.sha256(manifest).hexdigest()
        assert part.manifest.size == len(manifest)
    assert found == expected
    description = json.loads(found["datasets-training/chest/1/dataset.json"])
    assert (description["version"], description["request"], description["training_percent"]) == (1, "request-1", 50)
    assert description["created"] == "2026-01-02T00:00:00+00:00"
    assert found["datasets-training/chest/1/dataset.json"] == found["datasets-validation/chest/1/dataset.json"]


def test_both_parts_have_a_manifest_when_one_is_empty() -> None:
    store = make_store()
    done = run(store, request(percent=100))
    assert done.validation is not None
    assert (done.validation.instances, done.validation.bytes) == (0, 0)
    assert store.get("datasets-validation", "chest/1/manifest-sha256.txt") == b""
    assert store.stat("datasets-validation", "chest/1/dataset.json") is not None


def undisturbed() -> tuple[dict[str, bytes], DatasetExported, int]:
    store = make_store()
    counted = MortalStore(store, dies_at=10**9)
    done = run(counted, request())
    return content(store), done, counted.writes


WHOLE, DONE, WRITES = undisturbed()


@pytest.mark.parametrize("after", [False, True], ids=["before the write", "after the write"])
@pytest.mark.parametrize("step", range(1, WRITES + 1))
def test_killed_at_any_write_and_started_again_it_is_the_same_dataset(step: int, after: bool) -> None:
    store = make_store()
    with pytest.raises(Killed):
        run(MortalStore(store, dies_at=step, after=after), request())
    visible = [path for path in content(store) if path.endswith("dataset.json")]
    assert visible == [] or step >= WRITES - 1, "a version was visible before it was whole"
    # Meanwhile more was indexed: it belongs to the next version, unless this one had not chosen yet.
    chosen = store.stat("research", "exports/chest/1/selection.jsonl.gz") is not None
    late = [instance(99)] if chosen else []
    put_objects(store, late)
    assert run(store, request(), ListIndex([*INSTANCES, *late])) == DONE
    assert content(store) == WHOLE
    assert run(store, request(), ListIndex([])) == DONE, "a repeat of what is done"
    assert content(store) == WHOLE


def test_killed_twice_it_is_still_the_same_dataset() -> None:
    store = make_store()
    for step in (5, 3, 9):
        with pytest.raises(Killed):
            run(MortalStore(store, dies_at=step), request())
    assert run(store, request()) == DONE
    assert content(store) == WHOLE


def test_a_repeat_copies_only_what_is_missing() -> None:
    store = make_store()
    run(store, request())
    store.delete("datasets-training", next(path for path in WHOLE if path.endswith(".dcm") and "training" in path).partition("/")[2])
    counted = MortalStore(store, dies_at=10**9)
    run(counted, request())
    # one image, two manifests, two marks, two attempts at dataset.json
    assert counted.writes == 7
    assert content(store) == WHOLE


def test_another_request_for_the_name_is_the_next_version() -> None:
    store = make_store()
    assert [run(store, request(identity=f"request-{number}")).version for number in (1, 2, 1, 3)] == [1, 2, 1, 3]
    one, two = (
        {path.split("/")[-1]: body for path, body in content(store).items() if f"/{number}/" in path and path.endswith(".dcm")}
        for number in "12"
    )
    assert one == two


def at_once(*functions: Callable[[], Any]) -> list[Any]:
    results: list[Any] = [None] * len(functions)
    start = threading.Barrier(len(functions))

    def work(number: int) -> None:
        start.wait()
        try:
            results[number] = functions[number]()
        except BaseException as error:  # noqa: BLE001 - it is the result
            results[number] = error

    threads = [threading.Thread(target=work, args=(number,)) for number in range(len(functions))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return results


def test_requests_at_once_get_different_versions() -> None:
    store = make_store()
    done = at_once(*[lambda number=number: run(store, request(identity=f"request-{number}")).version for number in range(8)])
    assert sorted(done) == list(range(1, 9))


def test_two_processes_with_the_same_request_make_one_version() -> None:
    for _ in range(5):
        store = make_store()
        first, second = at_once(lambda: run(store, request()), lambda: run(store, request()))  # noqa: B023
        assert first == second == DONE
        assert content(store) == WHOLE


def test_of_two_processes_that_chose_differently_the_first_choice_counts() -> None:
    """The slower one chose from an index that had grown, while the faster one, with the same request, was done already."""
    store = make_store()

    class Slow(ListIndex):
        @contextmanager
        def select(self, conditions: Iterable[Condition]) -> Iterator[Iterator[Instance]]:
            with super().select(conditions) as instances:
                assert run(store, request()) == DONE
                yield instances

    late = instance(99)
    put_objects(store, [late])
    assert run(store, request(), Slow([*INSTANCES, late])) == DONE
    assert content(store) == WHOLE


def test_a_number_taken_behind_ones_back_is_ones_own_if_it_is_for_the_same_request() -> None:
    class Unseeing(MemoryObjectStore):
        def list(self, bucket: str, prefix: str) -> Iterator[ObjectInfo]:
            return iter(())

    store = Unseeing()
    assert [take_version(store, "chest", request, "2026").number for request in ("a", "a", "b", "a", "b")] == [1, 1, 2, 1, 2]


def test_a_version_whose_answer_was_lost_is_found_again() -> None:
    store = MemoryObjectStore()
    taken = take_version(store, "chest", "request-1", "2026")
    assert find_version(store, "chest", "request-1") == taken
    assert find_version(store, "chest", "request-2") is None
    assert find_version(store, "che", "request-1") is None
    assert take_version(store, "chest", "request-1", "2027") == taken


@pytest.mark.parametrize(
    ("event", "instances", "reason"),
    [
        (request(where=("Modality",)), INSTANCES, "'Modality' is not KEYWORD=VALUE"),
        (request(where=("Modality=CT", "StudyDat=2020")), INSTANCES, "'StudyDat=2020' cannot be used"),
        (request(where=("StudyDate=yesterday",)), INSTANCES, "'StudyDate=yesterday' cannot be used"),
        (request(where=("PixelData=1",)), INSTANCES, "'PixelData=1' cannot be used"),
        (request(where=("ModalitiesInStudy=CT",)), INSTANCES, "use Modality"),
        (request(where=("Modality=" + "C" * 2000,)), INSTANCES, "longer than any key"),
        (request(), [], "no instance in the index meets the conditions"),
    ],
)
def test_what_cannot_be_exported_is_refused_for_a_reason(event: Event[Any], instances: list[Any], reason: str) -> None:
    store = make_store()
    done = run(store, event, ListIndex(instances))
    assert (done.outcome, done.version, done.training) == ("refused", None, None)
    assert done.reason is not None
    assert reason in done.reason
    assert content(store) == {}
    assert list(store.list("research", "exports/")) == [], "a refused request left something behind"


def test_another_percentage_is_refused_and_says_which_it_is() -> None:
    store = make_store()
    run(store, request(percent=80))
    done = run(store, request(percent=70, identity="request-2"))
    assert done.outcome == "refused"
    assert "is 80 in this hub and cannot be 70: ask for 80" in str(done.reason)


def test_a_subject_never_changes_sides_as_the_hub_grows() -> None:
    store = MemoryObjectStore()
    sides: dict[str, set[str]] = {}
    for number, size in enumerate((3, 10, 40), 1):
        instances = [instance(number) for number in range(size)]
        put_objects(store, instances)
        run(store, request(identity=f"request-{number}"), ListIndex(instances))
    for path in content(store):
        parts = path.split("/")
        if path.endswith(".dcm"):
            sides.setdefault(parts[5], set()).add(parts[0])
    assert len(sides) == 40
    assert all(len(side) == 1 for side in sides.values())
    assert set.union(*sides.values()) == {"datasets-training", "datasets-validation"}


@pytest.mark.parametrize(
    ("body", "reason"),
    [(None, "research-object-missing"), (b"other", "research-object-differs"), (b"Image 3" * 4, "research-object-differs")],
)
def test_an_image_that_is_not_what_the_index_says_is_given_up_before_anything_is_visible(body: bytes | None, reason: str) -> None:
    store = make_store()
    if body is None:
        store.delete("research", INSTANCES[3].key)
    else:
        store.put("research", INSTANCES[3].key, body)
    with pytest.raises(GiveUp) as given_up:
        run(store, request())
    assert given_up.value.reason == reason
    assert not any(path.endswith("dataset.json") for path in content(store))


def test_a_store_that_is_away_is_a_passing_fault() -> None:
    store = make_store()
    store.away = True
    with pytest.raises(StoreUnavailable):
        run(store, request())
    store.away = False
    assert run(store, request()) == DONE
