"""export: makes a dataset of what the index holds.

    research.dataset.requested -> conditions, split, version -> copy images, write metadata, manifests -> research.dataset.exported

Every step is safe to repeat, and its result depends on the request and the selection alone: killed anywhere and started again, the same
request gives the same version with the same bytes.
"""

import hashlib
import json
from collections.abc import Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from datetime import UTC
from functools import partial
from typing import Any, BinaryIO, Final

import psycopg
from hub_events import Event
from hub_events.types import DatasetExported, DatasetPart, DatasetRequested, ObjectReference
from hub_objectstore import DigestMismatch, ObjectMissing, ObjectStore, StoreUnavailable
from hub_runtime import GiveUp, KeyRing, Service, StopProcess, open_store, run_consumer, run_service
from psycopg import Connection
from psycopg.rows import TupleRow
from psycopg_pool import ConnectionPool
from pydantic import BaseModel

from hub_export.cohort import Index, Instance, PostgresIndex, canonical_json, keep, pack, read_conditions, unpack
from hub_export.errors import Refuse
from hub_export.layout import BUCKETS, catalogue_key, manifest, paths
from hub_export.settings import ExportSettings
from hub_export.split import PURPOSE, Side, Split, check_split, fix_split
from hub_export.versions import BUCKET, Version, find_version, take_version

GROUP: Final = "export"
_MOST_IN_ONE_PUT: Final = 5 << 30  # Amazon S3 User Guide, "Uploading objects"


def handle(event: Event[Any], *, store: ObjectStore, index: Index, keys: KeyRing, threads: int = 8) -> list[Event[BaseModel]]:
    """Make the dataset that is asked for, or refuse it for a reason. Safe to repeat and to run beside itself.

    Raises:
        GiveUp: an object that the index names is missing or is not what the index says.
        StopProcess: the split key is not the one of this hub's datasets.
        StoreUnavailable, psycopg.OperationalError: passing.
    """
    request: DatasetRequested = event.data
    try:
        outcome = export(event.id, event.time.astimezone(UTC).isoformat(), request, store=store, index=index, keys=keys, threads=threads)
    except Refuse as refusal:
        outcome = DatasetExported(dataset=request.dataset, request=event.id, outcome="refused", reason=str(refusal)[:500])
    return [event.follow("research.dataset.exported", event.key, outcome, source=GROUP)]


def export(
    request_id: str, created: str, request: DatasetRequested, *, store: ObjectStore, index: Index, keys: KeyRing, threads: int = 8
) -> DatasetExported:
    """One dataset version.

    Raises:
        Refuse: a condition, the percentage, or nothing to export.
    """
    conditions = read_conditions(request.where)
    check_split(store, keys, request.training_percent)
    version = find_version(store, request.dataset, request_id)
    if version is None or store.stat(BUCKET, version.selection_key) is None:
        with index.select(conditions) as instances, pack(instances) as packed:
            if not packed.count:
                raise Refuse("no instance in the index meets the conditions: ask for fewer, or again when more is indexed")
            fix_split(store, keys, request.training_percent)
            version = take_version(store, request.dataset, request_id, created)
            keep(store, BUCKET, version.selection_key, packed)
    split = fix_split(store, keys, request.training_percent)
    parts = _write_objects(store, version, split, threads)
    return _publish(store, version, request, parts)


@dataclass(slots=True)
class _Part:
    """What is written of one side so far."""

    subjects: set[str] = field(default_factory=set)
    studies: set[str] = field(default_factory=set)
    instances: int = 0
    bytes: int = 0
    digests: list[tuple[str, str]] = field(default_factory=list)


def _write_objects(store: ObjectStore, version: Version, split: Split, threads: int) -> dict[Side, _Part]:
    """Write images and metadata of the kept selection, those that are not there already."""
    there = {bucket: _sizes(store, bucket, version.prefix) for bucket in BUCKETS.values()}
    parts: dict[Side, _Part] = {side: _Part() for side in BUCKETS}

    def selection() -> AbstractContextManager[BinaryIO]:
        return store.open(BUCKET, version.selection_key)

    def tasks() -> Iterator[partial[None]]:
        for instance in unpack(selection):
            side = split.side(instance.subject)
            part, bucket = parts[side], BUCKETS[side]
            image, twin = paths(side, instance)
            metadata = canonical_json(instance.attributes)
            part.subjects.add(instance.subject)
            part.studies.add(instance.study_instance_uid)
            part.instances += 1
            part.bytes += instance.size + len(metadata)
            part.digests += [(image, instance.sha256), (twin, hashlib.sha256(metadata).hexdigest())]
            if there[bucket].get(version.prefix + image) != instance.size:
                yield partial(_copy, store, instance, bucket, version.prefix + image)
            if there[bucket].get(version.prefix + twin) != len(metadata):
                yield partial(_put_metadata, store, bucket, version.prefix + twin, metadata)

    _run(tasks(), threads)
    return parts


def _sizes(store: ObjectStore, bucket: str, prefix: str) -> dict[str, int]:
    return {info.key: info.size for info in store.list(bucket, prefix)}


def _copy(store: ObjectStore, instance: Instance, bucket: str, key: str) -> None:
    """Copy one image through here, not within the store.

    A PUT that names the index's SHA-256 is refused by the store if a byte differs, which a copy within the store cannot promise.
    Memory holds a buffer, whatever the image's size.
    """
    try:
        with store.open(instance.bucket, instance.key) as stream:
            size = instance.size if instance.size <= _MOST_IN_ONE_PUT else None
            store.put(bucket, key, stream, size=size, sha256=instance.sha256, content_type="application/dicom")
    except ObjectMissing:
        raise GiveUp("research-object-missing") from None
    except (DigestMismatch, ValueError):
        raise GiveUp("research-object-differs") from None


def _put_metadata(store: ObjectStore, bucket: str, key: str, metadata: bytes) -> None:
    store.put(bucket, key, metadata, content_type="application/dicom+json")


def _run(tasks: Iterable[partial[None]], threads: int) -> None:
    """Run the tasks in threads, a bounded number ahead; the first failure ends it."""
    with ThreadPoolExecutor(threads, thread_name_prefix="export") as pool:
        pending: set[Future[None]] = set()
        try:
            for task in tasks:
                pending.add(pool.submit(task))
                if len(pending) >= threads * 4:
                    done, pending = wait(pending, return_when=FIRST_COMPLETED)
                    for future in done:
                        future.result()
            for future in pending:
                future.result()
        finally:
            pool.shutdown(wait=True, cancel_futures=True)


def _publish(store: ObjectStore, version: Version, request: DatasetRequested, parts: dict[Side, _Part]) -> DatasetExported:
    """Write the manifests, then what makes the version visible."""
    summaries = {side: _write_manifest(store, version, side, part) for side, part in parts.items()}
    description: dict[str, object] = {
        "dataset": version.dataset,
        "version": version.number,
        "request": version.request,
        "created": version.created,
        "where": list(request.where),
        "training_percent": request.training_percent,
    }
    description |= {side: summary.model_dump(mode="json") for side, summary in summaries.items()}
    content = json.dumps(description, sort_keys=True, indent=2, ensure_ascii=False).encode() + b"\n"
    for bucket in BUCKETS.values():
        store.put(bucket, catalogue_key(version.dataset, version.number), b"")
    for bucket in BUCKETS.values():
        store.put_if_absent(bucket, f"{version.prefix}dataset.json", content, content_type="application/json")
    return DatasetExported(
        dataset=version.dataset,
        request=version.request,
        outcome="exported",
        version=version.number,
        training=summaries["training"],
        validation=summaries["validation"],
    )


def _write_manifest(store: ObjectStore, version: Version, side: Side, part: _Part) -> DatasetPart:
    content = manifest(part.digests)
    reference = ObjectReference(
        bucket=BUCKETS[side], key=f"{version.prefix}manifest-sha256.txt", sha256=hashlib.sha256(content).hexdigest(), size=len(content)
    )
    store.put(reference.bucket, reference.key, content, sha256=reference.sha256, content_type="text/plain; charset=utf-8")
    return DatasetPart(
        subjects=len(part.subjects), studies=len(part.studies), instances=part.instances, bytes=part.bytes, manifest=reference
    )


def load_keys(settings: ExportSettings) -> KeyRing:
    """The key ring of the split.

    Raises:
        StopProcess: there is none, or it has no key for the split.
    """
    text = settings.split_keys.get_secret_value() if settings.split_keys is not None else None
    try:
        keys = KeyRing.load(settings.split_keys_file, text)
        keys.hmac(PURPOSE, "")
    except ValueError as problem:
        raise StopProcess(f"HUB_SPLIT_KEYS_FILE or HUB_SPLIT_KEYS: {problem}") from None
    return keys


def open_pool(url: str) -> ConnectionPool[Connection[TupleRow]]:
    """Connections to the index, for reading. Opened by `with`."""
    options = {"options": "-c default_transaction_read_only=on", "connect_timeout": 5, "application_name": "hub-export"}
    return ConnectionPool(url, min_size=1, max_size=4, timeout=5.0, open=False, check=ConnectionPool.check_connection, kwargs=options)


def serve(service: Service[ExportSettings]) -> None:
    """Consume until the process is told to stop."""
    settings, store = service.settings, open_store(service.settings)
    keys = load_keys(settings)
    with open_pool(settings.database_url.get_secret_value()) as pool:
        index = PostgresIndex(pool)

        def handler(event: Event[Any]) -> Iterable[Event[BaseModel]]:
            return handle(event, store=store, index=index, keys=keys, threads=settings.export_threads)

        run_consumer(
            service,
            group=GROUP,
            topics=["research.dataset.requested"],
            handle=handler,
            store=store,
            passing_faults=(StoreUnavailable, psycopg.OperationalError),
        )


def main() -> None:
    """The command `hub-export`."""
    run_service("export", ExportSettings, serve)


if __name__ == "__main__":
    main()
