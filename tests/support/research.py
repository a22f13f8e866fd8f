"""Revisions of research studies as de-identification leaves them, and databases with the hub's roles."""

import gzip
import hashlib
import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit, urlunsplit

import psycopg
from hub_dicom.manifest import MetadataReference, ResearchInstance, ResearchManifest
from hub_events import Event
from hub_events.types import ObjectReference, StudyDeidentified
from hub_objectstore import ObjectStore
from psycopg import sql

CT = "1.2.840.10008.5.1.4.1.1.2"


@dataclass(frozen=True)
class Image:
    """One instance to be: elements by tag in DICOM JSON, and the object's bytes."""

    uid: str
    series: str = "1.2.1"
    modality: str = "CT"
    elements: dict[str, Any] = field(default_factory=dict)
    content: bytes = b""

    @property
    def body(self) -> bytes:
        return self.content or f"image {self.uid}".encode()


def element(vr: str, *values: Any) -> dict[str, Any]:
    return {"vr": vr, "Value": list(values)}


def key_of(study: str, source: str, image: Image) -> str:
    return f"instances/{study}/{source}/{image.series}/{image.uid}/{hashlib.sha256(image.body).hexdigest()[:32]}.dcm"


def dataset_of(study: str, subject: str, image: Image) -> dict[str, Any]:
    return {
        "00080016": element("UI", CT),
        "00080018": element("UI", image.uid),
        "00080060": element("CS", image.modality),
        "00100020": element("LO", subject),
        "0020000D": element("UI", study),
        "0020000E": element("UI", image.series),
        **image.elements,
    }


def put_revision(
    store: ObjectStore, study: str, source: str, revision: int, images: Sequence[Image], *, subject: str = "Subject0001"
) -> Event[StudyDeidentified]:
    """Put images, metadata and manifest into the bucket `research`; the event that names them."""
    for image in images:
        store.put("research", key_of(study, source, image), image.body)
    lines = b"".join(json.dumps(dataset_of(study, subject, image)).encode() + b"\n" for image in images)
    packed = gzip.compress(lines, mtime=0)
    identity = hashlib.sha256(f"{study}{source}{revision}".encode() + packed).hexdigest()
    metadata_key = f"manifests/{study}/{source}/{identity}.metadata.jsonl.gz"
    if images:
        store.put("research", metadata_key, packed)
    manifest = ResearchManifest(
        research_study_uid=study,
        subject=subject if images else None,
        source=source,
        revision=revision,
        profile="basic@0123456789ab",
        key_version=1,
        instances=tuple(
            ResearchInstance(
                sop_instance_uid=image.uid,
                series_instance_uid=image.series,
                sop_class_uid=CT,
                modality=image.modality,
                key=key_of(study, source, image),
                sha256=hashlib.sha256(image.body).hexdigest(),
                size=len(image.body),
            )
            for image in images
        ),
        metadata=MetadataReference(bucket="research", key=metadata_key, sha256=hashlib.sha256(packed).hexdigest(), size=len(packed))
        if images
        else None,
    )
    body = manifest.to_bytes()
    reference = ObjectReference(
        bucket="research", key=f"manifests/{study}/{source}/{identity}.json", sha256=hashlib.sha256(body).hexdigest(), size=len(body)
    )
    store.put(reference.bucket, reference.key, body)
    data = StudyDeidentified(
        research_study_uid=study,
        source=source,
        subject=manifest.subject,
        revision=revision,
        instances=len(images),
        held_back=0,
        profile=manifest.profile,
        key_version=1,
        manifest=reference,
    )
    return Event.first("research.study.deidentified", study, data, source="deidentification")


@dataclass(frozen=True)
class Databases:
    """One database as each role connects to it."""

    admin: str

    def url(self, role: str) -> str:
        parts = urlsplit(self.admin)
        host = parts.netloc.rpartition("@")[2]
        return urlunsplit(parts._replace(netloc=f"{role}:of-a-test@{host}"))


@contextmanager
def fresh_database(admin_url: str, name: str) -> Iterator[Databases]:
    """A database of its own with the hub's roles and its empty schema, gone afterwards."""
    roles = [sql.Identifier(role) for role in ("indexing", "export", "console")]
    database = sql.Identifier(name)
    with psycopg.connect(admin_url, autocommit=True) as connection:
        connection.execute(sql.SQL("DROP DATABASE IF EXISTS {} WITH (FORCE)").format(database))
        connection.execute(sql.SQL("CREATE DATABASE {}").format(database))
        connection.execute(sql.SQL("REVOKE ALL ON DATABASE {} FROM PUBLIC").format(database))
        connection.execute(sql.SQL("GRANT CONNECT ON DATABASE {} TO {}").format(database, sql.SQL(", ").join(roles)))
        connection.execute(sql.SQL("GRANT TEMPORARY ON DATABASE {} TO indexing").format(database))
        for role in roles:
            connection.execute(sql.SQL("ALTER ROLE {} PASSWORD 'of-a-test'").format(role))
    own = urlunsplit(urlsplit(admin_url)._replace(path=f"/{name}"))
    with psycopg.connect(own) as connection:
        connection.execute("CREATE SCHEMA research_index AUTHORIZATION indexing")
    try:
        yield Databases(own)
    finally:
        with psycopg.connect(admin_url, autocommit=True) as connection:
            connection.execute(sql.SQL("DROP DATABASE IF EXISTS {} WITH (FORCE)").format(database))
