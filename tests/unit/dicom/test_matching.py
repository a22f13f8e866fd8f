"""What a key asks for, and the SQL made of it. Whether the SQL finds the right rows, the tests of QIDO-RS say on a real PostgreSQL."""

from decimal import Decimal

import pytest
from hub_dicom.matching import (
    Column,
    Condition,
    MalformedCondition,
    UnsupportedCondition,
    keyword_of,
    predicate,
    read_attribute,
    read_condition,
    split_condition,
)
from hypothesis import given
from hypothesis import strategies as st


@pytest.mark.parametrize(
    ("name", "path", "vr"),
    [
        ("StudyDate", ("00080020",), "DA"),
        ("00080020", ("00080020",), "DA"),
        ("0020000d", ("0020000D",), "UI"),
        ("RequestAttributesSequence.ScheduledProcedureStepID", ("00400275", "00400009"), "SH"),
        ("00400275.ScheduledProcedureStepID", ("00400275", "00400009"), "SH"),
    ],
)
def test_an_attribute_is_named_by_keyword_or_tag(name: str, path: tuple[str, ...], vr: str) -> None:
    attribute = read_attribute(name)
    assert (attribute.path, attribute.vr, attribute.tag) == (path, vr, path[0])
    assert keyword_of("00080020") == "StudyDate"


@pytest.mark.parametrize(
    "name", ["", "studydate", "StudyDat", "0008002", "000800200", "StudyDate.Modality", "RequestAttributesSequence.", "."]
)
def test_what_names_no_attribute_is_malformed(name: str) -> None:
    with pytest.raises(MalformedCondition):
        read_attribute(name)


@pytest.mark.parametrize("name", ["00091001", "FFFFFFFF", "12345678", "RequestAttributesSequence.00091001"])
def test_private_and_unknown_tags_are_not_supported(name: str) -> None:
    with pytest.raises(UnsupportedCondition):
        read_attribute(name)


@pytest.mark.parametrize(
    ("name", "value", "kind", "values"),
    [
        ("Modality", "CT", "equal", ("CT",)),
        ("Modality", " CT ", "equal", ("CT",)),
        ("Modality", "", "universal", ()),
        ("Modality", "  ", "universal", ()),
        ("Modality", "*", "universal", ()),
        ("Modality", "**", "universal", ()),
        ("Modality", "C?", "pattern", ("C?",)),
        ("PatientName", "a*", "pattern", ("a*",)),
        ("PatientComments", " leading counts ", "equal", (" leading counts",)),
        ("StudyInstanceUID", "1.2", "equal", ("1.2",)),
        ("StudyInstanceUID", "1.2,1.3,1.2", "equal", ("1.2", "1.3")),
        ("StudyInstanceUID", "1.2\\1.3", "equal", ("1.2", "1.3")),
        ("StudyDate", "20200131", "equal", ("20200131",)),
        ("StudyDate", "2020.01.31", "equal", ("20200131",)),
        ("StudyDate", "20200101-20200131", "range", ("20200101", "20200131")),
        ("StudyDate", "20200101 - 20200131", "range", ("20200101", "20200131")),
        ("StudyDate", "20200101-", "range", ("20200101", "")),
        ("StudyDate", "-20200131", "range", ("", "20200131")),
        ("StudyTime", "10", "equal", ("100000000000",)),
        ("StudyTime", "10:30:15.5", "equal", ("103015500000",)),
        ("StudyTime", "10-1030", "range", ("100000000000", "103099999999")),
        ("SeriesNumber", "007", "equal", ("7",)),
        ("SliceThickness", "1.50", "equal", ("1.50",)),
        ("PatientAge", "045Y", "equal", ("045Y",)),
        ("AcquisitionDateTime", "20200131", "equal", ("20200131",)),
        ("SmallestImagePixelValue", "-3", "equal", ("-3",)),
    ],
)
def test_a_value_asks_for_a_kind_of_matching(name: str, value: str, kind: str, values: tuple[str, ...]) -> None:
    condition = read_condition(name, value)
    assert (condition.kind, condition.values) == (kind, values)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("StudyDate", "2020"),
        ("StudyDate", "20200230"),
        ("StudyDate", "00000000"),
        ("StudyDate", "20200101-20200102-20200103"),
        ("StudyDate", "-"),
        ("StudyDate", "20210101-20200101"),
        ("StudyDate", "2020*"),
        ("StudyTime", "24"),
        ("StudyTime", "1060"),
        ("StudyTime", "1130-10"),
        ("StudyTime", "10.5"),
        ("StudyInstanceUID", "1.2.*"),
        ("StudyInstanceUID", "1.2,"),
        ("StudyInstanceUID", "1" * 65),
        ("SeriesNumber", "one"),
        ("SeriesNumber", "nan"),
        ("SeriesNumber", "inf"),
        ("SeriesNumber", "1e999999999"),
        ("Modality", "CT\\MR"),
        ("Modality", "C\0"),
        ("StudyDescription", "x" * 1025),
    ],
)
def test_a_value_that_the_vr_does_not_allow_is_malformed_and_the_text_names_the_key(name: str, value: str) -> None:
    with pytest.raises(MalformedCondition, match=name):
        read_condition(name, value)


@pytest.mark.parametrize(
    ("name", "value"),
    [("PixelData", "x"), ("ReferencedStudySequence", "x"), ("AcquisitionDateTime", "2020-2021"), ("FrameIncrementPointer", "x")],
)
def test_what_is_not_matched_here_is_not_supported(name: str, value: str) -> None:
    with pytest.raises(UnsupportedCondition, match=name):
        read_condition(name, value)


def test_a_condition_is_keyword_equals_value() -> None:
    assert split_condition("Modality=CT") == ("Modality", "CT")
    assert split_condition(" StudyDescription =a=b ") == ("StudyDescription", "a=b ")
    for text in ("Modality", "", "=CT", " =CT"):
        with pytest.raises(MalformedCondition, match="KEYWORD=VALUE"):
            split_condition(text)


@pytest.mark.parametrize(
    ("value", "pattern"), [("C*", "C%"), ("?R", "_R"), ("50%_*", "50\\%\\_%"), ("*'; DROP TABLE studies --", "%'; DROP TABLE studies --")]
)
def test_wild_cards_become_like_and_its_own_are_escaped(value: str, pattern: str) -> None:
    made = predicate(read_condition("StudyDescription", value), "i.attributes")
    assert made.parameters[-1] == pattern
    assert " LIKE %s" in made.sql


def test_names_match_without_case() -> None:
    assert " ILIKE %s" in predicate(read_condition("PatientName", "a*"), "a").sql
    assert "lower" in predicate(read_condition("PatientName", "a"), "a").sql
    assert predicate(read_condition("PatientName", "a"), "a").parameters == ('$."00100010".Value[*].*', "a")


def test_a_universal_key_is_true() -> None:
    assert predicate(read_condition("Modality", ""), "a").sql == "true"


def test_a_column_is_used_instead_of_the_attributes() -> None:
    columns = {"00080060": Column("m.modality", "EXISTS (SELECT 1 FROM m WHERE {})")}
    made = predicate(read_condition("Modality", "CT"), "a", columns)
    assert (made.sql, made.parameters) == ("EXISTS (SELECT 1 FROM m WHERE btrim(m.modality) = %s)", ("CT",))
    nested = predicate(Condition(read_attribute("RequestAttributesSequence.RequestedProcedureID"), "equal", ("1",)), "a", columns)
    assert nested.parameters[0] == '$."00400275".Value[*]."00401001".Value[*]'


def test_numbers_compare_as_numbers() -> None:
    assert predicate(read_condition("SliceThickness", "1.50"), "a").parameters[-1] == Decimal("1.50")


@given(
    st.sampled_from(
        ["Modality", "StudyDate", "StudyTime", "StudyInstanceUID", "SeriesNumber", "PatientName", "PatientComments", "PatientID"]
    ),
    st.text(max_size=40),
)
def test_no_value_reaches_the_text_of_the_sql(name: str, value: str) -> None:
    """The text of the SQL is one of a few, whatever is asked: values are parameters."""
    try:
        condition = read_condition(name, value)
    except MalformedCondition:
        return
    made = predicate(condition, "i.attributes")
    shapes = set()
    for sample in ("CT", "C*", "20200101", "20200101-", "-20200101", "20200101-20200102", "10", "10-", "-10", "10-11", "1.2", "1", ""):
        try:
            shapes.add(predicate(read_condition(name, sample), "i.attributes").sql)
        except MalformedCondition:
            continue
    assert made.sql in shapes
    assert made.sql.count("%s") == len(made.parameters)
