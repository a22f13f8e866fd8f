"""indexing: makes a de-identified revision of a study findable.

research.study.deidentified -> load manifest and metadata -> one statement into PostgreSQL -> research.study.indexed
"""

import gzip
import hashlib
import json
import re
import zlib
from collections.abc import Iterable, Iterator
from typing import Any, BinaryIO, cast

import psycopg
from hub_dicom.manifest import MetadataReference, ResearchManifest
from hub_events import Event
from hub_events.types import ObjectReference, StudyDeidentified, StudyIndexed
from hub_objectstore import ObjectMissing, ObjectStore, StoreUnavailable
from hub_runtime import GiveUp, Service, open_store, run_consumer, run_service
from psycopg import Connection
from psycopg.rows import TupleRow
from psycopg_pool import ConnectionPool
from pydantic import BaseModel, ValidationError

from hub_indexing.database import migrate, open_pool, write_revision
from hub_indexing.settings import IndexingSettings

GROUP = "indexing"


def handle(event: Event[Any], *, store: ObjectStore, pool: ConnectionPool[Connection[TupleRow]]) -> list[Event[BaseModel]]:
    """Make the index hold this revision; nothing, and no event, where it holds a newer one. Safe to repeat and to run beside itself.

    Raises:
        GiveUp: the manifest or the metadata is missing or is not what the event says.
        StoreUnavailable, psycopg.OperationalError: passing; nothing is written.
    """
    data: StudyDeidentified = event.data
    manifest = load_manifest(store, data)
    with pool.connection() as connection:
        written = write_revision(connection, manifest, data.manifest, load_metadata(store, manifest.metadata))
    if not written.current:
        return []
    indexed = StudyIndexed(
        research_study_uid=data.research_study_uid,
        source=data.source,
        subject=data.subject,
        revision=data.revision,
        instances=len(manifest.instances),
        modalities=list(written.modalities),
        manifest=data.manifest,
    )
    return [event.follow("research.study.indexed", data.research_study_uid, indexed, source=GROUP)]


def load_manifest(store: ObjectStore, data: StudyDeidentified) -> ResearchManifest:
    """The manifest that the event names, checked by its digest.

    Raises:
        GiveUp: it is missing, differs, or is of another revision.
    """
    content = _get(store, data.manifest)
    try:
        manifest = ResearchManifest.model_validate_json(content)
    except ValidationError:
        raise GiveUp("manifest-unreadable") from None
    named = (manifest.research_study_uid, manifest.source, manifest.revision, len(manifest.instances))
    if named != (data.research_study_uid, data.source, data.revision, data.instances):
        raise GiveUp("manifest-of-another-revision")
    if manifest.instances and (manifest.metadata is None or manifest.subject is None):
        raise GiveUp("manifest-without-metadata")
    return manifest


def load_metadata(store: ObjectStore, reference: MetadataReference | None) -> Iterator[dict[str, Any]]:
    """The instances' data sets in DICOM JSON, one by one. The digest is known only at the end: what is read before counts when that is reached.

    Raises:
        GiveUp: the object is missing, differs, or is no gzip of JSON lines.
    """
    if reference is None:
        return
    try:
        with store.open(reference.bucket, reference.key) as stream:
            raw = _Digested(stream)
            try:
                with gzip.GzipFile(mode="rb", fileobj=cast("BinaryIO", raw)) as lines:
                    yield from map(clean_line, lines)
                raw.drain()
            except (EOFError, zlib.error, gzip.BadGzipFile, ValueError):
                raise GiveUp("metadata-unreadable") from None
    except ObjectMissing:
        raise GiveUp("metadata-missing") from None
    if raw.sha256 != reference.sha256:
        raise GiveUp("metadata-differs")


def clean_line(line: bytes) -> dict[str, Any]:
    """A data set from its line, as PostgreSQL can keep it: infinities and NaN as strings (PS3.18 F.2.3), no NUL and no half surrogates.

    Raises:
        ValueError: the line is no JSON object.
    """
    dataset = json.loads(line, parse_constant=lambda name: {"Infinity": "inf", "-Infinity": "-inf"}.get(name, name))
    if not isinstance(dataset, dict):
        raise ValueError("a line of metadata is no JSON object")  # noqa: TRY004 -- the line's content is wrong, not a caller's type
    return _clean(dataset) if _SUSPICIOUS.search(line) else dataset


_SUSPICIOUS = re.compile(rb"\\u(0000|[dD][89a-fA-F])")


def _clean(value: Any) -> Any:  # noqa: ANN401 - JSON
    if isinstance(value, str):
        return value.replace("\0", "").encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    if isinstance(value, list):
        return [_clean(item) for item in value]
    return {key: _clean(item) for key, item in value.items()} if isinstance(value, dict) else value


class _Digested:
    """A stream that knows the SHA-256 of what was read."""

    def __init__(self, stream: BinaryIO) -> None:
        self._stream = stream
        self._digest = hashlib.sha256()

    def read(self, size: int = -1) -> bytes:
        block = self._stream.read(size)
        self._digest.update(block)
        return block

    def drain(self) -> None:
        while self.read(1 << 16):
            pass

    @property
    def sha256(self) -> str:
        return self._digest.hexdigest()


def _get(store: ObjectStore, reference: ObjectReference) -> bytes:
    try:
        content = store.get(reference.bucket, reference.key)
    except ObjectMissing:
        raise GiveUp("manifest-missing") from None
    if hashlib.sha256(content).hexdigest() != reference.sha256:
        raise GiveUp("manifest-differs")
    return content


def serve(service: Service[IndexingSettings]) -> None:
    """Bring the schema up to date, then consume until the process is told to stop."""
    settings, store = service.settings, open_store(service.settings)
    with open_pool(settings.database_url.get_secret_value()) as pool:
        _migrate_when_up(service, pool)

        def handler(event: Event[Any]) -> Iterable[Event[BaseModel]]:
            return handle(event, store=store, pool=pool)

        run_consumer(
            service,
            group=GROUP,
            topics=["research.study.deidentified"],
            handle=handler,
            store=store,
            passing_faults=(StoreUnavailable, psycopg.OperationalError),
        )


def _migrate_when_up(service: Service[IndexingSettings], pool: ConnectionPool[Connection[TupleRow]]) -> None:
    """Bring the schema up to date; unready, and waiting, while the database is away."""
    while not service.stop.is_set():
        try:
            with pool.connection() as connection:
                migrate(connection)
        except psycopg.OperationalError:
            service.health.unready("database", "database-unavailable")
            service.stop.wait(1)
        else:
            service.health.ready("database")
            return


def main() -> None:
    """The command `hub-indexing`."""
    run_service("indexing", IndexingSettings, serve)


if __name__ == "__main__":
    main()
