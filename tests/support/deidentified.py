"""What the tests of de-identification share: fixed keys, trusts, a study in a store, the engine's whole way on one file."""

import hashlib
import io
from dataclasses import dataclass

from hub_deidentification import acceptance
from hub_deidentification.encoding import read_instance
from hub_deidentification.engine import Deidentified, deidentify
from hub_deidentification.identity import PURPOSES, Pseudonyms, identity_of
from hub_deidentification.profile import load_profile
from hub_deidentification.service import RECEIVED, handle
from hub_deidentification.study import Deidentification
from hub_dicom import Trust, Trusts, file_meta, instance_key, manifest_key, read_file_meta, read_header, revision_digest
from hub_dicom.manifest import ManifestInstance, ResearchManifest, StudyManifest
from hub_events import Event
from hub_events.types import ObjectReference, StudyDeidentified, StudyQuarantined, StudyReceived
from hub_objectstore import MemoryObjectStore, ObjectStore
from hub_runtime.keyring import KeyRing
from pydantic import BaseModel
from pydicom import dcmread
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.filewriter import dcmwrite
from pydicom.uid import UID, CTImageStorage, ExplicitVRLittleEndian

KEYS = KeyRing(1, {purpose: hashlib.sha256(purpose.encode()).digest() for purpose in PURPOSES})
TRUSTS = Trusts.model_validate(
    {
        "trusts": [
            {
                "name": "northgate",
                "ae_titles": ["NORTHGATE"],
                "addresses": ["127.0.0.1/32"],
                "assigning_authority": "NGT",
                "national_number": {"field": "PatientID", "issuer": "NHS"},
            },
            {"name": "southmere", "ae_titles": ["SOUTHMERE"], "addresses": ["127.0.0.1/32"], "assigning_authority": "SMR"},
            {
                "name": "eastvale",
                "ae_titles": ["EASTVALE"],
                "addresses": ["127.0.0.1/32"],
                "assigning_authority": "EVL",
                "national_number": {"field": "OtherPatientIDsSequence", "issuer": "NHS"},
            },
            {
                "name": "westhaven",
                "ae_titles": ["WESTHAVEN"],
                "addresses": ["127.0.0.1/32"],
                "assigning_authority": "WHV",
                "private_sop_classes": "quarantine",
                "quarantine_sop_classes": ["1.2.840.10008.5.1.4.1.1.7"],
                "modalities": ["CT"],
                "test_patients": {},
                "conflicts": "hold-back",
            },
        ]
    }
)
STUDY = "1.2.826.0.1.3680043.8.498.1"
SERIES = "1.2.826.0.1.3680043.8.498.2"


def trust(name: str) -> Trust:
    found = TRUSTS.by_name(name)
    assert found is not None
    return found


def pseudonyms() -> Pseudonyms:
    return Pseudonyms(KEYS)


def ct(**values: object) -> Dataset:
    """A small CT that is accepted; `values` by keyword, None takes one away."""
    data_set = Dataset()
    data_set.SpecificCharacterSet = "ISO_IR 192"
    data_set.ImageType = ["ORIGINAL", "PRIMARY", "AXIAL"]
    data_set.SOPClassUID = CTImageStorage
    data_set.SOPInstanceUID = "1.2.826.0.1.3680043.8.498.3"
    data_set.StudyDate = "20200131"
    data_set.Modality = "CT"
    data_set.PatientName = "SOMEBODY^ELSE"
    data_set.PatientID = "LOCAL1"
    data_set.StudyInstanceUID = STUDY
    data_set.SeriesInstanceUID = SERIES
    data_set.SamplesPerPixel = 1
    data_set.PhotometricInterpretation = "MONOCHROME2"
    data_set.Rows = data_set.Columns = 4
    data_set.BitsAllocated = 16
    data_set.BitsStored = 12
    data_set.HighBit = 11
    data_set.PixelRepresentation = 0
    data_set.PixelData = bytes(range(32))
    for keyword, value in values.items():
        if value is None:
            delattr(data_set, keyword)
        else:
            setattr(data_set, keyword, value)
    return data_set


def encoded(data_set: Dataset, transfer_syntax: UID = ExplicitVRLittleEndian) -> bytes:
    """The file of a data set, written by pydicom."""
    meta = FileMetaDataset()
    meta.FileMetaInformationGroupLength = 0
    meta.FileMetaInformationVersion = b"\x00\x01"
    meta.MediaStorageSOPClassUID = data_set.get("SOPClassUID", "1.2.3")
    meta.MediaStorageSOPInstanceUID = data_set.get("SOPInstanceUID", "1.2.3")
    meta.TransferSyntaxUID = transfer_syntax
    meta.ImplementationClassUID = UID("1.2.3.4")
    data_set.file_meta = meta
    data_set.preamble = bytes(128)
    buffer = io.BytesIO()
    dcmwrite(
        buffer,
        data_set,
        implicit_vr=transfer_syntax.is_implicit_VR,
        little_endian=transfer_syntax.is_little_endian,
        enforce_file_format=False,
    )
    return buffer.getvalue()


def spliced(data_set: Dataset, element: bytes) -> bytes:
    """The file of a data set, explicit VR little endian, with an encoded element before all others."""
    content = encoded(data_set)
    meta = read_file_meta(content)
    return file_meta(meta.sop_class_uid, meta.sop_instance_uid, meta.transfer_syntax_uid) + element + content[meta.data_set_offset :]


def run(content: bytes, *, at: str = "southmere") -> Deidentified:
    """The whole way of one instance, as the service goes it.

    Raises:
        Refused, Unparseable, NoPatientId: see there.
    """
    profile, derived = load_profile(), pseudonyms()
    acceptance.check_file(content)
    instance = read_instance(content)
    acceptance.check(instance, profile)
    return deidentify(instance, profile, derived, derived.subject(identity_of(instance, trust(at))))


def result_of(data_set: Dataset, transfer_syntax: UID = ExplicitVRLittleEndian, *, at: str = "southmere") -> Dataset:
    """The de-identified data set, read by pydicom."""
    return dcmread(io.BytesIO(run(encoded(data_set, transfer_syntax), at=at).file))


class Zone:
    """A store with studies in it, and the service's handler over it."""

    def __init__(self, store: ObjectStore | None = None, keys: KeyRing = KEYS) -> None:
        self.store: ObjectStore = MemoryObjectStore() if store is None else store
        self.trusts = TRUSTS
        self.deidentification = Deidentification(self.store, Pseudonyms(keys), load_profile(), threads=2)

    def receive(self, at: str, files: list[bytes], *, revision: int = 1, variants: list[bytes] | None = None) -> Event[StudyReceived]:
        """Store a study's instances and manifest as receiver and closer do; the event that announces it."""
        entries = [self._stored(at, content) for content in files]
        others = [self._stored(at, content) for content in variants or []]
        study = entries[0][0]
        manifest = StudyManifest(
            trust=at,
            study_instance_uid=study,
            revision=revision,
            digest=revision_digest(entry.sha256 for _, entry in (*entries, *others)),
            instances=tuple(sorted((entry for _, entry in entries), key=lambda entry: entry.key)),
            variants=tuple(entry for _, entry in others),
        )
        body = manifest.to_bytes()
        key = manifest_key(at, study, revision)
        self.store.put("identifiable", key, body)
        reference = ObjectReference(bucket="identifiable", key=key, sha256=hashlib.sha256(body).hexdigest(), size=len(body))
        data = StudyReceived(
            trust=at,
            study_instance_uid=study,
            revision=revision,
            instances=len(entries),
            variants=len(others),
            bytes=sum(entry.size for _, entry in entries),
            digest=manifest.digest,
            manifest=reference,
        )
        return Event.first(RECEIVED, study, data, source="ingest.closer")

    def _stored(self, at: str, content: bytes) -> tuple[str, ManifestInstance]:
        meta = read_file_meta(content)
        body = content[meta.data_set_offset :]
        header = read_header(body, meta.transfer_syntax_uid)
        study, series, instance = header.study_instance_uid, header.series_instance_uid, header.sop_instance_uid
        assert study is not None
        assert series is not None
        assert instance is not None
        stored = file_meta(meta.sop_class_uid, meta.sop_instance_uid, meta.transfer_syntax_uid) + body
        sha256 = hashlib.sha256(stored).hexdigest()
        key = instance_key(at, study, series, instance, sha256)
        self.store.put("identifiable", key, stored)
        return study, ManifestInstance(series_instance_uid=series, sop_instance_uid=instance, sha256=sha256, size=len(stored), key=key)

    def handle(self, event: Event[StudyReceived]) -> list[Event[BaseModel]]:
        return handle(event, store=self.store, trusts=self.trusts, deidentification=self.deidentification)

    def run(self, event: Event[StudyReceived]) -> "Answer":
        events = self.handle(event)
        deidentified = next(found.data for found in events if isinstance(found.data, StudyDeidentified))
        quarantined = next((found.data for found in events if isinstance(found.data, StudyQuarantined)), None)
        manifest = ResearchManifest.model_validate_json(self.store.get(deidentified.manifest.bucket, deidentified.manifest.key))
        return Answer(deidentified, quarantined, manifest)


@dataclass
class Answer:
    """What the service said of a study."""

    deidentified: StudyDeidentified
    quarantined: StudyQuarantined | None
    manifest: ResearchManifest

    @property
    def reasons(self) -> dict[str, int]:
        return {} if self.quarantined is None else {reason.code: reason.instances for reason in self.quarantined.reasons}
