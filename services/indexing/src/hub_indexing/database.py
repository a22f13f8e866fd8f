"""The index in PostgreSQL: its schema, and writing a revision into it.

PostgreSQL 15 and later, no extensions. Everything stands in the schema `research_index`, owned by the role that indexes.
"""

import hashlib
import json
import logging
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from importlib import resources
from typing import Any, Final, LiteralString

import psycopg
from hub_dicom.manifest import ResearchManifest
from hub_events.types import ObjectReference
from hub_runtime.errors import StopProcess
from psycopg import Connection
from psycopg.rows import TupleRow
from psycopg_pool import ConnectionPool

from hub_indexing.levels import series_attributes, study_attributes

SCHEMA: Final = "research_index"
READERS: Final[dict[str, tuple[LiteralString, ...]]] = {"export": ("export_instances",), "console": ("export_instances", "indexed_studies")}
"""Which role this one lets read which view. It grants nothing else, and nothing to everybody."""

_WORTH_STATISTICS: Final = 1000
_MIGRATION_LOCK: Final = 0x6875_6269_6E64_6578  # "hubindex"

# Its lines on a broken connection quote the server's words.
logging.getLogger("psycopg.pool").setLevel(logging.ERROR)


@dataclass(frozen=True, slots=True)
class Written:
    """What became of a revision."""

    current: bool
    """False: a newer revision is there and nothing was changed."""
    modalities: tuple[str, ...]


def migrate(connection: Connection[Any]) -> list[str]:
    """Bring the schema up to date; the names of the files that were applied. Safe to call from many processes at once.

    Raises:
        StopProcess: the schema was made by other files than these, or this role may not make it.
    """
    with connection.transaction(), connection.cursor() as cursor:
        cursor.execute("SELECT pg_advisory_xact_lock(%s)", (_MIGRATION_LOCK,))
        cursor.execute("SELECT has_database_privilege(current_database(), 'TEMPORARY')")
        if cursor.fetchone() != (True,):
            raise StopProcess("this role may make no temporary tables: run GRANT TEMPORARY ON DATABASE <the database> TO <this role>")
        cursor.execute("SELECT 1 FROM pg_namespace WHERE nspname = %s", (SCHEMA,))
        if cursor.fetchone() is None:
            try:
                cursor.execute("CREATE SCHEMA research_index")
            except psycopg.errors.InsufficientPrivilege:
                raise StopProcess(
                    f"the schema {SCHEMA} is missing and this role may not make it: run CREATE SCHEMA {SCHEMA} AUTHORIZATION <this role>"
                ) from None
        cursor.execute("SET LOCAL search_path = research_index")
        cursor.execute(
            "CREATE TABLE IF NOT EXISTS migrations "
            "(name text PRIMARY KEY, sha256 text NOT NULL, applied_at timestamptz NOT NULL DEFAULT now())"
        )
        applied: dict[str, str] = dict(cursor.execute("SELECT name, sha256 FROM migrations").fetchall())
        new = []
        for name, text in _migrations():
            digest = hashlib.sha256(text).hexdigest()
            if applied.pop(name, digest) != digest:
                raise StopProcess(f"the migration {name} was applied to this database with another text: undo the edit and add a new file")
            if not cursor.execute("SELECT 1 FROM migrations WHERE name = %s", (name,)).fetchone():
                cursor.execute(text)
                cursor.execute("INSERT INTO migrations (name, sha256) VALUES (%s, %s)", (name, digest))
                new.append(name)
        if applied:
            raise StopProcess(
                f"the database has migrations that this program does not know ({', '.join(sorted(applied))}): update the program"
            )
        _grant(cursor)
    return new


def open_pool(url: str, *, size: int = 4, read_only: bool = False) -> ConnectionPool[Connection[TupleRow]]:
    """A pool of connections that see the schema first. Opened by `with`; raises psycopg.OperationalError where the database is away."""
    options = "-c search_path=research_index" + (" -c default_transaction_read_only=on" if read_only else "")
    return ConnectionPool(
        url,
        min_size=1,
        max_size=size,
        timeout=5.0,
        open=False,
        check=ConnectionPool.check_connection,
        kwargs={"options": options, "connect_timeout": 5, "application_name": "hub-indexing"},
    )


def write_revision(
    connection: Connection[TupleRow], manifest: ResearchManifest, reference: ObjectReference, metadata: Iterable[dict[str, Any]]
) -> Written:
    """Make the index hold exactly this revision of the study from this source, unless it holds a newer one.

    One statement compares revisions, writes what is there and deletes what is not. Repeating it changes nothing.

    Args:
        connection: outside any transaction; one is made.
        manifest: the revision.
        reference: where the manifest stands.
        metadata: the data set of each instance of the manifest, in its order; read once.

    Raises:
        psycopg.OperationalError: the database is away; nothing is written.
        ValueError: there are more or fewer data sets than instances.
    """
    with connection.transaction(), connection.cursor() as cursor:
        # A statement sees what was committed when it began. Waiting for the locks here, and not within the statement, makes it see
        # what the worker before wrote. Studies before subjects, subjects in order: no two workers wait for each other.
        study = (manifest.research_study_uid, manifest.source)
        cursor.execute("SELECT pg_advisory_xact_lock(hashtextextended(%s || '/' || %s, 0))", study)
        cursor.execute(_LOCK_SUBJECTS, (manifest.subject, *study))
        cursor.execute(_STAGE)
        _stage(cursor, manifest, metadata)
        if len(manifest.instances) > _WORTH_STATISTICS:
            cursor.execute("ANALYZE pg_temp.incoming")
        cursor.execute(
            _WRITE,
            {
                "study": manifest.research_study_uid,
                "source": manifest.source,
                "revision": manifest.revision,
                "subject": manifest.subject if manifest.instances else None,
                "profile": manifest.profile,
                "key_version": manifest.key_version,
                "bucket": reference.bucket,
                "key": reference.key,
                "sha256": reference.sha256,
                "instances": len(manifest.instances),
            },
        )
        row = cursor.fetchone()
    return Written(bool(row and row[0]), tuple(sorted({instance.modality for instance in manifest.instances})))


def _stage(cursor: psycopg.Cursor[TupleRow], manifest: ResearchManifest, metadata: Iterable[dict[str, Any]]) -> None:
    """Send the instances row by row: memory holds one data set at a time. The first of each series speaks for it, the first of all for the study."""
    first_of_series: dict[str, str] = {}
    for instance in manifest.instances:
        first = first_of_series.get(instance.series_instance_uid, instance.sop_instance_uid)
        first_of_series[instance.series_instance_uid] = min(first, instance.sop_instance_uid)
    first_of_study = first_of_series[min(first_of_series)] if first_of_series else None
    with cursor.copy(
        "COPY pg_temp.incoming (sop_instance_uid, series_instance_uid, sop_class_uid, modality, object_key, object_sha256, object_size,"
        " attributes, study_attributes, series_attributes) FROM STDIN"
    ) as copy:
        for instance, attributes in zip(manifest.instances, metadata, strict=True):
            uid = instance.sop_instance_uid
            copy.write_row(
                (
                    uid,
                    instance.series_instance_uid,
                    instance.sop_class_uid,
                    instance.modality,
                    instance.key,
                    instance.sha256,
                    instance.size,
                    _json(attributes),
                    _json(study_attributes(attributes)) if uid == first_of_study else None,
                    _json(series_attributes(attributes)) if uid == first_of_series[instance.series_instance_uid] else None,
                )
            )


def _json(value: dict[str, Any]) -> str:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"))


def _migrations() -> Iterator[tuple[str, bytes]]:
    folder = resources.files("hub_indexing.migrations")
    for file in sorted((entry for entry in folder.iterdir() if entry.name.endswith(".sql")), key=lambda entry: entry.name):
        yield file.name, file.read_bytes()


def _grant(cursor: psycopg.Cursor[Any]) -> None:
    """Let readers read their views, where their roles exist. Everything else is refused: nothing is granted to PUBLIC."""
    for role, views in READERS.items():
        if cursor.execute("SELECT 1 FROM pg_roles WHERE rolname = %s AND rolname <> current_user", (role,)).fetchone():
            name = psycopg.sql.Identifier(role)
            cursor.execute(psycopg.sql.SQL("GRANT USAGE ON SCHEMA research_index TO {}").format(name))
            for view in views:
                cursor.execute(psycopg.sql.SQL("GRANT SELECT ON {} TO {}").format(psycopg.sql.Identifier(view), name))


_LOCK_SUBJECTS: Final = """
SELECT pg_advisory_xact_lock(hashtextextended(subject, 1))
FROM (
    SELECT subject FROM (
        SELECT %s::text COLLATE "C" AS subject
        UNION
        SELECT subject FROM studies WHERE study_instance_uid = %s AND source = %s
    ) both_subjects
    WHERE subject IS NOT NULL
    ORDER BY subject
    OFFSET 0
) ordered
"""

_STAGE: Final = """
CREATE TEMPORARY TABLE IF NOT EXISTS incoming (
    sop_instance_uid text COLLATE "C", series_instance_uid text COLLATE "C", sop_class_uid text COLLATE "C", modality text COLLATE "C",
    object_key text, object_sha256 text, object_size bigint, attributes jsonb, study_attributes jsonb, series_attributes jsonb
) ON COMMIT DELETE ROWS
"""

# Every part sees the database as it was when the statement began, so that deletions name what is absent by `incoming`, not by each other.
# Foreign keys are checked at the statement's end.
_WRITE: Final = """
WITH before AS (
    SELECT subject FROM studies WHERE study_instance_uid = %(study)s AND source = %(source)s
), subject_row AS (
    INSERT INTO subjects (subject)
    SELECT %(subject)s::text
    WHERE %(subject)s::text IS NOT NULL
      AND NOT EXISTS (
        SELECT 1 FROM studies WHERE study_instance_uid = %(study)s AND source = %(source)s AND revision > %(revision)s
      )
    ON CONFLICT DO NOTHING
), study_row AS (
    INSERT INTO studies AS old (study_instance_uid, source, revision, subject, profile, key_version, manifest_bucket, manifest_key,
        manifest_sha256, instances, attributes)
    VALUES (%(study)s, %(source)s, %(revision)s, %(subject)s, %(profile)s, %(key_version)s, %(bucket)s, %(key)s, %(sha256)s, %(instances)s,
        coalesce((SELECT study_attributes FROM pg_temp.incoming WHERE study_attributes IS NOT NULL LIMIT 1), '{}'))
    ON CONFLICT (study_instance_uid, source) DO UPDATE
    SET revision = excluded.revision, subject = excluded.subject, profile = excluded.profile, key_version = excluded.key_version,
        manifest_bucket = excluded.manifest_bucket, manifest_key = excluded.manifest_key, manifest_sha256 = excluded.manifest_sha256,
        instances = excluded.instances, attributes = excluded.attributes, indexed_at = now()
    WHERE old.revision <= excluded.revision
    RETURNING study_instance_uid, source
), series_rows AS (
    INSERT INTO series AS old (study_instance_uid, source, series_instance_uid, modality, instances, attributes)
    SELECT s.study_instance_uid, s.source, i.series_instance_uid, min(i.modality), count(*),
           (array_agg(i.series_attributes) FILTER (WHERE i.series_attributes IS NOT NULL))[1]
    FROM study_row s CROSS JOIN pg_temp.incoming i
    GROUP BY s.study_instance_uid, s.source, i.series_instance_uid
    ON CONFLICT (study_instance_uid, source, series_instance_uid) DO UPDATE
    SET modality = excluded.modality, instances = excluded.instances, attributes = excluded.attributes
    WHERE (old.modality, old.instances, old.attributes) IS DISTINCT FROM (excluded.modality, excluded.instances, excluded.attributes)
), instance_rows AS (
    INSERT INTO instances AS old (study_instance_uid, source, sop_instance_uid, series_instance_uid, sop_class_uid, modality,
        object_bucket, object_key, object_sha256, object_size, attributes)
    SELECT s.study_instance_uid, s.source, i.sop_instance_uid, i.series_instance_uid, i.sop_class_uid, i.modality,
           %(bucket)s, i.object_key, i.object_sha256, i.object_size, i.attributes
    FROM study_row s CROSS JOIN pg_temp.incoming i
    ON CONFLICT (study_instance_uid, source, sop_instance_uid) DO UPDATE
    SET series_instance_uid = excluded.series_instance_uid, sop_class_uid = excluded.sop_class_uid, modality = excluded.modality,
        object_bucket = excluded.object_bucket, object_key = excluded.object_key, object_sha256 = excluded.object_sha256,
        object_size = excluded.object_size, attributes = excluded.attributes
    WHERE (old.series_instance_uid, old.sop_class_uid, old.modality, old.object_bucket, old.object_key, old.object_sha256, old.object_size,
           old.attributes)
      IS DISTINCT FROM (excluded.series_instance_uid, excluded.sop_class_uid, excluded.modality, excluded.object_bucket,
           excluded.object_key, excluded.object_sha256, excluded.object_size, excluded.attributes)
), absent_instances AS (
    DELETE FROM instances d USING study_row s
    WHERE d.study_instance_uid = s.study_instance_uid AND d.source = s.source
      AND NOT EXISTS (SELECT 1 FROM pg_temp.incoming i WHERE i.sop_instance_uid = d.sop_instance_uid)
), absent_series AS (
    DELETE FROM series d USING study_row s
    WHERE d.study_instance_uid = s.study_instance_uid AND d.source = s.source
      AND NOT EXISTS (SELECT 1 FROM pg_temp.incoming i WHERE i.series_instance_uid = d.series_instance_uid)
), empty_subject AS (
    DELETE FROM subjects d USING study_row s, before b
    WHERE d.subject = b.subject
      AND b.subject IS DISTINCT FROM %(subject)s::text
      AND NOT EXISTS (
        SELECT 1 FROM studies o
        WHERE o.subject = b.subject AND (o.study_instance_uid, o.source) <> (s.study_instance_uid, s.source)
      )
)
SELECT count(*) FROM study_row
"""
