"""Which attributes say something of the patient and the study, and which of the series (PS3.3 A.1.2, modules of C.7.1 to C.7.3).

DICOM repeats them in every instance. The index keeps them once, taken from the instance whose UID comes first.
"""

from collections.abc import Iterable
from typing import Any, Final

from pydicom.datadict import tag_for_keyword


def _tags(keywords: str) -> frozenset[str]:
    numbers = {keyword: tag_for_keyword(keyword) for keyword in keywords.split()}
    unknown = sorted(keyword for keyword, number in numbers.items() if number is None)
    if unknown:
        raise ValueError(f"not in the data dictionary: {', '.join(unknown)}")
    return frozenset(f"{number:08X}" for number in numbers.values())


STUDY_TAGS: Final = _tags(
    """
    PatientName PatientID IssuerOfPatientID TypeOfPatientID PatientBirthDate PatientBirthTime PatientSex OtherPatientIDs
    OtherPatientNames OtherPatientIDsSequence EthnicGroup PatientComments PatientSpeciesDescription PatientSpeciesCodeSequence
    PatientBreedDescription ResponsiblePerson ResponsibleOrganization PatientIdentityRemoved DeidentificationMethod
    DeidentificationMethodCodeSequence QualityControlSubject ReferencedPatientSequence

    StudyInstanceUID StudyDate StudyTime ReferringPhysicianName ConsultingPhysicianName StudyID AccessionNumber
    IssuerOfAccessionNumberSequence StudyDescription PhysiciansOfRecord NameOfPhysiciansReadingStudy ReferencedStudySequence
    ProcedureCodeSequence ReasonForPerformedProcedureCodeSequence RequestingService InstitutionName

    AdmittingDiagnosesDescription AdmittingDiagnosesCodeSequence PatientAge PatientSize PatientWeight PatientBodyMassIndex
    PatientSexNeutered PregnancyStatus SmokingStatus MedicalAlerts Allergies Occupation AdditionalPatientHistory AdmissionID
    PatientState ReasonForVisit ClinicalTrialSponsorName ClinicalTrialProtocolID ClinicalTrialProtocolName ClinicalTrialSiteID
    ClinicalTrialSubjectID ClinicalTrialTimePointID LongitudinalTemporalInformationModified TimezoneOffsetFromUTC
    """
)
"""Attributes of the patient and the study."""

SERIES_TAGS: Final = _tags(
    """
    Modality SeriesInstanceUID SeriesNumber Laterality SeriesDate SeriesTime SeriesDescription SeriesDescriptionCodeSequence
    PerformingPhysicianName OperatorsName ProtocolName BodyPartExamined PatientPosition ReferencedPerformedProcedureStepSequence
    RequestAttributesSequence PerformedProcedureStepID PerformedProcedureStepStartDate PerformedProcedureStepStartTime
    PerformedProcedureStepEndDate PerformedProcedureStepEndTime PerformedProcedureStepDescription PerformedProtocolCodeSequence
    AnatomicalOrientationType FrameOfReferenceUID PositionReferenceIndicator SmallestPixelValueInSeries LargestPixelValueInSeries
    Manufacturer ManufacturerModelName StationName SoftwareVersions DeviceSerialNumber MagneticFieldStrength
    ClinicalTrialCoordinatingCenterName ClinicalTrialSeriesID TreatmentSessionUID TimezoneOffsetFromUTC
    """
)
"""Attributes of the series, its equipment and its frame of reference."""


def study_attributes(dataset: dict[str, Any]) -> dict[str, Any]:
    """What a data set in DICOM JSON says of patient and study."""
    return _only(dataset, STUDY_TAGS)


def series_attributes(dataset: dict[str, Any]) -> dict[str, Any]:
    """What a data set in DICOM JSON says of its series."""
    return _only(dataset, SERIES_TAGS)


def _only(dataset: dict[str, Any], tags: Iterable[str]) -> dict[str, Any]:
    return {tag: dataset[tag] for tag in tags if tag in dataset}
