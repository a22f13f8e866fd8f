"""The reader of identities agrees with pydicom on real files, and survives what nobody should send."""

import io
import struct
import time
import warnings
import zlib

import pytest
from hub_dicom import Header, UnreadableDataSet, header, read_header
from hypothesis import given
from hypothesis import strategies as st
from pydicom import dcmread
from pydicom.dataset import Dataset
from pydicom.filebase import DicomBytesIO
from pydicom.filewriter import write_dataset
from pydicom.sequence import Sequence
from support.dicom_files import RealFile, real_files

EXPLICIT = "1.2.840.10008.1.2.1"
IMPLICIT = "1.2.840.10008.1.2"
BIG = "1.2.840.10008.1.2.2"
DEFLATED = "1.2.840.10008.1.2.1.99"
JPEG = "1.2.840.10008.1.2.4.50"
SYNTAXES = (EXPLICIT, IMPLICIT, BIG, DEFLATED)
EXPECTED = Header("1.2.840.10008.5.1.4.1.1.2", "1.2.3", "1.2", "1.2.1", "CT", has_patient_id=True)
PIXEL_HEADER = struct.pack("<HH2sHL", 0x7FE0, 0x0010, b"OW", 0, 1000)


def _made() -> Dataset:
    reference = Dataset()
    reference.SOPInstanceUID = "1.2.9.9"  # levels down: not the instance's own
    reference.ReferencedSOPSequence = Sequence([Dataset(), Dataset()])
    made = Dataset()
    made.SOPClassUID = "1.2.840.10008.5.1.4.1.1.2"
    made.SOPInstanceUID = "1.2.3"
    made.Modality = "CT"
    made.ReferencedStudySequence = Sequence([reference])
    made.PatientID = "1"
    made.StudyInstanceUID = "1.2"
    made.SeriesInstanceUID = "1.2.1"
    made.PixelData = bytes(1000)
    made["PixelData"].VR = "OW"
    return made


def _encoded(made: Dataset, syntax: str, *, undefined: bool = False) -> bytes:
    for element in made.iterall():
        if element.VR == "SQ":
            element.is_undefined_length = undefined
            for item in element.value:
                item.is_undefined_length_sequence_item = undefined
    target = DicomBytesIO()
    target.is_implicit_VR = syntax == IMPLICIT
    target.is_little_endian = syntax != BIG
    write_dataset(target, made)
    return _deflated(target.getvalue()) if syntax == DEFLATED else target.getvalue()


def _deflated(content: bytes) -> bytes:
    deflater = zlib.compressobj(wbits=-zlib.MAX_WBITS)
    return deflater.compress(content) + deflater.flush()


def _header_or_reason(data_set: bytes, syntax: str) -> Header | str:
    try:
        return read_header(data_set, syntax)
    except UnreadableDataSet as error:
        return error.reason


def _reason(data_set: bytes, syntax: str = EXPLICIT) -> str:
    with pytest.raises(UnreadableDataSet) as unreadable:
        read_header(data_set, syntax)
    return unreadable.value.reason


@pytest.mark.parametrize("file", real_files(), ids=lambda file: file.path.name)
def test_it_says_what_pydicom_says(file: RealFile) -> None:
    with warnings.catch_warnings(action="ignore"):  # pydicom's, about the values of its own test files
        known = dcmread(file.path, stop_before_pixels=True)
        modality, patient_id = known.get("Modality"), known.get("PatientID")
    said = file.header
    assert (said.sop_class_uid, said.sop_instance_uid) == (known.SOPClassUID, known.SOPInstanceUID)
    assert (said.study_instance_uid, said.series_instance_uid) == (known.StudyInstanceUID, known.SeriesInstanceUID)
    assert (said.modality or "") == (modality or "")
    assert said.has_patient_id == bool(patient_id)


@pytest.mark.parametrize("syntax", SYNTAXES)
@pytest.mark.parametrize("undefined", [False, True])
def test_every_encoding_and_both_kinds_of_length(syntax: str, undefined: bool) -> None:
    encoded = _encoded(_made(), syntax, undefined=undefined)
    assert read_header(encoded, syntax) == EXPECTED
    stream = io.BytesIO(b"before" + encoded)
    stream.seek(6)
    assert read_header(stream, syntax) == EXPECTED


@pytest.mark.parametrize("syntax", SYNTAXES)
@pytest.mark.parametrize("undefined", [False, True])
def test_cut_off_anywhere_it_is_never_taken_for_whole(syntax: str, undefined: bool) -> None:
    made = _made()
    made.PixelData = bytes(20)
    encoded = _encoded(made, syntax, undefined=undefined)
    whole = read_header(encoded, syntax)
    for length in range(len(encoded)):
        found = _header_or_reason(encoded[:length], syntax)
        if isinstance(found, str):
            assert found in {"truncated", "empty"}, length
        else:
            # Between two top-level elements nothing tells the end from a cut; what is missing is missing.
            assert found != whole or length >= len(encoded) - 32


def test_another_syntax_than_announced_is_told() -> None:
    assert _reason(_encoded(_made(), IMPLICIT), EXPLICIT) == "not-the-transfer-syntax"
    assert _reason(_encoded(_made(), EXPLICIT), IMPLICIT) == "truncated"
    assert _reason(_encoded(_made(), BIG), EXPLICIT) in {"truncated", "not-the-transfer-syntax"}
    assert _reason(_encoded(_made(), EXPLICIT), DEFLATED) in {"malformed", "truncated"}
    assert _reason(bytes(128) + b"DICM" + _encoded(_made(), EXPLICIT), EXPLICIT) == "not-the-transfer-syntax"
    assert _reason(b"") == "empty"
    assert _reason(b"GET / HTTP/1.1\r\n\r\n") == "not-the-transfer-syntax"


def test_compressed_pixels_are_skipped_fragment_by_fragment() -> None:
    head = _encoded(_made(), EXPLICIT)[: -1000 - len(PIXEL_HEADER)]
    fragments = struct.pack("<HHL", 0xFFFE, 0xE000, 0) + (struct.pack("<HHL", 0xFFFE, 0xE000, 500) + bytes(500)) * 3
    start = struct.pack("<HH2sHL", 0x7FE0, 0x0010, b"OB", 0, 0xFFFFFFFF)
    end = struct.pack("<HHL", 0xFFFE, 0xE0DD, 0)
    assert read_header(head + start + fragments + end, JPEG) == EXPECTED
    assert _reason(head + start + fragments, JPEG) == "truncated"
    assert _reason(head + start + fragments[:-1], JPEG) == "truncated"


def _with_sequence(vr: bytes, items: bytes) -> bytes:
    """The made data set with a private sequence of undefined length in it."""
    encoded = _encoded(_made(), EXPLICIT)
    place = encoded.index(struct.pack("<HH2s", 0x0010, 0x0020, b"LO"))
    sequence = struct.pack("<HH2sHL", 0x0009, 0x1001, vr, 0, 0xFFFFFFFF) + items + struct.pack("<HHL", 0xFFFE, 0xE0DD, 0)
    return encoded[:place] + sequence + encoded[place:]


ITEM = struct.pack("<HHL", 0xFFFE, 0xE000, 0xFFFFFFFF)
ITEM_END = struct.pack("<HHL", 0xFFFE, 0xE00D, 0)


def test_a_un_of_undefined_length_is_an_implicit_sequence() -> None:
    # PS3.5 6.2.2, as written by software that does not know a private sequence. The length 0x5355 would be the VR US.
    element = struct.pack("<HHL", 0x0009, 0x1002, 0x5355) + bytes(0x5355)
    assert read_header(_with_sequence(b"UN", ITEM + element + ITEM_END), EXPLICIT) == EXPECTED


def test_an_item_that_its_sequence_ends_is_read_as_its_writer_meant() -> None:
    element = struct.pack("<HH2sH", 0x0009, 0x1002, b"US", 2) + b"\1\0"
    assert read_header(_with_sequence(b"SQ", ITEM + element + ITEM_END), EXPLICIT) == EXPECTED
    assert read_header(_with_sequence(b"SQ", ITEM + element), EXPLICIT) == EXPECTED
    assert _reason(_with_sequence(b"SQ", element)) == "malformed"


def test_padding_at_the_end_is_no_cut() -> None:
    encoded = _encoded(_made(), EXPLICIT)
    assert read_header(encoded + bytes(5), EXPLICIT) == EXPECTED
    assert _reason(encoded + b"\xfc\xff\xfc\xff") == "truncated"


@pytest.mark.parametrize("value", ["", "1.2..3", "1.2.3a", "../etc/passwd", "9" * 65, "1.2/3"])
def test_an_unusable_uid_is_none(value: str) -> None:
    made = _made()
    with warnings.catch_warnings(action="ignore"):
        made.StudyInstanceUID = value
        assert read_header(_encoded(made, EXPLICIT), EXPLICIT).study_instance_uid is None


def test_hostile_data_sets_cost_bounded_work(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(header, "MAXIMUM_ELEMENTS", 20_000)
    monkeypatch.setattr(header, "MAXIMUM_INFLATED_BYTES", 2**20)
    empty = struct.pack("<HH2sH", 0x0008, 0x0005, b"CS", 0)
    opened = struct.pack("<HH2sHL", 0x0008, 0x1140, b"SQ", 0, 0xFFFFFFFF) + struct.pack("<HHL", 0xFFFE, 0xE000, 0xFFFFFFFF)
    start = time.monotonic()
    assert _reason(empty * 1_000_000) == "too-large-to-read"
    assert _reason(opened * 500_000) in {"malformed", "too-large-to-read"}
    assert _reason(_deflated(empty + bytes(2**26)), DEFLATED) == "too-large-to-read"
    # Identity first, then too much of anything: it stands.
    assert read_header(_encoded(_made(), EXPLICIT) + empty * 1_000_000, EXPLICIT) == EXPECTED
    assert time.monotonic() - start < 10


@given(st.binary(max_size=400), st.sampled_from((*SYNTAXES, JPEG)))
def test_noise_is_unreadable_or_says_nothing_wrong(noise: bytes, syntax: str) -> None:
    found = _header_or_reason(noise, syntax)
    assert isinstance(found, str) or found.sop_class_uid is None or found.sop_class_uid.replace(".", "").isdigit()


@given(st.data())
def test_a_damaged_data_set_never_breaks_the_reader(data: st.DataObject) -> None:
    syntax = data.draw(st.sampled_from(SYNTAXES))
    encoded = bytearray(_encoded(_made(), syntax, undefined=data.draw(st.booleans())))
    for _ in range(data.draw(st.integers(1, 4))):
        encoded[data.draw(st.integers(0, len(encoded) - 1))] = data.draw(st.integers(0, 255))
    _header_or_reason(bytes(encoded), syntax)
