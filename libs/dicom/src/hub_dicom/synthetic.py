"""Made-up patients and images, for demos and tests, that say so in every instance. The same arguments give the same bytes."""

import hashlib
import io
import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.filewriter import dcmwrite
from pydicom.sequence import Sequence
from pydicom.uid import (
    UID,
    ComputedRadiographyImageStorage,
    CTImageStorage,
    DigitalXRayImageStorageForPresentation,
    ExplicitVRLittleEndian,
    MRImageStorage,
    PositronEmissionTomographyImageStorage,
    UltrasoundImageStorage,
)

from hub_dicom.part10 import IMPLEMENTATION_CLASS_UID, IMPLEMENTATION_VERSION_NAME

SAYS_SO: Final = "SYNTHETIC: made by a program, nobody's image"
"""Stands in ImageComments of every instance."""

_CLASSES: Final = {
    "CT": CTImageStorage,
    "MR": MRImageStorage,
    "CR": ComputedRadiographyImageStorage,
    "DX": DigitalXRayImageStorageForPresentation,
    "PT": PositronEmissionTomographyImageStorage,
    "US": UltrasoundImageStorage,
}


@dataclass(frozen=True, slots=True)
class SyntheticPatient:
    """A person who does not exist, as one trust knows them."""

    patient_name: str
    patient_id: str
    issuer_of_patient_id: str | None = None
    patient_birth_date: str = "19700101"
    patient_sex: str = "O"
    patient_address: str | None = None
    other_patient_ids: tuple[tuple[str, str], ...] = ()
    """Pairs of PatientID and IssuerOfPatientID, for OtherPatientIDsSequence."""


@dataclass(frozen=True, slots=True)
class SyntheticInstance:
    """One made instance."""

    study_instance_uid: str
    series_instance_uid: str
    sop_instance_uid: str
    sop_class_uid: str
    content: bytes
    """The DICOM file."""


def nhs_test_number(number: int) -> str:
    """A ten-digit number with a valid check digit from the range 999 that the NHS gives to nobody; each `number` has its own.

    Raises:
        ValueError: `number` is not 0 to 99999.
    """
    if not 0 <= number <= 99_999:
        raise ValueError("there are a hundred thousand test numbers here, 0 to 99999")
    # The ninth digit is free: of two neighbours at most one has the check digit 10, which is never given.
    for digits in (f"999{number:05d}{free}" for free in range(10)):
        check = 11 - sum(int(digit) * weight for digit, weight in zip(digits, range(10, 1, -1), strict=True)) % 11
        if check != 10:
            return f"{digits}{check % 11}"
    raise AssertionError("unreachable: neighbours differ in their check digits")


def synthetic_uid(*parts: object) -> str:
    """A UID that follows from `parts` (PS3.5 B.2)."""
    digest = hashlib.sha256("\n".join(str(part) for part in parts).encode()).digest()
    return f"2.25.{int.from_bytes(digest[:15], 'big')}"


def synthetic_series(
    patient: SyntheticPatient,
    *,
    study: str,
    series: int = 1,
    modality: str = "CT",
    instances: int = 10,
    first: int = 1,
    pixels: int = 64,
    study_date: str = "20240115",
    accession_number: str | None = None,
) -> Iterator[SyntheticInstance]:
    """A series of uncompressed images of a made-up phantom.

    Args:
        patient: whose.
        study: names the study: the same name is the same StudyInstanceUID, whoever the patient.
        series: its number; with `study` it decides the SeriesInstanceUID.
        modality: one of CT, MR, CR, DX, PT, US.
        instances: how many.
        first: the first InstanceNumber: give the next one to make a late instance of the same series.
        pixels: rows and columns.
        study_date: DICOM DA.
        accession_number: None: it follows from `study`.

    Raises:
        ValueError: a modality that is not made here.
    """
    if modality not in _CLASSES:
        raise ValueError(f"no synthetic {modality!r}: one of {', '.join(_CLASSES)}")
    data_set = _series(patient, study=study, series=series, modality=modality, pixels=pixels, study_date=study_date)
    data_set.AccessionNumber = accession_number or f"SYN{int(synthetic_uid('accession', study)[5:]) % 10**8:08d}"
    body = _phantom(pixels)
    for number in range(first, first + instances):
        data_set.SOPInstanceUID = synthetic_uid(study, series, number)
        data_set.InstanceNumber = number
        data_set.ImagePositionPatient = [0, 0, float(number)]
        # Each image is another one: the phantom moves down, row by row.
        turn = number % pixels * pixels * 2
        data_set.PixelData = body[turn:] + body[:turn]
        yield SyntheticInstance(
            str(data_set.StudyInstanceUID),
            str(data_set.SeriesInstanceUID),
            str(data_set.SOPInstanceUID),
            str(data_set.SOPClassUID),
            _file(data_set),
        )


def _series(patient: SyntheticPatient, *, study: str, series: int, modality: str, pixels: int, study_date: str) -> Dataset:
    data_set = Dataset()
    data_set.SpecificCharacterSet = "ISO_IR 192"
    data_set.ImageType = ["ORIGINAL", "PRIMARY", "AXIAL"]
    data_set.SOPClassUID = _CLASSES[modality]
    data_set.StudyDate = data_set.SeriesDate = data_set.AcquisitionDate = data_set.ContentDate = study_date
    data_set.StudyTime = data_set.SeriesTime = data_set.AcquisitionTime = data_set.ContentTime = "101112"
    data_set.Modality = modality
    data_set.Manufacturer = "SYNTHETIC"
    data_set.ReferringPhysicianName = "SYNTHETIC^REFERRER"
    data_set.StudyDescription = f"SYNTHETIC {modality}"
    data_set.SeriesDescription = f"SYNTHETIC {modality} {series}"
    data_set.PatientName = patient.patient_name
    data_set.PatientID = patient.patient_id
    if patient.issuer_of_patient_id is not None:
        data_set.IssuerOfPatientID = patient.issuer_of_patient_id
    data_set.PatientBirthDate = patient.patient_birth_date
    data_set.PatientSex = patient.patient_sex
    if patient.other_patient_ids:
        data_set.OtherPatientIDsSequence = Sequence([_other(number, issuer) for number, issuer in patient.other_patient_ids])
    if patient.patient_address is not None:
        data_set.PatientAddress = patient.patient_address
    data_set.BodyPartExamined = "CHEST"
    data_set.StudyInstanceUID = synthetic_uid(study)
    data_set.SeriesInstanceUID = synthetic_uid(study, series)
    data_set.StudyID = "1"
    data_set.SeriesNumber = series
    data_set.ImageOrientationPatient = [1, 0, 0, 0, 1, 0]
    data_set.FrameOfReferenceUID = synthetic_uid(study, "frame of reference")
    data_set.ImageComments = SAYS_SO
    data_set.SamplesPerPixel = 1
    data_set.PhotometricInterpretation = "MONOCHROME2"
    data_set.Rows = data_set.Columns = pixels
    data_set.PixelSpacing = [1, 1]
    data_set.BitsAllocated = 16
    data_set.BitsStored = 12
    data_set.HighBit = 11
    data_set.PixelRepresentation = 0
    data_set.BurnedInAnnotation = "NO"
    return data_set


def _other(number: str, issuer: str) -> Dataset:
    item = Dataset()
    item.PatientID = number
    item.IssuerOfPatientID = issuer
    item.TypeOfPatientID = "TEXT"
    return item


def _phantom(pixels: int) -> bytes:
    """A bright disc with two darker ones in it, 12 bits of 16, little endian."""
    middle = pixels / 2
    values = bytearray()
    for row in range(pixels):
        for column in range(pixels):
            value = 40
            if math.hypot(row - middle, column - middle) < pixels * 0.4:
                value = 1000 + 8 * row
                if min(math.hypot(row - middle, column - pixels * side) for side in (0.35, 0.65)) < pixels * 0.12:
                    value = 300 + 4 * column
            values += min(value, 4095).to_bytes(2, "little")
    return bytes(values)


def _file(data_set: Dataset) -> bytes:
    meta = FileMetaDataset()
    meta.FileMetaInformationVersion = b"\x00\x01"
    meta.MediaStorageSOPClassUID = data_set.SOPClassUID
    meta.MediaStorageSOPInstanceUID = data_set.SOPInstanceUID
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    meta.ImplementationClassUID = UID(IMPLEMENTATION_CLASS_UID)
    meta.ImplementationVersionName = IMPLEMENTATION_VERSION_NAME
    data_set.file_meta = meta
    buffer = io.BytesIO()
    dcmwrite(buffer, data_set, enforce_file_format=True)
    return buffer.getvalue()
