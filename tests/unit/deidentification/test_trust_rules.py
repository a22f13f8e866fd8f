"""What a trust's own rules hold back: with a reason, and without harm to the other instances of the study."""

import json
from typing import Any

import pytest
from hub_deidentification import unwanted
from hub_deidentification.acceptance import Refused
from hub_deidentification.encoding import read_instance
from hub_dicom import Trust, Trusts
from hub_dicom.synthetic import nhs_test_number
from pydicom.dataset import Dataset
from pydicom.sequence import Sequence
from pydicom.uid import ImplicitVRLittleEndian
from support.deidentified import TRUSTS, Answer, Zone, ct, encoded

PRIVATE = "1.2.840.113619.4.27"
MR = "1.2.840.10008.5.1.4.1.1.4"
PATTERNS: dict[str, Any] = {"test_patients": {}}


def trust(**rules: Any) -> Trust:
    (first, *_) = TRUSTS.trusts
    return Trust.model_validate(first.model_dump(mode="json") | rules)


def reason(content: bytes, **rules: Any) -> str | None:
    """What the rules alone say."""
    instance, one = read_instance(content), trust(**rules)
    try:
        unwanted.check_patient(instance, one)
        unwanted.check_kind(instance, one)
    except Refused as refusal:
        return refusal.reason
    return None


def run(files: list[bytes], *, variants: list[bytes] | None = None, **rules: Any) -> tuple[Answer, dict[str, str], bytes]:
    """A study of northgate under rules: the answer, the reason of each instance that the report names, and the report."""
    zone = Zone()
    zone.trusts = Trusts(trusts=(trust(**rules),))
    answer = zone.run(zone.receive("northgate", files, variants=variants))
    if answer.quarantined is None:
        return answer, {}, b""
    body = zone.store.get("identifiable", answer.quarantined.report.key)
    return answer, {entry["sop_instance_uid"]: entry["reason"] for entry in json.loads(body)["instances"]}, body


def image(number: int, **values: object) -> bytes:
    return encoded(ct(SOPInstanceUID=f"1.2.3.{number}", **values))


def other_id(number: str) -> Sequence:
    item = Dataset()
    item.PatientID = number
    return Sequence([item])


def test_without_rules_everything_is_wanted() -> None:
    for content in (
        image(1, PatientName="ZZZTEST"),
        image(2, PatientID=nhs_test_number(1)),
        image(3, Modality="XX"),
        image(4, SOPClassUID=MR),
    ):
        assert reason(content) is None


@pytest.mark.parametrize(
    "values",
    [
        {"PatientName": "ZZZTEST^X"},
        {"PatientName": "Müller^Test", "SpecificCharacterSet": "ISO_IR 100"},
        {"PatientName": "ﾔﾏﾀﾞ^ﾀﾛｳ=TEST^X", "SpecificCharacterSet": "ISO_IR 13"},
        {"PatientID": nhs_test_number(9)},
        {"OtherPatientIDsSequence": other_id(nhs_test_number(9))},
        {"OtherPatientIDs": ["1", nhs_test_number(9)]},
    ],
)
def test_a_test_patient_is_known_by_any_of_its_names_and_numbers(values: dict[str, object]) -> None:
    assert reason(image(1, **values), **PATTERNS) == "test-patient"
    assert reason(image(1), **PATTERNS) is None
    assert reason(encoded(ct(**values), ImplicitVRLittleEndian), **PATTERNS) == "test-patient"


def test_an_instance_that_names_nobody_is_no_test_patient() -> None:
    assert reason(image(1, PatientName=None, PatientID=None), **PATTERNS) is None


@pytest.mark.parametrize(
    ("modality", "held"), [("CT", False), ("DX ", False), ("MR", True), ("", True), (None, True), ("C", True), ("CT\\MR", True)]
)
def test_only_wanted_modalities(modality: str | None, held: bool) -> None:
    assert reason(image(1, Modality=modality), modalities=["CT", "DX"]) == ("modality-not-wanted" if held else None)


def test_sop_classes_that_are_not_wanted() -> None:
    content = image(1, SOPClassUID=MR)
    assert reason(content, quarantine_sop_classes=[MR]) == "sop-class-not-wanted"
    assert reason(content, refuse_sop_classes=[MR]) == "sop-class-not-wanted", "it was here before the rule"
    assert reason(image(1), quarantine_sop_classes=[MR]) is None


def test_a_private_class_has_its_own_reason_whatever_else_is_not_wanted() -> None:
    rules: dict[str, Any] = {"private_sop_classes": "quarantine", "modalities": ["DX"], "quarantine_sop_classes": [PRIVATE]}
    answer, reasons, _ = run([image(1, Modality="DX"), image(2, SOPClassUID=PRIVATE)], **rules)
    assert reasons == {"1.2.3.2": "private-sop-class"}
    assert answer.deidentified.instances == 1


def test_a_study_of_all_kinds_goes_on_with_what_is_wanted() -> None:
    files = [
        image(1),
        image(2),
        image(3, Modality="MR"),
        image(4, PatientName="ZZZTEST^WARD", PatientID=nhs_test_number(3)),
        image(5, PatientName="SOMEBODY^ELSE", SOPClassUID=PRIVATE),
    ]
    answer, reasons, report = run(files, modalities=["CT"], test_patients={}, private_sop_classes="quarantine")
    assert reasons == {"1.2.3.3": "modality-not-wanted", "1.2.3.4": "test-patient", "1.2.3.5": "private-sop-class"}
    assert answer.reasons == {"modality-not-wanted": 1, "test-patient": 1, "private-sop-class": 1}
    assert (answer.deidentified.instances, answer.deidentified.held_back) == (2, 3)
    assert answer.quarantined is not None
    assert (answer.quarantined.scope, answer.quarantined.stage) == ("instances", "deidentification")
    said = report + answer.quarantined.model_dump_json().encode()
    for identifier in ("ZZZ", "SOMEBODY", nhs_test_number(3), "LOCAL1", "MR"):
        assert identifier.encode() not in said


def test_without_the_rule_a_test_patient_in_a_study_holds_all_of_it_back() -> None:
    files = [image(1), image(2, PatientName="ZZZTEST^WARD", PatientID=nhs_test_number(3))]
    assert run(files)[0].reasons == {"conflicting-patients": 2}
    answer, reasons, _ = run(files, **PATTERNS)
    assert reasons == {"1.2.3.2": "test-patient"}
    assert answer.deidentified.instances == 1


def test_an_unwanted_instance_of_somebody_else_still_holds_the_study_back() -> None:
    answer, reasons, _ = run([image(1), image(2, Modality="MR", PatientID="LOCAL2")], modalities=["CT"])
    assert reasons == {"1.2.3.1": "conflicting-patients", "1.2.3.2": "modality-not-wanted"}
    assert answer.deidentified.instances == 0


def test_a_study_of_a_test_patient_alone_is_held_back_as_a_whole() -> None:
    answer, _, _ = run([image(1, PatientName="TEST^A"), image(2, PatientName="TEST^A")], **PATTERNS)
    assert (answer.deidentified.subject, answer.deidentified.instances, answer.reasons) == (None, 0, {"test-patient": 2})
    assert answer.quarantined is not None
    assert answer.quarantined.scope == "study"


def test_a_conflict_holds_the_later_content_back_and_by_rule_the_first_too() -> None:
    files, other = [image(1), image(2)], [image(1, PatientName="SOMEBODY^ELSE^2")]
    answer, _, _ = run(files, variants=other)
    assert (answer.reasons, answer.deidentified.instances, answer.deidentified.held_back) == ({"variant-conflict": 1}, 2, 0)
    answer, reasons, _ = run(files, variants=other, conflicts="hold-back")
    assert (answer.reasons, answer.deidentified.instances, answer.deidentified.held_back) == ({"variant-conflict": 2}, 1, 1)
    assert reasons == {"1.2.3.1": "variant-conflict"}
    copy = [image(1, PatientID="LOCAL1", AccessionNumber="COERCED")]
    assert run(files, variants=copy, conflicts="hold-back")[0].quarantined is None, "a copy is no conflict"
