"""What a quiet study consists of: what the store, which is the truth, lists of it; and the revision number of that content.

Saying it twice changes nothing: the manifest's digest is the revision's identity, the conditional
write of its number is the only decision, and of two closers at one study one gets it.
"""

import hashlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from datetime import datetime

from hub_dicom.keys import InstanceKey, manifest_key, manifest_prefix, parse_instance_key, study_prefix
from hub_dicom.manifest import ManifestInstance, StudyManifest, revision_digest
from hub_events import Event
from hub_events.types import ObjectReference, StudyQuiet, StudyReceived
from hub_objectstore import ObjectMissing, ObjectStore
from hub_runtime import RetryLater
from pydantic import BaseModel

SERVICE = "ingest.closer"
BUCKET = "identifiable"
QUIET = "identifiable.study.quiet"
RECEIVED = "identifiable.study.received"

_RACES = 20


@dataclass(frozen=True, slots=True)
class Found:
    """One object of a study, as the listing shows it."""

    key: str
    name: InstanceKey
    size: int
    last_modified: datetime


@dataclass(frozen=True, slots=True)
class Revision:
    """A manifest with the object it is."""

    manifest: StudyManifest
    reference: ObjectReference


def close_study(quiet: Event[StudyQuiet], store: ObjectStore) -> list[Event[BaseModel]]:
    """Give what the store holds of the study its revision, and announce it.

    Returns `identifiable.study.received`, or nothing when the store holds nothing of the study (it was withdrawn).

    Raises:
        StoreUnavailable: the store is away.
        RetryLater: other closers won twenty times in a row.
    """
    trust, study = quiet.data.trust, quiet.data.study_instance_uid
    for _ in range(_RACES):
        # The latest manifest before the listing: then the listing holds at least what that manifest lists,
        # and who lists less than somebody who was faster finds the next number taken.
        try:
            latest = latest_revision(store, trust, study)
        except ObjectMissing:
            continue  # it was listed and then withdrawn
        found = list(list_study(store, trust, study))
        if not found:
            return []
        if latest and latest.manifest.digest == revision_digest(item.name.sha256 for item in found):
            revision = latest
        else:
            written = write_revision(store, trust, study, found, latest)
            if written is None:
                continue
            revision = written
        return [quiet.follow(RECEIVED, study, received(revision), source=SERVICE)]
    raise RetryLater("revision-race", "other closers took the next revision number twenty times in a row")


def list_study(store: ObjectStore, trust: str, study: str) -> Iterator[Found]:
    """The study's objects, sorted by key. What is no instance's key is not ours and is left out."""
    for info in store.list(BUCKET, study_prefix(trust, study)):
        try:
            name = parse_instance_key(info.key)
        except ValueError:
            continue
        yield Found(info.key, name, info.size, info.last_modified)


def latest_revision(store: ObjectStore, trust: str, study: str) -> Revision | None:
    """The study's newest manifest, or None when it was never closed.

    Raises:
        ObjectMissing: it was taken away between listing and reading.
    """
    numbers = [number for info in store.list(BUCKET, manifest_prefix(trust, study)) if (number := _number_of(info.key)) is not None]
    if not numbers:
        return None
    key = manifest_key(trust, study, max(numbers))
    body = store.get(BUCKET, key)
    return Revision(StudyManifest.model_validate_json(body), _reference(key, body))


def write_revision(store: ObjectStore, trust: str, study: str, found: list[Found], latest: Revision | None) -> Revision | None:
    """Take the next revision number for what was found. None: somebody else took it first."""
    number = latest.manifest.revision + 1 if latest else 1
    instances, variants = choose(found, latest.manifest if latest else None)
    manifest = StudyManifest(
        trust=trust,
        study_instance_uid=study,
        revision=number,
        digest=revision_digest(item.name.sha256 for item in found),
        instances=tuple(instances),
        variants=tuple(variants),
    )
    body = manifest.to_bytes()
    key = manifest_key(trust, study, number)
    reference = _reference(key, body)
    if not store.put_if_absent(BUCKET, key, body, sha256=reference.sha256, content_type="application/json"):
        return None
    return Revision(manifest, reference)


def choose(found: Iterable[Found], earlier: StudyManifest | None) -> tuple[list[ManifestInstance], list[ManifestInstance]]:
    """One object for each SOP Instance UID, and the others as variants, both sorted by key.

    The first received is chosen (by the store's time, then by digest); a choice that an earlier manifest made stays.
    """
    chosen_before = {item.key for item in earlier.instances} if earlier else set[str]()
    by_uid: dict[str, list[Found]] = {}
    for item in found:
        by_uid.setdefault(item.name.sop_instance_uid, []).append(item)
    instances: list[ManifestInstance] = []
    variants: list[ManifestInstance] = []
    for items in by_uid.values():
        items.sort(key=lambda item: (item.key not in chosen_before, item.last_modified, item.name.sha256))
        instances.append(_entry(items[0]))
        variants.extend(_entry(item) for item in items[1:])
    return sorted(instances, key=lambda item: item.key), sorted(variants, key=lambda item: item.key)


def received(revision: Revision) -> StudyReceived:
    """What the event says of a revision."""
    manifest = revision.manifest
    return StudyReceived(
        trust=manifest.trust,
        study_instance_uid=manifest.study_instance_uid,
        revision=manifest.revision,
        instances=len(manifest.instances),
        variants=len(manifest.variants),
        bytes=sum(item.size for item in (*manifest.instances, *manifest.variants)),
        digest=manifest.digest,
        manifest=revision.reference,
    )


def _entry(item: Found) -> ManifestInstance:
    return ManifestInstance(
        series_instance_uid=item.name.series_instance_uid,
        sop_instance_uid=item.name.sop_instance_uid,
        sha256=item.name.sha256,
        size=item.size,
        key=item.key,
    )


def _reference(key: str, body: bytes) -> ObjectReference:
    return ObjectReference(bucket=BUCKET, key=key, sha256=hashlib.sha256(body).hexdigest(), size=len(body))


def _number_of(key: str) -> int | None:
    name = key.rsplit("/", 1)[-1].removesuffix(".json")
    return int(name) if name.isascii() and name.isdigit() else None
