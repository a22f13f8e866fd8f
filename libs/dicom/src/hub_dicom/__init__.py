"""Object keys, UIDs, trusts, manifests, Part 10 and the few elements that a receiver reads."""

from hub_dicom.header import Header, UnreadableDataSet, read_header
from hub_dicom.keys import (
    InstanceKey,
    instance_key,
    manifest_key,
    manifest_prefix,
    parse_instance_key,
    quarantine_key,
    study_prefix,
    trust_prefix,
    variants_key,
)
from hub_dicom.manifest import ManifestInstance, MetadataReference, ResearchInstance, ResearchManifest, StudyManifest, revision_digest
from hub_dicom.modality import modality_folder
from hub_dicom.part10 import FileMeta, NotPart10, file_meta, read_file_meta
from hub_dicom.patients import PatientPatterns
from hub_dicom.trusts import NationalNumber, Trust, Trusts, UnusableTrusts
from hub_dicom.uid import is_uid

__all__ = [
    "FileMeta",
    "Header",
    "InstanceKey",
    "ManifestInstance",
    "MetadataReference",
    "NationalNumber",
    "NotPart10",
    "PatientPatterns",
    "ResearchInstance",
    "ResearchManifest",
    "StudyManifest",
    "Trust",
    "Trusts",
    "UnreadableDataSet",
    "UnusableTrusts",
    "file_meta",
    "instance_key",
    "is_uid",
    "manifest_key",
    "manifest_prefix",
    "modality_folder",
    "parse_instance_key",
    "quarantine_key",
    "read_file_meta",
    "read_header",
    "revision_digest",
    "study_prefix",
    "trust_prefix",
    "variants_key",
]
