"""Promise 4: the same person has the same subject everywhere, and two persons never share one."""

import io
import re
from itertools import pairwise

import pytest
from hub_deidentification.encoding import read_instance
from hub_deidentification.identity import (
    PURPOSES,
    ConflictingPatients,
    Identity,
    NoPatientId,
    Pseudonyms,
    identity_of,
    nhs_number,
    one_person,
)
from hub_dicom.synthetic import nhs_test_number
from hub_runtime.keyring import KeyRing
from hypothesis import given
from hypothesis import strategies as st
from pydicom import dcmread
from pydicom.dataset import Dataset
from pydicom.sequence import Sequence
from support.deidentified import ct, encoded, pseudonyms, run, trust

NHS = "9434765919"


def identity(at: str, **values: object) -> Identity:
    return identity_of(read_instance(encoded(ct(**values))), trust(at))


def subject(at: str, **values: object) -> str:
    return pseudonyms().subject(identity(at, **values))


def other_ids(*pairs: tuple[str, str]) -> Sequence:
    items = []
    for number, issuer in pairs:
        item = Dataset()
        item.PatientID, item.IssuerOfPatientID = number, issuer
        items.append(item)
    return Sequence(items)


@pytest.mark.parametrize("text", [NHS, "943 476 5919", "943-476-5919", " 9434765919 ", "9990000026"])
def test_valid_nhs_numbers(text: str) -> None:
    assert nhs_number(text) == re.sub(r"[ -]", "", text)


@pytest.mark.parametrize(
    "text",
    ["9434765918", "1111111111", "0000000000", "943476591", "94347659190", "943476591X", "", "943.476.5919", "٩٤٣٤٧٦٥٩١٩"],
)
def test_invalid_nhs_numbers(text: str) -> None:
    assert nhs_number(text) is None


@given(st.integers(0, 99_999))
def test_made_numbers_are_valid_and_one_wrong_digit_is_noticed(number: int) -> None:
    made = nhs_test_number(number)
    assert nhs_number(made) == made
    assert nhs_number(made[:3] + str((int(made[3]) + 1) % 10) + made[4:]) is None


def test_one_person_at_two_trusts_is_one_subject() -> None:
    here = subject("northgate", PatientID=NHS, IssuerOfPatientID="NHS")
    there = subject("eastvale", PatientID="E-17", OtherPatientIDsSequence=other_ids(("X1", "EVL"), ("943 476 5919", "NHS")))
    assert here == there


def test_the_same_local_number_at_two_trusts_is_two_subjects() -> None:
    assert subject("northgate", PatientID="17") != subject("southmere", PatientID="17")


def test_the_same_issuer_and_number_is_one_subject_wherever_it_is_sent_from() -> None:
    assert subject("northgate", PatientID="17", IssuerOfPatientID="SMR") == subject("southmere", PatientID="17")


@pytest.mark.parametrize(
    ("at", "values"),
    [
        ("northgate", {"PatientID": NHS}),
        ("northgate", {"PatientID": NHS, "IssuerOfPatientID": "NGT"}),
        ("southmere", {"PatientID": NHS, "IssuerOfPatientID": "NHS"}),
        ("northgate", {"PatientID": "17", "OtherPatientIDsSequence": [(NHS, "NHS")]}),
        ("eastvale", {"PatientID": NHS, "IssuerOfPatientID": "NHS"}),
        ("eastvale", {"PatientID": "17", "OtherPatientIDsSequence": [(NHS, "EVL")]}),
    ],
)
def test_ten_digits_elsewhere_are_a_local_number(at: str, values: dict[str, object]) -> None:
    pairs = values.get("OtherPatientIDsSequence")
    if isinstance(pairs, list):
        values = values | {"OtherPatientIDsSequence": other_ids(*pairs)}
    assert identity(at, **values).national is None


def test_a_placeholder_in_the_national_field_joins_nobody_across_trusts() -> None:
    found = identity("northgate", PatientID="9999999999", IssuerOfPatientID="NHS")
    assert found == Identity(None, ("NGT", "9999999999"))


@pytest.mark.parametrize("value", ["", "  ", None])
def test_without_a_number_there_is_no_subject(value: str | None) -> None:
    with pytest.raises(NoPatientId):
        identity("southmere", PatientID=value)


def test_two_national_numbers_in_one_instance_contradict_each_other() -> None:
    with pytest.raises(ConflictingPatients):
        identity("eastvale", OtherPatientIDsSequence=other_ids((NHS, "NHS"), (nhs_test_number(5), "NHS")))


def test_who_is_one_person() -> None:
    local, national = ("EVL", "17"), "9434765919"
    assert one_person([Identity(None, local), Identity(None, local)]) == Identity(None, local)
    assert one_person([Identity(None, local), Identity(national, local)]).national == national
    for conflict in (
        [Identity(None, local), Identity(None, ("EVL", "18"))],
        [Identity(national, local), Identity(None, ("EVL", "18"))],
        [Identity(national, local), Identity(nhs_test_number(1), local)],
    ):
        with pytest.raises(ConflictingPatients):
            one_person(conflict)


def test_a_subject_is_letters_and_digits_and_depends_on_the_key() -> None:
    person = Identity(NHS, None)
    assert re.fullmatch(r"Covid[0-9a-f]{20}", pseudonyms().subject(person))
    assert Pseudonyms(KeyRing.generate(PURPOSES)).subject(person) != pseudonyms().subject(person)


def test_a_national_and_a_local_number_of_the_same_digits_differ() -> None:
    assert pseudonyms().subject(Identity(NHS, None)) != pseudonyms().subject(Identity(None, ("nhs-number", NHS)))


@given(st.text(min_size=1, max_size=30))
def test_dates_move_thirty_days_to_ten_years_back(subject: str) -> None:
    assert -3650 <= pseudonyms().shift_days(subject) <= -30


def test_shifts_differ() -> None:
    shifts = [pseudonyms().shift_days(f"Covid{number}") for number in range(200)]
    assert len(set(shifts)) > 180


@given(st.from_regex(r"1\.2\.[0-9]{1,20}(\.[1-9][0-9]{0,9}){0,3}", fullmatch=True))
def test_uids(uid: str) -> None:
    found = pseudonyms().uid(uid)
    assert re.fullmatch(r"2\.25\.[1-9][0-9]{0,38}", found)
    assert found == pseudonyms().uid(uid) != pseudonyms().uid(uid + ".1")


@pytest.mark.parametrize("uid", ["1.2.840.10008.5.1.4.1.1.2", "1.2.840.10008.1.2.1", "1.2.840.10008.1.4.1.1", ""])
def test_registered_uids_stand_for_themselves(uid: str) -> None:
    assert pseudonyms().uid(uid) == uid


def test_instances_under_dicoms_own_root_are_replaced() -> None:
    assert pseudonyms().uid("1.2.840.10008.5.1.4.1.1.2.20260101").startswith("2.25.")


def test_sources_are_ten_characters_and_differ() -> None:
    sources = [pseudonyms().source(name) for name in ("northgate", "southmere", "eastvale")]
    assert all(re.fullmatch("[a-z0-9]{10}", source) for source in sources)
    assert all(one != other for one, other in pairwise(sorted(sources)))


def test_an_identity_does_not_show_its_numbers() -> None:
    assert NHS not in repr(Identity(NHS, ("EVL", "17")))


def test_patient_id_and_name_of_the_result_are_the_subject() -> None:
    content = encoded(ct(PatientID=NHS, IssuerOfPatientID="NHS"))
    result = dcmread(io.BytesIO(run(content, at="northgate").file))
    assert result.PatientID == str(result.PatientName) == pseudonyms().subject(Identity(NHS, None))
    assert "IssuerOfPatientID" not in result
