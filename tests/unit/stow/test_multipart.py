"""A body gives the same parts however it is cut, and a hostile one costs no memory."""

import itertools
from collections.abc import Iterable

import pytest
from hub_ingest.multipart import (
    MAXIMUM_HEADER_BYTES,
    MAXIMUM_PREAMBLE_BYTES,
    Malformed,
    MultipartReader,
    PartBegins,
    PartData,
    PartEnds,
    media_type,
)
from hypothesis import given
from hypothesis import strategies as st

BOUNDARY = "bound"
Part = tuple[dict[str, str], bytes]


def parse(chunks: Iterable[bytes], boundary: str = BOUNDARY) -> list[Part]:
    reader = MultipartReader(boundary)
    parts: list[Part] = []
    fields: dict[str, str] | None = None
    data = b""
    for chunk in chunks:
        for piece in reader.feed(chunk):
            match piece:
                case PartBegins():
                    assert fields is None
                    fields, data = dict(piece.fields), b""
                case PartData():
                    assert fields is not None
                    assert piece.data
                    data += piece.data
                case PartEnds():
                    assert fields is not None
                    parts.append((fields, data))
                    fields = None
    reader.close()
    assert fields is None
    return parts


def outcome(chunks: Iterable[bytes]) -> list[Part] | None:
    try:
        return parse(chunks)
    except Malformed:
        return None


def body(parts: Iterable[Part], preamble: bytes = b"", epilogue: bytes = b"", padding: bytes = b"") -> bytes:
    text = preamble + b"\r\n" if preamble else b""
    for fields, data in parts:
        lines = b"".join(f"{name}: {value}\r\n".encode() for name, value in fields.items())
        text += b"--bound" + padding + b"\r\n" + lines + b"\r\n" + data + b"\r\n"
    return text + b"--bound--" + epilogue


def cut(text: bytes, places: Iterable[int]) -> list[bytes]:
    marks = sorted({0, len(text), *(place % (len(text) + 1) for place in places)})
    return [text[a:b] for a, b in itertools.pairwise(marks)]


# Data that is full of what looks like a delimiter and is none.
tricky = st.lists(
    st.sampled_from([b"\r\n--boun", b"\r\n", b"--bound", b"\r", b"\n", b"-", b"--", b"\r\n-", b"x", b"\0\xff"]), max_size=8
).map(b"".join)
contents = st.one_of(tricky, st.binary(max_size=60)).filter(lambda data: b"\r\n--bound" not in b"\r\n" + data)
fields = st.dictionaries(st.sampled_from(["content-type", "content-location", "x-a"]), st.sampled_from(["application/dicom", "a b", "1"]))


@given(st.lists(st.tuples(fields, contents), min_size=1, max_size=4), st.lists(st.integers(0, 10_000), max_size=12), st.booleans())
def test_any_chunking_gives_the_same_parts(parts: list[Part], places: list[int], around: bool) -> None:
    text = body(parts, b"preamble", b"\r\nepilogue", b" \t") if around else body(parts)
    assert parse([text]) == parts
    assert parse(cut(text, places)) == parts
    assert parse(bytes([byte]) for byte in text) == parts


@given(
    st.lists(
        st.sampled_from([b"--bound", b"\r\n--bound", b"\r\n", b"a: b", b"--", b"-", b" ", b"\r", b"x", b"\r\n\r\n", b"\t"]), max_size=24
    ).map(b"".join),
    st.lists(st.integers(0, 10_000), max_size=12),
)
def test_a_hostile_body_is_the_same_however_it_is_cut(text: bytes, places: list[int]) -> None:
    expected = outcome([text])
    assert outcome(cut(text, places)) == expected
    assert outcome(bytes([byte]) for byte in text) == expected


@given(st.lists(st.tuples(fields, contents), min_size=1, max_size=3), st.integers(1, 10_000))
def test_a_body_that_is_cut_off_is_malformed_and_its_last_part_not_whole(parts: list[Part], missing: int) -> None:
    text = body(parts)
    text = text[: -1 - missing % len(text)]
    reader = MultipartReader(BOUNDARY)
    whole = sum(isinstance(piece, PartEnds) for piece in reader.feed(text))
    with pytest.raises(Malformed):
        reader.close()
    # Everything up to a delimiter is whole, and no more.
    assert whole == sum(text.startswith(body(parts[: number + 1])[:-2]) for number in range(len(parts)))


def test_a_part_may_have_no_fields_and_no_content() -> None:
    assert parse([b"--bound\r\n\r\n--bound\r\na: b\r\n\r\n--bound\r\n\r\n\r\n--bound--"]) == [({}, b""), ({"a": "b"}, b""), ({}, b"")]


def test_a_field_may_go_on_in_the_next_line() -> None:
    assert parse([b"--bound\r\nContent-Type: application/dicom;\r\n\ttransfer-syntax=1\r\n\r\nx\r\n--bound--"]) == [
        ({"content-type": "application/dicom; transfer-syntax=1"}, b"x")
    ]


@pytest.mark.parametrize(
    ("text", "why"),
    [
        (b"", "does not come"),
        (b"x" * 100, "does not come"),
        (b"x" * (MAXIMUM_PREAMBLE_BYTES + 100) + b"\r\n--bound--", "does not come"),
        (b"--bound\r\na: b\r\n\r\nsome", "cut off"),
        (b"--bound\r\na: b", "cut off"),
        (b"--boundary\r\na: b\r\n\r\nsome\r\n--bound--", "in its line"),
        (b"--bound" + b" " * 300 + b"\r\n\r\nx\r\n--bound--", "in its line"),
        (b"--bound\r\nno field\r\n\r\nx\r\n--bound--", "cannot be read"),
        (b"--bound\r\na b: c\r\n\r\nx\r\n--bound--", "cannot be read"),
        (b"--bound\r\na: b\r\nA: c\r\n\r\nx\r\n--bound--", "twice"),
        (b"--bound\r\na: " + b"x" * MAXIMUM_HEADER_BYTES + b"\r\n\r\nx\r\n--bound--", "bytes of header"),
    ],
)
def test_what_is_no_body_says_why(text: bytes, why: str) -> None:
    with pytest.raises(Malformed, match=why):
        parse([text])
    with pytest.raises(Malformed, match=why):
        parse(cut(text, range(0, len(text), 7)))


def test_too_many_parts_are_malformed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("hub_ingest.multipart.MAXIMUM_PARTS", 3)
    with pytest.raises(Malformed, match="more than 3 parts"):
        parse([body([({}, b"")] * 4)])


def test_a_boundary_may_be_as_long_as_orthancs() -> None:
    boundary = "702d051d-98d7-4b04-ab84-1ca00408731a-702d051d-98d7-4b04-ab84-1ca00408731a"
    assert parse([f"--{boundary}\r\n\r\nx\r\n--{boundary}--".encode()], boundary) == [({}, b"x")]


def test_nothing_is_kept_of_what_has_been_given_out() -> None:
    reader = MultipartReader(BOUNDARY)
    block = bytes(65_536)
    list(reader.feed(b"--bound\r\n\r\n"))
    for _ in range(100):
        assert sum(len(piece.data) for piece in reader.feed(block) if isinstance(piece, PartData)) >= len(block) - 16
        assert len(reader._buffer) < 32


@pytest.mark.parametrize("boundary", ["", "x" * 201, "ends with space ", "ä", 'quo"te', "line\nend"])
def test_what_cannot_be_a_boundary(boundary: str) -> None:
    with pytest.raises(Malformed):
        MultipartReader(boundary)


def test_a_media_type_and_its_parameters() -> None:
    assert media_type('Multipart/Related; TYPE="application/dicom" ;boundary="a b;c\\"d"; start=x') == (
        "multipart/related",
        {"type": "application/dicom", "boundary": 'a b;c"d', "start": "x"},
    )
    assert media_type("application/dicom;") == ("application/dicom", {})


@pytest.mark.parametrize("text", ["", "multipart", "a/b; c", "a/b; c=", 'a/b; c="open', "a/b, c/d", "a/b; c=1; c=2"])
def test_what_is_no_media_type(text: str) -> None:
    with pytest.raises(Malformed):
        media_type(text)
