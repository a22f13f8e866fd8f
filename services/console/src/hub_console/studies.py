"""The studies of the demo: real files from Python packages, given made-up patients; what is made says so.

The packages' files carry no national number and mostly no name worth hiding. The demo writes copies into which it puts made-up people: a name,
a birth date, an address, and an NHS number from the range 999, which is never issued. Pixels and all else stay as they are.
"""

import importlib.util
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from hub_dicom.synthetic import SyntheticPatient, nhs_test_number, synthetic_series
from pydicom import Dataset, dcmread
from pydicom.config import disable_value_validation
from pydicom.data import get_testdata_file
from pydicom.sequence import Sequence as DicomSequence


class FilesMissing(LookupError):
    """A package that brings the demo's files is not installed: the text says which and how to get it."""


@dataclass(frozen=True, slots=True)
class Person:
    """A made-up person."""

    name: str
    birth_date: str
    address: str
    nhs_number: str | None
    local_number: str


@dataclass(frozen=True, slots=True)
class DemoStudy:
    """One study of the demo."""

    trust: str
    title: str
    origin: str
    """Where its files come from; made ones say so."""
    person: Person | None
    """None: the files' own patient stays."""
    files: tuple[Path, ...] = ()
    make: Callable[[Path], Sequence[Path]] | None = None
    """For a made series: writes it into a folder."""


@dataclass(frozen=True, slots=True)
class Prepared:
    """A study ready to be sent, as copies in a folder of its own."""

    study: DemoStudy
    study_instance_uid: str
    files: tuple[Path, ...]
    modalities: tuple[str, ...]
    sop_class: str


WRITTEN = frozenset(
    {
        "PatientName",
        "PatientID",
        "IssuerOfPatientID",
        "OtherPatientIDsSequence",
        "PatientBirthDate",
        "PatientAddress",
        "ReferringPhysicianName",
        "AccessionNumber",
        "InstitutionName",
    }
)
"""What the demo writes into its copies; the page marks them."""


ADA = Person("Example^Ada^^Mrs", "19570314", "1 Made-up Lane^Northgate", nhs_test_number(1), "NG-000417")
ADA_ELSEWHERE = Person("EXAMPLE^ADA", "19570314", "1 Made-up Lane^Northgate", nhs_test_number(1), "SM-7731")
BEN = Person("Sample^Ben^^Mr", "19610702", "22 Nowhere Street^Northgate", nhs_test_number(4), "NG-000418")
CLARA = Person("Specimen^Clara^^Ms", "19740923", "3 Fiction Close^Eastvale", nhs_test_number(5), "EV/10/223")
DAVID = Person("Mockup^David^^Dr", "19481130", "8 Invented Road^Southmoor", nhs_test_number(6), "SM-7800")
EVE = Person("Placeholder^Eve", "19890605", "5 Imaginary Row^Eastvale", None, "EV/10/224")
FRED = Person("Testcase^Fred", "19550101", "17 Pretend Way^Southmoor", nhs_test_number(8), "SM-7801")


def choose() -> list[DemoStudy]:
    """The studies of the demo. Three trusts; CT, MR, CR, DX, RT and PT; one person at two trusts; four things that must be held back.

    Raises:
        FilesMissing: pydicom-data, deid-data or pynetdicom's test files are not there.
    """
    data = "pydicom-data"
    folders = _packaged("pydicom", "data/test_files/dicomdirtests")
    return [
        DemoStudy("northgate", "Chest X-ray", data, ADA, (_file("RG1_J2KI.dcm"),)),
        DemoStudy("southmoor", "MR of the shoulder, same person", data, ADA_ELSEWHERE, (_file("MR2_J2KR.dcm"),)),
        DemoStudy("southmoor", "CT of the skull base", "pydicom", DAVID, (_file("J2K_pixelrep_mismatch.dcm"),)),
        DemoStudy("northgate", "CT of the chest, 179 private elements", "pydicom", BEN, (_file("CT_small.dcm"),)),
        DemoStudy("eastvale", "X-ray of a leg", data, CLARA, (_file("RG3_J2KR.dcm"),)),
        DemoStudy("eastvale", "CT of the head", data, EVE, (_file("693_J2KR.dcm"),)),
        DemoStudy("southmoor", "X-ray of a cat", "deid-data", None, (_packaged("deid_data", "data/animals/cat.dcm"),)),
        DemoStudy(
            "eastvale", "Radiotherapy portal image", "pynetdicom", None, (_packaged("pynetdicom", "tests/dicom_files/RTImageStorage.dcm"),)
        ),
        DemoStudy("northgate", "CT, 4 tiny slices", "pydicom", None, tuple(sorted((folders / "77654033" / "CT2").iterdir()))),
        DemoStudy("northgate", "CR, 3 tiny images", "pydicom", None, tuple(sorted((folders / "77654033").glob("CR*/*")))),
        DemoStudy("eastvale", "MR, 7 tiny slices", "pydicom", None, tuple(sorted((folders / "98892003" / "MR700").iterdir()))),
        DemoStudy("eastvale", "PET of 24 slices (made)", "made by hub_dicom.synthetic", FRED, make=_made_pet),
        DemoStudy("southmoor", "Structured report", "pydicom", FRED, (_file("reportsi.dcm"),)),
        DemoStudy("southmoor", "Ultrasound with text in its pixels", data, DAVID, (_file("US1_J2KR.dcm"),)),
        DemoStudy("northgate", "Secondary capture of a bone scan", data, BEN, (_file("JPEG-LL.dcm"),)),
    ]


def prepare(study: DemoStudy, number: int, folder: Path) -> Prepared:
    """Write the copies of a study into `folder`; its person is put into each. The same study gives the same bytes."""
    folder.mkdir(parents=True, exist_ok=True)
    sources = study.make(folder) if study.make else study.files
    written, modalities = [], []
    dataset = Dataset()
    with disable_value_validation():  # real files hold values that the Standard forbids, UIDs with leading zeros for one
        for index, source in enumerate(sources, 1):
            dataset = dcmread(source)
            if study.person is not None:
                put_person(dataset, study.person, study.trust, number)
            target = folder / f"{index:04d}.dcm"
            dataset.save_as(target, enforce_file_format=True)
            written.append(target)
            modalities.append(str(dataset.get("Modality") or "OT"))
        return Prepared(study, str(dataset.StudyInstanceUID), tuple(written), tuple(sorted(set(modalities))), dataset.SOPClassUID.name)


def put_person(dataset: Dataset, person: Person, trust: str, number: int) -> None:
    """Make the data set one of this made-up person, the way this trust writes numbers: southmoor keeps the NHS number beside its own."""
    dataset.PatientName = person.name
    dataset.PatientBirthDate = person.birth_date
    dataset.PatientAddress = person.address
    dataset.ReferringPhysicianName = "Madeup^Rosalind^^Dr"
    dataset.AccessionNumber = f"{trust[:2].upper()}26{number:06d}"
    dataset.InstitutionName = f"{trust.capitalize()} (made up)"
    if trust != "southmoor" and person.nhs_number:
        dataset.PatientID, dataset.IssuerOfPatientID = person.nhs_number, "NHS"
        return
    dataset.PatientID, dataset.IssuerOfPatientID = person.local_number, trust.upper()
    if person.nhs_number:
        item = Dataset()
        item.PatientID, item.IssuerOfPatientID, item.TypeOfPatientID = person.nhs_number, "NHS", "TEXT"
        dataset.OtherPatientIDsSequence = DicomSequence([item])


def _file(name: str) -> Path:
    try:
        path = get_testdata_file(name, download=False)
    except ValueError:
        path = None
    if path is None:
        raise FilesMissing(f"the demo needs {name} of the package pydicom-data: `make setup` installs it")
    return Path(path)


def _packaged(package: str, path: str) -> Path:
    spec = importlib.util.find_spec(package)
    for folder in (spec.submodule_search_locations if spec else None) or ():
        found = Path(folder) / path
        if found.exists():
            return found
    raise FilesMissing(f"the demo needs {path} of the package {package.replace('_', '-')}: `make setup` installs it")


def _made_pet(folder: Path) -> Sequence[Path]:
    nobody = SyntheticPatient(FRED.name, FRED.local_number)
    paths = []
    for number, instance in enumerate(synthetic_series(nobody, study="demo", modality="PT", instances=24, pixels=128), 1):
        path = folder / f"{number:04d}.dcm"
        path.write_bytes(instance.content)
        paths.append(path)
    return paths
