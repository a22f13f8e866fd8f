"""Revisions in a real PostgreSQL: what is written, replaced, ignored and deleted."""

import random
import threading
import time
from collections.abc import Iterator

import psycopg
import pytest
from hub_dicom.manifest import ResearchInstance, ResearchManifest
from hub_events.types import ObjectReference, StudyIndexed
from hub_indexing.database import migrate, open_pool, write_revision
from hub_indexing.service import handle
from hub_objectstore import MemoryObjectStore
from hub_runtime import GiveUp, StopProcess
from psycopg import Connection
from psycopg.rows import TupleRow
from psycopg_pool import ConnectionPool
from support.research import CT, Databases, Image, dataset_of, element, fresh_database, put_revision

Pool = ConnectionPool[Connection[TupleRow]]


@pytest.fixture(scope="module")
def databases(database: str) -> Iterator[Databases]:
    with fresh_database(database, "indexing_revisions") as databases:
        with psycopg.connect(databases.url("indexing")) as connection:
            migrate(connection)
        yield databases


@pytest.fixture
def pool(databases: Databases) -> Iterator[Pool]:
    with psycopg.connect(databases.admin) as connection:
        connection.execute("TRUNCATE research_index.subjects CASCADE")
    with open_pool(databases.url("indexing")) as pool:
        yield pool


@pytest.fixture
def store() -> MemoryObjectStore:
    return MemoryObjectStore()


def rows(pool: Pool, query: str) -> list[TupleRow]:
    with pool.connection() as connection:
        return connection.execute(query.encode()).fetchall()


def uids(pool: Pool) -> list[str]:
    return [uid for (uid,) in rows(pool, "SELECT sop_instance_uid FROM instances ORDER BY 1")]


def test_a_revision_is_indexed_and_announced(pool: Pool, store: MemoryObjectStore) -> None:
    event = put_revision(store, "1.2", "source01", 1, [Image("1.2.1.1"), Image("1.2.2.1", "1.2.2", "MR")])
    (indexed,) = handle(event, store=store, pool=pool)
    assert isinstance(indexed.data, StudyIndexed)
    assert (indexed.topic, indexed.key, indexed.trace_id) == ("research.study.indexed", "1.2", event.trace_id)
    assert (indexed.data.revision, indexed.data.instances, indexed.data.modalities) == (1, 2, ["CT", "MR"])
    assert rows(pool, "SELECT subject FROM subjects") == [("Subject0001",)]
    assert rows(pool, "SELECT series_instance_uid, modality, instances FROM series ORDER BY 1") == [("1.2.1", "CT", 1), ("1.2.2", "MR", 1)]
    assert uids(pool) == ["1.2.1.1", "1.2.2.1"]


def test_the_same_revision_twice_changes_nothing(pool: Pool, store: MemoryObjectStore) -> None:
    event = put_revision(store, "1.2", "source01", 1, [Image("1.2.1.1"), Image("1.2.1.2")])
    handle(event, store=store, pool=pool)
    before = rows(pool, "SELECT xmin, * FROM instances ORDER BY sop_instance_uid")
    (again,) = handle(event, store=store, pool=pool)
    assert again.data.instances == 2  # type: ignore[attr-defined]
    assert rows(pool, "SELECT xmin, * FROM instances ORDER BY sop_instance_uid") == before, "rows that did not change were written again"


def test_a_newer_revision_replaces_and_what_is_absent_goes(pool: Pool, store: MemoryObjectStore) -> None:
    handle(
        put_revision(store, "1.2", "source01", 1, [Image("1.2.1.1"), Image("1.2.1.2"), Image("1.2.2.1", "1.2.2")]), store=store, pool=pool
    )
    changed = Image("1.2.1.2", content=b"other", elements={"00080008": element("CS", "DERIVED")})
    handle(put_revision(store, "1.2", "source01", 2, [changed, Image("1.2.1.3")], subject="Subject0002"), store=store, pool=pool)
    assert uids(pool) == ["1.2.1.2", "1.2.1.3"]
    assert rows(pool, "SELECT series_instance_uid, instances FROM series") == [("1.2.1", 2)]
    assert rows(pool, "SELECT subject FROM subjects") == [("Subject0002",)], "the subject without studies is still there"
    assert rows(pool, "SELECT revision, instances FROM studies") == [(2, 2)]
    assert rows(pool, "SELECT attributes -> '00080008' -> 'Value' ->> 0 FROM instances WHERE sop_instance_uid = '1.2.1.2'") == [
        ("DERIVED",)
    ]


def test_an_older_revision_is_ignored_without_an_event(pool: Pool, store: MemoryObjectStore) -> None:
    old = put_revision(store, "1.2", "source01", 1, [Image("1.2.1.1")], subject="SubjectOld1")
    handle(put_revision(store, "1.2", "source01", 2, [Image("1.2.1.2")]), store=store, pool=pool)
    assert handle(old, store=store, pool=pool) == []
    assert uids(pool) == ["1.2.1.2"]
    assert rows(pool, "SELECT revision FROM studies") == [(2,)]
    assert rows(pool, "SELECT subject FROM subjects") == [("Subject0001",)]


def test_an_empty_revision_removes_and_still_keeps_older_ones_out(pool: Pool, store: MemoryObjectStore) -> None:
    old = put_revision(store, "1.2", "source01", 1, [Image("1.2.1.1")])
    handle(old, store=store, pool=pool)
    (indexed,) = handle(put_revision(store, "1.2", "source01", 2, []), store=store, pool=pool)
    assert (indexed.data.instances, indexed.data.modalities) == (0, [])  # type: ignore[attr-defined]
    assert uids(pool) == []
    assert rows(pool, "SELECT count(*) FROM series UNION ALL SELECT count(*) FROM subjects") == [(0,), (0,)]
    assert rows(pool, "SELECT count(*) FROM canonical_studies") == [(0,)]
    assert handle(old, store=store, pool=pool) == []
    assert uids(pool) == []


def test_a_subject_stays_while_another_study_has_it(pool: Pool, store: MemoryObjectStore) -> None:
    handle(put_revision(store, "1.2", "source01", 1, [Image("1.2.1.1")]), store=store, pool=pool)
    handle(put_revision(store, "1.3", "source01", 1, [Image("1.3.1.1")]), store=store, pool=pool)
    handle(put_revision(store, "1.2", "source01", 2, []), store=store, pool=pool)
    assert rows(pool, "SELECT subject FROM subjects") == [("Subject0001",)]


def test_an_instance_may_move_to_another_series(pool: Pool, store: MemoryObjectStore) -> None:
    handle(put_revision(store, "1.2", "source01", 1, [Image("1.2.1.1", "1.2.1")]), store=store, pool=pool)
    handle(put_revision(store, "1.2", "source01", 2, [Image("1.2.1.1", "1.2.9")]), store=store, pool=pool)
    assert rows(pool, "SELECT series_instance_uid FROM series") == [("1.2.9",)]


def test_of_two_sources_the_fuller_is_canonical_and_of_equals_the_smaller_name(pool: Pool, store: MemoryObjectStore) -> None:
    def canonical() -> list[TupleRow]:
        return rows(pool, "SELECT DISTINCT source FROM export_instances")

    handle(put_revision(store, "1.2", "sourceb", 1, [Image("1.2.1.1")]), store=store, pool=pool)
    handle(put_revision(store, "1.2", "sourcea", 1, [Image("1.2.1.1")]), store=store, pool=pool)
    assert canonical() == [("sourcea",)]
    handle(put_revision(store, "1.2", "sourceb", 2, [Image("1.2.1.1"), Image("1.2.1.2")]), store=store, pool=pool)
    assert canonical() == [("sourceb",)]
    assert rows(pool, "SELECT source, canonical FROM indexed_studies ORDER BY 1") == [("sourcea", False), ("sourceb", True)]
    handle(put_revision(store, "1.2", "sourceb", 3, []), store=store, pool=pool)
    assert canonical() == [("sourcea",)]


def test_revisions_racing_in_threads_end_at_the_newest(pool: Pool, store: MemoryObjectStore) -> None:
    """Without the lock before the statement, a newer revision does not see, and does not delete, what the older one just wrote."""
    for round_ in range(6):
        study = f"1.2.{round_ + 1}"
        events = [
            put_revision(
                store,
                study,
                "source01",
                number,
                [Image(f"{study}.1.{image}", f"{study}.1") for image in range(number, number + 40)],
                subject=f"Subject{round_}{number}",  # so that the lock of the subject does not stand in for that of the study
            )
            for number in range(1, 7)
        ]
        random.Random(round_).shuffle(events)
        failures: list[BaseException] = []
        start = threading.Barrier(len(events))

        def work(event: object, start: threading.Barrier = start, failures: list[BaseException] = failures) -> None:
            try:
                start.wait()
                handle(event, store=store, pool=pool)  # type: ignore[arg-type]
            except BaseException as error:  # noqa: BLE001 - shown below
                failures.append(error)

        threads = [threading.Thread(target=work, args=(event,)) for event in events]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert failures == []
        found = rows(pool, f"SELECT sop_instance_uid FROM instances WHERE study_instance_uid = '{study}'")
        assert {uid for (uid,) in found} == {f"{study}.1.{image}" for image in range(6, 46)}
        assert rows(pool, f"SELECT revision FROM studies WHERE study_instance_uid = '{study}'") == [(6,)]
        assert rows(pool, f"SELECT subject FROM subjects WHERE subject LIKE 'Subject{round_}%'") == [(f"Subject{round_}6",)]


def test_a_subjects_studies_come_and_go_at_once(pool: Pool, store: MemoryObjectStore) -> None:
    """One worker empties the subject's last study while another adds one: neither fails, and the subject is there while a study is."""
    failures: list[BaseException] = []

    def work(study: str) -> None:
        try:
            for number in range(1, 25):
                images = [Image(f"{study}.1.1", f"{study}.1")] if number % 2 else []
                handle(put_revision(store, study, "source01", number, images), store=store, pool=pool)
        except BaseException as error:  # noqa: BLE001 - shown below
            failures.append(error)

    threads = [threading.Thread(target=work, args=(f"1.2.{number}",)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
    assert rows(pool, "SELECT count(*) FROM subjects") == [(0,)]


def test_a_study_of_20000_instances_passes_in_one_statement(pool: Pool) -> None:
    number = 20_000
    images = [Image(f"1.2.{index % 4}.{index}", f"1.2.{index % 4}", elements={"00200013": element("IS", index)}) for index in range(number)]

    def manifest(revision: int) -> ResearchManifest:
        made = tuple(
            ResearchInstance(
                sop_instance_uid=image.uid,
                series_instance_uid=image.series,
                sop_class_uid=CT,
                modality="CT",
                key=f"instances/{image.uid}.dcm",
                sha256="0" * 64,
                size=530_000,
            )
            for image in images
        )
        return ResearchManifest(
            research_study_uid="1.2", subject="Subject0001", source="source01", revision=revision, profile="basic", key_version=1, instances=made,
            metadata=None,
        )  # fmt: skip

    reference = ObjectReference(bucket="research", key="manifests/x.json", sha256="0" * 64, size=1)
    filler = {f"0018{number:04X}": element("LO", f"a value as headers have it {number}") for number in range(60)}
    for revision in (1, 2):
        began = time.monotonic()
        with pool.connection() as connection:
            datasets = ({**dataset_of("1.2", "Subject0001", image), **filler} for image in images)
            assert write_revision(connection, manifest(revision), reference, datasets).current
        print(f"revision {revision} of {number} instances: {time.monotonic() - began:.1f} s")
    assert rows(pool, "SELECT count(*), sum(object_size) FROM instances") == [(number, number * 530_000)]
    with pool.connection() as connection:
        assert write_revision(
            connection, ResearchManifest.model_validate({**manifest(3).model_dump(), "instances": ()}), reference, ()
        ).current
    assert rows(pool, "SELECT count(*) FROM instances") == [(0,)]


def test_what_json_allows_and_postgresql_does_not_is_indexed(pool: Pool, store: MemoryObjectStore) -> None:
    odd = {"00081030": element("LO", "a\0b \ud800 c"), "00189087": element("FD", float("nan"))}
    handle(put_revision(store, "1.2", "source01", 1, [Image("1.2.1.1", elements=odd)]), store=store, pool=pool)
    ((description, number),) = rows(
        pool, "SELECT attributes -> '00081030' -> 'Value' ->> 0, attributes -> '00189087' -> 'Value' ->> 0 FROM instances"
    )
    assert (description, number) == ("ab � c", "NaN")


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        ("manifest-gone", "manifest-missing"),
        ("manifest-changed", "manifest-differs"),
        ("metadata-gone", "metadata-missing"),
        ("metadata-changed", "metadata-unreadable"),
        ("metadata-longer", "metadata-differs"),
        ("other-revision", "manifest-of-another-revision"),
    ],
)
def test_what_is_not_what_the_event_says_is_given_up_and_nothing_is_written(
    pool: Pool, store: MemoryObjectStore, damage: str, reason: str
) -> None:
    event = put_revision(store, "1.2", "source01", 1, [Image("1.2.1.1")])
    (metadata,) = [info.key for info in store.list("research", "manifests/") if info.key.endswith(".gz")]
    if damage == "manifest-gone":
        store.delete("research", event.data.manifest.key)
    elif damage == "manifest-changed":
        store.put("research", event.data.manifest.key, b"{}")
    elif damage == "metadata-gone":
        store.delete("research", metadata)
    elif damage == "metadata-changed":
        store.put("research", metadata, b"not gzip")
    elif damage == "metadata-longer":
        packed = store.get("research", metadata)
        store.put("research", metadata, packed + b"\0\0\0")
    else:
        event = type(event)(
            event.topic, event.key, event.data.model_copy(update={"revision": 2}), event.id, event.source, event.time, event.traceparent
        )
    with pytest.raises(GiveUp) as given_up:
        handle(event, store=store, pool=pool)
    assert given_up.value.reason == reason
    assert rows(pool, "SELECT count(*) FROM studies") == [(0,)]


def test_a_database_that_is_away_is_a_passing_fault(store: MemoryObjectStore) -> None:
    event = put_revision(store, "1.2", "source01", 1, [Image("1.2.1.1")])
    pool: Pool = ConnectionPool(
        "postgresql://indexing@127.0.0.1:1/hub", min_size=0, max_size=1, timeout=0.5, open=False, kwargs={"connect_timeout": 1}
    )
    with pool, pytest.raises(psycopg.OperationalError):
        handle(event, store=store, pool=pool)


def test_migrations_run_once_also_from_many_processes_at_once(database: str) -> None:
    with fresh_database(database, "indexing_migrations") as databases:
        applied: list[list[str]] = []

        def work() -> None:
            with psycopg.connect(databases.url("indexing")) as connection:
                applied.append(migrate(connection))

        threads = [threading.Thread(target=work) for _ in range(5)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert sorted(map(len, applied)) == [0, 0, 0, 0, 1]
        with psycopg.connect(databases.url("indexing")) as connection:
            connection.execute("UPDATE research_index.migrations SET sha256 = 'another'")
            with pytest.raises(StopProcess, match=r"0001_index\.sql was applied .* with another text"):
                migrate(connection)


@pytest.mark.parametrize("table", ["subjects", "studies", "series", "instances", "migrations", "canonical_studies", "indexed_studies"])
def test_export_reads_nothing_but_its_view(databases: Databases, table: str) -> None:
    with psycopg.connect(databases.url("export")) as connection, pytest.raises(psycopg.errors.InsufficientPrivilege):
        connection.execute(f"SELECT * FROM research_index.{table}".encode())


def test_export_reads_its_view_and_writes_nothing(databases: Databases, pool: Pool, store: MemoryObjectStore) -> None:
    handle(put_revision(store, "1.2", "source01", 1, [Image("1.2.1.1")]), store=store, pool=pool)
    with psycopg.connect(databases.url("export"), autocommit=True) as connection:
        assert connection.execute("SELECT sop_instance_uid FROM research_index.export_instances").fetchall() == [("1.2.1.1",)]
        for statement in (
            "DELETE FROM research_index.instances",
            "INSERT INTO research_index.subjects VALUES ('x')",
            "UPDATE research_index.export_instances SET subject = 'x'",
            "CREATE TABLE research_index.mine (x int)",
            "CREATE TEMPORARY TABLE mine (x int)",
        ):
            with pytest.raises((psycopg.errors.InsufficientPrivilege, psycopg.errors.ObjectNotInPrerequisiteState)):
                connection.execute(statement.encode())
