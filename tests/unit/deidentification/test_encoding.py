"""Reading and writing agree with pydicom, and hostile bytes cost one instance."""

import io
import struct
import warnings
import zlib

import pytest
from hub_deidentification.acceptance import Refused
from hub_deidentification.encoding import EXPLICIT_LITTLE, MAX_DEPTH, Syntax, Unparseable, items_of, read_instance, write
from hub_deidentification.identity import ConflictingPatients, NoPatientId
from hub_dicom import file_meta
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydicom import dcmread
from pydicom.uid import UID
from support.deidentified import ct, encoded, run
from support.planted import kept_syntaxes, planted_study

CT = "1.2.840.10008.5.1.4.1.1.2"


def explicit(body: bytes) -> bytes:
    return file_meta(CT, "1.2.3", EXPLICIT_LITTLE) + body


def padded(value: object) -> object:
    return value + b"\0" * (len(value) % 2) if isinstance(value, bytes) else value


@pytest.mark.parametrize("syntax", list(kept_syntaxes()), ids=lambda uid: uid.name)
def test_what_is_read_is_what_is_written(syntax: UID) -> None:
    content = planted_study(1, instances=1, transfer_syntax=syntax).files[0].content
    instance = read_instance(content)
    for tag, element in list(instance.root.items()):
        if element.vr == "SQ" or tag == 0x00082228:
            try:
                element.items = items_of(element, little=instance.syntax.little)
            except Unparseable:
                del instance.root[tag]  # little endian in UN, in big endian
                continue
            element.vr = "SQ"
            for item in element.items:
                for nested in [number for number, found in item.items() if found.vr in {"SQ", "UN"}]:
                    del item[nested]
    written = file_meta(CT, "1.2.3", instance.syntax.uid) + write(instance.root, instance.syntax)
    ours, theirs = dcmread(io.BytesIO(written)), dcmread(io.BytesIO(content))
    assert set(ours.keys()) <= set(theirs.keys())
    assert set(theirs.keys()) - set(ours.keys()) <= {0x00082228}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # pydicom meets the planted elements that nobody knows
        for kept in ours:
            if kept.VR != "SQ":
                assert padded(kept.value) == padded(theirs[kept.tag].value)
        assert ours.PixelData == theirs.PixelData


@pytest.mark.parametrize(
    "body",
    [
        b"\x10\0\x10\0PN\x20\0QUILL",
        b"\x10\0\x10\0ZZ\x04\0QUIL",
        b"\x10\0\x10\0PN\x04\0QUIL" * 2,
        b"\x10\0\x10",
        b"\xfe\xff\xdd\xe0\0\0\0\0",
        b"\x08\0\x40\x11SQ\0\0\xff\xff\xff\xff\xfe\xff\0\xe0\xff\xff\xff\xff",
        b"\x08\0\x40\x11SQ\0\0\xff\xff\xff\xff\xfe\xff\0\xe0\xff\0\0\0",
        b"\x08\0\x40\x11UT\0\0\xff\xff\xff\xff",
        b"\xe0\x7f\x10\0OB\0\0\xff\xff\xff\xff\xfe\xff\0\xe0\x10\0\0\0abc",
        b"\xe0\x7f\x10\0OB\0\0\xff\xff\xff\xffabcdefgh",
        b"\x10\0\x10\0PN",
    ],
)
def test_what_cannot_be_read_is_refused(body: bytes) -> None:
    with pytest.raises(Unparseable):
        read_instance(explicit(body))


def test_nesting_has_a_limit() -> None:
    opened = b"\x08\0\x18\x22SQ\0\0\xff\xff\xff\xff\xfe\xff\0\xe0\xff\xff\xff\xff"
    closed = b"\xfe\xff\x0d\xe0\0\0\0\0\xfe\xff\xdd\xe0\0\0\0\0"
    read_instance(explicit(opened * MAX_DEPTH + closed * MAX_DEPTH))
    for depth in (MAX_DEPTH + 1, 50_000):
        with pytest.raises(Unparseable):
            read_instance(explicit(opened * depth + closed * depth))


def test_nesting_in_defined_lengths_has_the_same_limit() -> None:
    body = b""
    for _ in range(MAX_DEPTH + 2):
        item = b"\xfe\xff\0\xe0" + struct.pack("<L", len(body)) + body
        body = b"\x08\0\x18\x22SQ\0\0" + struct.pack("<L", len(item)) + item
    content = encoded(ct())
    end_of_meta = content.index(b"\x08\0\x05\0CS")
    with pytest.raises(Unparseable):
        run(content[:end_of_meta] + body + content[end_of_meta:])


def test_inflation_has_a_limit() -> None:
    deflater = zlib.compressobj(9, zlib.DEFLATED, -15)
    body = b"".join(deflater.compress(bytes(2**20)) for _ in range(200)) + deflater.flush()
    with pytest.raises(Unparseable, match="inflates"):
        read_instance(file_meta(CT, "1.2.3", "1.2.840.10008.1.2.1.99") + body)


def test_an_unread_sequence_is_not_written() -> None:
    instance = read_instance(explicit(b"\x08\0\x18\x22SQ\0\0\0\0\0\0"))
    with pytest.raises(Unparseable):
        write(instance.root, Syntax.of(EXPLICIT_LITTLE))


def test_trailing_zeros_are_padding() -> None:
    assert len(read_instance(explicit(b"\x10\0\x10\0PN\x04\0QUIL" + bytes(4))).root) == 1


SAMPLES = [planted_study(3, instances=1, transfer_syntax=syntax).files[0].content for syntax in kept_syntaxes()]


@settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.data())
def test_damaged_files_are_cleaned_or_refused_and_nothing_else(data: st.DataObject) -> None:
    content = bytearray(data.draw(st.sampled_from(SAMPLES)))
    for _ in range(data.draw(st.integers(1, 6))):
        place = data.draw(st.integers(132, len(content) - 1))
        kind = data.draw(st.integers(0, 2))
        if kind == 0:
            content[place] = data.draw(st.integers(0, 255))
        elif kind == 1:
            del content[place : place + data.draw(st.integers(1, 40))]
        else:
            content[place:place] = data.draw(st.binary(min_size=1, max_size=20))
        if len(content) < 200:
            break
    try:
        file = run(bytes(content)).file
    except (Refused, Unparseable, NoPatientId, ConflictingPatients):
        return
    assert file[:132] == bytes(128) + b"DICM"
    read_instance(file)
