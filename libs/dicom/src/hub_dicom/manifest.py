"""What belongs to one revision of a study, in either zone. A manifest is an object; events refer to it."""

import hashlib
from collections.abc import Iterable
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
Uid = Annotated[str, Field(max_length=64, pattern=r"^[0-9]+(\.[0-9]+)*$")]
Revision = Annotated[int, Field(ge=1)]


class _Manifest(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)

    def to_bytes(self) -> bytes:
        """The manifest as stored: JSON, the same bytes for the same content."""
        return self.model_dump_json(exclude_none=False).encode()


class ManifestInstance(BaseModel):
    """One stored object of a study."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    series_instance_uid: Uid
    sop_instance_uid: Uid
    sha256: Sha256
    """Of the whole object, as in its key."""
    size: Annotated[int, Field(ge=0)]
    key: str


class StudyManifest(_Manifest):
    """A revision of a study from one trust, in the identifiable zone. Made by ingest.closer."""

    trust: str
    study_instance_uid: Uid
    revision: Revision
    digest: Sha256
    """The revision's identity: see `revision_digest`."""
    instances: Annotated[tuple[ManifestInstance, ...], Field(min_length=1)]
    """One per SOP Instance UID, the first received."""
    variants: tuple[ManifestInstance, ...] = ()
    """Further contents under the UIDs of `instances`."""


class ResearchInstance(BaseModel):
    """One de-identified object."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    sop_instance_uid: Uid
    series_instance_uid: Uid
    sop_class_uid: Uid
    modality: str
    key: str
    sha256: Sha256
    size: Annotated[int, Field(ge=0)]


class MetadataReference(BaseModel):
    """The object that holds the instances' elements: gzip of JSON lines, line i the DICOM JSON (PS3.18 F) of instance i without bulk data."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    bucket: str
    key: str
    sha256: Sha256
    size: Annotated[int, Field(ge=0)]


class ResearchManifest(_Manifest):
    """A revision of a study from one source, de-identified. Made by deidentification."""

    research_study_uid: Uid
    subject: str | None
    """Null where nothing could be released."""
    source: str
    revision: Revision
    profile: str
    key_version: Annotated[int, Field(ge=1)]
    instances: tuple[ResearchInstance, ...]
    metadata: MetadataReference | None


def revision_digest(digests: Iterable[str]) -> str:
    """The identity of a revision: SHA-256 over the sorted hexadecimal digests of all its objects, variants included, one a line."""
    return hashlib.sha256("".join(f"{digest}\n" for digest in sorted(digests)).encode()).hexdigest()
