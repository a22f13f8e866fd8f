"""What three made-up trusts send in the end-to-end tests, and what must be found of it in a dataset."""

import hashlib
import json
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

import pydicom
from pydicom.dataset import Dataset
from support.dicom_files import SyntheticPatient, nhs_test_number, synthetic_series, write_series
from support.planted import planted_study

TRUSTS_YAML = """\
# Made up for tests.
trusts:
  - name: northgate
    title: Northgate (made up)
    ae_titles: [NORTHGATE]
    addresses: [127.0.0.1/32]
    quiet_seconds: 3
    assigning_authority: NGT
    national_number: {field: PatientID, issuer: NHS}
  - name: southmere
    title: Southmere (made up)
    ae_titles: [SOUTHMERE]
    addresses: [127.0.0.1/32]
    quiet_seconds: 3
    assigning_authority: SMR
  - name: eastvale
    title: Eastvale (made up)
    ae_titles: [EASTVALE]
    addresses: [127.0.0.1/32]
    quiet_seconds: 3
    assigning_authority: EVL
    national_number: {field: OtherPatientIDsSequence, issuer: NHS}
    router: true
  - name: westhaven
    title: Westhaven (made up), with rules
    ae_titles: [WESTHAVEN]
    addresses: [127.0.0.1/32]
    quiet_seconds: 3
    assigning_authority: WHV
    private_sop_classes: quarantine
    modalities: [CT]
    test_patients: {}
    conflicts: hold-back
"""

Signature = frozenset[tuple[tuple[str, int, int, str], int]]
"""What a study is, whatever its UIDs: (Modality, SeriesNumber, InstanceNumber, digest of the pixel data), each with its count."""


@dataclass
class Cohort:
    """Files by calling AE title, and what they are."""

    files: dict[str, list[Path]] = field(default_factory=dict)
    patients: int = 0
    needles: tuple[str, ...] = ()
    """Identifiers that must be found nowhere behind the identifiable objects."""
    late: tuple[str, Path] | None = None
    """One more instance of a study that has been sent, and the AE title that sends it."""

    @property
    def all(self) -> list[Path]:
        return [path for paths in self.files.values() for path in paths]

    def signatures(self, extra: Iterable[Path] = ()) -> Counter[Signature]:
        return signatures(pydicom.dcmread(path) for path in (*self.all, *extra))


def make_cohort(folder: Path) -> Cohort:
    """Write 338 synthetic instances: thirteen studies of five modalities, eleven patients, one of them seen at two trusts.

    Two of the studies carry their patients' identifiers in every place where they could hide.
    """
    cohort = Cohort()
    number = 0
    shared = nhs_test_number(4711)
    plan = [
        ("NORTHGATE", [("CT", 60), ("CT", 40), ("MR", 30), ("DX", 2), ("CR", 8)]),
        ("SOUTHMERE", [("MR", 50), ("CT", 45), ("PT", 35)]),
        ("EASTVALE", [("CT", 40), ("DX", 1), ("PT", 19)]),
    ]
    for calling, studies in plan:
        paths: list[Path] = []
        for index, (modality, instances) in enumerate(studies):
            number += 1
            patient = _patient(calling, index, number, shared)
            series = synthetic_series(
                patient,
                study=f"e2e {number}",
                modality=modality,
                instances=instances,
                pixels=32 + 2 * number,
                study_date=f"202401{number:02d}",
            )
            paths += write_series(folder / calling / f"{number:02d}", series)
        cohort.files[calling] = paths
    last = synthetic_series(
        _patient("EASTVALE", 2, number, shared),
        study=f"e2e {number}",
        modality="PT",
        instances=1,
        first=20,
        pixels=32 + 2 * number,
        study_date=f"202401{number:02d}",
    )
    cohort.late = ("EASTVALE", write_series(folder / "late", last)[0])
    for calling, seed, issuer in (("NORTHGATE", 1, "NHS"), ("SOUTHMERE", 2, None)):
        planted = planted_study(seed, instances=4, issuer=issuer, national=issuer is not None)
        cohort.needles += planted.needles
        for file in planted.files:
            path = folder / calling / file.name
            path.write_bytes(file.content)
            cohort.files[calling].append(path)
    cohort.needles += ("QUILLFEATHER", "OXBRIDGEWORTH", "EV-0815-4711", "LOCAL-0000", shared)
    cohort.patients = 11
    return cohort


def _patient(calling: str, index: int, number: int, shared: str) -> SyntheticPatient:
    """The first two studies of Northgate and the first of Eastvale are of one person; each other study has its own."""
    if calling == "NORTHGATE" and index < 2:
        return SyntheticPatient("QUILLFEATHER^SHARED^ANNE", shared, "NHS")
    if calling == "EASTVALE" and index == 0:
        return SyntheticPatient("QUILLFEATHER^ANNE", "EV-0815-4711", "EVL", other_patient_ids=((shared, "NHS"),))
    return SyntheticPatient(f"OXBRIDGEWORTH^{number:03d}", f"LOCAL-{number:06d}", None)


def signatures(datasets: Iterable[Dataset]) -> Counter[Signature]:
    """The studies among `datasets`, each as its signature."""
    studies: dict[str, Counter[tuple[str, int, int, str]]] = {}
    for dataset in datasets:
        digest = hashlib.sha256(dataset.PixelData).hexdigest()
        entry = (str(dataset.Modality), int(dataset.SeriesNumber), int(dataset.InstanceNumber), digest)
        studies.setdefault(str(dataset.StudyInstanceUID), Counter())[entry] += 1
    return Counter(frozenset(counts.items()) for counts in studies.values())


def write_keys(folder: Path) -> dict[str, str]:
    """Fixed keys, so that two hubs make the same research objects; the environment that names them."""
    folder.mkdir(parents=True, exist_ok=True)
    purposes = {"deidentification": ("subject", "uid", "date", "object", "source"), "split": ("split",)}
    for name, keys in purposes.items():
        content = {"version": 1, "keys": {purpose: hashlib.sha256(f"test {purpose}".encode()).hexdigest() for purpose in keys}}
        path = folder / f"{name}.json"
        path.write_text(json.dumps(content))
        path.chmod(0o600)
    return {"HUB_DEIDENTIFICATION_KEYS_FILE": str(folder / "deidentification.json"), "HUB_SPLIT_KEYS_FILE": str(folder / "split.json")}
