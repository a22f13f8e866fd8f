"""Made-up patients whose identifiers stand everywhere they could hide, and the list of what must not be found afterwards.

The same seed gives the same bytes. Nobody in here exists: names are invented words, NHS numbers are of the range 999 that nobody gets.
"""

import contextlib
import io
import random
import struct
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from hub_dicom.synthetic import SyntheticPatient, nhs_test_number, synthetic_series
from pydicom import dcmread
from pydicom.dataelem import DataElement
from pydicom.dataset import Dataset, FileDataset
from pydicom.encaps import encapsulate
from pydicom.filewriter import dcmwrite
from pydicom.sequence import Sequence
from pydicom.uid import UID, ExplicitVRBigEndian, ExplicitVRLittleEndian, RLELossless

_SURNAMES = ("QUILLFEATHER", "OXBRIDGEWORTH", "THISTLEWAITE", "MARROWSTONE", "PENHALLIGON", "WINTERBOURNE")
_GIVEN = ("PERPETUA", "BARTHOLOMEW", "ROSAMUND", "LEOPOLDINE", "CORNELIUS", "HENRIETTA")
_STREETS = ("Plantedbridge Lane", "Needlegate Row", "Haystack Crescent", "Hiddenbrook Way")


_SENT_AS_UNKNOWN = (0x00102154, 0x00081040, 0x00081080, 0x00082228)


@dataclass(frozen=True, slots=True)
class PlantedPerson:
    """One person, as a hospital would know them."""

    surname: str
    given: str
    middle: str
    nhs_number: str
    local_number: str
    accession_number: str
    address: str
    postcode: str
    phone: str
    email: str
    birth_date: str
    mother: str

    @property
    def dicom_name(self) -> str:
        return f"{self.surname}^{self.given}^{self.middle}"

    @property
    def names(self) -> tuple[str, ...]:
        """The name in the orders in which people write it."""
        return (
            self.dicom_name,
            f"{self.surname}, {self.given}",
            f"{self.given} {self.surname}",
            f"{self.given[0]}. {self.surname}",
            f"{self.surname} {self.given[0]}{self.middle[0]}",
            f"{self.given.title()} {self.middle.title()} {self.surname.title()}",
        )

    @property
    def needles(self) -> tuple[str, ...]:
        """What must not be found, in any case and encoding. Parts stand for every form that contains them."""
        spaced = f"{self.nhs_number[:3]} {self.nhs_number[3:6]} {self.nhs_number[6:]}"
        return (
            self.surname,
            self.given,
            self.nhs_number,
            spaced,
            spaced.replace(" ", "-"),
            self.local_number,
            self.accession_number,
            self.address,
            self.postcode,
            self.phone,
            self.email,
            self.birth_date,
            self.mother,
        )

    @property
    def sentence(self) -> str:
        return f"Seen today: {self.names[2]} (NHS {self.needles[3]}, {self.local_number}), lives at {self.address}, {self.postcode}, {self.phone}"


@dataclass(frozen=True, slots=True)
class PlantedFile:
    """One DICOM file."""

    name: str
    content: bytes


@dataclass(frozen=True, slots=True)
class Planted:
    """Files of one study, and what must be found nowhere after de-identification."""

    person: PlantedPerson
    files: tuple[PlantedFile, ...]
    needles: tuple[str, ...]


def planted_person(seed: int) -> PlantedPerson:
    """The person of this seed."""
    chance = random.Random(f"planted person {seed}")
    number = chance.randrange(10_000, 99_999)
    surname, given = chance.choice(_SURNAMES), chance.choice(_GIVEN)
    return PlantedPerson(
        surname=surname,
        given=given,
        middle=chance.choice([name for name in _GIVEN if name != given]),
        nhs_number=nhs_test_number(number),
        local_number=f"MRN{chance.randrange(10**9):09d}",
        accession_number=f"ACC{chance.randrange(10**9):09d}",
        address=f"{chance.randrange(100, 999)} {chance.choice(_STREETS)}",
        postcode=f"ZZ{chance.randrange(10, 99)} {chance.randrange(1, 9)}QQ",
        phone=f"01632 960{chance.randrange(100, 999)}",
        email=f"{given.lower()}@planted.invalid",
        birth_date=f"19{chance.randrange(31, 69)}{chance.randrange(1, 12):02d}{chance.randrange(13, 28)}",
        mother=f"{surname.title()}dottir",
    )


def planted_study(
    seed: int,
    *,
    modality: str = "CT",
    instances: int = 3,
    transfer_syntax: UID = ExplicitVRLittleEndian,
    issuer: str | None = None,
    national: bool = False,
    in_uids: bool = False,
) -> Planted:
    """A study of the person of `seed`, with identifiers planted in every instance.

    Args:
        seed: decides person, study and places.
        modality: see `synthetic_series`.
        instances: how many.
        transfer_syntax: any; with an encapsulated one the fragments are no real compression.
        issuer: IssuerOfPatientID; None: the element is absent.
        national: PatientID is the NHS number, not the local number.
        in_uids: the NHS number is a component of the study's, the series' and the instances' UIDs. A hub that names identifiable objects
            by UID then names them by it; use it only where the research side alone is searched.
    """
    person = planted_person(seed)
    patient = SyntheticPatient(person.dicom_name, person.nhs_number if national else person.local_number, issuer, person.birth_date)
    made = synthetic_series(
        patient, study=f"planted {seed}", modality=modality, instances=instances, accession_number=person.accession_number
    )
    files = []
    for number, instance in enumerate(made):
        data_set = dcmread(io.BytesIO(instance.content))
        _plant(data_set, person, random.Random(f"{seed} {number}"))
        if in_uids:
            for keyword in ("StudyInstanceUID", "SeriesInstanceUID", "SOPInstanceUID", "FrameOfReferenceUID"):
                tail = str(getattr(data_set, keyword))[-12:].lstrip("0")
                setattr(data_set, keyword, UID(f"1.2.826.0.1.3680043.9.{person.nhs_number}.{tail}"))
            data_set.file_meta.MediaStorageSOPInstanceUID = data_set.SOPInstanceUID
        files.append(PlantedFile(f"planted-{seed}-{number:03d}.dcm", _written(data_set, person, transfer_syntax)))
    return Planted(person, tuple(files), person.needles)


def found_needles(content: bytes, needles: Iterable[str]) -> list[str]:
    """Which needles stand in `content`, in upper or lower case, in Latin-1, UTF-8 or UTF-16 of either byte order."""
    lowered = content.lower()
    return [needle for needle in needles if any(form in lowered for form in _forms(needle.lower()))]


def _forms(text: str) -> set[bytes]:
    forms = {text.encode(encoding) for encoding in ("utf-8", "utf-16-le", "utf-16-be")}
    with contextlib.suppress(UnicodeEncodeError):
        forms.add(text.encode("latin-1"))
    return forms


def _plant(data_set: FileDataset, person: PlantedPerson, chance: random.Random) -> None:
    for place in (_standard, _nested, _unlisted, _private, _unknown, _unknown_representation, _graphics):
        place(data_set, person, chance)


def _standard(data_set: Dataset, person: PlantedPerson, chance: random.Random) -> None:
    names = person.names
    data_set.PatientBirthName = person.mother
    data_set.PatientMotherBirthName = person.mother
    data_set.OtherPatientNames = [names[2], names[1]]
    data_set.OtherPatientIDs = [person.local_number, person.nhs_number]
    data_set.add(DataElement(0x00101040, "LO", person.address))
    data_set.PatientTelephoneNumbers = person.phone
    data_set.PatientComments = person.sentence
    data_set.AdditionalPatientHistory = f"Mother: {person.mother}, {person.email}, {person.needles[4]}. {person.sentence}"
    data_set.RegionOfResidence = person.postcode
    data_set.ReferringPhysicianName = names[0]
    data_set.PhysiciansOfRecord = names[5]
    data_set.OperatorsName = names[2]
    data_set.PerformingPhysicianName = names[0]
    data_set.InstitutionName = f"{person.surname} Infirmary"
    data_set.InstitutionAddress = f"{person.address}, {person.postcode}"
    data_set.StationName = person.surname[:16]
    data_set.StudyDescription = f"CT of {names[3]}"
    data_set.SeriesDescription = chance.choice(names[1:5])
    data_set.ProtocolName = f"{person.surname} {person.local_number}"
    data_set.StudyID = person.accession_number
    data_set.ImageComments = person.sentence
    data_set.RequestingPhysician = names[0]
    data_set.AdmissionID = person.accession_number
    data_set.MedicalRecordLocator = person.local_number
    data_set.DeviceSerialNumber = person.local_number
    data_set.PatientInsurancePlanCodeSequence = Sequence([_code(person.local_number, person.surname)])
    data_set.InstanceCreatorUID = "1.2.3." + person.nhs_number


def _nested(data_set: Dataset, person: PlantedPerson, chance: random.Random) -> None:
    deep = Dataset()
    deep.PatientName = person.dicom_name
    deep.PatientID = person.nhs_number
    deep.PersonName = person.names[1]
    deep.TextValue = person.sentence
    deep.PatientBirthDate = person.birth_date
    deep.add(DataElement(0x00091010, "LO", person.surname))
    for _ in range(chance.randrange(2, 5)):
        around = Dataset()
        around.CodeMeaning = "Anatomy"
        around.ContentSequence = Sequence([deep])
        around.DerivationCodeSequence = Sequence([deep])
        deep = around
    region = _code("T-D3000", "Chest")
    region.add(DataElement(0x00111010, "LO", person.dicom_name))
    region.add(DataElement(0x00111011, "SQ", Sequence([_text_item(person)])))
    region.AnatomicRegionModifierSequence = Sequence([deep])
    data_set.AnatomicRegionSequence = Sequence([region])
    request = Dataset()
    request.RequestedProcedureDescription = person.sentence[:64]
    request.AccessionNumber = person.accession_number
    request.ReasonForTheRequestedProcedure = person.names[2]
    request.ScheduledProcedureStepDescription = person.names[2]
    data_set.RequestAttributesSequence = Sequence([request])
    original = Dataset()
    original.ModifiedAttributesSequence = Sequence([_text_item(person)])
    original.SourceOfPreviousValues = person.surname
    data_set.OriginalAttributesSequence = Sequence([original])
    reference = Dataset()
    reference.ReferencedSOPClassUID = data_set.SOPClassUID
    reference.ReferencedSOPInstanceUID = "1.2.826.0.1.3680043.10." + person.nhs_number
    reference.PurposeOfReferenceCodeSequence = Sequence([_text_item(person)])
    data_set.SourceImageSequence = Sequence([reference])
    data_set.OperatorIdentificationSequence = Sequence([_text_item(person)])


def _unlisted(data_set: Dataset, person: PlantedPerson, _chance: random.Random) -> None:
    """Text that Table E.1-1 does not list."""
    data_set.ReceiveCoilName = person.surname[:16]
    data_set.TransducerData = person.local_number
    data_set.FrameOfReferenceTransformationComment = person.names[1]
    data_set.ContactDisplayName = person.names[2]
    data_set.ReferenceLocationDescription = person.sentence
    data_set.EvaluatorName = person.dicom_name
    data_set.PatientBirthDateInAlternativeCalendar = person.birth_date
    data_set.CommentsOnPatientPerformanceOfVisualField = person.sentence
    data_set.RetrieveURI = f"https://archive.invalid/{person.nhs_number}"
    data_set.DeidentificationMethod = f"by hand, {person.names[2]}"
    data_set.SOPAuthorizationComment = person.sentence


def _private(data_set: Dataset, person: PlantedPerson, _chance: random.Random) -> None:
    data_set.add(DataElement(0x00090010, "LO", f"ACME {person.surname}"))
    data_set.add(DataElement(0x00091001, "PN", person.dicom_name))
    data_set.add(DataElement(0x00091002, "UN", person.sentence.encode()))
    data_set.add(DataElement(0x00091003, "OB", person.sentence.encode("utf-16-le")))
    data_set.add(DataElement(0x00091004, "SQ", Sequence([_text_item(person)])))
    data_set.add(DataElement(0x00091005, "UT", person.sentence))
    data_set.add(DataElement(0x7FE11010, "OB", person.sentence.encode()))


def _unknown(data_set: Dataset, person: PlantedPerson, _chance: random.Random) -> None:
    """Even groups and elements that no edition knows, retired ones, padding."""
    data_set.add(DataElement(0x12340010, "LO", person.dicom_name))
    data_set.add(DataElement(0x001003F0, "LO", person.nhs_number))
    data_set.add(DataElement(0x00284999, "UT", person.sentence))
    data_set.add(DataElement(0x00104000, "LT", person.sentence))
    data_set.add(DataElement(0x40000010, "LT", person.sentence))
    data_set.add(DataElement(0x00040010, "LO", person.surname))
    data_set.add(DataElement(0xFFFCFFFC, "OB", person.sentence.encode()))


def _unknown_representation(data_set: Dataset, person: PlantedPerson, _chance: random.Random) -> None:
    """Attributes that everybody knows, sent as UN: `_written` puts UN where OB stands, because pydicom would put the known VR there."""
    data_set.add(DataElement(0x00102154, "OB", person.phone.encode()))
    data_set.add(DataElement(0x00081040, "OB", person.surname.encode()))
    data_set.add(DataElement(0x00081080, "OB", person.names[2].encode()))
    text = person.dicom_name.encode() + b" " * (len(person.dicom_name) % 2)
    # PS3.5 6.2.2: a sequence in UN is implicit VR little endian.
    item = struct.pack("<HHL", 0x0040, 0xA123, len(text)) + text
    content = struct.pack("<HHL", 0xFFFE, 0xE000, len(item)) + item
    data_set.add(DataElement(0x00082228, "OB", content))


def _graphics(data_set: Dataset, person: PlantedPerson, _chance: random.Random) -> None:
    plane = {0x0010: ("US", 64), 0x0011: ("US", 64), 0x0040: ("CS", "G"), 0x0050: ("SS", [1, 1]), 0x0100: ("US", 1), 0x0102: ("US", 0)}
    for number, (vr, value) in plane.items():
        data_set.add(DataElement(0x60000000 | number, vr, value))
    data_set.add(DataElement(0x60000022, "LO", person.surname))
    data_set.add(DataElement(0x60001500, "LO", person.names[1]))
    data_set.add(DataElement(0x60003000, "OW", person.sentence.encode().ljust(512, b"\0")))
    data_set.add(DataElement(0x60004000, "LT", person.sentence))
    data_set.add(DataElement(0x50003000, "OW", person.sentence.encode().ljust(256, b"\0")))
    data_set.add(DataElement(0x50002500, "LO", person.surname))
    icon = Dataset()
    icon.Rows = icon.Columns = 16
    icon.BitsAllocated = 8
    icon.PixelData = person.sentence.encode().ljust(256, b"\0")
    data_set.IconImageSequence = Sequence([icon])
    text = Dataset()
    text.UnformattedTextValue = person.sentence
    layer = Dataset()
    layer.TextObjectSequence = Sequence([text])
    data_set.GraphicAnnotationSequence = Sequence([layer])


def _code(value: str, meaning: str) -> Dataset:
    item = Dataset()
    item.CodeValue = value[:16]
    item.CodingSchemeDesignator = "SRT"
    item.CodeMeaning = meaning
    return item


def _text_item(person: PlantedPerson) -> Dataset:
    item = Dataset()
    item.PatientName = person.dicom_name
    item.PersonName = person.names[1]
    item.PatientComments = person.sentence
    item.UnformattedTextValue = person.sentence
    item.add(DataElement(0x00131010, "LO", person.nhs_number))
    return item


def _written(data_set: FileDataset, person: PlantedPerson, transfer_syntax: UID) -> bytes:
    if transfer_syntax.is_encapsulated:
        data_set.PixelData = encapsulate([data_set.PixelData])
        data_set["PixelData"].VR = "OB"
        data_set["PixelData"].is_undefined_length = True
    elif transfer_syntax == ExplicitVRBigEndian:
        pixels = data_set.PixelData
        data_set.PixelData = b"".join(pixels[place + 1 : place - 1 if place else None : -1] for place in range(0, len(pixels), 2))
    data_set.preamble = person.sentence.encode().ljust(128)[:128]
    meta = data_set.file_meta
    meta.TransferSyntaxUID = transfer_syntax
    meta.SourceApplicationEntityTitle = person.surname[:16]
    meta.PrivateInformationCreatorUID = UID("1.2.3." + person.nhs_number)
    meta.PrivateInformation = person.sentence.encode()
    fresh = Dataset()
    for tag in list(data_set.keys()):
        fresh[tag] = data_set[tag]
    fresh.file_meta = meta
    fresh.preamble = data_set.preamble
    buffer = io.BytesIO()
    dcmwrite(
        buffer,
        fresh,
        implicit_vr=transfer_syntax.is_implicit_VR,
        little_endian=transfer_syntax.is_little_endian,
        enforce_file_format=False,
    )
    return _as_unknown(buffer.getvalue(), transfer_syntax)


def _as_unknown(content: bytes, transfer_syntax: UID) -> bytes:
    if transfer_syntax.is_implicit_VR or transfer_syntax.is_deflated:
        return content
    order = "<" if transfer_syntax.is_little_endian else ">"
    for tag in _SENT_AS_UNKNOWN:
        header = struct.pack(f"{order}HH", tag >> 16, tag & 0xFFFF)
        assert content.count(header + b"OB\0\0") == 1
        content = content.replace(header + b"OB\0\0", header + b"UN\0\0")
    return content


def kept_syntaxes() -> Iterator[UID]:
    """An encapsulated transfer syntax and every native one."""
    for name in ("1.2.840.10008.1.2", "1.2.840.10008.1.2.1", "1.2.840.10008.1.2.1.99", "1.2.840.10008.1.2.2"):
        yield UID(name)
    yield RLELossless
