"""What needs no database: reading metadata and queries."""

import pytest
from hub_dicom.matching import MalformedCondition
from hub_indexing.levels import SERIES_TAGS, STUDY_TAGS, series_attributes, study_attributes
from hub_indexing.qido import Level, read_query
from hub_indexing.service import clean_line, load_metadata


def test_a_line_of_metadata_is_kept_as_it_is() -> None:
    assert clean_line('{"00081030": {"vr": "LO", "Value": ["Thörax \\ud83e\\udec0"]}}\n'.encode()) == {
        "00081030": {"vr": "LO", "Value": ["Thörax \U0001fac0"]}
    }


@pytest.mark.parametrize(
    ("line", "value"),
    [
        (b'{"00189087": {"vr": "FD", "Value": [NaN]}}', "NaN"),
        (b'{"00189087": {"vr": "FD", "Value": [Infinity]}}', "inf"),
        (b'{"00189087": {"vr": "FD", "Value": [-Infinity]}}', "-inf"),
        (b'{"00189087": {"vr": "LO", "Value": ["a\\u0000b"]}}', "ab"),
        (b'{"00189087": {"vr": "LO", "Value": ["a\\ud800b"]}}', "a\ufffdb"),
    ],
)
def test_what_postgresql_cannot_keep_becomes_what_it_can(line: bytes, value: str) -> None:
    assert clean_line(line)["00189087"]["Value"] == [value]


@pytest.mark.parametrize("line", [b"", b"[]", b"1", b'"text"', b"{"])
def test_a_line_that_is_no_object_is_an_error(line: bytes) -> None:
    with pytest.raises(ValueError):  # noqa: PT011 - json's own or ours
        clean_line(line)


def test_a_revision_without_metadata_has_no_data_sets() -> None:
    from hub_objectstore import MemoryObjectStore  # noqa: PLC0415 - beside its only use

    assert list(load_metadata(MemoryObjectStore(), None)) == []


def test_levels_share_only_what_both_have() -> None:
    assert {"00080201"} == STUDY_TAGS & SERIES_TAGS
    dataset = {tag: {"vr": "LO"} for tag in ("00100010", "00080060", "00080018")}
    assert (set(study_attributes(dataset)), set(series_attributes(dataset))) == ({"00100010"}, {"00080060"})


def test_a_query_knows_its_page() -> None:
    assert (read_query("studies", [], most=10).limit, read_query("studies", [], most=10).cut) == (10, True)
    asked = read_query("studies", [("limit", "3"), ("offset", "7")], most=10)
    assert (asked.limit, asked.offset, asked.cut) == (3, 7, False)
    assert read_query("studies", [("limit", "30")], most=10).cut


@pytest.mark.parametrize(
    ("level", "key", "supported"),
    [
        ("studies", "PatientName", True),
        ("studies", "ModalitiesInStudy", True),
        ("studies", "Modality", False),
        ("studies", "SOPInstanceUID", False),
        ("series", "StudyDate", True),
        ("series", "Modality", True),
        ("series", "Rows", False),
        ("instances", "Rows", True),
    ],
)
def test_a_key_belongs_to_a_level_and_those_above(level: Level, key: str, supported: bool) -> None:
    query = read_query(level, [(key, "")], most=10)
    assert (len(query.conditions), len(query.warnings)) == ((1, 0) if supported else (0, 1))


def test_parameters_of_content_negotiation_are_no_keys() -> None:
    assert read_query("studies", [("accept", "application/dicom+json"), ("charset", "utf-8")], most=10).conditions == ()
    with pytest.raises(MalformedCondition):
        read_query("studies", [("accepts", "x")], most=10)


def test_warnings_can_stand_in_a_header() -> None:
    for name in ("0009100é", "PatientName"):
        try:
            query = read_query("studies", [(name, "é")], most=10)
        except MalformedCondition:
            continue
        assert all(warning.isascii() and "\n" not in warning for warning in query.warnings)
