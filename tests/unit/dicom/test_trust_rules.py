"""What a trust may say that it does not want, and whom its patterns take for a test patient."""

import time
from pathlib import Path
from typing import Any

import pytest
from hub_dicom import PatientPatterns, Trust, Trusts, UnusableTrusts
from hub_dicom.storage import is_private_sop_class, may_be_stored
from hub_dicom.synthetic import nhs_test_number
from hub_ingest.accepted import STORAGE_SOP_CLASSES, takes
from pydantic import ValidationError

CT = "1.2.840.10008.5.1.4.1.1.2"
PDF = "1.2.840.10008.5.1.4.1.1.104.1"
PRIVATE = "1.2.840.113619.4.27"
NEWER = "1.2.840.10008.5.1.4.1.1.9999"
FIND = "1.2.840.10008.5.1.4.1.2.2.1"
COMMITMENT = "1.2.840.10008.1.20.1"


def trust(**rules: Any) -> Trust:
    return Trust.model_validate(
        {"name": "a", "ae_titles": ["A"], "addresses": ["127.0.0.1/32"], "assigning_authority": "R", **rules},
    )


def test_without_rules_all_standard_classes_are_taken_and_no_private_one() -> None:
    plain = trust()
    assert all(takes(plain, uid) for uid in STORAGE_SOP_CLASSES)
    assert [takes(plain, uid) for uid in (PRIVATE, NEWER, FIND, COMMITMENT, "", "rubbish", "1.2.840.10008.1.1")] == [False] * 7
    assert (plain.modalities, plain.test_patients, plain.conflicts) == (None, None, "keep-first")


def test_refused_classes_are_not_taken_and_quarantined_ones_are() -> None:
    assert not takes(trust(refuse_sop_classes=[PDF]), PDF)
    assert takes(trust(refuse_sop_classes=[PDF]), CT)
    assert takes(trust(quarantine_sop_classes=[PDF]), PDF)
    lenient = trust(private_sop_classes="quarantine", refuse_sop_classes=["1.2.3.4"])
    assert [takes(lenient, uid) for uid in (PRIVATE, NEWER, CT)] == [True] * 3
    assert [takes(lenient, uid) for uid in ("1.2.3.4", FIND, COMMITMENT, "", "rubbish", "1.2.840.10008.9.9")] == [False] * 6
    assert takes(trust(quarantine_sop_classes=[PRIVATE]), PRIVATE), "one private class by name"
    assert not takes(trust(quarantine_sop_classes=[PRIVATE]), PRIVATE + ".1")


def test_what_can_be_stored() -> None:
    assert all(may_be_stored(uid) for uid in STORAGE_SOP_CLASSES)
    assert not any(may_be_stored(uid) for uid in (FIND, COMMITMENT, "1.2.840.10008.1.1", "1.2.840.10008.1.3.10", "1.2.840.10008.9.9", "x"))
    assert not any(is_private_sop_class(uid) for uid in ("", "x", "1.2.840.10008.1.2.1", FIND))


@pytest.mark.parametrize(
    ("rule", "said"),
    [
        (f"refuse_sop_classes: [{FIND}]", r"line 6: trusts\.0\.refuse_sop_classes: .*no storage SOP class"),
        ("quarantine_sop_classes: [CT]", r"line 6: trusts\.0\.quarantine_sop_classes: .*no storage SOP class"),
        (f"quarantine_sop_classes: [{COMMITMENT}]", r"no storage SOP class"),
        ("private_sop_classes: keep", r"trusts\.0\.private_sop_classes: .*'refuse' or 'quarantine'"),
        ("modalities: [ct]", r"'ct' is no modality: capital letters"),
        ("modalities: []", r"trusts\.0\.modalities: .*at least 1 item"),
        ("test_patients: {patient_ids: ['99*']}", r"line 6: trusts\.0\.test_patients\.patient_ids\.0: this would be real patients too"),
        ("test_patients: {patient_names: [TEST, '*']}", r"patient_names\.1: this would be real patients too"),
        ("test_patients: {patient_names: ['']}", r"patient_names\.0"),
        ("test_patients: {names: [TEST]}", r"trusts\.0\.test_patients\.names"),
        ("conflicts: refuse", r"'keep-first' or 'hold-back'"),
        (f"refuse_sop_classes: [{PDF}]\n    quarantine_sop_classes: [{PDF}]", r"to be refused and to be quarantined"),
    ],
)
def test_what_is_wrong_with_a_rule_is_said(tmp_path: Path, rule: str, said: str) -> None:
    path = tmp_path / "trusts.yaml"
    start = "trusts:\n  - name: northgate\n    ae_titles: [NORTHGATE]\n    addresses: [127.0.0.1/32]\n    assigning_authority: RNG\n"
    path.write_text(start)
    Trusts.load(path)
    path.write_text(f"{start}    {rule}\n")
    with pytest.raises(UnusableTrusts, match=said):
        Trusts.load(path)


def test_the_example_of_the_readme_is_valid(tmp_path: Path) -> None:
    readme = (Path(__file__).parents[3] / "services/ingest/README.md").read_text()
    path = tmp_path / "trusts.yaml"
    path.write_text(readme.split("```yaml\n", 1)[1].split("```", 1)[0])
    (northgate,) = Trusts.load(path).trusts
    assert northgate.refuse_sop_classes == (PDF,)
    assert northgate.modalities == ("CT", "CR", "DX")
    assert northgate.test_patients == PatientPatterns(), "it shows the defaults"


@pytest.mark.parametrize(
    "name",
    [
        "ZZZTEST^PATIENT",
        "zzz^x",
        "XXTESTPATIENT-ABCD^DONOTUSE",
        "TEST^ANNA",
        "SMITH^TEST",
        "Test Patient^One",
        "TEST  PATIENT",
        "TESTPATIENT^1",
        "PHANTOM^CT",
        "SMITH^JANE=TEST^X",
        " TEST ^",
    ],
)
def test_names_of_test_patients(name: str) -> None:
    assert PatientPatterns().match([], [name])


@pytest.mark.parametrize(
    "name", ["", "^", "TESTA^MARIA", "TESTER^ANN", "ATTEST^X", "SMITH^JANE", "ZZ^A", "CONTEST", "PHANTOMAS^F", "O'TEST^A"]
)
def test_names_of_real_patients(name: str) -> None:
    assert not PatientPatterns().match(["", "LOCAL1", "9434765919", "99912345", "99912345678"], [name])


def test_numbers_of_test_patients() -> None:
    number = nhs_test_number(17)
    for form in (number, f"{number[:3]} {number[3:6]} {number[6:]}", f"{number[:3]}-{number[3:6]}-{number[6:]}", f" {number} "):
        assert PatientPatterns().match(["LOCAL1", form], []), form
    own = PatientPatterns(patient_ids=("QA*1", "T-1"), patient_names=())
    assert [own.match([number], ["TEST"]) for number in ("qa-x1", "QA1", "T-1", "t1", "QA2", "T-12")] == [
        True,
        True,
        True,
        False,
        False,
        False,
    ]


def test_wild_cards_are_those_of_the_standard_and_nothing_else() -> None:
    def fits(pattern: str, value: str) -> bool:
        return PatientPatterns(patient_ids=(pattern,), patient_names=()).match([value], [])

    for pattern, value, expected in (
        ("abc", "ABC", True), ("abc*", "abc", True), ("*abc", "xxabc", True), ("a*b*c", "axxbxxc", True), ("a*b*c", "axxcxxb", False),
        ("abc?", "abc", False), ("abc?", "abcd", True), ("a?bc", "axbc", True), ("a.c", "abc", False), ("[abc]", "a", False),
        ("abc*xyz", "abcxyxyz", True), ("*abc*", "ab", False), ("a*bc", "abcbc", True),
    ):  # fmt: skip
        assert fits(pattern, value) is expected, (pattern, value)


def test_no_value_costs_more_than_its_length() -> None:
    patterns = PatientPatterns(patient_ids=("*a*a*a*a*a*a*a*a*a*a*a*a*a*b",) * 100, patient_names=("*a*a*a*a*a*a*a*a*b",) * 100)
    start = time.monotonic()
    assert not patterns.match(["a" * 10_000_000] * 3, ["a^" * 5_000_000])
    assert time.monotonic() - start < 5


def test_an_unusable_pattern_is_not_repeated() -> None:
    with pytest.raises(ValidationError, match="real patients") as error:
        PatientPatterns(patient_ids=("47*",))
    assert "47" not in error.value.errors()[0]["msg"]
